//! Stream headers as different clients send them.

use std::io::{Read, Write};

use adit::tls::TlsStream;
use adit::wire::header;
use rustls::version::TLS13;

use crate::support::{TestAgent, destinations, tls};

/// A connection that has chosen streams and not sent anything.
fn silent(agent: &TestAgent) -> TlsStream {
    let config = tls::stream_config(&agent.pki.client("tester"), &TLS13);
    tls::connect(agent.address, config).unwrap()
}

/// The older generation's layout: no flag, the checksum where it would be.
fn legacy(host: &str, port: u16, version: &[u8]) -> Vec<u8> {
    let mut bytes = header::encode_stream(host, port).unwrap()[..270].to_vec();
    bytes[..8].fill(0);
    bytes[..version.len()].copy_from_slice(version);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

fn echoes(mut stream: TlsStream, word: &[u8]) {
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, word);
}

#[test]
fn the_older_header_opens_a_stream_too() {
    let (agent, echo) = (TestAgent::new(), destinations::echo());
    for version in [b"0.1.0".as_slice(), b"0.1.0.0"] {
        let mut stream = silent(&agent);
        let mut bytes = legacy("127.0.0.1", echo.port(), version);
        assert_eq!(bytes.len(), 274);
        bytes.extend(b"at once");
        stream.write_all(&bytes).unwrap();
        echoes(stream, b"at once");
    }
}

#[test]
fn an_older_client_may_wait_for_the_destination_to_speak() {
    let agent = TestAgent::new();
    let greeter = destinations::service(|mut stream| {
        stream.write_all(b"220 ready").unwrap();
        drop(stream.read(&mut [0; 1]));
    });
    let mut stream = silent(&agent);
    stream.write_all(&legacy("127.0.0.1", greeter.port(), b"0.1.0")).unwrap();
    echoes(stream, b"220 ready");
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let (agent, echo) = (TestAgent::new(), destinations::echo());
    let mut stream = silent(&agent);
    for byte in header::encode_stream("127.0.0.1", echo.port()).unwrap() {
        stream.write_all(&[byte]).unwrap();
    }
    stream.write_all(b"word").unwrap();
    echoes(stream, b"word");
}

#[test]
fn what_follows_in_the_headers_record_belongs_to_the_stream() {
    let (agent, echo) = (TestAgent::new(), destinations::echo());
    let mut stream = silent(&agent);
    let data = vec![b'x'; 50_000];
    let mut bytes = header::encode_stream("127.0.0.1", echo.port()).unwrap().to_vec();
    bytes.extend_from_slice(&data);
    stream.write_all(&bytes).unwrap();
    echoes(stream, &data);
}

#[test]
fn a_probe_is_answered_by_a_clean_end_and_dials_nothing() {
    let agent = TestAgent::new();
    let mut stream = silent(&agent);
    stream.write_all(&header::encode_probe()).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(agent.client().probe().is_ok());
    assert_eq!(agent.stop().streams, 0);
}
