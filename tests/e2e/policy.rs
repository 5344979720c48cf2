//! Who may connect, and where to.

use std::io::Read;

use adit::pki::NameRules;
use adit::tls::{self, ClientAuth};
use adit::wire::header;
use rustls::AlertDescription;
use rustls::version::{TLS12, TLS13};

use crate::support::tls::{connect, stream_config};
use crate::support::{Setup, TestAgent, destinations};

/// Whether a stream to a destination that greets is carried.
fn carries(agent: &TestAgent, host: &str, port: u16) -> bool {
    let mut stream = agent.client().open(host, port).unwrap();
    stream.read(&mut [0; 1]).unwrap() == 1
}

fn greeter() -> u16 {
    destinations::service(|mut stream| {
        use std::io::Write;
        stream.write_all(b"hello").unwrap();
    })
    .port()
}

fn agent(allow: &[&str], deny: &[&str]) -> TestAgent {
    let texts = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect();
    TestAgent::with(Setup { allow: texts(allow), deny: texts(deny), ..Setup::default() })
}

#[test]
fn a_denied_network_cannot_be_reached_by_address_nor_by_name() {
    let port = greeter();
    let agent = agent(&[], &["127.0.0.0/8", "::1"]);
    for host in ["127.0.0.1", "localhost", "LOCALHOST.", "::ffff:127.0.0.1", "0.0.0.0", "::1"] {
        assert!(!carries(&agent, host, port), "{host}");
    }
    assert_eq!(agent.stop().streams, 0);
}

#[test]
fn names_networks_and_ports_can_be_allowed() {
    let (port, other) = (greeter(), greeter());
    for rule in ["localhost", "local*", "127.0.0.0/8", &format!("*:{port}")] {
        let agent = agent(&[rule], &[]);
        assert!(carries(&agent, "localhost", port), "{rule}");
    }
    let by_port = agent(&[&format!("127.0.0.1:{port}")], &[]);
    assert!(carries(&by_port, "127.0.0.1", port));
    assert!(!carries(&by_port, "127.0.0.1", other));
    let by_name = agent(&["localhost"], &[]);
    assert!(!carries(&by_name, "127.0.0.1", port), "the name is allowed, not its address");
}

#[test]
fn deny_wins_over_allow() {
    let port = greeter();
    let agent = agent(&["*"], &[&format!("*:{port}")]);
    assert!(!carries(&agent, "127.0.0.1", port));
    assert!(carries(&agent, "127.0.0.1", greeter()));
}

#[test]
fn a_client_whose_name_is_not_allowed_is_told_so() {
    let rules = NameRules::new(&["alice".to_owned(), "team-*".to_owned()]).unwrap();
    let setup = Setup { client_auth: ClientAuth::Required(rules), ..Setup::default() };
    let agent = TestAgent::with(setup);
    for name in ["alice", "team-1"] {
        assert!(agent.client_with(&agent.pki.client(name)).probe().is_ok(), "{name}");
    }
    let mallory = agent.pki.client("mallory");
    let error = agent.client_with(&mallory).probe().unwrap_err().to_string();
    assert!(error.contains("access_denied"), "{error}");
    for version in [&TLS12, &TLS13] {
        // Under TLS 1.3 the refusal comes after the client's handshake.
        let refused = connect(agent.address, stream_config(&mallory, version))
            .map_err(|error| error.to_string())
            .and_then(|mut stream| stream.read(&mut [0; 1]).map_err(|e| tls::explain(&e)))
            .unwrap_err();
        assert!(refused.contains("access_denied"), "{version:?}: {refused}");
    }
}

#[test]
fn without_a_certificate_nobody_gets_in_unless_checks_are_off() {
    for (client_auth, lets_in) in
        [(ClientAuth::Required(NameRules::new(&[]).unwrap()), false), (ClientAuth::Off, true)]
    {
        let agent = TestAgent::with(Setup { client_auth, ..Setup::default() });
        let identity = agent.pki.client("tester");
        for version in [&TLS12, &TLS13] {
            let config = crate::support::tls::config(&identity, false, &[header::ALPN], &[version]);
            let result = connect(agent.address, config)
                .map_err(|error| error.to_string())
                .and_then(|mut stream| {
                    use std::io::Write;
                    stream
                        .write_all(&header::encode_probe())
                        .and_then(|()| stream.read(&mut [0; 1]))
                        .map_err(|error| tls::explain(&error))
                });
            match result {
                Ok(size) => assert!(lets_in && size == 0),
                Err(error) => {
                    let alert = AlertDescription::CertificateRequired;
                    let told = error.contains("certificate is required")
                        || error.contains(&format!("{alert:?}"))
                        || error.contains("HandshakeFailure");
                    assert!(!lets_in && told, "{version:?}: {error}");
                }
            }
        }
    }
}
