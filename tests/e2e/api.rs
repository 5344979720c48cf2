//! The HTTP API on the port that carries streams.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use adit::client::{Client, Timeouts};
use adit::net::Sink;
use adit::tls::{self, SERVER_NAME, provider};
use rustls::version::{TLS12, TLS13};

use crate::support::pattern::{MIB, receive, send};
use crate::support::tls::{HTTP, config, connect, rustls};
use crate::support::{PATIENCE, Setup, TestAgent, destinations};

/// Sends bytes with the given ALPN and returns everything that comes back.
fn exchange(agent: &TestAgent, alpn: &[&[u8]], request: &str) -> String {
    let identity = agent.pki.client("tester");
    let mut stream = rustls(agent.address, config(&identity, true, alpn, &[&TLS12, &TLS13]));
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// One request on a connection of its own: status line and body.
fn ask(agent: &TestAgent, method: &str, path: &str) -> (String, String) {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: godoxy.agent\r\nConnection: close\r\n\r\n");
    let answer = exchange(agent, &[HTTP], &request);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn get(agent: &TestAgent, endpoint: &str) -> String {
    let (status, body) = ask(agent, "GET", &format!("/godoxy/agent/{endpoint}"));
    assert_eq!(status, "HTTP/1.1 200 OK", "{endpoint}: {body}");
    body
}

#[test]
fn the_agent_says_what_it_is() {
    let agent = TestAgent::new();
    let info: serde_json::Value = serde_json::from_str(&get(&agent, "info")).unwrap();
    assert_eq!(info["name"], "test-agent");
    assert_eq!((&info["supports_tcp_stream"], &info["runtime"]), (&true.into(), &"docker".into()));
    assert_eq!(get(&agent, "version"), info["version"]);
    assert_eq!(get(&agent, "name"), "test-agent");
    assert_eq!(get(&agent, "runtime"), "docker");
    assert_eq!(agent.client().info().unwrap().name, "test-agent");
}

#[test]
fn no_alpn_means_http_and_an_unknown_one_is_refused_with_alert_120() {
    let agent = TestAgent::new();
    let request = "GET /godoxy/agent/name HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(exchange(&agent, &[], request).ends_with("\r\n\r\ntest-agent"));
    assert!(exchange(&agent, &[b"h2", HTTP], request).ends_with("\r\n\r\ntest-agent"));
    let identity = agent.pki.client("tester");
    for version in [&TLS12, &TLS13] {
        let config = config(&identity, true, &[b"h2"], &[version]);
        let error = connect(agent.address, config).unwrap_err().to_string();
        assert!(error.contains("no_application_protocol"), "{error}");
    }
}

#[test]
fn the_api_answers_while_streams_run() {
    let agent = TestAgent::new();
    let stream = agent.client().open("127.0.0.1", destinations::echo().port()).unwrap();
    let (mut source, mut sink) = stream.split().unwrap();
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut sent = 0;
            while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
                send(&mut sink, MIB, 64 * 1024);
                sent += MIB;
            }
            sink.finish().unwrap();
            sent
        });
        scope.spawn(move || {
            while let adit::net::Event::Data(_) | adit::net::Event::Idle =
                adit::net::Source::next(&mut source).unwrap()
            {}
        });
        for _ in 0..20 {
            assert_eq!(get(&agent, "name"), "test-agent");
        }
        drop(stop);
    });
}

#[test]
fn one_connection_carries_many_requests() {
    let agent = TestAgent::new();
    let request = "GET /godoxy/agent/name HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /godoxy/agent/runtime HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = exchange(&agent, &[HTTP], &format!("{}{last}", request.repeat(5)));
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 6);
    assert_eq!(answer.matches("test-agent").count(), 5);
    assert!(answer.ends_with("docker"));
}

#[test]
fn what_is_asked_wrongly_gets_the_status_that_says_so() {
    let agent = TestAgent::new();
    let status = |method: &str, path: &str| ask(&agent, method, path).0;
    assert_eq!(status("GET", "/godoxy/agent/nothing"), "HTTP/1.1 404 Not Found");
    assert_eq!(status("GET", "/"), "HTTP/1.1 404 Not Found");
    assert_eq!(status("POST", "/godoxy/agent/info"), "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(status("GET", "/godoxy/agent/health"), "HTTP/1.1 400 Bad Request");
    let (head, body) = ask(&agent, "HEAD", "/godoxy/agent/info");
    assert_eq!((head.as_str(), body.as_str()), ("HTTP/1.1 200 OK", ""));
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        (
            format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(17_000)),
            "HTTP/1.1 431 ",
        ),
    ] {
        let answer = exchange(&agent, &[HTTP], &request);
        assert!(answer.starts_with(status), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one answer, then the end");
    }
}

#[test]
fn health_checks_reach_what_streams_reach_and_no_further() {
    let open = destinations::echo();
    let healthy = |agent: &TestAgent, query: &str| -> serde_json::Value {
        serde_json::from_str(&get(agent, &format!("health?{query}"))).unwrap()
    };
    let agent = TestAgent::new();
    let found = healthy(&agent, &format!("scheme=tcp&host={open}"));
    assert_eq!((&found["healthy"], &found["detail"]), (&true.into(), &"".into()));
    assert!(found["latency"].as_u64().unwrap() > 0);
    let port = open.port();
    let found = healthy(&agent, &format!("scheme=tcp4&host=localhost&port={port}"));
    assert_eq!(found["healthy"], true);
    let found = healthy(&agent, &format!("scheme=tcp6&host=127.0.0.1&port={port}"));
    assert_eq!(found["healthy"], false);
    let refused = destinations::refused();
    assert_eq!(healthy(&agent, &format!("scheme=tcp&host={refused}"))["healthy"], false);

    let deny = vec!["127.0.0.0/8".to_owned()];
    let agent = TestAgent::with(Setup { deny, ..Setup::default() });
    for host in ["127.0.0.1", "localhost"] {
        for scheme in ["tcp", "tcp4", "http", "udp"] {
            let query = format!("scheme={scheme}&host={host}&port={port}&path=/");
            let found = healthy(&agent, &query);
            assert_eq!(found["healthy"], false, "{query}: {found}");
        }
    }
}

#[test]
fn the_library_says_how_an_api_request_failed() {
    let agent = TestAgent::new();
    let stranger = crate::support::Pki::new().client("stranger");
    let error = agent.client_with(&stranger).info().unwrap_err().to_string();
    assert!(error.contains("authority"), "{error}");
    drop(tls::provider::default());
    let (mut source, mut sink) =
        agent.client().open("127.0.0.1", destinations::echo().port()).unwrap().split().unwrap();
    send(&mut sink, 1000, 100);
    sink.finish().unwrap();
    assert_eq!(receive(&mut source), 1000, "and streams go on");
}

/// Connecting and the handshake have limits of their own.
#[test]
fn a_slow_handshake_does_not_use_up_the_time_for_the_answer() {
    let limit = Duration::from_secs(5);
    let agent = TestAgent::new();
    let address = agent.address;
    let (never, waits) = crossbeam_channel::bounded::<()>(0);
    let slow = destinations::service(move |mut client| {
        assert!(waits.recv_timeout(limit + limit / 10).is_err());
        let mut server = TcpStream::connect(address).unwrap();
        let (mut from_client, mut to_server) =
            (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || drop(std::io::copy(&mut from_client, &mut to_server)));
        drop(std::io::copy(&mut server, &mut client));
    });
    let timeouts = Timeouts { dial: PATIENCE, handshake: PATIENCE, answer: limit };
    let identity = agent.pki.client("tester");
    let client =
        Client::new(&slow.to_string(), SERVER_NAME, &identity, provider::default(), timeouts);
    assert_eq!(client.unwrap().info().unwrap().name, "test-agent");
    drop(never);
}
