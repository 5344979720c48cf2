use super::*;
use crate::lifecycle::threads;
use crossbeam_channel::{RecvTimeoutError, bounded};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

const LINGER: Duration = Duration::from_millis(20);
const HALF_CLOSE: Duration = Duration::from_secs(60);
const ANSWER: usize = 400_000;

/// A peer and the connection to it. The peer's window is small, so that most of what it does
/// not read stays with us.
fn pair() -> (TcpStream, Arc<Conn>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_recv_buffer_size(16 * 1024).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    SockRef::from(&ours).set_send_buffer_size(2 * ANSWER).unwrap();
    (listener.accept().unwrap().0, Conn::new(ours))
}

/// A sink that still delivers what was sent when the stream breaks, as TLS does.
struct Delivering(Arc<Conn>);

impl Sink for Delivering {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.send_all(data)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.finish()
    }

    fn abandon(&mut self) -> bool {
        self.0.finish().is_ok()
    }
}

/// A client uploads all the time and begins to read only when the linger is long over; the
/// destination answers, reads nothing, and ends as `end` says.
fn late_reader(end: impl FnOnce(TcpStream)) -> Report {
    let (client, near) = pair();
    let (mut destination, far) = pair();
    let relay = Relay::with(&near, &far, HALF_CLOSE, LINGER);
    let running = relay.clone();
    let run = threads::spawn("relay", move || {
        let near_end = End { sink: Box::new(Delivering(near.clone())), ..End::tcp(near) };
        running.run(near_end, End::tcp(far), &Group::new(), "down")
    })
    .unwrap();
    let (ended, upload_ended) = bounded::<()>(0);
    let mut to_near = client.try_clone().unwrap();
    let upload = threads::spawn("upload", move || {
        while to_near.write_all(&[7; 16 * 1024]).is_ok() {}
        drop(ended);
    })
    .unwrap();
    destination.write_all(&[1; ANSWER]).unwrap();
    while relay.bytes().1 < ANSWER as u64 || relay.bytes().0 == 0 {
        std::thread::yield_now();
    }
    end(destination);
    let uploading = upload_ended.recv_timeout(20 * LINGER);
    assert_eq!(uploading, Err(RecvTimeoutError::Timeout), "the answer is not delivered yet");
    let mut answer = Vec::new();
    (&client).read_to_end(&mut answer).unwrap();
    assert!(answer == [1; ANSWER], "{} bytes", answer.len());
    let report = run.join().unwrap();
    // It owns the connections too. The client has it all, and now it learns from their close
    // that nobody reads what it sends.
    drop(relay);
    upload.join().unwrap();
    report
}

#[test]
fn a_late_reader_gets_the_answer_of_a_destination_that_finished_and_closed() {
    let report = late_reader(|destination| destination.shutdown(Shutdown::Write).unwrap());
    let Ended::Broken { side: Side::Far, act: Act::Write, .. } = report.why else {
        panic!("{report:?}")
    };
}

#[test]
fn a_late_reader_gets_what_a_destination_sent_before_it_reset() {
    let report = late_reader(|destination| {
        SockRef::from(&destination).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let Ended::Broken { side: Side::Far, .. } = report.why else { panic!("{report:?}") };
}

#[test]
fn a_byte_extends_the_half_close_limit_by_no_more_than_itself_and_a_quarter() {
    let limit = Duration::from_secs(300);
    let start = clock::now();
    let mut silence = Silence::new(limit, 7, start);
    let mut now = start;
    // A byte just after the start.
    let over = loop {
        now += silence.next_look();
        if silence.is_over(8, now) {
            break now.duration_since(start);
        }
    };
    assert!(over >= limit && over <= limit + limit / 4, "{over:?}");
}

#[test]
fn a_client_that_takes_nothing_is_the_one_that_the_half_close_limit_names() {
    let (client, near) = pair();
    let (mut destination, far) = pair();
    let relay = Relay::new(&near, &far, Duration::from_secs(2));
    client.shutdown(Shutdown::Write).unwrap();
    while near.send_now(&[1; 16 * 1024]).is_ok() {}
    let flood =
        threads::spawn(
            "destination",
            move || {
                while destination.write_all(&[1; 16 * 1024]).is_ok() {}
            },
        )
        .unwrap();
    let report = relay.run(End::tcp(near), End::tcp(far), &Group::new(), "down");
    assert_eq!(report.why.to_string(), "half-close limit: nothing taken by the client for 2s");
    // It owns the connections too, and the destination sees their close.
    drop(relay);
    flood.join().unwrap();
}
