//! Streams through an agent in this process: what each side sees of the other.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use adit::agent::Limits;
use adit::net::{Conn, Event, Sink, Source};
use adit::tls::{TlsSink, TlsSource};
use adit::wire::header;
use crossbeam_channel::{Receiver, bounded};
use rustls::version::TLS13;
use rustls::{ClientConnection, HandshakeKind};
use socket2::SockRef;

use crate::support::pattern::{MIB, Pattern, receive, send};
use crate::support::{PATIENCE, Setup, TestAgent, destinations, tls};

/// A stream to a destination that `serve` plays.
fn stream(
    agent: &TestAgent,
    serve: impl Fn(TcpStream) + Clone + Send + 'static,
) -> (TlsSource, TlsSink) {
    let port = destinations::service(serve).port();
    agent.client().open("127.0.0.1", port).unwrap().split().unwrap()
}

/// Everything until the clean end.
fn read_all(source: &mut impl Source) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match source.next().unwrap() {
            Event::Data(data) => all.extend_from_slice(data),
            Event::Idle => {}
            Event::End => return all,
        }
    }
}

type Outcome = Result<Vec<u8>, ErrorKind>;

/// How reading a plain connection to its end went.
fn outcome(mut stream: TcpStream) -> Outcome {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all).map_err(|error| error.kind())
}

/// A destination that says one word at once and then tells how the stream ended for it.
fn witness() -> (impl Fn(TcpStream) + Clone + Send, Receiver<Outcome>) {
    let (tell, told) = bounded(1);
    let serve = move |mut stream: TcpStream| {
        stream.write_all(b"hello").unwrap();
        tell.send(outcome(stream)).unwrap();
    };
    (serve, told)
}

fn with_half_close(limit: Duration) -> TestAgent {
    let mut setup = Setup::default();
    setup.limits = Limits { half_close: limit, ..setup.limits };
    TestAgent::with(setup)
}

#[test]
fn what_goes_in_comes_back_through_an_echo() {
    let agent = TestAgent::new();
    let echo = destinations::echo();
    let mut stream = agent.client().open("127.0.0.1", echo.port()).unwrap();
    let mut answer = [0; 5];
    for word in [b"hello", b"again"] {
        stream.write_all(word).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, word);
    }
}

#[test]
fn a_half_closed_stream_still_gets_the_whole_answer() {
    let agent = TestAgent::new();
    let count = destinations::count();
    let stream = agent.client().open("localhost", count.port()).unwrap();
    let (mut source, mut sink) = stream.split().unwrap();
    sink.write_all(&vec![7; 300_000]).unwrap();
    sink.finish().unwrap();
    assert_eq!(read_all(&mut source), b"300000");
    drop((source, sink));
    assert_eq!(agent.stop().streams, 1);
}

/// A busy reader has a time-out on its socket, by which it finds that it may give memory back.
#[test]
fn a_reader_without_a_deadline_waits_as_long_as_it_takes() {
    let agent = TestAgent::new();
    let (go_on, may_go_on) = bounded::<()>(0);
    let port = destinations::service(move |mut stream| {
        stream.write_all(&Pattern::bytes(MIB)).unwrap();
        assert!(may_go_on.recv_timeout(Duration::from_millis(100)).is_err(), "a pause");
        stream.write_all(b"later").unwrap();
    })
    .port();
    let mut stream = agent.client().open("127.0.0.1", port).unwrap();
    stream.read_exact(&mut vec![0; MIB]).unwrap();
    // Instead of the two seconds that it has chosen.
    stream.conn().set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "later");
    drop(go_on);
}

#[test]
fn a_destination_that_half_closes_still_gets_the_whole_upload() {
    let agent = TestAgent::new();
    let (tell, told) = bounded(1);
    let (mut source, mut sink) = stream(&agent, move |mut stream| {
        stream.write_all(b"enough of me").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        tell.send(receive(&mut Conn::new(stream).halves().0)).unwrap();
    });
    assert_eq!(read_all(&mut source), b"enough of me");
    send(&mut sink, 8 * MIB, 64 * 1024);
    sink.finish().unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 8 * MIB);
}

#[test]
fn a_destination_may_speak_first() {
    let agent = TestAgent::new();
    let (mut source, mut sink) = stream(&agent, |mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        let mut line = [0; 6];
        stream.read_exact(&mut line).unwrap();
        stream.write_all(&line).unwrap();
    });
    assert!(matches!(source.next().unwrap(), Event::Data(b"220 ready\r\n")));
    sink.write_all(b"QUIT\r\n").unwrap();
    assert_eq!(read_all(&mut source), b"QUIT\r\n");
}

#[test]
fn an_end_without_data_arrives_as_one() {
    let agent = TestAgent::new();
    let (tell, told) = bounded(1);
    let (mut source, mut sink) = stream(&agent, move |stream| tell.send(outcome(stream)).unwrap());
    sink.finish().unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(vec![]));
    assert_eq!(read_all(&mut source), b"");
}

#[test]
fn a_destination_that_closes_at_once_is_a_clean_end() {
    let agent = TestAgent::new();
    let (mut source, _sink) = stream(&agent, drop);
    assert_eq!(read_all(&mut source), b"");
}

#[test]
fn a_destination_that_resets_is_a_broken_stream_and_not_an_end() {
    let agent = TestAgent::new();
    let (seen, may_reset) = bounded::<()>(0);
    let (mut source, _sink) = stream(&agent, move |mut stream| {
        stream.write_all(b"half an ans").unwrap();
        may_reset.recv().unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    assert!(matches!(source.next().unwrap(), Event::Data(b"half an ans")));
    seen.send(()).unwrap();
    let error = source.next().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
}

/// The reset meets a thread that writes to the destination and one that reads from it.
#[test]
fn a_reset_amid_an_upload_is_never_an_end() {
    let agent = TestAgent::new();
    let port = destinations::service(|mut stream: TcpStream| {
        stream.write_all(b"half an ans").unwrap();
        stream.read_exact(&mut [0; 100_000]).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .port();
    let client = agent.client();
    let mut uploads = Vec::new();
    for _ in 0..20 {
        let (mut source, mut sink) = client.open("127.0.0.1", port).unwrap().split().unwrap();
        let upload = thread::spawn(move || while sink.write_all(&[7; 65536]).is_ok() {});
        let error = loop {
            match source.next() {
                Ok(Event::End) => panic!("a clean end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
        uploads.push(upload);
    }
    // Each ends when the agent has lingered for it.
    for upload in uploads {
        upload.join().unwrap();
    }
}

#[test]
fn a_client_that_resets_is_a_reset_for_the_destination() {
    let agent = TestAgent::new();
    let (serve, told) = witness();
    let port = destinations::service(serve).port();
    let mut stream = agent.client().open("127.0.0.1", port).unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    stream.conn().abort();
    drop(stream);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_client_stream_cut_short_is_a_reset_for_the_destination() {
    let agent = TestAgent::new();
    let (serve, told) = witness();
    let (mut source, mut sink) = stream(&agent, serve);
    assert!(matches!(source.next().unwrap(), Event::Data(b"hello")));
    sink.write_all(b"DELETE FROM orders").unwrap();
    sink.abandon();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
}

/// How an HTTP server answers an upload that it does not want: 413, while the body still comes.
#[test]
fn an_answer_to_an_upload_that_was_refused_arrives_whole() {
    let agent = TestAgent::new();
    let (read, answer_read) = bounded::<()>(0);
    let (mut source, mut sink) = stream(&agent, move |mut stream| {
        stream.read_exact(&mut [0; 1000]).unwrap();
        stream.shutdown(Shutdown::Read).unwrap();
        stream.write_all(&Pattern::bytes(MIB)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // Closing now, with bytes of the upload unread, is a reset.
        answer_read.recv().unwrap();
    });
    let upload = thread::spawn(move || {
        let body = [0; 16 * 1024];
        while sink.write_all(&body).is_ok() {}
    });
    assert_eq!(receive(&mut source), MIB);
    read.send(()).unwrap();
    // The upload ends, too: whoever sends it learns that nobody reads it any more.
    upload.join().unwrap();
}

#[test]
fn a_silent_second_direction_ends_at_the_half_close_limit() {
    let agent = with_half_close(Duration::from_millis(50));
    let (cut, silent_until) = bounded::<()>(0);
    let (tell, told) = bounded(1);
    let (mut source, mut sink) = stream(&agent, move |mut stream| {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the client's end");
        silent_until.recv().unwrap();
        tell.send(stream.write_all(&[0; MIB]).is_err()).unwrap();
    });
    sink.finish().unwrap();
    assert!(source.next().is_err(), "cut, not ended");
    cut.send(()).unwrap();
    assert!(told.recv_timeout(PATIENCE).unwrap(), "the destination was cut, too");
}

#[test]
fn data_extends_the_half_close_limit() {
    let limit = Duration::from_secs(3);
    let agent = with_half_close(limit);
    let (mut source, mut sink) = stream(&agent, move |mut stream| {
        let end = Instant::now() + 2 * limit + limit / 2;
        let mut pattern = Pattern::new();
        while Instant::now() < end {
            stream.write_all(pattern.take(1000)).unwrap();
        }
        stream.write_all(pattern.take(1)).unwrap();
    });
    sink.finish().unwrap();
    assert!(receive(&mut source) > 0);
}

#[test]
fn a_destination_that_cannot_be_reached_is_a_stream_that_ends_in_order() {
    let agent = TestAgent::new();
    let refused = destinations::refused();
    let mut stream = agent.client().open("127.0.0.1", refused.port()).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "close_notify, not a reset");
}

/// A resumed client under TLS 1.3 may send its Finished, the header, data and its end in one go.
#[test]
fn a_client_may_say_everything_together_with_its_finished() {
    let agent = TestAgent::new();
    let echo = destinations::echo();
    let config = tls::stream_config(&agent.pki.client("tester"), &TLS13);
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut socket = TcpStream::connect(agent.address).unwrap();
        let mut client = ClientConnection::new(Arc::clone(&config), tls::name()).unwrap();
        client.write_tls(&mut socket).unwrap();
        while client.is_handshaking() {
            client.read_tls(&mut socket).unwrap();
            client.process_new_packets().unwrap();
        }
        let header = header::encode_stream("127.0.0.1", echo.port()).unwrap();
        client.writer().write_all(&header).unwrap();
        client.writer().write_all(b"all of it").unwrap();
        client.send_close_notify();
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        socket.write_all(&flight).unwrap();
        let mut answer = Vec::new();
        rustls::Stream::new(&mut client, &mut socket).read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"all of it");
        assert_eq!(client.handshake_kind(), Some(kind));
    }
}
