//! What a stranger, or a client gone wrong, can send to an agent: it ends within its limit and with
//! one clear line in the log, and streams that run do not notice.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use adit::net::{Event, Sink, Source};
use adit::pki::{Identity, Purpose, Validity};
use adit::wire::header;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::support::agents::{connect_from, until};
use crate::support::process::AgentProcess;
use crate::support::raw_tls::{ALERT, CLOSE_NOTIFY, DATA, RawTls};
use crate::support::{PATIENCE, Pki, destinations};

/// Only where the limit is the subject: elsewhere it would be a race with a slow machine.
const HANDSHAKE_2S: [&str; 2] = ["--handshake-timeout", "2s"];
const HEADER_2S: [&str; 2] = ["--header-timeout", "2s"];

fn agent(pki: &Pki, flags: &[&str]) -> AgentProcess {
    AgentProcess::start(&pki.files(), flags)
}

fn connect(agent: &AgentProcess) -> TcpStream {
    connect_from(1, agent.address)
}

/// Reads until the agent has closed, however it does.
fn is_closed(mut socket: &TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = socket.read(&mut buffer) {}
}

#[test]
fn bytes_that_are_not_tls_are_refused_with_a_line_that_says_so() {
    let pki = Pki::new();
    let noise: [(&[u8], &str); 8] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "the peer does not speak TLS"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "the peer does not speak TLS"),
        (&[0; 64], "the peer does not speak TLS"),
        (&[0xa7; 300], "the peer does not speak TLS"),
        (b"\x16\x03\x01\xff\xff\x01\x00", "the peer does not speak TLS"),
        (b"\x16\x03\x01\x00\x00", "the peer does not speak TLS"),
        (b"\x16\x03garbage that is no handshake", "why="),
        (b"\x16\x03\x01\x00\x05\x63\x00\x00\x01\x00", "why="),
    ];
    for (bytes, why) in noise {
        let agent = agent(&pki, &[]);
        let mut socket = connect(&agent);
        socket.write_all(bytes).unwrap();
        is_closed(&socket);
        let line = agent.wait_for("connection refused");
        assert!(line.contains(why), "{line}");
        agent.ends_well();
    }
}

#[test]
fn who_says_nothing_or_goes_away_is_let_go() {
    let pki = Pki::new();
    let agent = agent(&pki, &HANDSHAKE_2S);
    let silent = connect(&agent);
    is_closed(&silent);
    agent.wait_for("it sent nothing within 2s");
    connect(&agent).shutdown(Shutdown::Write).unwrap();
    agent.wait_for("the peer closed the connection without a byte");
    let mut early = connect(&agent);
    early.write_all(&[22, 3, 1]).unwrap();
    early.shutdown(Shutdown::Write).unwrap();
    agent.wait_for("the peer closed the connection during the TLS handshake");
    agent.ends_well();
}

#[test]
fn a_handshake_a_byte_at_a_time_ends_at_its_limit() {
    let pki = Pki::new();
    let agent = agent(&pki, &HANDSHAKE_2S);
    let mut socket = connect(&agent);
    // A record that would take 16 KiB to finish.
    socket.write_all(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03").unwrap();
    // Far fewer than would finish it, and until the agent has had enough.
    for _ in 0..1000 {
        if socket.write_all(&[0]).is_err() {
            break;
        }
    }
    agent.wait_for("TLS handshake timed out after 2s");
    is_closed(&socket);
    agent.ends_well();
}

#[test]
fn wrong_headers_are_each_refused_with_their_reason() {
    let pki = Pki::new();
    let good = header::encode_stream("127.0.0.1", 1).unwrap();
    let changed = |at: usize, to: u8| {
        let mut bytes = good;
        bytes[at] = to;
        bytes.to_vec()
    };
    let signed = |mut bytes: Vec<u8>| {
        let checksum = crc32fast::hash(&bytes[..271]).to_be_bytes();
        bytes[271..].copy_from_slice(&checksum);
        bytes
    };
    let close = |client: &mut RawTls| client.send(ALERT, &CLOSE_NOTIFY);
    let fin = |client: &mut RawTls| client.socket.shutdown(Shutdown::Write).unwrap();
    let reset = |client: &mut RawTls| {
        socket2::SockRef::from(&client.socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        client.socket = connect_from(9, client.socket.peer_addr().unwrap());
    };
    let nothing = |_: &mut RawTls| {};
    type Then<'a> = &'a dyn Fn(&mut RawTls);
    let cases: [(Vec<u8>, Then<'_>, &str); 13] = [
        (vec![], &nothing, "stream header timed out after 2s"),
        (good[..100].to_vec(), &nothing, "100 of 275 bytes came"),
        (good[..100].to_vec(), &close, "peer closed after 100 of 275 bytes"),
        (good[..274].to_vec(), &fin, "peer closed after 274 of 275 bytes"),
        (good[..10].to_vec(), &reset, "reading the stream header"),
        (changed(272, 9), &nothing, "checksum"),
        (changed(0, b'9'), &nothing, "unknown stream protocol version"),
        (signed(changed(264, 6)), &nothing, "port length 6"),
        (signed(changed(265, b'0')), &nothing, "is not 1-65535"),
        (signed(changed(265, b'-')), &nothing, "is not 1-65535"),
        (signed(changed(8, 0)), &nothing, "names no destination host"),
        (signed(changed(9, 0xff)), &nothing, "is not UTF-8"),
        (signed(changed(9, b'\n')), &nothing, "has control characters"),
    ];
    for (bytes, then, why) in cases {
        let mut flags = vec!["--verbose"];
        if why.contains("timed out") || why.contains("came") {
            flags.extend(HEADER_2S);
        }
        let agent = agent(&pki, &flags);
        let mut client = RawTls::connect(agent.address, &pki.client("tester"), true);
        // The agent's handshake is over too.
        agent.wait_for("resumed=");
        if !bytes.is_empty() {
            client.send(DATA, &bytes);
        }
        then(&mut client);
        let line = agent.wait_for("stream refused");
        assert!(line.contains(why), "{why:?} in {line}");
        is_closed(&client.socket);
        agent.ends_well();
    }
}

#[test]
fn a_header_a_byte_at_a_time_ends_at_its_limit() {
    let pki = Pki::new();
    let agent = agent(&pki, &HEADER_2S);
    let mut client = RawTls::connect(agent.address, &pki.client("tester"), true);
    for byte in &header::encode_stream("127.0.0.1", 1).unwrap()[..200] {
        let record = client.seal(DATA, &[*byte]);
        if client.socket.write_all(&record).is_err() {
            break;
        }
    }
    let line = agent.wait_for("stream refused");
    assert!(line.contains(" of 275 bytes came: stream header timed out"), "{line}");
    agent.ends_well();
}

#[test]
fn destinations_that_cannot_be_had_end_the_stream_in_order_within_the_limit() {
    let pki = Pki::new();
    let agent = agent(&pki, &["--dial-timeout", "2s"]);
    let hole = BlackHole::new();
    let cases = [
        ("127.0.0.1", destinations::refused().port(), "Connection refused"),
        ("127.0.0.1", hole.address.port(), "dial timed out after 2s"),
        ("no-such-host.invalid", 80, "no-such-host.invalid"),
        ("fe80::1%nosuch0", 80, "no interface named"),
        ("a host\" with=spaces", 80, "dst=\"a host\\\" with=spaces\":80"),
    ];
    for (host, port, why) in cases {
        let mut stream = agent.client_of(&pki).open(host, port).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{host}:{port}");
        agent.wait_for(why);
    }
    assert_eq!(agent.count("stream refused"), cases.len());
    agent.ends_well();
}

/// Takes no connection: its backlog is full.
struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl BlackHole {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let queued = (0..8)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                drop(socket.connect(&address.into()));
                socket
            })
            .collect();
        Self { address, _listener: listener, _queued: queued }
    }
}

#[test]
fn certificates_that_do_not_count_are_refused_with_their_reason() {
    let pki = Pki::new();
    let other = Pki::new();
    let as_ours = |mut identity: Identity| {
        identity.authorities = pki.client("tester").authorities;
        identity
    };
    let now = std::time::SystemTime::now();
    let future = Validity {
        not_before: Validity::days(now, 2).not_after,
        not_after: Validity::days(now, 3).not_after,
    };
    let cases = [
        (as_ours(other.client("stranger")), "not from our certificate authority"),
        (pki.expired_client(), "has expired"),
        (pki.server(), "is for another use"),
        (pki.issue(Purpose::Client, "early", future), "not valid yet"),
    ];
    for (identity, why) in cases {
        for tls13 in [true, false] {
            let agent = agent(&pki, &[]);
            let client = RawTls::over(connect(&agent), &identity, tls13);
            assert!(tls13 || client.is_err(), "{why}");
            let line = agent.wait_for("connection refused");
            assert!(line.contains(why), "{line}");
            agent.ends_well();
        }
    }
}

#[test]
fn names_in_certificates_cannot_write_log_lines() {
    let pki = Pki::new();
    let agent = agent(&pki, &[]);
    let refused = destinations::refused();
    for (name, shown) in [
        ("two dst=10.0.0.1:22", "cert=\"two dst=10.0.0.1:22\" dst="),
        ("\u{202e}drawkcab", "cert=\\u{202e}drawkcab"),
    ] {
        let client = agent.client_with(&pki.client(name));
        let mut stream = client.open("127.0.0.1", refused.port()).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        agent.wait_for(shown);
    }
    let mut client = RawTls::connect(agent.address, &pki.client("tester"), true);
    let mut escapes = [0x1b; header::LEN];
    escapes[..8].copy_from_slice(b"0.1.0\0\0\0");
    escapes[8] = 255;
    escapes[264] = 1;
    escapes[270] = 0;
    let checksum = crc32fast::hash(&escapes[..271]).to_be_bytes();
    escapes[271..].copy_from_slice(&checksum);
    client.send(DATA, &escapes);
    agent.wait_for(&"\\u{1b}".repeat(255));
    for line in agent.ends_well() {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

/// An echo conversation and a bulk stream through the agent while `noise` is made. The echo must
/// never fail and the bulk must go on; tells how fast it went, as part of its undisturbed speed.
fn undisturbed_by(agent: &AgentProcess, pki: &Pki, noise: impl FnOnce()) -> f64 {
    let echo = destinations::echo();
    let sink = destinations::count();
    let mut talk = agent.client_of(pki).open("127.0.0.1", echo.port()).unwrap();
    let (mut answer, mut bulk) =
        agent.client_of(pki).open("127.0.0.1", sink.port()).unwrap().split().unwrap();
    let (sent, over, done) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
    let done = &done;
    let raise = || {
        done.store(true, Ordering::SeqCst);
        over.store(true, Ordering::SeqCst);
    };
    thread::scope(|scope| {
        // Also when the noise panics: the scope waits for its threads.
        let raised = Finally(raise);
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                bulk.write_all(&[7; 65536]).unwrap();
                sent.fetch_add(65536, Ordering::SeqCst);
            }
            bulk.finish().unwrap();
        });
        let mut exchange = move || {
            let mut got = [0; 64];
            talk.write_all(&[9; 64]).unwrap();
            talk.read_exact(&mut got).unwrap();
            assert_eq!(got, [9; 64]);
        };
        let clock = std::time::Instant::now();
        let rate = |from: (u64, f64)| {
            let now = (sent.load(Ordering::SeqCst), clock.elapsed().as_secs_f64());
            ((now.0 - from.0) as f64 / (now.1 - from.1).max(1e-9), now)
        };
        let start = (0, 0.0);
        until("the bulk stream is under way", || sent.load(Ordering::SeqCst) > 64 << 20);
        let (before, now) = rate(start);
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                exchange();
            }
        });
        noise();
        let (during, _) = rate(now);
        assert!(during > 0.0, "the bulk stream stood still");
        drop(raised);
        let mut total = Vec::new();
        while let Event::Data(data) = answer.next().unwrap() {
            total.extend_from_slice(data);
        }
        assert_eq!(String::from_utf8(total).unwrap(), sent.load(Ordering::SeqCst).to_string());
        during / before
    })
}

/// Calls a function when it goes out of scope, however that comes about.
struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn five_thousand_silent_connections_cost_no_thread_and_no_stream_notices() {
    let pki = Pki::new();
    // Both ends of 1,500 connections; a login's usual limit is 1,024.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let started = std::time::Instant::now();
    let agent = agent(&pki, &["--handshake-timeout", "5s"]);
    // Whoever comes from elsewhere gets in, whatever the noisy ones do.
    let mut most = 0;
    let ratio = undisturbed_by(&agent, &pki, || {
        let mut silent = Vec::new();
        for at in 0..5000_u32 {
            silent.push(connect_from(10 + (at % 4) as u8, agent.address));
            if silent.len() > 1500 {
                silent.drain(..500);
            }
            if at % 500 == 0 {
                most = most.max(agent.threads());
                agent.client_of(&pki).probe().unwrap();
            }
        }
        agent.wait_for("too many connections wait silently");
        agent.wait_for("it sent nothing within 5s");
    });
    println!("bulk during 5,000 silent connections: {ratio:.2} of undisturbed");
    // Up to 32 may wait for work; 1,500 connections were there at the same time.
    assert!(most < 50, "{most} threads");
    let refused = agent.count("connection refused");
    // Five lines of each of three kinds in ten seconds.
    let windows = started.elapsed().as_secs() as usize / 10 + 2;
    assert!(refused <= 15 * windows, "{refused} lines in {windows} windows");
    // Of a process without connections: three, and two for UDP.
    until("threads are back", || agent.threads() <= 5);
    agent.ends_well();
}

#[test]
fn a_flood_of_handshakes_that_fail_leaves_memory_where_it_was() {
    let pki = Pki::new();
    let agent = agent(&pki, &[]);
    let mut stranger = Pki::new().client("stranger");
    stranger.authorities = pki.client("tester").authorities;
    let fail = |times: usize| {
        for _ in 0..times {
            if let Ok(mut client) = RawTls::over(connect(&agent), &stranger, true) {
                while client.receive().is_some() {}
            }
            let mut socket = connect(&agent);
            socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            is_closed(&socket);
        }
    };
    fail(50);
    let before = agent.resident();
    let ratio = undisturbed_by(&agent, &pki, || fail(300));
    println!("bulk during failing handshakes: {ratio:.2} of undisturbed");
    // Of a process without connections: three, and two for UDP.
    until("threads are back", || agent.threads() <= 5);
    let after = agent.resident();
    println!("resident before {before} KiB, after {after} KiB");
    assert!(after < before + 8 * 1024, "{before} KiB before, {after} KiB after");
    assert!(agent.count("similar lines left out") + agent.count("does not speak TLS") > 0);
    agent.ends_well();
}

#[test]
fn a_request_that_ends_with_its_handshake_flight_is_carried_out() {
    let pki = Pki::new();
    let agent = agent(&pki, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = RawTls::connect(agent.address, &pki.client("tester"), true);
    let request = [
        client.seal(DATA, &header::encode_stream("127.0.0.1", port).unwrap()),
        client.seal(DATA, b"all I have"),
        client.seal(ALERT, &CLOSE_NOTIFY),
    ];
    client.socket.write_all(&request.concat()).unwrap();
    let (mut destination, _) = listener.accept().unwrap();
    destination.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = Vec::new();
    destination.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"all I have");
}
