//! What a client sees of [`serve`], on a connection whose time passes only when the test says so.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;

/// What the client does next.
enum Step {
    Sends(Vec<u8>),
    LetsTimePass,
    Breaks,
}

/// The client's steps, then an end of file; and what it was sent.
#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    answers: Vec<u8>,
    deadline: Option<Deadline>,
    phases: Vec<&'static str>,
    closed: bool,
}

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.steps.pop_front() {
            None => Ok(0),
            Some(Step::LetsTimePass) => Err(self.deadline.unwrap().timed_out()),
            Some(Step::Breaks) => Err(ErrorKind::ConnectionReset.into()),
            Some(Step::Sends(mut bytes)) => {
                let rest = bytes.split_off(bytes.len().min(buf.len()));
                buf[..bytes.len()].copy_from_slice(&bytes);
                if !rest.is_empty() {
                    self.steps.push_front(Step::Sends(rest));
                }
                Ok(bytes.len())
            }
        }
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.answers.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection for Script {
    fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
        self.deadline = deadline;
        self.phases.extend(deadline.map(|d| d.phase()));
        Ok(())
    }

    fn close_write(&mut self) -> io::Result<()> {
        self.closed = true;
        Ok(())
    }
}

fn sends(text: &str) -> Step {
    Step::Sends(text.as_bytes().to_vec())
}

/// Answers each request with its method and target.
fn echo(request: &Request) -> Response {
    Response::text(200, format!("{} {}", request.method(), request.target()))
}

/// The outcome and the answers, without the date.
fn run(steps: Vec<Step>) -> (Result<Served, ServeError>, String, Script) {
    run_until(steps, &|| false)
}

fn run_until(
    steps: Vec<Step>,
    stopping: &dyn Fn() -> bool,
) -> (Result<Served, ServeError>, String, Script) {
    let mut script = Script { steps: steps.into(), ..Script::default() };
    let served = serve(&mut script, &Limits::default(), stopping, &mut echo);
    let text = String::from_utf8(script.answers.clone()).unwrap();
    let lines = text.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: "));
    (served, lines.collect(), script)
}

fn ended(steps: Vec<Step>) -> (u64, End) {
    let served = run(steps).0.unwrap();
    (served.requests, served.end)
}

fn refused(text: &str) -> (Refusal, String) {
    let (served, answer, script) = run(vec![sends(text)]);
    let End::Refused(refusal) = served.unwrap().end else { panic!("{text:?} was not refused") };
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(script.closed, "no close after {refusal}");
    (refusal, answer)
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn pipelined_requests_are_answered_in_order() {
    let both = format!("{GET}\r\nGET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n{GET}");
    let (served, answers, _) = run(vec![sends(&both)]);
    assert_eq!(served.unwrap(), Served { requests: 2, end: End::ClientAsked });
    let (a, b) = answers.split_once("\r\n\r\nGET /a").unwrap();
    assert!(a.contains("Connection: keep-alive") && b.contains("Connection: close"));
    assert!(b.ends_with("\r\n\r\nGET /b"));
}

#[test]
fn http_1_0_closes_unless_asked_not_to() {
    assert_eq!(ended(vec![sends("GET / HTTP/1.0\r\n\r\n"), sends(GET)]), (1, End::ClientAsked));
    let keep = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(ended(vec![sends(keep), sends(keep)]), (2, End::ClientClosed));
}

#[test]
fn a_head_request_gets_no_body() {
    let (_, answers, _) = run(vec![sends("HEAD / HTTP/1.0\r\n\r\n")]);
    assert!(answers.contains("Content-Length: 6\r\n") && answers.ends_with("\r\n\r\n"));
}

#[test]
fn bodies_are_skipped_and_the_next_request_is_found() {
    let text = format!(
        "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nGET \
         POST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n{GET}"
    );
    let (served, answers, _) = run(vec![sends(&text)]);
    assert_eq!(served.unwrap(), Served { requests: 3, end: End::ClientClosed });
    assert!(answers.contains("POST /1") && answers.contains("POST /2"));
    assert!(answers.ends_with("GET /a"));
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_before_it_sends() {
    let head = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let (_, answers, _) = run(vec![sends(head), sends("ab")]);
    assert!(answers.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));
    let (_, answers, _) = run(vec![sends(&format!("{head}ab"))]);
    assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"));
    let large = head.replace("Length: 2", "Length: 200000");
    assert!(refused(&large).1.starts_with("HTTP/1.1 413 "));
    assert_eq!(refused(&head.replace("100-continue", "cake")).0, Refusal::ExpectUnknown);
}

#[test]
fn a_refused_request_is_told_why_and_its_bytes_are_not_repeated() {
    let (refusal, answer) = refused("GET /<b> HTTP/1.1\r\nHost: <b>\r\n\r\n");
    assert_eq!(refusal, Refusal::HostInvalid);
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && !answer.contains("<b>"));
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n";
    assert_eq!(refused(chunked).0, Refusal::ChunkSyntax);
    assert!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").1.starts_with("HTTP/1.1 505 "));
}

#[test]
fn a_head_may_fill_its_limit_and_not_one_byte_more() {
    let head = |length: usize| {
        let empty = "GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n";
        empty.replace("X: ", &format!("X: {}", "x".repeat(length - empty.len())))
    };
    assert_eq!(ended(vec![sends(&head(HEAD_MAX))]), (1, End::ClientClosed));
    let (refusal, answer) = refused(&head(HEAD_MAX + 1));
    assert_eq!(refusal, Refusal::HeadTooLarge);
    assert!(answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
}

#[test]
fn each_wait_has_its_own_limit() {
    assert_eq!(ended(vec![Step::LetsTimePass]), (0, End::Idle));
    assert_eq!(ended(vec![sends(GET), Step::LetsTimePass]), (1, End::Idle));
    let (served, answer, script) = run(vec![sends(GET), sends("GET /"), Step::LetsTimePass]);
    assert_eq!(served.unwrap().end, End::Refused(Refusal::HeadTooSlow));
    assert!(answer.contains("HTTP/1.1 408 Request Timeout\r\n"));
    let head = "HTTP request head";
    let expected = [IDLE_PHASE, head, "HTTP answer", IDLE_PHASE, head, "HTTP answer", "HTTP close"];
    assert_eq!(script.phases, expected);
    let body = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na";
    let slow = ended(vec![sends(body), Step::LetsTimePass]);
    assert_eq!(slow, (0, End::Refused(Refusal::BodyTooSlow)));
}

#[test]
fn a_client_that_never_stops_sending_is_left_after_a_bounded_while() {
    let mut steps = vec![sends("GET\n")];
    steps.extend((0..1000).map(|_| Step::Sends(vec![b'x'; READ_SIZE])));
    let (served, _, script) = run(steps);
    assert_eq!(served.unwrap().end, End::Refused(Refusal::BareLineFeed));
    assert_eq!(script.steps.len(), 1000 - LINGER.1 / READ_SIZE);
}

#[test]
fn a_connection_that_breaks_in_a_request_is_an_error() {
    let (cut, _, _) = run(vec![sends("GET / HT")]);
    assert!(matches!(cut, Err(ServeError::ReadRequest(e)) if e.kind() == ErrorKind::UnexpectedEof));
    let (reset, _, _) = run(vec![Step::Breaks]);
    assert!(matches!(reset, Err(ServeError::ReadRequest(_))));
}

#[test]
fn stopping_makes_the_current_answer_the_last() {
    let asked = Cell::new(0);
    let after_the_first_wait = || asked.replace(asked.get() + 1) > 0;
    let (served, answer, _) = run_until(vec![sends(GET), sends(GET)], &after_the_first_wait);
    assert_eq!(served.unwrap(), Served { requests: 1, end: End::Stopped });
    assert!(answer.contains("Connection: close\r\n"));
    assert_eq!(run_until(vec![sends(GET)], &|| true).0.unwrap().end, End::Stopped);
    asked.set(0);
    let woken = run_until(vec![Step::Breaks], &after_the_first_wait).0.unwrap();
    assert_eq!(woken, Served { requests: 0, end: End::Stopped });
}

proptest! {
    #[test]
    fn the_answers_do_not_depend_on_how_the_bytes_arrive(
        parts in prop::collection::vec(prop::sample::select(vec![
            GET, "\r\n", "GET / HTTP/1.0\r\n\r\n", "HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", "GET\n", "GET \r",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
        ]), 1..6),
        sizes in prop::collection::vec(1usize..50, 1..8),
    ) {
        let bytes = parts.concat().into_bytes();
        let mut steps = Vec::new();
        let mut rest = bytes.as_slice();
        for size in sizes.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*size));
            steps.push(Step::Sends(now.to_vec()));
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        let (whole, answers, _) = run(vec![Step::Sends(bytes.clone())]);
        let (split, same_answers, _) = run(steps);
        prop_assert_eq!(answers, same_answers);
        prop_assert_eq!(whole.ok(), split.ok());
    }
}

/// What curl makes of us, over a real socket.
#[cfg(feature = "peers")]
mod curl {
    use super::*;
    use crate::lifecycle::threads;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::process::Command;

    struct Socket(TcpStream, Option<Deadline>);

    impl Socket {
        fn left(&self) -> io::Result<Option<Duration>> {
            self.1.map(|deadline| deadline.remaining()).transpose()
        }
    }

    impl Read for Socket {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.set_read_timeout(self.left()?)?;
            self.0.read(buf)
        }
    }

    impl Write for Socket {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.set_write_timeout(self.left()?)?;
            self.0.write(buf)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Connection for Socket {
        fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
            self.1 = deadline;
            Ok(())
        }

        fn close_write(&mut self) -> io::Result<()> {
            self.0.shutdown(Shutdown::Write)
        }
    }

    /// curl's output and how its one connection ended.
    fn curl(arguments: &[&str], paths: &[&str]) -> (String, Served) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = threads::spawn("test-http", move || {
            let mut socket = Socket(listener.accept().unwrap().0, None);
            serve(&mut socket, &Limits::default(), &|| false, &mut echo).unwrap()
        });
        let urls: Vec<_> = paths.iter().map(|path| format!("{base}{path}")).collect();
        let quiet = ["-sS", "--noproxy", "*"];
        let output = Command::new("curl").args(quiet).args(arguments).args(urls).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (said, server.unwrap().join().unwrap())
    }

    #[test]
    fn requests_share_a_connection() {
        let (said, served) = curl(&[], &["/1?x=%20", "/2", "/3"]);
        assert_eq!(said, "GET /1?x=%20GET /2GET /3");
        assert_eq!(served, Served { requests: 3, end: End::ClientClosed });
        let (said, served) = curl(&["--http1.0"], &["/1"]);
        assert_eq!((said.as_str(), served.requests), ("GET /1", 1));
    }

    #[test]
    fn a_head_request_ends_at_its_head() {
        let (said, served) = curl(&["-I"], &["/1", "/2"]);
        assert!(said.ends_with("\r\n\r\n") && said.matches("HTTP/1.1 200 OK").count() == 2);
        assert_eq!(served.requests, 2);
    }

    #[test]
    fn bodies_of_every_kind_are_taken_and_long_ones_are_told_so() {
        let body = "x".repeat(5000);
        for field in ["Expect: 100-continue", "Transfer-Encoding: chunked", "X: y"] {
            let (said, served) = curl(&["-H", field, "--data-binary", &body], &["/1", "/2"]);
            assert_eq!((said.as_str(), served.requests), ("POST /1POST /2", 2), "{field}");
        }
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len(300_000).unwrap();
        let file = format!("@{}", large.path().display());
        for field in ["Expect:", "Expect: 100-continue", "Transfer-Encoding: chunked"] {
            let code = ["-w", "%{http_code}", "-H", field, "--data-binary", &file];
            let (said, served) = curl(&code, &["/1"]);
            assert!(said.starts_with("the request body is too long413"), "{field}: {said}");
            assert_eq!(served.end, End::Refused(Refusal::BodyTooLarge));
        }
    }
}
