//! One TLS connection, two threads at each end.

use std::io::Read;
use std::thread;
use std::time::Duration;

use adit::net::{Event, Sink, Source};
use adit::tls::{TlsSink, TlsSource, TlsStream};
use rustls::SupportedProtocolVersion;

use crate::support::pattern::{MIB, Pattern, receive, receive_from, send};
use crate::support::tls::{VERSIONS, open, pair, stream_config};
use crate::support::{TestAgent, destinations};

/// Several times what all buffers on the way can hold, so that a direction that is not read stops.
const LOAD: usize = 32 * MIB;

type Halves = (TlsSource, TlsSink);

fn each_version(test: impl Fn(Halves, Halves)) {
    for version in VERSIONS {
        let (near, far) = pair(version);
        test(near.split().unwrap(), far.split().unwrap());
    }
}

/// Both ways round: the client is `a` first, then the server is.
fn each_side(test: impl Fn(Halves, Halves)) {
    each_version(&test);
    each_version(|near, far| test(far, near));
}

#[test]
fn both_directions_at_full_load_lose_nothing() {
    each_version(|(mut near_source, mut near_sink), (mut far_source, mut far_sink)| {
        thread::scope(|scope| {
            for sink in [&mut near_sink, &mut far_sink] {
                scope.spawn(move || {
                    send(sink, 2 * LOAD, 61_001);
                    sink.finish().unwrap();
                });
            }
            let near = scope.spawn(move || receive(&mut near_source));
            assert_eq!(receive(&mut far_source), 2 * LOAD);
            assert_eq!(near.join().unwrap(), 2 * LOAD);
        });
    });
}

#[test]
fn a_direction_that_nobody_reads_never_holds_up_the_other() {
    each_side(|(mut a_source, mut a_sink), (mut b_source, mut b_sink)| {
        thread::scope(|scope| {
            // Stuck from the moment the buffers are full until the other direction is over.
            let stuck = scope.spawn(move || {
                send(&mut a_sink, LOAD, 64 * 1024);
                a_sink.finish().unwrap();
            });
            scope.spawn(move || {
                send(&mut b_sink, LOAD, 64 * 1024);
                b_sink.finish().unwrap();
            });
            assert_eq!(receive(&mut a_source), LOAD);
            assert!(!stuck.is_finished(), "the buffers swallowed what nobody has read");
            assert_eq!(receive(&mut b_source), LOAD);
        });
    });
}

#[test]
fn keys_change_under_load_at_both_ends() {
    let version = &rustls::version::TLS13;
    let (near, far) = pair(version);
    let (near, far) = (near.split().unwrap(), far.split().unwrap());
    thread::scope(|scope| {
        for (mut source, mut sink) in [near, far] {
            scope.spawn(move || {
                let mut pattern = Pattern::new();
                for _ in 0..200 {
                    sink.update_keys().unwrap();
                    for _ in 0..5 {
                        sink.write_all(pattern.take(20_011)).unwrap();
                    }
                }
                sink.finish().unwrap();
            });
            scope.spawn(move || assert!(receive(&mut source) > 15 * MIB));
        }
    });
}

#[test]
fn keys_change_while_the_other_direction_is_stuck() {
    let (near, far) = pair(&rustls::version::TLS13);
    let ((mut near_source, mut near_sink), (mut far_source, mut far_sink)) =
        (near.split().unwrap(), far.split().unwrap());
    thread::scope(|scope| {
        let stuck = scope.spawn(move || {
            send(&mut near_sink, LOAD, 64 * 1024);
            near_sink.finish().unwrap();
        });
        scope.spawn(move || {
            // Each asks the client for an update of its own, which waits behind what is stuck.
            for _ in 0..50 {
                far_sink.update_keys().unwrap();
                far_sink.write_all(b"x").unwrap();
            }
            far_sink.finish().unwrap();
        });
        let mut received = 0;
        while let Event::Data(data) = near_source.next().unwrap() {
            received += data.len();
        }
        assert_eq!(received, 50);
        assert!(!stuck.is_finished());
        assert_eq!(receive(&mut far_source), LOAD);
    });
}

#[test]
fn tls_1_2_has_no_key_update_and_goes_on_without() {
    let (near, far) = pair(&rustls::version::TLS12);
    let ((_source, mut sink), (mut far_source, _far_sink)) =
        (near.split().unwrap(), far.split().unwrap());
    assert!(sink.update_keys().is_err());
    send(&mut sink, MIB, 9_973);
    sink.finish().unwrap();
    assert_eq!(receive(&mut far_source), MIB);
}

#[test]
fn close_notify_in_the_middle_ends_one_direction_only() {
    each_side(|(mut a_source, mut a_sink), (mut b_source, mut b_sink)| {
        thread::scope(|scope| {
            let (ended, end_seen) = crossbeam_channel::bounded(0);
            scope.spawn(move || {
                // Half before the other side's end, half after.
                let mut pattern = Pattern::new();
                for limit in [LOAD / 2, LOAD] {
                    while pattern.at < limit {
                        b_sink.write_all(pattern.take(64 * 1024)).unwrap();
                    }
                    if limit < LOAD {
                        end_seen.recv().unwrap();
                    }
                }
                b_sink.finish().unwrap();
            });
            scope.spawn(move || {
                send(&mut a_sink, MIB, 4_099);
                a_sink.finish().unwrap();
            });
            scope.spawn(move || {
                assert_eq!(receive(&mut b_source), MIB);
                ended.send(()).unwrap();
            });
            assert!(receive(&mut a_source) >= LOAD);
        });
    });
}

#[test]
fn writing_goes_on_after_the_peers_close_notify() {
    each_side(|(mut a_source, mut a_sink), (mut b_source, mut b_sink)| {
        a_sink.finish().unwrap();
        assert!(matches!(b_source.next().unwrap(), Event::End));
        assert!(matches!(b_source.next().unwrap(), Event::End), "the end stays the end");
        for word in [b"one", b"two"] {
            b_sink.write_all(word).unwrap();
            assert!(matches!(a_source.next().unwrap(), Event::Data(data) if data == word));
        }
        b_sink.finish().unwrap();
        assert!(matches!(a_source.next().unwrap(), Event::End));
    });
}

#[test]
fn a_stream_cut_short_is_an_error_and_not_an_end() {
    each_side(|(_a_source, mut a_sink), (mut b_source, _b_sink)| {
        a_sink.write_all(b"half a").unwrap();
        a_sink.abandon();
        assert!(matches!(b_source.next().unwrap(), Event::Data(data) if data == b"half a"));
        let error = b_source.next().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_close_that_waits_for_nothing_is_still_a_clean_end() {
    for version in VERSIONS {
        let (near, mut far) = pair(version);
        near.close(Duration::ZERO);
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        let (mut near, far) = pair(version);
        far.close(Duration::ZERO);
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
    }
}

fn echo_through(version: &'static SupportedProtocolVersion) -> (TestAgent, TlsStream) {
    let agent = TestAgent::new();
    let config = stream_config(&agent.pki.client("tester"), version);
    let stream = open(agent.address, config, destinations::echo());
    (agent, stream)
}

#[test]
fn a_stream_through_the_agent_carries_both_ways_at_full_load() {
    for version in VERSIONS {
        let (_agent, stream) = echo_through(version);
        let (mut source, mut sink) = stream.split().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                send(&mut sink, LOAD, 50_021);
                sink.finish().unwrap();
            });
            assert_eq!(receive(&mut source), LOAD);
        });
    }
}

#[test]
fn a_client_that_reads_late_gets_everything() {
    let (agent, _) = echo_through(VERSIONS[1]);
    // The destination sends all it has before it reads; the client sends all before it reads.
    let (filled, all_sent) = crossbeam_channel::bounded(1);
    let talker = destinations::service(move |stream| {
        let (mut source, mut sink) = adit::net::Conn::new(stream).halves();
        thread::scope(|scope| {
            scope.spawn(|| {
                send(&mut sink, LOAD, 64 * 1024);
                sink.finish().unwrap();
            });
            assert_eq!(receive(&mut source), LOAD);
            filled.send(()).unwrap();
        });
    });
    let stream = open(agent.address, stream_config(&agent.pki.client("x"), VERSIONS[1]), talker);
    let (mut source, mut sink) = stream.split().unwrap();
    send(&mut sink, LOAD, 64 * 1024);
    sink.finish().unwrap();
    all_sent.recv().unwrap();
    assert_eq!(receive_from(&mut source, Pattern::new()), LOAD);
}

#[test]
fn a_destination_that_reads_late_gets_everything() {
    let agent = TestAgent::new();
    let (answered, answer_read) = crossbeam_channel::bounded::<()>(0);
    let (counted, count) = crossbeam_channel::bounded(1);
    let stubborn = destinations::service(move |stream| {
        let (mut source, mut sink) = adit::net::Conn::new(stream).halves();
        send(&mut sink, LOAD, 64 * 1024);
        sink.finish().unwrap();
        answer_read.recv().unwrap();
        counted.send(receive(&mut source)).unwrap();
    });
    let stream = agent.client().open("127.0.0.1", stubborn.port()).unwrap();
    let (mut source, mut sink) = stream.split().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            send(&mut sink, LOAD, 64 * 1024);
            sink.finish().unwrap();
        });
        assert_eq!(receive(&mut source), LOAD);
        answered.send(()).unwrap();
        assert_eq!(count.recv().unwrap(), LOAD);
    });
}

#[test]
fn the_second_connection_resumes_the_first_ones_session() {
    for version in VERSIONS {
        let agent = TestAgent::new();
        let config = stream_config(&agent.pki.client("tester"), version);
        let echo = destinations::echo();
        for expected in [false, true, true] {
            let stream = open(agent.address, config.clone(), echo);
            assert_eq!(stream.is_resumed(), expected, "{version:?}");
            let (mut source, mut sink) = stream.split().unwrap();
            // A TLS 1.3 ticket comes with the first bytes.
            sink.write_all(b"hello").unwrap();
            sink.finish().unwrap();
            assert!(matches!(source.next().unwrap(), Event::Data(b"hello")));
            assert!(matches!(source.next().unwrap(), Event::End));
        }
    }
}
