//! What the demo verifies of UDP streams.

use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use super::checks::{Checked, deadline, milliseconds, percentiles};
use super::dns;
use super::stage::Stage;
use crate::client::{Client, UdpError, UdpStream};
use crate::lifecycle::{Deadline, clock};

pub(super) fn probe(stage: &Stage) -> Checked {
    let probe = stage.client_as(&stage.client)?.probe_udp()?;
    Ok(milliseconds(probe.total()))
}

/// Bytes of an echoed datagram: about what a game, a call or a name server sends.
const SIZE: usize = 200;

pub(super) fn round_trips(stage: &Stage) -> Checked {
    let stream = open(&stage.client_as(&stage.client)?, stage.destinations.udp_echo.port())?;
    percentiles(|round| {
        let mut sent = [0x5a; SIZE];
        for (to, from) in sent.iter_mut().zip(round.to_be_bytes()) {
            *to = from;
        }
        stream.send(&sent)?;
        if receive(&stream, deadline())? == sent { Ok(()) } else { Err(CHANGED.into()) }
    })
}

pub(super) fn largest(stage: &Stage) -> Checked {
    let stream = open(&stage.client_as(&stage.client)?, stage.destinations.udp_echo.port())?;
    let start = clock::now();
    let sent: Vec<u8> = (0..UdpStream::MAX).map(|at| (at % 251) as u8).collect();
    stream.send(&sent)?;
    let received = receive(&stream, deadline())?;
    let took = clock::now().duration_since(start);
    if received == sent { Ok(milliseconds(took)) } else { Err(CHANGED.into()) }
}

const CHANGED: &str = "the echo came changed";

/// A query as a resolver sends it: again when no answer comes.
pub(super) fn name_lookup(stage: &Stage) -> Checked {
    const TRIES: u16 = 5;
    let stream = open(&stage.client_as(&stage.client)?, stage.destinations.dns.port())?;
    let start = clock::now();
    for id in 1..=TRIES {
        stream.send(&dns::query(id, dns::NAME))?;
        let answer = match receive(&stream, Deadline::after("the answer", AGAIN)) {
            Ok(answer) => answer,
            Err(error) if is_timeout(&*error) => continue,
            Err(error) => return Err(error),
        };
        return match dns::address(id, &answer) {
            Some(dns::ADDRESS) => Ok(milliseconds(clock::now().duration_since(start))),
            Some(other) => Err(format!("the answer was {other}").into()),
            None => Err("the answer has no address".into()),
        };
    }
    Err("the name server does not answer".into())
}

/// How long a resolver waits before it asks again.
const AGAIN: Duration = Duration::from_secs(4);

fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::TimedOut)
}

/// RFC 5246, section 7.2.
const UNKNOWN_CA: u8 = 48;

pub(super) fn other_authority(stage: &Stage) -> Checked {
    match stage.client_as(&stage.stranger)?.probe_udp() {
        Ok(_) => Err("the agent took it".into()),
        Err(UdpError::Handshake(_, error)) if error.alert() == Some(UNKNOWN_CA) => {
            Ok("UnknownCA".to_owned())
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn denied_destination(stage: &Stage) -> Checked {
    let client = stage.client_as(&stage.client)?;
    let port = stage.forbidden_udp.local_addr()?.port();
    // A name, and the rule denies an address: it only shows after resolving.
    let stream = client.udp("localhost", port)?;
    stream.send(b"knock")?;
    if stream.recv(&mut [0; 1], Some(deadline()))?.is_some() {
        return Err("a datagram came through".into());
    }
    match stage.forbidden_udp.recv(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Ok("ended without a datagram".to_owned())
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err("the agent sent it a datagram".into()),
    }
}

fn open(client: &Client, port: u16) -> Result<UdpStream, Box<dyn Error>> {
    Ok(client.udp("127.0.0.1", port)?)
}

fn receive(stream: &UdpStream, deadline: Deadline) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut buffer = vec![0; UdpStream::MAX];
    let size = stream.recv(&mut buffer, Some(deadline))?.ok_or("the agent ended the session")?;
    buffer.truncate(size);
    Ok(buffer)
}
