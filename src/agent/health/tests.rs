//! Health checks against sockets of this test.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::X509;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};

use super::*;
use crate::lifecycle::threads;

fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "aws-lc-rs")]
    return Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(all(not(feature = "aws-lc-rs"), feature = "ring"))]
    return Arc::new(rustls::crypto::ring::default_provider());
    #[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
    return Arc::new(rustls_openssl::default_provider());
}

/// Checks that cannot reach anything: "unreachable".
pub(in crate::agent) fn unreachable_health() -> Health {
    let refuse = || io::Error::other("unreachable");
    let dial: Box<Dial> = Box::new(move |_, _, _, _| Err(refuse()));
    let resolve: Box<Resolve> = Box::new(move |_, _, _, _| Err(refuse()));
    Health::new(dial, resolve, provider()).unwrap()
}

/// Checks for which every host has exactly `addresses`.
fn health(addresses: Vec<SocketAddr>) -> Health {
    let known = addresses.clone();
    let find = move |known: &[SocketAddr], fits: &dyn Fn(SocketAddr) -> bool| {
        let found: Vec<_> = known.iter().copied().filter(|address| fits(*address)).collect();
        if found.is_empty() { Err(io::Error::other("not permitted")) } else { Ok(found) }
    };
    let dial: Box<Dial> =
        Box::new(move |_, _, fits, _| TcpStream::connect(find(&known, fits)?.as_slice()));
    let resolve: Box<Resolve> = Box::new(move |_, _, fits, _| find(&addresses, fits));
    Health::new(dial, resolve, provider()).unwrap()
}

fn check(health: &Health, query: &str) -> Checked {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let pairs: Vec<_> = pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    health.check(&pairs).unwrap()
}

fn healthy(health: &Health, query: &str) -> bool {
    let checked = check(health, query);
    assert_eq!(checked.healthy, checked.detail.is_empty(), "{checked:?}");
    checked.healthy
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn a_listener_is_healthy_and_a_closed_port_says_why_not() {
    let (listener, address) = listen();
    let health = health(vec![address]);
    assert!(healthy(&health, "scheme=tcp&host=box:1"));
    assert!(healthy(&health, "scheme=tcp4&host=box&port=1"));
    assert!(healthy(&health, "scheme=udp&host=box:1"));
    drop(listener);
    let checked = check(&health, "scheme=tcp&host=box:1");
    assert!(!checked.healthy && checked.detail.contains("refused"), "{checked:?}");
    assert!(checked.latency > 0);
}

#[test]
fn a_scheme_of_one_family_uses_no_address_of_the_other() {
    let health = health(vec![listen().1]);
    for scheme in ["tcp6", "udp6"] {
        let checked = check(&health, &format!("scheme={scheme}&host=box:1"));
        assert_eq!(checked.detail, "the host has no IPv6 address");
    }
}

#[test]
fn destination_rules_speak_for_themselves() {
    let checked = check(&health(Vec::new()), "scheme=tcp6&host=box:1");
    assert_eq!((checked.healthy, checked.detail.as_str()), (false, "not permitted"));
}

#[test]
fn host_and_port_reach_the_dialler() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let dial: Box<Dial> = Box::new(move |host, port, _, deadline| {
        log.lock().unwrap().push((host.to_owned(), port));
        Err(deadline.timed_out())
    });
    let resolve: Box<Resolve> = Box::new(|_, _, _, _| Err(io::Error::other("unused")));
    let health = Health::new(dial, resolve, provider()).unwrap();
    let checked = check(&health, "scheme=https&host=[::1]&timeout=250");
    assert_eq!(checked.detail, "health check timed out after 250ms");
    assert_eq!(*asked.lock().unwrap(), [("::1".to_owned(), 443)]);
}

#[test]
fn a_path_that_exists_is_healthy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let health = unreachable_health();
    assert!(healthy(&health, &format!("scheme=fileserver&path={path}")));
    assert!(!healthy(&health, &format!("scheme=fileserver&path={path}/none")));
    assert!(!healthy(&health, "scheme=fileserver&path=a\0b"));
}

/// Serves one connection with `answer` after a whole request head; yields the request line.
fn serve_once(
    listener: TcpListener,
    answer: &'static str,
    tls: Option<Arc<ServerConfig>>,
) -> std::thread::JoinHandle<String> {
    fn exchange(mut stream: impl Read + Write, answer: &str) -> String {
        let mut reader = BufReader::new(&mut stream);
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line| line != "\r\n") {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0);
            lines.push(line);
        }
        drop(reader);
        stream.write_all(answer.as_bytes()).unwrap();
        stream.flush().unwrap();
        lines.swap_remove(0)
    }
    threads::spawn("test-http", move || {
        let (stream, _) = listener.accept().unwrap();
        match tls {
            None => exchange(stream, answer),
            Some(config) => {
                let session = ServerConnection::new(config).unwrap();
                exchange(StreamOwned::new(session, stream), answer)
            }
        }
    })
    .unwrap()
}

#[test]
fn http_is_healthy_below_500() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\n\r\n", ""),
        ("HTTP/1.1 404 Not Found\r\n\r\n", ""),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP status 503"),
        ("SSH-2.0-other\r\n", "the answer is not HTTP/1: invalid HTTP version"),
        ("", "the server closed the connection without an HTTP answer"),
    ] {
        let (listener, address) = listen();
        let server = serve_once(listener, answer, None);
        let checked = check(&health(vec![address]), "scheme=http&host=box&path=/a b");
        assert_eq!(checked.detail, expected);
        assert_eq!(checked.healthy, expected.is_empty());
        assert_eq!(server.join().unwrap(), "HEAD /a%20b HTTP/1.1\r\n");
    }
}

/// A certificate that no verifier would accept, and its key.
fn expired_and_nameless() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut certificate = X509::builder().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::from_unix(1).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let certificate = certificate.build().to_der().unwrap();
    let key = key.private_key_to_pkcs8().unwrap();
    (certificate.into(), PrivateKeyDer::try_from(key).unwrap())
}

#[test]
fn https_is_healthy_whatever_the_certificate_says() {
    let (certificate, key) = expired_and_nameless();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    for host in ["box", "127.0.0.1", "[::1%25lo]"] {
        let (listener, address) = listen();
        let server = serve_once(listener, "HTTP/1.1 204 No Content\r\n\r\n", Some(config.clone()));
        assert!(healthy(&health(vec![address]), &format!("scheme=https&host={host}")), "{host}");
        assert_eq!(server.join().unwrap(), "HEAD / HTTP/1.1\r\n");
    }
}

#[test]
fn a_server_that_accepts_and_never_answers_is_unhealthy_in_time() {
    let (_listener, address) = listen();
    for scheme in ["http", "https"] {
        let checked =
            check(&health(vec![address]), &format!("scheme={scheme}&host=box&timeout=20"));
        assert!(checked.detail.contains("health check timed out after 20ms"), "{checked:?}");
    }
}
