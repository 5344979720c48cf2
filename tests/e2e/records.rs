//! What a client with a certificate can do with TLS records: the agent's side of a stream ends in
//! order or goes on, and no thread of it panics.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use adit::wire::header;

use crate::support::process::AgentProcess;
use crate::support::raw_tls::{ALERT, CLOSE_NOTIFY, DATA, HANDSHAKE, RawTls};
use crate::support::{PATIENCE, Pki};

/// A stream whose client is made of records and whose destination is in the test's hands.
struct Stream {
    agent: AgentProcess,
    client: RawTls,
    destination: TcpStream,
}

impl Stream {
    fn open(tls13: bool) -> Self {
        let pki = Pki::new();
        let agent = AgentProcess::start(&pki.files(), &[]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = RawTls::connect(agent.address, &pki.client("tester"), tls13);
        client.send(DATA, &header::encode_stream("127.0.0.1", port).unwrap());
        let (destination, _) = listener.accept().unwrap();
        destination.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { agent, client, destination }
    }

    /// Sends to the client until nothing more is taken: the agent is stuck writing to it.
    fn clog(&mut self) {
        self.destination.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        while self.destination.write_all(&[0; 65536]).is_ok() {}
    }

    fn arrives(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        self.destination.read_exact(&mut got).unwrap();
        assert!(got == expected);
    }

    /// The agent ends the stream and says why; nothing of it has panicked.
    fn ends(self, why: &str) {
        let line = self.agent.wait_for("stream ended");
        assert!(line.contains(why), "{line}");
        self.agent_is_well();
    }

    fn agent_is_well(mut self) -> Vec<String> {
        self.agent.signal("SIGTERM");
        assert!(self.agent.wait().success());
        self.agent.wait_for("agent ended");
        let log = self.agent.log();
        assert!(!log.iter().any(|line| line.contains("panic")), "{log:#?}");
        log
    }
}

#[test]
fn a_handshake_message_in_pieces_is_put_together_while_the_agent_answers_in_between() {
    let mut stream = Stream::open(true);
    // One segment, so that when the `x` has arrived the piece has been looked at too.
    let records = [stream.client.seal(DATA, b"x"), stream.client.seal(HANDSHAKE, &[24, 0])];
    stream.client.socket.write_all(&records.concat()).unwrap();
    stream.arrives(b"x");
    for answer in [b"first", b"again"] {
        stream.destination.write_all(answer).unwrap();
        assert_eq!(stream.client.receive_past_tickets(), Some((DATA, answer.to_vec())));
    }
    // The rest of the key update, a byte at a time.
    for rest in [0, 1, 0] {
        stream.client.send(HANDSHAKE, &[rest]);
    }
    stream.client.next_keys();
    stream.client.send(DATA, b"with new keys");
    stream.arrives(b"with new keys");
    stream.client.send(ALERT, &CLOSE_NOTIFY);
    stream.arrives(b"");
    stream.agent_is_well();
}

#[test]
fn half_a_record_waits_while_the_agent_answers() {
    let mut stream = Stream::open(true);
    let before = stream.client.seal(DATA, b"x");
    let record = stream.client.seal(DATA, &[7; 16384]);
    let (half, rest) = record.split_at(9000);
    // One segment again: when the `x` has arrived, part of the record has too.
    stream.client.socket.write_all(&[&before, half].concat()).unwrap();
    stream.arrives(b"x");
    for answer in [b"first", b"again"] {
        stream.destination.write_all(answer).unwrap();
        assert_eq!(stream.client.receive_past_tickets(), Some((DATA, answer.to_vec())));
    }
    stream.client.socket.write_all(rest).unwrap();
    stream.arrives(&[7; 16384]);
    stream.agent_is_well();
}

#[test]
fn the_largest_and_the_smallest_records_arrive() {
    for tls13 in [true, false] {
        let mut stream = Stream::open(tls13);
        stream.client.send(DATA, &[1; 16384]);
        stream.arrives(&[1; 16384]);
        let tiny: Vec<u8> = (0..5000).flat_map(|_| stream.client.seal(DATA, b"t")).collect();
        stream.client.socket.write_all(&tiny).unwrap();
        stream.arrives(&[b't'; 5000]);
        // Empty records say nothing, and between others they are no harm.
        for _ in 0..100 {
            stream.client.send(DATA, b"");
            stream.client.send(DATA, b"e");
        }
        stream.arrives(&[b'e'; 100]);
        stream.client.send(ALERT, &CLOSE_NOTIFY);
        assert_eq!(stream.destination.read(&mut [0]).unwrap(), 0);
        drop(stream.destination);
        let line = stream.agent.wait_for("stream ended");
        assert!(line.contains("why=finished"), "{line}");
    }
}

#[test]
fn a_record_that_is_too_long_ends_the_stream() {
    let mut stream = Stream::open(true);
    stream.client.send(DATA, &[1; 16385]);
    stream.ends("why=reading from the client");
    let mut stream = Stream::open(true);
    stream.client.socket.write_all(&[23, 3, 3, 0xff, 0xff]).unwrap();
    stream.ends("why=reading from the client");
}

#[test]
fn a_forged_record_ends_the_stream_with_an_alert_and_the_destination_sees_it_broken() {
    let mut stream = Stream::open(true);
    stream.client.send(DATA, b"good");
    stream.arrives(b"good");
    let mut forged = stream.client.seal(DATA, b"bad");
    *forged.last_mut().unwrap() ^= 1;
    stream.client.socket.write_all(&forged).unwrap();
    let bad_record_mac = (ALERT, vec![2, 20]);
    assert_eq!(stream.client.receive_past_tickets(), Some(bad_record_mac));
    assert!(stream.destination.read(&mut [0]).is_err(), "a reset, not an end");
    // The writing half must not ask the broken engine for more.
    drop(stream.destination.write_all(b"too late"));
    stream.ends("why=reading from the client");
}

#[test]
fn records_without_content_cannot_go_on_for_ever() {
    let mut stream = Stream::open(true);
    let empty: Vec<u8> = (0..1000).flat_map(|_| stream.client.seal(DATA, b"")).collect();
    stream.client.socket.write_all(&empty).unwrap();
    stream.ends("why=reading from the client");
}

#[test]
fn key_updates_cannot_go_on_for_ever() {
    let mut stream = Stream::open(true);
    for _ in 0..100 {
        let update = stream.client.seal(HANDSHAKE, &[24, 0, 0, 1, 1]);
        stream.client.next_keys();
        if stream.client.socket.write_all(&update).is_err() {
            break;
        }
    }
    stream.ends("why=reading from the client");
}

#[test]
fn a_key_update_glued_to_part_of_the_next_ends_the_stream() {
    let mut stream = Stream::open(true);
    stream.client.send(HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0]);
    stream.ends("why=reading from the client");
}

#[test]
fn a_handshake_message_larger_than_any_ends_the_stream() {
    for (length, pieces) in [([0xff, 0xff, 0xff], 0), ([0, 0xff, 0xf0], 5)] {
        let mut stream = Stream::open(true);
        stream.client.send(HANDSHAKE, &[&[24][..], &length].concat());
        for _ in 0..pieces {
            stream.client.send(HANDSHAKE, &[0; 16000]);
        }
        stream.ends("why=reading from the client");
    }
}

#[test]
fn a_handshake_message_that_never_ends_holds_no_more_than_its_bound() {
    let mut stream = Stream::open(true);
    // Each record finishes nothing; what rustls keeps grows with the record headers.
    stream.client.send(HANDSHAKE, &[24, 0, 0xff, 0xf0]);
    for _ in 0..0xfff0 {
        let record = stream.client.seal(HANDSHAKE, &[0]);
        if stream.client.socket.write_all(&record).is_err() {
            break;
        }
    }
    stream.ends("why=reading from the client: handshake message too long");
}

#[test]
fn other_handshake_messages_after_the_handshake_end_the_stream() {
    // Certificate, Finished, ClientHello, a type that does not exist.
    for kind in [11, 20, 1, 99] {
        let mut stream = Stream::open(true);
        stream.client.send(HANDSHAKE, &[kind, 0, 0, 1, 0]);
        stream.ends("why=reading from the client");
    }
}

#[test]
fn an_alert_in_the_middle_ends_the_stream() {
    for alert in [&[2, 80][..], &[1, 41], &[2], &[9, 9, 9], &[]] {
        let mut stream = Stream::open(true);
        stream.client.send(DATA, b"before");
        stream.arrives(b"before");
        stream.client.send(ALERT, alert);
        if alert.is_empty() {
            stream.client.send(ALERT, &[]);
        }
        stream.ends("why=reading from the client");
    }
}

#[test]
fn data_between_the_pieces_of_a_handshake_message_ends_the_stream() {
    let mut stream = Stream::open(true);
    stream.client.send(HANDSHAKE, &[24, 0]);
    stream.client.send(DATA, b"not now");
    stream.ends("why=reading from the client");
}

#[test]
fn what_follows_close_notify_counts_for_nothing_and_answers_still_come() {
    let mut stream = Stream::open(true);
    let records = [
        stream.client.seal(DATA, b"all"),
        stream.client.seal(ALERT, &CLOSE_NOTIFY),
        stream.client.seal(DATA, b"ignored"),
        vec![0xff; 1000],
    ];
    stream.client.socket.write_all(&records.concat()).unwrap();
    let mut got = Vec::new();
    stream.destination.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"all");
    stream.destination.write_all(b"answer").unwrap();
    assert_eq!(stream.client.receive_past_tickets(), Some((DATA, b"answer".to_vec())));
    drop(stream.destination);
    assert_eq!(stream.client.receive_past_tickets(), Some((ALERT, CLOSE_NOTIFY.to_vec())));
    let line = stream.agent.wait_for("stream ended");
    assert!(line.contains("up=3 down=6") && line.contains("why=finished"), "{line}");
}

#[test]
fn renegotiation_is_refused_once_and_then_ends_the_stream() {
    let mut stream = Stream::open(false);
    let hello = [&[1, 0, 0, 41, 3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2b, 1, 0]].concat();
    stream.client.send(HANDSHAKE, &hello);
    stream.client.send(DATA, b"still here");
    stream.arrives(b"still here");
    stream.client.send(HANDSHAKE, &hello);
    stream.client.send(HANDSHAKE, &hello);
    stream.ends("why=reading from the client");
}

#[test]
fn a_client_that_breaks_while_the_agent_is_stuck_writing_to_it_is_soon_over() {
    for tls13 in [true, false] {
        let mut stream = Stream::open(tls13);
        stream.clog();
        let mut forged = stream.client.seal(DATA, b"x");
        *forged.last_mut().unwrap() ^= 1;
        stream.client.socket.write_all(&forged).unwrap();
        stream.ends("why=reading from the client");
    }
}
