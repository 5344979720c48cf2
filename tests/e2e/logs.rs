//! What an operator reads about a stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use adit::pki::{Purpose, Request, Validity};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::support::process::AgentProcess;
use crate::support::{Pki, client_of, destinations};

/// The value of `name=` in a line of the log.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let at = line.find(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name}= in {line}"));
    line[at + name.len() + 2..].split(' ').next().unwrap()
}

/// The number of seconds in `name=` in a line of the log.
fn seconds(line: &str, name: &str) -> f64 {
    field(line, name).strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn a_stream_is_one_line_when_it_opens_and_one_when_it_ends() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let echo = destinations::echo();
    let mut stream = agent.client(&files).open("127.0.0.1", echo.port()).unwrap();
    let local = stream.conn().peer_addr().unwrap();
    assert_eq!(local, agent.address);
    stream.write_all(b"12345").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    stream.close(crate::support::PATIENCE);
    let ended = agent.wait_for("stream ended");
    let opened = agent.wait_for("stream opened");
    for name in ["id", "peer", "cert", "dst"] {
        assert_eq!(field(&opened, name), field(&ended, name));
    }
    assert_eq!(field(&opened, "id"), "1");
    assert!(field(&opened, "peer").starts_with("127.0.0.1:"));
    assert_eq!(field(&opened, "cert"), "tester");
    assert_eq!(field(&opened, "dst"), echo.to_string());
    assert_eq!(field(&opened, "address"), echo.to_string());
    seconds(&opened, "dial");
    assert_eq!((field(&ended, "up"), field(&ended, "down")), ("5", "5"));
    seconds(&ended, "time");
    assert_eq!(field(&ended, "why"), "finished");
    assert_eq!(agent.log().iter().filter(|line| line.contains("id=1 ")).count(), 2);
}

#[test]
fn the_end_says_who_broke_the_stream() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--half-close-timeout", "500ms"]);
    let client = agent.client(&files);
    let echo = destinations::echo().port();
    let open = || {
        let mut stream = client.open("127.0.0.1", echo).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        stream
    };
    open().conn().finish().unwrap();
    agent.wait_for("why=reading from the client: the connection was closed without close_notify");
    open().conn().abort();
    agent.wait_for("why=reading from the client: Connection reset by peer");

    let reset = destinations::service(|mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        let linger = Some(std::time::Duration::ZERO);
        socket2::SockRef::from(&stream).set_linger(linger).unwrap();
    });
    let mut stream = client.open("127.0.0.1", reset.port()).unwrap();
    stream.write_all(b"x").unwrap();
    drop(stream.read(&mut [0; 1]));
    agent.wait_for("the destination: Connection reset by peer");

    // Neither answers nor ends.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = client.open("127.0.0.1", silent.local_addr().unwrap().port()).unwrap();
    let (_source, mut sink) = stream.split().unwrap();
    adit::net::Sink::finish(&mut sink).unwrap();
    agent.wait_for("why=half-close limit: nothing from the destination for 500ms");
}

#[test]
fn a_refused_destination_is_one_line_that_says_why() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--deny", "192.0.2.0/24"]);
    let client = agent.client(&files);
    let refused = destinations::refused();
    drop(client.open("127.0.0.1", refused.port()).unwrap());
    let line = agent.wait_for("Connection refused");
    assert!(line.contains("stream refused id=1 peer=127.0.0.1:"), "{line}");
    assert!(line.contains(&format!(" cert=tester dst={refused} time=")), "{line}");
    seconds(&line, "time");
    drop(client.open("192.0.2.7", 22).unwrap());
    seconds(&agent.wait_for("dst=192.0.2.7:22 time="), "time");
    drop(client.open("no-such-host.invalid", 22).unwrap());
    agent.wait_for("dst=no-such-host.invalid:22 time=");
}

#[test]
fn a_flood_that_has_stopped_is_told_in_the_end() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    const NOISE: usize = 12;
    for _ in 0..NOISE {
        let mut socket = std::net::TcpStream::connect(agent.address).unwrap();
        socket.write_all(b"SSH-2.0-scanner\r\n").unwrap();
        drop(socket.read_to_end(&mut Vec::new()));
    }
    let told = agent.wait_for(" more lines about peers that do not speak TLS were left out");
    let count = told.split_once(" more lines").unwrap().0.rsplit(' ').next().unwrap();
    let written = agent.log().iter().filter(|line| line.contains("why=the peer does not")).count();
    assert_eq!(count.parse::<usize>().unwrap() + written, NOISE, "{told}");
}

#[test]
fn probes_and_api_calls_are_silent_unless_asked_for() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let client = agent.client(&files);
    client.probe().unwrap();
    client.info().unwrap();
    let echo = destinations::echo().port();
    drop(client.open("127.0.0.1", echo).unwrap());
    agent.wait_for("stream ended");
    let lines = agent.log();
    let streams = lines.iter().filter(|line| line.contains("id=")).count();
    assert_eq!(streams, 2, "{lines:#?}");
}

#[test]
fn an_authoritys_own_certificate_is_refused_in_words() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let other = Pki::new().authority;
    std::fs::write(files.path("self.pem"), other.certificate_pem()).unwrap();
    std::fs::write(files.path("self-key.pem"), other.key_pem()).unwrap();
    assert!(client_of(agent.address, &files.identity("self")).probe().is_err());
    agent.wait_for(" why=the peer's certificate is an authority's own (self-signed?), not one that our certificate authority issued");
}

#[test]
fn a_client_whose_name_is_not_allowed_is_named() {
    let pki = Pki::new();
    let files = pki.files();
    let agent = AgentProcess::start(&files, &["--allow-name", "alice"]);
    for (name, shown) in [("bob", "bob"), ("eve why=\"x\"", "\"eve why=\\\"x\\\"\"")] {
        assert!(client_of(agent.address, &pki.client(name)).probe().is_err());
        let line = agent.wait_for(&format!(" cert={shown} "));
        assert!(line.contains("connection refused id="), "{line}");
        let why = format!(" cert={shown} why=the client's name is not allowed (--allow-name)");
        assert!(line.ends_with(&why), "{line}");
    }
    // Not taken for the one before, which may have had the same thread.
    assert!(client_of(agent.address, &pki.expired_client()).probe().is_err());
    let line = agent.wait_for("id=3 ");
    assert!(line.ends_with("why=the peer's certificate has expired"), "{line}");
    assert!(!line.contains("cert="), "{line}");
}

#[test]
fn an_address_that_is_denied_is_named_with_its_rule() {
    let files = Pki::new().files();
    let why_not = |flags: &[&str]| {
        let agent = AgentProcess::start(&files, flags);
        // Only the resolver reads this as an address.
        drop(agent.client(&files).open("127.1", 22).unwrap());
        let line = agent.wait_for("stream refused");
        line.split_once(" why=").unwrap().1.to_owned()
    };
    assert_eq!(
        why_not(&["--deny", "192.0.2.0/24", "--deny", "127.0.0.0/8:20-30"]),
        "destination rules deny 127.0.0.1: rule 127.0.0.0/8:20-30"
    );
    assert_eq!(
        why_not(&["--allow", "192.0.2.0/24"]),
        "destination rules deny 127.0.0.1: no allow rule matches"
    );
}

#[test]
fn a_refusal_says_how_long_it_took() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--dial-timeout", "300ms"]);
    // A backlog of one that is full: connections to it are not answered.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    silent.listen(0).unwrap();
    let silent_port = silent.local_addr().unwrap().as_socket().unwrap().port();
    let _filler = TcpStream::connect(("127.0.0.1", silent_port)).unwrap();
    // Readable is when the connection has reached the queue, which is now full.
    let mut fds = [PollFd::new(silent.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::NONE).unwrap(), 1);
    drop(agent.client(&files).open("127.0.0.1", silent_port).unwrap());
    let line = agent.wait_for("stream refused");
    assert!(line.contains("dial timed out after 300ms"), "{line}");
    // The limit was over, so that this is no guess about the machine's speed.
    assert!(seconds(&line, "time") >= 0.3, "{line}");
}

#[test]
fn the_end_of_the_certificate_is_told_and_warned_of_when_it_is_near() {
    let pki = Pki::new();
    let files = pki.files();
    let day = 24 * 3600;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    // Half a day more, so that the days are the same however slow the machine is.
    for (days, told) in [(29, "WARN  "), (30, "INFO  "), (1, "WARN  ")] {
        let not_after = now + days * day + day / 2;
        let validity = Validity { not_before: now - day, not_after };
        let names = vec!["godoxy.agent".to_owned()];
        let request = Request { purpose: Purpose::Server, names, validity };
        let issued = pki.authority.issue(&request).unwrap();
        std::fs::write(files.path("server.pem"), issued.certificate_pem()).unwrap();
        std::fs::write(files.path("server-key.pem"), issued.key_pem()).unwrap();
        let agent = AgentProcess::start(&files, &[]);
        let unit = if days == 1 { "day" } else { "days" };
        let date = adit::pki::utc(not_after);
        agent.wait_for(&format!("{told}certificate valid until {date} ({days} {unit})"));
    }
}
