//! What one agent holds at once is bounded, places come back however a connection ends, and one
//! source never takes what others need.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use adit::agent::Limits;
use adit::tls::TlsStream;
use adit::wire::header;

use crate::support::agents::{connect_from, until};
use crate::support::raw_tls::{ALERT, CLOSE_NOTIFY, DATA, RawTls};
use crate::support::{PATIENCE, Setup, TestAgent, destinations};

fn agent(limits: Limits) -> TestAgent {
    TestAgent::with(Setup { limits, ..Setup::default() })
}

fn limits() -> Limits {
    Limits { handshake: PATIENCE, header: PATIENCE, ..Setup::default().limits }
}

fn works(stream: &mut TlsStream) -> bool {
    let mut answer = [0; 5];
    stream.write_all(b"hello").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"hello"
}

fn opens(agent: &TestAgent, echo: SocketAddr) -> Option<TlsStream> {
    let mut stream = agent.client().open("127.0.0.1", echo.port()).ok()?;
    works(&mut stream).then_some(stream)
}

/// A stream from `127.0.0.<last>`, or nothing when it is refused.
fn opens_from(last: u8, agent: &TestAgent, echo: SocketAddr) -> Option<RawTls> {
    let socket = connect_from(last, agent.address);
    let mut client = RawTls::over(socket, &agent.pki.client("tester"), true).ok()?;
    let header = header::encode_stream("127.0.0.1", echo.port()).unwrap();
    let request = [client.seal(DATA, &header), client.seal(DATA, b"hello")].concat();
    client.socket.write_all(&request).ok()?;
    (client.receive_past_tickets()? == (DATA, b"hello".to_vec())).then_some(client)
}

/// The first byte of a handshake, which then goes no further.
fn stalls(mut socket: TcpStream) -> TcpStream {
    socket.write_all(&[22]).unwrap();
    socket
}

fn is_closed(mut socket: TcpStream) -> bool {
    !matches!(socket.read(&mut [0]), Ok(1..))
}

#[test]
fn a_connection_beyond_the_limit_is_refused_and_those_that_run_go_on() {
    let agent = agent(Limits { connections: 2, ..limits() });
    let echo = destinations::echo();
    let mut first = opens(&agent, echo).unwrap();
    let mut second = opens(&agent, echo).unwrap();
    for _ in 0..20 {
        assert!(opens(&agent, echo).is_none());
        assert!(works(&mut first) && works(&mut second));
    }
    drop(first);
    until("its place can be had", || opens(&agent, echo).is_some());
    assert!(works(&mut second));
}

#[test]
fn places_come_back_however_a_connection_ends() {
    let agent = agent(Limits { connections: 1, handshakes: 1, per_source: Some(1), ..limits() });
    let echo = destinations::echo();
    let ended = destinations::service(drop);
    let identity = agent.pki.client("tester");
    // `None` as long as the connection before has not given its place back.
    let raw = |kind: u8, content: &[u8]| -> Option<()> {
        let socket = connect_from(1, agent.address);
        let mut client = RawTls::over(socket, &identity, true).ok()?;
        client.send(kind, content);
        Some(())
    };
    let stream = |port| header::encode_stream("127.0.0.1", port).unwrap();
    let bytes = |bytes: &[u8]| connect_from(1, agent.address).write_all(bytes).ok();
    let ends: [(&str, &dyn Fn() -> Option<()>); 12] = [
        ("FIN before a byte", &|| bytes(b"")),
        ("FIN within the handshake", &|| bytes(&[22, 3])),
        ("not TLS", &|| bytes(b"GET / HTTP/1.1\r\n\r\n")),
        ("half a header", &|| raw(DATA, &[0; 100])),
        ("close_notify instead of a header", &|| raw(ALERT, &CLOSE_NOTIFY)),
        ("a wrong header", &|| raw(DATA, &[0; header::LEN])),
        ("a probe", &|| raw(DATA, &header::encode_probe())),
        ("a destination that refuses", &|| raw(DATA, &stream(destinations::refused().port()))),
        ("a destination that ends at once", &|| raw(DATA, &stream(ended.port()))),
        ("a stream cut short", &|| opens(&agent, echo).map(drop)),
        ("a stream that ends in order", &|| {
            let mut client = opens_from(1, &agent, echo)?;
            client.send(ALERT, &CLOSE_NOTIFY);
            while client.receive().is_some() {}
            Some(())
        }),
        ("a forged record", &|| {
            let mut client = opens_from(1, &agent, echo)?;
            client.socket.write_all(&[23, 3, 3, 0, 20]).unwrap();
            client.socket.write_all(&[0; 20]).ok()
        }),
    ];
    for (what, end) in ends {
        until(what, || end().is_some());
        until(what, || opens(&agent, echo).is_some());
    }
}

#[test]
fn one_source_has_its_share_and_another_has_its_own() {
    let agent = agent(Limits { per_source: Some(1), ..limits() });
    let echo = destinations::echo();
    let first = opens_from(1, &agent, echo).unwrap();
    assert!(opens_from(1, &agent, echo).is_none());
    let other = opens_from(2, &agent, echo).unwrap();
    assert!(opens_from(2, &agent, echo).is_none());
    drop(first);
    until("the place of a stream that ended", || opens_from(1, &agent, echo).is_some());
    drop(other);
}

#[test]
fn one_source_has_a_quarter_of_the_handshakes_and_the_next_of_it_waits() {
    let agent = agent(Limits { handshakes: 8, ..limits() });
    let echo = destinations::echo();
    let mut stalled: Vec<_> = (0..2).map(|_| stalls(connect_from(1, agent.address))).collect();
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| opens_from(1, &agent, echo).is_some());
        for _ in 0..10 {
            assert!(opens_from(2, &agent, echo).is_some(), "another source is not held up");
        }
        assert!(!waiting.is_finished());
        drop(stalled.pop());
        waiting.join().unwrap()
    });
    assert!(waiting, "it had its turn when one of its source's handshakes ended");
}

#[test]
fn all_handshakes_taken_make_the_next_wait_and_not_fail() {
    let agent = agent(Limits { handshakes: 2, ..limits() });
    let echo = destinations::echo();
    let stalled: Vec<_> = (1..=2).map(|last| stalls(connect_from(last, agent.address))).collect();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| opens_from(3, &agent, echo).is_some());
        drop(stalled);
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn a_full_lobby_lets_go_of_the_oldest_of_its_busiest_source() {
    let agent = agent(Limits { connections: 4, ..limits() });
    let echo = destinations::echo();
    let quiet = connect_from(2, agent.address);
    let mut noisy: Vec<_> = (0..3).map(|_| connect_from(1, agent.address)).collect();
    for _ in 0..50 {
        noisy.push(connect_from(1, agent.address));
        assert!(is_closed(noisy.remove(0)), "the oldest has left");
    }
    let mut client = RawTls::over(quiet, &agent.pki.client("tester"), true).unwrap();
    client.send(DATA, &header::encode_stream("127.0.0.1", echo.port()).unwrap());
    client.send(DATA, b"hello");
    assert_eq!(client.receive_past_tickets(), Some((DATA, b"hello".to_vec())));
}
