//! What strangers and bad clients can do to the UDP port.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use adit::wire::header;
use openssl::ssl::ErrorCode;
use openssl::ssl::{Ssl, SslStream};

use crate::support::agents::until;
use crate::support::destinations::udp_echo;
use crate::support::dtls::{Datagrams, RawClient, Want, socket};
use crate::support::process::AgentProcess;
use crate::support::{PATIENCE, Pki, TestAgent};

/// A client's very first datagram, without a cookie.
fn first_hello() -> Vec<u8> {
    let agent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    agent.set_read_timeout(Some(PATIENCE)).unwrap();
    let near = socket("127.0.0.1", agent.local_addr().unwrap());
    let identity = Pki::new().client("anyone");
    let mut ssl = Ssl::new(&Want::good(&identity).context()).unwrap();
    ssl.set_connect_state();
    let mut stream = SslStream::new(ssl, Datagrams(near)).unwrap();
    assert_eq!(stream.do_handshake().unwrap_err().code(), ErrorCode::WANT_READ);
    let mut hello = vec![0; 2048];
    let size = agent.recv(&mut hello).unwrap();
    hello.truncate(size);
    hello
}

/// Sends from `127.x.y.z`, a different one for each number.
fn stranger(number: u32) -> UdpSocket {
    let [_, x, y, z] = number.to_be_bytes();
    UdpSocket::bind((Ipv4Addr::new(127, 100 + x, y, z.max(1)), 0)).unwrap()
}

#[test]
fn a_stranger_is_answered_with_less_than_it_sent_and_once() {
    let agent = TestAgent::new();
    let hello = first_hello();
    let near = socket("127.0.0.1", agent.address);
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    near.send(&hello).unwrap();
    let mut answer = [0; 2048];
    let size = near.recv(&mut answer).unwrap();
    assert!(size < hello.len(), "{size} for {}", hello.len());
    assert_eq!((answer[0], answer[13]), (22, HELLO_VERIFY_REQUEST));
    // Its answers until that to a hello with this sequence number, which the answer repeats.
    near.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let answers = |number: u8| {
        let mut numbered = hello.clone();
        numbered[SEQUENCE] = number;
        let mut answer = [0; 2048];
        let mut answers = 0;
        let end = Instant::now() + PATIENCE;
        near.send(&numbered).unwrap();
        loop {
            assert!(Instant::now() < end, "no answer");
            // Of so many at once not all are answered: ask again, as clients do.
            let Ok(size) = near.recv(&mut answer) else {
                near.send(&numbered).unwrap();
                continue;
            };
            assert!(size < hello.len());
            if answer[SEQUENCE] == number {
                return answers;
            }
            // A late answer to what was asked again is none to what came between.
            answers += usize::from(answer[SEQUENCE].wrapping_add(1) != number);
        }
    };
    // Whatever else it sends comes to nothing.
    for (number, part) in (1..100).zip((0..hello.len()).collect::<Vec<_>>().chunks(16)) {
        for size in part {
            near.send(&hello[..*size]).unwrap();
        }
        assert_eq!(answers(number), 0, "{part:?}");
    }
    // A changed byte of what the agent does not read yet leaves a first hello a first hello.
    let mut other = hello.clone();
    for (number, part) in (1..100).zip((0..hello.len()).collect::<Vec<_>>().chunks(16)) {
        for at in part {
            other[*at] ^= 0xff;
            near.send(&other).unwrap();
            other[*at] ^= 0xff;
        }
        assert!(answers(number) <= part.len(), "{part:?}");
    }
}

#[test]
fn a_cookie_serves_only_the_address_that_it_was_made_for() {
    let agent = TestAgent::new();
    let near = socket("127.0.0.1", agent.address);
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    let second = with_cookie(&near, &first_hello());
    let other = socket("127.0.0.2", agent.address);
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    for (from, kind) in [(&other, HELLO_VERIFY_REQUEST), (&near, SERVER_HELLO)] {
        from.send(&second).unwrap();
        let mut answer = [0; 2048];
        from.recv(&mut answer).unwrap();
        assert_eq!((answer[0], answer[13]), (22, kind));
    }
}

/// The lowest byte of a record's sequence number.
const SEQUENCE: usize = 10;

const SERVER_HELLO: u8 = 2;
const HELLO_VERIFY_REQUEST: u8 = 3;

#[test]
fn a_hundred_thousand_strangers_leave_nothing_behind() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let client = agent.client(&files);
    let echo = udp_echo();
    let stream = client.udp("127.0.0.1", echo.port()).unwrap();
    let mut buffer = [0; 64];
    let mut exchange = |number: u32| {
        let sent = number.to_be_bytes();
        // The flood fills the socket's buffer, and what does not fit is lost: ask again.
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "the session starves");
            stream.send(&sent).unwrap();
            let look = adit::lifecycle::Deadline::after("echo", Duration::from_millis(100));
            match stream.recv(&mut buffer, Some(look)) {
                Ok(Some(size)) if buffer[..size] == sent => return,
                Ok(Some(_)) => {}
                Ok(None) => panic!("the session has ended"),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::TimedOut),
            }
        }
    };
    exchange(0);
    let hello = first_hello();
    // Once around, so that what it keeps for all strangers is there before we look.
    stranger(1).send_to(&hello, agent.address).unwrap();
    exchange(1);
    let (threads, resident) = (agent.threads(), agent.resident());
    const STRANGERS: u32 = 100_000;
    for number in 0..STRANGERS {
        stranger(number).send_to(&hello, agent.address).unwrap();
        if number % 5_000 == 0 {
            exchange(number);
        }
    }
    exchange(STRANGERS);
    assert!(agent.threads() <= threads, "{} threads, {threads} before", agent.threads());
    let more = agent.resident().saturating_sub(resident);
    assert!(more < 1024, "{more} KiB more");
    agent.ends_well();
}

#[test]
fn handshakes_that_stall_hold_up_nobody() {
    let agent = TestAgent::new();
    let identity = agent.pki.client("tester");
    let echo = udp_echo();
    let mut open = RawClient::open(socket("127.0.0.1", agent.address), &identity, echo);
    open.exchange(b"before");
    // Each has shown its cookie and was sent the agent's certificate.
    let hello = first_hello();
    let stalled: Vec<_> = (0..40).map(|_| stall(agent.address, &hello)).collect();
    open.exchange(b"beside");
    let mut late = RawClient::open(socket("127.0.0.2", agent.address), &identity, echo);
    late.exchange(b"after");
    drop(stalled);
}

/// A client that shows its cookie and does not answer the agent's flight.
fn stall(agent: SocketAddr, hello: &[u8]) -> UdpSocket {
    let near = socket("127.0.0.1", agent);
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    let second = with_cookie(&near, hello);
    near.send(&second).unwrap();
    let mut answer = [0; 2048];
    near.recv(&mut answer).unwrap();
    assert_eq!((answer[0], answer[13]), (22, SERVER_HELLO));
    near
}

/// Asks for a cookie and adds it to a first hello.
fn with_cookie(near: &UdpSocket, hello: &[u8]) -> Vec<u8> {
    /// Behind the random and an empty session id: the cookie's length.
    const COOKIE_AT: usize = 13 + 12 + 2 + 32 + 1;
    near.send(hello).unwrap();
    let mut answer = [0; 2048];
    let size = near.recv(&mut answer).unwrap();
    assert_eq!((answer[0], answer[13]), (22, HELLO_VERIFY_REQUEST));
    // Behind the headers and a version.
    let cookie = &answer[13 + 12 + 2..size];
    assert_eq!((cookie.len(), hello[COOKIE_AT]), (1 + usize::from(cookie[0]), 0));
    let mut second = hello[..COOKIE_AT].to_vec();
    second.extend(cookie);
    second.extend(&hello[COOKIE_AT + 1..]);
    // The second message of the second record, and longer: in the record, in the message and in
    // its only fragment.
    second[10] += 1;
    second[18] += 1;
    for (at, less) in [(11, 13), (15, 25), (23, 25)] {
        let length = u16::try_from(second.len() - less).unwrap();
        second[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    second
}

#[test]
fn garbage_for_a_session_is_passed_over() {
    let agent = TestAgent::new();
    let identity = agent.pki.client("tester");
    let near = socket("127.0.0.1", agent.address);
    let raw = near.try_clone().unwrap();
    let mut client = RawClient::open(near, &identity, udp_echo());
    client.exchange(b"before");
    let hello = first_hello();
    for size in 0..64 {
        raw.send(&vec![23; size]).unwrap();
        // Looks like a record of the session, and is not.
        let mut forged = vec![23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 1, size as u8, 0, size as u8];
        forged.resize(13 + size, 0x55);
        raw.send(&forged).unwrap();
        // An alert, unencrypted: close_notify, then a fatal one.
        for alert in [[1, 0], [2, 40]] {
            let mut record = vec![21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 1, size as u8, 0, 2];
            record.extend(alert);
            raw.send(&record).unwrap();
        }
        raw.send(&hello[..hello.len().min(size)]).unwrap();
    }
    client.exchange(b"after");
}

#[test]
fn two_thousand_clients_that_vanish_are_all_forgotten() {
    let files = Pki::new().files();
    // Long enough for the last one to be used before the first one ends, on any machine.
    let agent = AgentProcess::start(&files, &["--udp-idle", "5s"]);
    let identity = files.identity("client");
    let echo = udp_echo();
    let one = |number: u32| {
        let mut client = RawClient::open(stranger_to(number, agent.address), &identity, echo);
        client.exchange(&number.to_be_bytes());
        client.vanish();
    };
    one(0);
    agent.wait_for("UDP stream ended");
    let before = agent.descriptors();
    let resident = agent.resident();
    for number in 1..=2_000 {
        one(number);
        if number % 500 == 0 {
            // Many a machine gives a process 1024.
            until("there are descriptors for more", || agent.descriptors() < 400);
        }
    }
    until("all are gone", || agent.descriptors() <= before && agent.threads() < 16);
    let more = agent.resident().saturating_sub(resident);
    assert!(more < 8 * 1024, "{more} KiB more for none");
    agent.ends_well();
}

fn stranger_to(number: u32, agent: SocketAddr) -> UdpSocket {
    let [_, x, y, z] = number.to_be_bytes();
    let from = Ipv4Addr::new(127, 90 + x, y, z.max(1)).to_string();
    socket(&from, agent)
}

#[test]
fn no_header_costs_the_agent_more_than_its_session() {
    let agent = TestAgent::new();
    let identity = agent.pki.client("tester");
    let mut good = RawClient::open(socket("127.0.0.1", agent.address), &identity, udp_echo());
    good.exchange(b"before");
    // One byte of a good header changed at every place, and nothing at all.
    let header = header::encode_stream("127.0.0.1", 9).unwrap();
    for at in (0..header.len()).step_by(17) {
        let near = socket("127.0.0.1", agent.address);
        let mut client = RawClient::handshake(near, &Want::good(&identity)).unwrap();
        let mut changed = header;
        changed[at] ^= 0x80;
        client.send(&changed);
        assert_eq!(client.recv(), None, "byte {at}");
    }
    good.exchange(b"after");
}

#[test]
fn a_handshake_that_stalls_cannot_be_made_to_hold_much() {
    const STALLED: usize = 60;
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let hello = first_hello();
    let stalled: Vec<_> = (0..STALLED).map(|_| stall(agent.address, &hello)).collect();
    let identity = files.identity("client");
    let before = agent.resident();
    let look = |after: &str| {
        // Behind all that was sent.
        let near = socket("127.0.0.2", agent.address);
        RawClient::open(near, &identity, udp_echo()).exchange(b"beside");
        let more = agent.resident().saturating_sub(before);
        assert!(more < STALLED * 300, "{more} KiB more for {STALLED} handshakes, {after}");
    };
    // Sealed with keys that nobody has agreed on, to be kept until there are some.
    for number in 0..100 {
        for near in &stalled {
            let mut record = vec![22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, number, 0x0f, 0xa0];
            record.resize(13 + 4000, 0x55);
            near.send(&record).unwrap();
        }
    }
    look("records that come too early");
    // A byte of each page of messages that are far too long and not the next ones.
    for message in 3..12 {
        for near in &stalled {
            let records = (0..24_u8).flat_map(|page| {
                let [_, above, high, low] = (u32::from(page) * 4096).to_be_bytes();
                [
                    &[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, message, page + 1, 0, 13][..],
                    &[11, 1, 0x80, 0, 0, message, above, high, low, 0, 0, 1, 7],
                ]
                .concat()
            });
            near.send(&records.collect::<Vec<_>>()).unwrap();
        }
    }
    look("messages in pieces");
    agent.ends_well();
}
