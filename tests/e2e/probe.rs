//! `adit probe` as a command.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use adit::lifecycle::Deadline;
use adit::net::Conn;
use adit::pki::{NameRules, Purpose};
use adit::tls::{self, ClientAuth};

use crate::support::command::{Ran, run};
use crate::support::process::{AgentProcess, adit};
use crate::support::{PATIENCE, Pki, PkiFiles, Setup, TestAgent, destinations};

fn probe(agent: SocketAddr, files: &PkiFiles, flags: &[&str]) -> Ran {
    let mut command = adit();
    command.args(["probe", &agent.to_string()]).args(files.flags("client")).args(flags);
    run(&mut command, b"")
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_slice(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[test]
fn a_healthy_agent_is_described_to_people_and_to_machines() {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let ran = probe(agent.address, &files, &[]).ok();
    for row in [
        format!("agent     {}\n", agent.address),
        "name      test-agent\n".to_owned(),
        "version   v0.31.0\n".to_owned(),
        format!("software  adit {}\n", env!("CARGO_PKG_VERSION")),
        "runtime   docker\n".to_owned(),
        "TCP       works (connect ".to_owned(),
        "UDP       works (connect ".to_owned(),
    ] {
        assert!(ran.text().contains(&row), "{row:?} in {}", ran.text());
    }
    let found = json(&probe(agent.address, &files, &["--json"]).ok());
    assert_eq!(found["agent"], agent.address.to_string());
    assert_eq!((&found["healthy"], &found["tcp"]["works"]), (&true.into(), &true.into()));
    assert_eq!(found["info"]["name"], "test-agent");
    assert_eq!(found["udp"]["works"], true);
    for phase in ["connect", "handshake", "answer"] {
        assert!(found["tcp"][phase].as_u64().unwrap() > 0, "{phase}");
        assert!(found["udp"][phase].as_u64().unwrap() > 0, "{phase}");
    }
}

#[test]
fn a_client_certificate_that_is_refused_after_the_handshake_is_not_healthy() {
    let rules = NameRules::new(&["alice".to_owned()]).unwrap();
    let client_auth = ClientAuth::Required(rules);
    let agent = TestAgent::with(Setup { client_auth, ..Setup::default() });
    let files = agent.pki.files();
    let ran = probe(agent.address, &files, &["--json"]);
    assert_eq!(ran.code, Some(1));
    let found = json(&ran);
    assert_eq!((&found["healthy"], &found["tcp"]["works"]), (&false.into(), &false.into()));
    assert!(found["tcp"]["error"].as_str().unwrap().contains("access_denied"), "{found}");
    assert!(ran.err.contains("access_denied"), "{ran:?}");
    let ran = probe(agent.address, &files, &[]);
    assert!(ran.text().contains("TCP       does not work\n"), "{ran:?}");
    assert!(ran.text().contains("API       the agent's API: refused: "), "{ran:?}");
}

#[test]
fn udp_that_fails_alone_is_told_and_counts_only_where_it_is_asked_for() {
    // Its API says that it carries UDP.
    let agent = TestAgent::with(Setup { udp_sockets: 0, ..Setup::default() });
    let files = agent.pki.files();
    let ran = probe(agent.address, &files, &[]).ok();
    assert!(ran.text().contains("TCP       works"), "{ran:?}");
    let row = "UDP       does not work: cannot reach the agent at UDP ";
    assert!(ran.text().contains(row), "{ran:?}");
    let found = json(&probe(agent.address, &files, &["--json"]).ok());
    assert_eq!((&found["healthy"], &found["udp"]["works"]), (&true.into(), &false.into()));
    assert!(found["udp"]["error"].as_str().unwrap().contains("refused"), "{found}");
    assert!(found["udp"]["connect"].is_null(), "{found}");
    let ran = probe(agent.address, &files, &["--udp"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains(": UDP: cannot reach the agent at UDP "), "{ran:?}");
}

#[test]
fn udp_that_an_agent_does_not_carry_is_not_tried() {
    let files = Pki::new().files();
    let mut command = adit();
    let at = format!("{}:0", destinations::unused().ip());
    command.args(["agent", "--listen", &at, "--no-udp"]).args(files.flags("server"));
    let agent = AgentProcess::spawn(command);
    // Whoever tried it would hear nothing, and wait.
    let silent = UdpSocket::bind(agent.address).unwrap();
    let ran = probe(agent.address, &files, &[]).ok();
    assert!(ran.text().ends_with("UDP       not offered\n"), "{ran:?}");
    let ran = probe(agent.address, &files, &["--udp", "--json"]);
    assert_eq!((ran.code, &json(&ran)["healthy"]), (Some(1), &true.into()));
    assert!(ran.err.ends_with(": UDP: not offered\n"), "{ran:?}");
    silent.set_nonblocking(true).unwrap();
    assert!(silent.recv(&mut [0; 1]).is_err());
}

#[test]
fn udp_is_tried_while_tcp_is_silent() {
    let tcp = TcpListener::bind((destinations::unused().ip(), 0)).unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    // TCP stays silent until UDP was tried.
    let server = std::thread::spawn(move || {
        let (mut silent, _) = tcp.accept().unwrap();
        silent.read_exact(&mut [0; 1]).unwrap();
        udp.recv(&mut [0; 1]).map(drop)
    });
    let ran = probe(address, &Pki::new().files(), &["--timeout", "2m"]);
    server.join().unwrap().unwrap();
    assert!(ran.code == Some(1) && ran.text().contains("UDP       does not work: "), "{ran:?}");
}

#[test]
fn an_unknown_authority_is_not_healthy_whichever_side_it_is_on() {
    let agent = TestAgent::new();
    let ran = probe(agent.address, &Pki::new().files(), &["--json"]);
    let found = json(&ran);
    assert_eq!((ran.code, &found["healthy"]), (Some(1), &false.into()));
    assert_eq!((&found["tcp"]["works"], &found["udp"]["works"]), (&false.into(), &false.into()));
}

#[test]
fn nobody_listening_is_exit_code_1_and_no_second_wait() {
    let ran = probe(destinations::refused(), &Pki::new().files(), &["--json"]);
    assert_eq!(ran.code, Some(1));
    let found = json(&ran);
    assert!(found["info"].is_null() && found.get("info_error").is_none());
    assert!(found["tcp"]["error"].as_str().unwrap().contains("refused"), "{found}");
}

/// A server of the same authority that only speaks `alpn`.
fn other_server(pki: &Pki, alpn: &'static [&'static [u8]]) -> SocketAddr {
    let auth = ClientAuth::Required(NameRules::new(&[]).unwrap());
    let config = tls::server(&pki.server(), auth, alpn, tls::provider::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let conn = Conn::new(socket.unwrap());
            let deadline = Deadline::after("handshake", PATIENCE);
            if let Ok(stream) = tls::accept(conn, config.clone(), deadline) {
                stream.close(PATIENCE);
            }
        }
    });
    address
}

#[test]
fn a_server_that_does_not_offer_streams_is_told_from_an_agent() {
    const OTHER: &[&[u8]] = &[b"http/1.1"];
    let pki = Pki::new();
    for (alpn, words) in [(OTHER, "no_application_protocol"), (&[], "does not offer agent streams")]
    {
        let ran = probe(other_server(&pki, alpn), &pki.files(), &[]);
        assert_eq!(ran.code, Some(1));
        assert!(ran.err.contains(words), "{ran:?}");
    }
}

#[test]
fn a_server_that_does_not_speak_tls_is_named_as_such() {
    let ran = probe(destinations::echo(), &Pki::new().files(), &[]);
    assert_eq!(ran.code, Some(1));
    let greeter = destinations::service(|mut stream| {
        use std::io::Write;
        drop(stream.write_all(b"220 mail.example ESMTP\r\n"));
        drop(std::io::copy(&mut stream, &mut std::io::sink()));
    });
    let ran = probe(greeter, &Pki::new().files(), &[]);
    assert!(ran.code == Some(1) && ran.err.contains("does not speak TLS"), "{ran:?}");
}

#[test]
fn a_silent_agent_is_given_up_at_the_timeout() {
    let silent = TcpListener::bind((destinations::unused().ip(), 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let _silent_too = UdpSocket::bind(address).unwrap();
    let ran = probe(address, &Pki::new().files(), &["--timeout", "1s", "--udp"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("TLS handshake timed out after 1s; UDP: "), "{ran:?}");
    assert!(ran.err.contains("DTLS handshake timed out after 1s; does it carry UDP"), "{ran:?}");
}

#[test]
fn wrong_flags_are_exit_code_2() {
    let files = Pki::new().files();
    for flags in [&["--timeout", "0s"], &["--zip", "x.zip"]] {
        assert_eq!(probe(destinations::refused(), &files, flags).code, Some(2), "{flags:?}");
    }
    // A server's certificate shown by a client.
    let ran = run(adit().args(["probe", "127.0.0.1:1"]).args(files.flags("server")), b"");
    assert_eq!(ran.code, Some(2), "{:?} {ran:?}", Purpose::Client);
}
