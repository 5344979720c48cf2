//! What the demo verifies. Each check is a fact about the agent that could be false.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::datagrams;
use super::destinations::{BULK, Blocks, PAGE, summary};
use super::stage::Stage;
use crate::client::{Client, OpenError};
use crate::http::{self, Connection};
use crate::lifecycle::{Deadline, Stop, clock, threads};
use crate::net::{self, Conn, Event, Sink, Source};
use crate::tls::{self, HandshakeError, SERVER_NAME, TlsStream};
use crate::wire::header;

/// What was measured, or what is wrong.
pub(super) type Checked = Result<String, Box<dyn Error>>;

/// One check.
pub(super) type Check = fn(&Stage) -> Checked;

/// The checks in their order, each with the words for its row.
pub(super) const CHECKS: [(&str, Check); 20] = [
    ("a probe is answered", probe),
    ("the HTTP API says what the agent is", info),
    ("a page through a stream is the page", page),
    ("echo, 64 bytes, 1,000 round trips", round_trips),
    ("256 MiB up, CRC-32 compared", bulk_up),
    ("256 MiB down, CRC-32 compared", bulk_down),
    ("half-close: the answer comes after our end", half_close),
    ("200 new connections, full handshakes", full_handshakes),
    ("200 new connections, resumed sessions", resumed_handshakes),
    ("the older 274-byte header is understood", legacy_header),
    ("a client without a certificate is refused", no_certificate),
    ("a client of another authority is refused", other_authority),
    ("an agent of another authority is refused", other_agent),
    ("a denied destination is never dialled", denied_destination),
    ("UDP: a probe is answered", datagrams::probe),
    ("UDP: echo, 200 bytes, 1,000 round trips", datagrams::round_trips),
    ("UDP: the largest datagram, 16,384 bytes", datagrams::largest),
    ("UDP: a DNS query gets its answer", datagrams::name_lookup),
    ("UDP: a client of another authority is refused", datagrams::other_authority),
    ("UDP: a denied destination is sent nothing", datagrams::denied_destination),
];

/// The limit of every exchange but bulk. Loopback needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The limit of a bulk transfer: 256 MiB at 2 MB/s.
const BULK_PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn deadline() -> Deadline {
    Deadline::after("the check", PATIENCE)
}

fn probe(stage: &Stage) -> Checked {
    let probe = stage.client_as(&stage.client)?.probe()?;
    Ok(milliseconds(probe.total()))
}

fn info(stage: &Stage) -> Checked {
    let info = stage.client_as(&stage.client)?.info()?;
    match info.supports_tcp_stream {
        Some(true) if info.supports_udp_stream == Some(true) => {
            Ok(info.software.unwrap_or(info.version))
        }
        _ => Err("it does not say that it carries streams over TCP and UDP".into()),
    }
}

fn page(stage: &Stage) -> Checked {
    let client = stage.client_as(&stage.client)?;
    let start = clock::now();
    let mut stream = open(&client, stage.destinations.page.port())?;
    let answer = http::get(&mut stream, "demo", "/", 2 * PAGE.len(), deadline())?;
    let took = clock::now().duration_since(start);
    match answer.status {
        200 if answer.body == PAGE.as_bytes() => Ok(milliseconds(took)),
        200 => Err("the page came changed".into()),
        status => Err(format!("the page came with status {status}").into()),
    }
}

fn round_trips(stage: &Stage) -> Checked {
    let client = stage.client_as(&stage.client)?;
    let mut stream = open(&client, stage.destinations.echo.port())?;
    let measured = percentiles(|round| exchange(&mut stream, round));
    stream.close(Duration::ZERO);
    measured
}

/// The times of 1,000 round trips, each with a number of its own.
pub(super) fn percentiles(
    mut round_trip: impl FnMut(u32) -> Result<(), Box<dyn Error>>,
) -> Checked {
    let mut times = Vec::new();
    for round in 0..1000 {
        let start = clock::now();
        round_trip(round)?;
        times.push(clock::now().duration_since(start));
    }
    times.sort_unstable();
    let at = |place: usize| short(times.get(place).copied().unwrap_or_default());
    Ok(format!("p50 {}, p99 {}", at(500), at(990)))
}

/// In microseconds, or in milliseconds where those would need five digits.
fn short(time: Duration) -> String {
    match time.as_micros() {
        0..10_000 => format!("{} us", time.as_micros()),
        _ => format!("{} ms", time.as_millis()),
    }
}

fn bulk_up(stage: &Stage) -> Checked {
    let client = stage.client_as(&stage.client)?;
    let stream = open(&client, stage.destinations.digest.port())?;
    let _watch = Watch::over(stream.conn().clone())?;
    let (mut source, mut sink) = stream.split()?;
    let (mut blocks, mut crc) = (Blocks::new(), crc32fast::Hasher::new());
    let start = clock::now();
    while let Some(block) = blocks.next() {
        crc.update(block);
        sink.write_all(block)?;
    }
    sink.finish()?;
    let answer = rest(&mut source)?;
    let took = clock::now().duration_since(start);
    same(&answer, &summary(BULK, crc.finalize()))?;
    Ok(rate(took))
}

fn bulk_down(stage: &Stage) -> Checked {
    let mut expected = crc32fast::Hasher::new();
    let mut blocks = Blocks::new();
    while let Some(block) = blocks.next() {
        expected.update(block);
    }
    let client = stage.client_as(&stage.client)?;
    let start = clock::now();
    let stream = open(&client, stage.destinations.source.port())?;
    let _watch = Watch::over(stream.conn().clone())?;
    let (mut source, _sink) = stream.split()?;
    let (mut bytes, mut crc) = (0, crc32fast::Hasher::new());
    loop {
        match source.next()? {
            Event::Data(data) => {
                crc.update(data);
                bytes += data.len() as u64;
            }
            Event::End => break,
            Event::Idle => {}
        }
    }
    let took = clock::now().duration_since(start);
    same(&summary(bytes, crc.finalize()), &summary(BULK, expected.finalize()))?;
    Ok(rate(took))
}

fn half_close(stage: &Stage) -> Checked {
    let client = stage.client_as(&stage.client)?;
    let mut stream = open(&client, stage.destinations.digest.port())?;
    let start = clock::now();
    let question = b"The answer comes when this ends.";
    stream.write_all(question)?;
    stream.close_write()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let took = clock::now().duration_since(start);
    same(&answer, &summary(question.len() as u64, crc32fast::hash(question)))?;
    Ok(milliseconds(took))
}

/// Connections of each kind: enough for a figure, over in a second on a small box.
const CONNECTIONS: usize = 200;

fn full_handshakes(stage: &Stage) -> Checked {
    // A client that was never used remembers no session. Made before the clock runs.
    let clients: Vec<Client> =
        (0..CONNECTIONS).map(|_| stage.client_as(&stage.client)).collect::<Result<_, _>>()?;
    connections(stage, clients.iter(), false)
}

fn resumed_handshakes(stage: &Stage) -> Checked {
    let client = stage.client_as(&stage.client)?;
    exchange(&mut open(&client, stage.destinations.echo.port())?, 0)?;
    connections(stage, std::iter::repeat_n(&client, CONNECTIONS), true)
}

/// Opens a stream per client, one after the other, each with one round trip.
fn connections<'a>(
    stage: &Stage,
    clients: impl Iterator<Item = &'a Client>,
    resumed: bool,
) -> Checked {
    let start = clock::now();
    let mut count = 0;
    for client in clients {
        let mut stream = open(client, stage.destinations.echo.port())?;
        exchange(&mut stream, count)?;
        count += 1;
        if stream.is_resumed() != resumed {
            let kind = if resumed { "not resumed" } else { "resumed" };
            return Err(format!("connection {count} was {kind}").into());
        }
    }
    let took = clock::now().duration_since(start).as_secs_f64();
    Ok(format!("{:.0} per second", f64::from(count) / took))
}

fn legacy_header(stage: &Stage) -> Checked {
    let port = stage.destinations.echo.port();
    let current = header::encode_stream(&stage.destinations.echo.ip().to_string(), port)?;
    // The older layout is the current one up to its flags, then the checksum.
    let fields = current.get(..header::LEGACY_LEN - 4).unwrap_or_default();
    let legacy = [fields, &crc32fast::hash(fields).to_be_bytes()].concat();
    let config = tls::client(&stage.client, &[header::ALPN], tls::provider::default())?;
    let start = clock::now();
    let mut stream = connect(stage, config)?;
    stream.write_all(&legacy)?;
    exchange(&mut stream, 0)?;
    Ok(milliseconds(clock::now().duration_since(start)))
}

fn no_certificate(stage: &Stage) -> Checked {
    let mut roots = RootCertStore::empty();
    for authority in &stage.client.authorities {
        roots.add(authority.clone())?;
    }
    let mut config = ClientConfig::builder_with_provider(tls::provider::default())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![header::ALPN.to_vec()];
    let mut stream = connect(stage, Arc::new(config))?;
    stream.write_all(&header::encode_probe())?;
    match stream.read_exact(&mut [0; 1]) {
        Ok(()) => Err("the agent took it".into()),
        Err(error) => refused_with(error, AlertDescription::CertificateRequired),
    }
}

fn other_authority(stage: &Stage) -> Checked {
    match stage.client_as(&stage.stranger)?.probe() {
        Ok(_) => Err("the agent took it".into()),
        Err(OpenError::Answer(error)) => refused_with(error, AlertDescription::UnknownCA),
        Err(error) => Err(error.into()),
    }
}

/// The agent's refusal must be the alert that tells the client why.
fn refused_with(error: io::Error, alert: AlertDescription) -> Checked {
    let told = rustls::Error::AlertReceived(alert);
    if error.get_ref().and_then(|inner| inner.downcast_ref()) == Some(&told) {
        Ok(format!("{alert:?}"))
    } else {
        Err(error.into())
    }
}

fn other_agent(stage: &Stage) -> Checked {
    use rustls::Error::InvalidCertificate;
    match stage.client_as(&stage.astray)?.probe() {
        Ok(_) => Err("the client took it".into()),
        Err(OpenError::Handshake(HandshakeError::Tls(InvalidCertificate(
            CertificateError::UnknownIssuer,
        )))) => Ok("unknown issuer".to_owned()),
        Err(error) => Err(error.into()),
    }
}

fn denied_destination(stage: &Stage) -> Checked {
    let client = stage.client_as(&stage.client)?;
    // A name, and the rule denies an address: it only shows after resolving.
    let mut stream = client.open("localhost", stage.forbidden.local_addr()?.port())?;
    stream.set_deadline(Some(deadline()))?;
    let end = stream.read(&mut [0; 1]);
    match stage.forbidden.accept() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err("the agent connected to it".into()),
    }
    match end? {
        0 => Ok("closed without a byte".to_owned()),
        _ => Err("a byte came through".into()),
    }
}

/// A stream to a port of this machine, its exchanges bounded.
fn open(client: &Client, port: u16) -> Result<TlsStream, Box<dyn Error>> {
    let mut stream = client.open("127.0.0.1", port)?;
    stream.set_deadline(Some(deadline()))?;
    Ok(stream)
}

/// A connection to the agent without the client's protocol.
fn connect(stage: &Stage, config: Arc<ClientConfig>) -> Result<TlsStream, Box<dyn Error>> {
    let socket = net::dial::connect(&[stage.agent], &deadline())?;
    let name = ServerName::try_from(SERVER_NAME)?;
    Ok(tls::connect(Conn::new(socket), config, name, deadline())?)
}

/// One round trip of 64 bytes that no other has.
fn exchange(stream: &mut TlsStream, number: u32) -> Result<(), Box<dyn Error>> {
    let mut sent = [0x5a; 64];
    for (to, from) in sent.iter_mut().zip(number.to_be_bytes()) {
        *to = from;
    }
    let mut received = [0; 64];
    stream.write_all(&sent)?;
    stream.read_exact(&mut received)?;
    if received == sent { Ok(()) } else { Err("the echo came changed".into()) }
}

/// Everything until the destination's end, as text.
fn rest(source: &mut impl Source) -> Result<String, Box<dyn Error>> {
    let mut bytes = Vec::new();
    loop {
        match source.next()? {
            Event::Data(data) => bytes.extend_from_slice(data),
            Event::End => return Ok(String::from_utf8(bytes)?),
            Event::Idle => {}
        }
    }
}

fn same(found: &str, expected: &str) -> Result<(), Box<dyn Error>> {
    if found == expected {
        return Ok(());
    }
    Err(format!("expected {}, found {}", expected.trim(), found.trim()).into())
}

/// Ends a connection that takes too long: one that is split has no deadline.
struct Watch {
    over: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn over(conn: Arc<Conn>) -> io::Result<Self> {
        let over = Stop::new()?;
        let waiting = over.clone();
        let thread = threads::spawn("demo-watch", move || {
            if !waiting.wait(BULK_PATIENCE) {
                conn.abort();
            }
        })?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.raise();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the demo's watch ended by a panic");
        }
    }
}

pub(super) fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn rate(time: Duration) -> String {
    // BULK is far below 2^53, where floats still count whole numbers.
    format!("{:.0} MB/s", BULK as f64 / 1e6 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_take_at_most_seven_letters() {
        assert_eq!(short(Duration::from_micros(9_999)), "9999 us");
        assert_eq!(short(Duration::from_micros(10_000)), "10 ms");
        assert_eq!(short(Duration::from_millis(9_999)), "9999 ms");
    }
}
