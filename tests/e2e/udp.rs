//! Datagrams through the agent.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use adit::agent::Limits;
use adit::client::{UdpError, UdpStream};
use adit::dtls::HandshakeError;
use adit::lifecycle::Deadline;
use adit::pki::{Identity, NameRules};
use adit::wire::header;
use openssl::ssl::SslVersion;

use crate::support::destinations::udp_echo;
use crate::support::dtls::{RawClient, Want, socket};
use crate::support::process::AgentProcess;
use crate::support::{PATIENCE, Pki, Setup, TestAgent};

fn soon() -> Option<Deadline> {
    Some(Deadline::after("the test's answer", PATIENCE))
}

fn open(agent: &TestAgent, to: SocketAddr) -> UdpStream {
    agent.client().udp(&to.ip().to_string(), to.port()).unwrap()
}

fn recv(stream: &UdpStream) -> Option<Vec<u8>> {
    let mut buffer = vec![0; UdpStream::MAX];
    let size = stream.recv(&mut buffer, soon()).unwrap()?;
    Some(buffer[..size].to_vec())
}

fn exchange(stream: &UdpStream, datagram: &[u8]) {
    stream.send(datagram).unwrap();
    assert_eq!(recv(stream).as_deref(), Some(datagram));
}

#[test]
fn datagrams_reach_the_destination_and_come_back_whole() {
    let agent = TestAgent::new();
    let client = agent.client();
    let to = udp_echo();
    let stream = client.udp("127.0.0.1", to.port()).unwrap();
    for size in [1, 64, 1200, 8192, UdpStream::MAX] {
        exchange(&stream, &vec![0x5a; size]);
    }
    client.probe_udp().unwrap();
    exchange(&stream, b"still there");
}

#[test]
fn what_cannot_travel_is_refused_by_the_client_and_dropped_by_the_agent() {
    let agent = TestAgent::new();
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let stream = open(&agent, far.local_addr().unwrap());
    for unfit in [&[][..], &[0; UdpStream::MAX + 1]] {
        assert_eq!(stream.send(unfit).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    stream.send(b"hello").unwrap();
    let (_, from) = far.recv_from(&mut [0; 16]).unwrap();
    // Neither travels, and neither stops those behind them.
    far.send_to(&[], from).unwrap();
    far.send_to(&[7; UdpStream::MAX + 1], from).unwrap();
    far.send_to(b"fits", from).unwrap();
    assert_eq!(recv(&stream).as_deref(), Some(&b"fits"[..]));
}

#[test]
fn a_short_buffer_cuts_a_datagram_and_not_the_next_one() {
    let agent = TestAgent::new();
    let stream = open(&agent, udp_echo());
    stream.send(b"a long one").unwrap();
    let mut four = [0; 4];
    assert_eq!(stream.recv(&mut four, soon()).unwrap(), Some(4));
    assert_eq!(&four, b"a lo");
    exchange(&stream, b"the next");
}

#[test]
fn order_is_kept_both_ways() {
    let agent = TestAgent::new();
    let to = udp_echo();
    let mut client =
        RawClient::open(socket("127.0.0.1", agent.address), &agent.pki.client("tester"), to);
    // The first ones wait for the agent to open the stream.
    for round in 0..50_u32 {
        for number in 0..20 {
            client.send(&(round * 20 + number).to_be_bytes());
        }
        for number in 0..20 {
            assert_eq!(client.recv().unwrap(), (round * 20 + number).to_be_bytes());
        }
    }
}

#[test]
fn a_port_unreachable_is_no_end() {
    let agent = TestAgent::new();
    // An address of its own, and a port that the kernel gives to nobody: it is bound again.
    let [.., high, low] = std::process::id().to_be_bytes();
    let to = SocketAddr::from(([127, 79, high, low.max(1)], 29_999));
    let far = UdpSocket::bind(to).unwrap();
    let stream = open(&agent, to);
    // A destination that is restarted: what is sent meanwhile is answered with ICMP.
    drop(far);
    for _ in 0..3 {
        stream.send(b"nobody there").unwrap();
    }
    let nothing = Deadline::after("silence", Duration::from_millis(50));
    let waited = stream.recv(&mut [0; 16], Some(nothing));
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::TimedOut);
    let far = UdpSocket::bind(to).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.send(b"back").unwrap();
    let mut buffer = [0; 16];
    let from = loop {
        let (size, from) = far.recv_from(&mut buffer).unwrap();
        if &buffer[..size] == b"back" {
            break from;
        }
    };
    far.send_to(b"again", from).unwrap();
    assert_eq!(recv(&stream).as_deref(), Some(&b"again"[..]));
}

#[test]
fn a_header_of_either_generation_opens_a_stream() {
    let agent = TestAgent::new();
    let identity = agent.pki.client("tester");
    let to = udp_echo();
    let current = header::encode_stream("127.0.0.1", to.port()).unwrap();
    let fields = &current[..header::LEGACY_LEN - 4];
    let legacy = [fields, &crc32fast::hash(fields).to_be_bytes()].concat();
    for header in [&current[..], &legacy] {
        let near = socket("127.0.0.1", agent.address);
        let mut client = RawClient::handshake(near, &Want::good(&identity)).unwrap();
        client.send(header);
        client.exchange(b"through");
    }
}

#[test]
fn a_datagram_that_overtakes_the_header_is_delivered() {
    let agent = TestAgent::new();
    let near = socket("127.0.0.1", agent.address);
    let identity = agent.pki.client("tester");
    let mut client = RawClient::handshake(near, &Want::good(&identity)).unwrap();
    client.send(b"first");
    client.send(&header::encode_stream("127.0.0.1", udp_echo().port()).unwrap());
    client.send(b"second");
    assert_eq!(client.recv().as_deref(), Some(&b"first"[..]));
    assert_eq!(client.recv().as_deref(), Some(&b"second"[..]));
}

#[test]
fn a_bad_header_a_probe_and_a_denied_destination_end_the_session() {
    let setup = Setup { deny: vec!["127.0.0.2".to_owned()], ..Setup::default() };
    let agent = TestAgent::with(setup);
    let identity = agent.pki.client("tester");
    let good = header::encode_stream("127.0.0.1", 9).unwrap();
    let mut wrong_sum = good;
    wrong_sum[274] ^= 1;
    let mut wrong_version = good;
    wrong_version[0] = b'9';
    let no_host = header::encode("", "9", 0).unwrap();
    let no_port = header::encode("127.0.0.1", "0", 0).unwrap();
    let denied = header::encode_stream("127.0.0.2", 9).unwrap();
    let unknown = header::encode_stream("nothing.invalid", 9).unwrap();
    let probe = header::encode_probe();
    for header in [wrong_sum, wrong_version, no_host, no_port, denied, unknown, probe] {
        let near = socket("127.0.0.1", agent.address);
        let mut client = RawClient::handshake(near, &Want::good(&identity)).unwrap();
        client.send(&header);
        assert_eq!(client.recv(), None);
    }
    assert_eq!(agent.stop().streams, 0);
}

#[test]
fn a_client_without_a_header_is_sent_away() {
    let limits = Limits { header: Duration::from_millis(100), ..Limits::default() };
    let agent = TestAgent::with(Setup { limits, ..Setup::default() });
    let near = socket("127.0.0.1", agent.address);
    let identity = agent.pki.client("tester");
    let mut client = RawClient::handshake(near, &Want::good(&identity)).unwrap();
    assert_eq!(client.recv(), None);
}

#[test]
fn who_may_not_is_told_by_an_alert() {
    const BAD_CERTIFICATE: u8 = 42;
    const CERTIFICATE_EXPIRED: u8 = 45;
    const UNKNOWN_CA: u8 = 48;
    const HANDSHAKE_FAILURE: u8 = 40;
    const UNSUPPORTED_CERTIFICATE: u8 = 43;
    const PROTOCOL_VERSION: u8 = 70;
    let setup =
        Setup { name_rules: NameRules::new(&["good*".to_owned()]).unwrap(), ..Setup::default() };
    let agent = TestAgent::with(setup);
    let stranger = Pki::new().client("good");
    let expired = agent.pki.expired_client();
    let other_name = agent.pki.client("bad");
    let server = agent.pki.server();
    let good = agent.pki.client("good one");
    let want = Want::good;
    let try_as =
        |want: &Want<'_>| RawClient::handshake(socket("127.0.0.1", agent.address), want).map(drop);
    assert_eq!(try_as(&want(&stranger)), Err(UNKNOWN_CA));
    assert_eq!(try_as(&want(&expired)), Err(CERTIFICATE_EXPIRED));
    assert_eq!(try_as(&want(&other_name)), Err(BAD_CERTIFICATE));
    assert_eq!(try_as(&want(&server)), Err(UNSUPPORTED_CERTIFICATE));
    assert_eq!(try_as(&Want { identity: None, ..want(&good) }), Err(HANDSHAKE_FAILURE));
    let weak = Want { ciphers: "ECDHE-ECDSA-AES128-SHA", ..want(&good) };
    assert_eq!(try_as(&weak), Err(HANDSHAKE_FAILURE));
    let old = Want { version: SslVersion::DTLS1, ciphers: "ALL", ..want(&good) };
    assert_eq!(try_as(&old), Err(PROTOCOL_VERSION));
    assert_eq!(try_as(&want(&good)), Ok(()));
}

#[test]
fn a_client_without_the_extended_master_secret_is_refused() {
    let agent = TestAgent::new();
    let identity = agent.pki.client("tester");
    let want = Want { extended_master_secret: false, ..Want::good(&identity) };
    let near = socket("127.0.0.1", agent.address);
    assert_eq!(RawClient::handshake(near, &want).err(), Some(40), "handshake_failure");
}

#[test]
fn our_client_takes_no_other_agent() {
    let agent = TestAgent::new();
    let other = Pki::new();
    match agent.client_with(&other.client("tester")).probe_udp() {
        Err(UdpError::Handshake(_, HandshakeError::Certificate(_))) => {}
        other => panic!("{other:?}"),
    }
}

/// A client that goes without a word and begins anew from the same port, five times.
fn begins_anew(agent: SocketAddr, identity: &Identity) {
    let to = udp_echo();
    let mut near = socket("127.0.0.1", agent);
    for round in 0..5_u8 {
        let mut client = RawClient::open(near, identity, to);
        client.exchange(&[round]);
        near = client.vanish();
    }
}

#[test]
fn a_client_that_begins_anew_from_the_same_port_is_served_at_once() {
    let agent = TestAgent::new();
    begins_anew(agent.address, &agent.pki.client("tester"));
    assert_eq!(agent.stop().streams, 5);
}

#[test]
fn sessions_of_one_agent_do_not_know_each_other() {
    let agent = TestAgent::with(Setup { udp_sockets: 3, ..Setup::default() });
    let to = udp_echo();
    let streams: Vec<_> = (0..20).map(|_| open(&agent, to)).collect();
    for round in 0..3_u8 {
        for (number, stream) in streams.iter().enumerate() {
            stream.send(&[number as u8, round]).unwrap();
        }
        for (number, stream) in streams.iter().enumerate() {
            assert_eq!(recv(stream).unwrap(), [number as u8, round]);
        }
    }
}

#[test]
fn a_stopping_agent_says_goodbye_at_once() {
    let agent = TestAgent::new();
    let stream = open(&agent, udp_echo());
    exchange(&stream, b"there");
    assert_eq!(agent.stop().streams, 1);
    assert_eq!(recv(&stream), None);
}

#[test]
fn a_closed_stream_wakes_who_receives() {
    let agent = TestAgent::new();
    let stream = open(&agent, udp_echo());
    exchange(&stream, b"there");
    thread::scope(|scope| {
        let receiver = scope.spawn(|| recv(&stream));
        stream.close();
        assert_eq!(receiver.join().unwrap(), None);
    });
    assert_eq!(stream.send(b"x").unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn an_idle_session_ends_and_a_used_one_does_not() {
    let limits = Limits { udp_idle: Duration::from_secs(2), ..Limits::default() };
    let agent = TestAgent::with(Setup { limits, ..Setup::default() });
    let to = udp_echo();
    let (idle, used) = (open(&agent, to), open(&agent, to));
    exchange(&idle, b"once");
    // Until the other one's end, which comes after its idle time.
    let mut ended = false;
    while !ended {
        exchange(&used, b"again");
        let look = Deadline::after("a look", Duration::from_millis(20));
        match idle.recv(&mut [0; 16], Some(look)) {
            Ok(None) => ended = true,
            Ok(Some(_)) => panic!("nothing was sent"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut),
        }
    }
    exchange(&used, b"still there");
}

#[test]
fn a_session_that_has_rested_goes_on() {
    // Rests when nothing has passed for a tenth of that.
    let limits = Limits { udp_idle: Duration::from_secs(20), ..Limits::default() };
    let agent = TestAgent::with(Setup { limits, ..Setup::default() });
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let (echoed, called, left) = (
        open(&agent, udp_echo()),
        open(&agent, far.local_addr().unwrap()),
        open(&agent, udp_echo()),
    );
    exchange(&echoed, b"before");
    exchange(&left, b"before");
    called.send(b"here I am").unwrap();
    let (_, from) = far.recv_from(&mut [0; 64]).unwrap();
    for size in [5, UdpStream::MAX] {
        let nothing = Deadline::after("silence", Duration::from_secs(5));
        let waited = called.recv(&mut [0; 16], Some(nothing));
        assert_eq!(waited.unwrap_err().kind(), ErrorKind::TimedOut);
        // What comes first is something to read, to write, and at last an end.
        exchange(&echoed, &vec![1; size]);
        far.send_to(&vec![2; size], from).unwrap();
        assert_eq!(recv(&called), Some(vec![2; size]));
    }
    assert_eq!(agent.stop().streams, 3);
    assert_eq!(recv(&left), None);
}

#[test]
fn a_client_that_begins_anew_finds_its_own_place() {
    let pki = Pki::new();
    let flags = ["--max-udp-sessions", "1", "--max-per-source", "1"];
    let agent = AgentProcess::start(&pki.files(), &flags);
    begins_anew(agent.address, &pki.client("tester"));
    // A client that is refused asks again and gets in then: only the log tells.
    let log = agent.ends_well();
    assert!(!log.iter().any(|line| line.contains("UDP session refused")), "{log:#?}");
}

#[test]
fn each_refusal_has_a_line_that_says_why() {
    let pki = Pki::new();
    let agent = AgentProcess::start(&pki.files(), &["--allow-name", "good*"]);
    let (good, expired) = (pki.client("good"), pki.expired_client());
    let (stranger, named) = (Pki::new().client("good"), pki.client("bad"));
    let want = Want::good;
    let weak = Want { ciphers: "ECDHE-ECDSA-AES128-SHA", ..want(&good) };
    let old = Want { version: SslVersion::DTLS1, ciphers: "ALL", ..want(&good) };
    for (want, why) in [
        (want(&stranger), "why=the peer's certificate is not from our certificate authority"),
        (want(&expired), "why=the peer's certificate has expired"),
        (want(&named), "cert=bad why=the client's name is not allowed"),
        (Want { identity: None, ..want(&good) }, "why=the client showed no certificate"),
        (weak, "why=no cipher suite in common"),
        (old, "why=the peer does not speak DTLS 1.2"),
        (
            Want { extended_master_secret: false, ..want(&good) },
            "why=the peer does without the extended master secret",
        ),
    ] {
        let near = socket("127.0.0.1", agent.address);
        let from = near.local_addr().unwrap();
        RawClient::handshake(near, &want).unwrap_err();
        let line = agent.wait_for(&format!("peer={from} "));
        assert!(line.contains("UDP session refused") && line.contains(why), "{line}");
    }
    agent.ends_well();
}

#[test]
fn without_a_slot_a_client_waits_for_one() {
    let limits = Limits { udp_sessions: 1, ..Limits::default() };
    let agent = TestAgent::with(Setup { limits, ..Setup::default() });
    let to = udp_echo();
    let first = open(&agent, to);
    exchange(&first, b"first");
    thread::scope(|scope| {
        let second = scope.spawn(|| open(&agent, to));
        // Its first words are lost on the agent until there is room; they are sent again.
        first.close();
        exchange(&second.join().unwrap(), b"second");
    });
}

#[test]
fn an_agent_that_is_not_there_is_told_at_once_and_a_silent_one_in_time() {
    let pki = Pki::new();
    let identity = pki.client("tester");
    // Bound over TCP only: whoever sends datagrams there is told that nobody listens.
    let nobody = crate::support::destinations::refused();
    let client = crate::support::client_of(nobody, &identity);
    match client.probe_udp() {
        Err(UdpError::Handshake(_, HandshakeError::Io(error))) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        other => panic!("{other:?}"),
    }
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let timeouts = adit::client::Timeouts {
        handshake: Duration::from_millis(300),
        ..adit::client::Timeouts::default()
    };
    let client = adit::client::Client::new(
        &silent.local_addr().unwrap().to_string(),
        adit::tls::SERVER_NAME,
        &identity,
        adit::tls::provider::default(),
        timeouts,
    )
    .unwrap();
    let error = client.probe_udp().unwrap_err();
    assert!(error.to_string().contains("DTLS handshake timed out after"), "{error}");
}
