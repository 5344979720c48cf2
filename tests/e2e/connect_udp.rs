//! `adit connect --udp` as a command.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use adit::client::UdpStream;

use crate::support::command::{Ran, run};
use crate::support::destinations::{refused, udp_collector, udp_echo, udp_refused, udp_service};
use crate::support::process::{AgentProcess, adit};
use crate::support::{Pki, PkiFiles, Setup, TestAgent};

fn connect(agent: SocketAddr, files: &PkiFiles, destination: &str) -> Command {
    let mut command = adit();
    command.args(["connect", "--udp", "--agent", &agent.to_string(), destination]);
    command.args(files.flags("client"));
    command
}

/// Runs it through a new agent.
fn through(destination: SocketAddr, input: &[u8], flags: &[&str]) -> Ran {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    run(connect(agent.address, &files, &destination.to_string()).args(flags), input)
}

/// Answers each datagram with `[datagram]`, which no echo of bytes would.
fn brackets() -> SocketAddr {
    udp_service(|socket, bytes, from| {
        drop(socket.send_to(&[b"[", bytes, b"]"].concat(), from));
    })
}

/// One that goes on running.
struct Piped {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Piped {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Its exit code and what it said, with its input open all the time.
    fn end(mut self) -> (Option<i32>, String) {
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), err)
    }
}

#[test]
fn each_line_is_a_datagram_and_each_reply_a_line() {
    let ran = through(brackets(), b"one\ntwo \r\nlast", &[]).ok();
    assert_eq!((ran.text().as_str(), ran.err.as_str()), ("[one]\n[two \r]\n[last]\n", ""));
}

#[test]
fn frames_with_their_length_in_front_carry_any_byte() {
    let largest = vec![b'\n'; UdpStream::MAX];
    let frame = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let input = [frame(b"a\nb\0\xff"), frame(&largest)].concat();
    let ran = through(udp_echo(), &input, &["--framing", "length"]).ok();
    assert!(ran.out == input, "{} bytes of {}", ran.out.len(), input.len());
}

#[test]
fn who_asks_again_and_again_is_answered_each_time() {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let mut piped = Piped::start(&mut connect(agent.address, &files, &brackets().to_string()));
    for question in ["first", "second", "third"] {
        piped.write(format!("{question}\n").as_bytes());
        assert_eq!(piped.line(), format!("[{question}]\n"));
    }
    drop(piped.child.stdin.take());
    assert_eq!(piped.end(), (Some(0), String::new()));
}

#[test]
fn empty_lines_are_left_out_and_told_once() {
    let ran = through(brackets(), b"\none\n\n\ntwo\n", &[]).ok();
    assert_eq!(ran.text(), "[one]\n[two]\n");
    assert_eq!(ran.err.matches("empty datagrams cannot travel").count(), 1, "{ran:?}");
}

#[test]
fn a_destination_that_never_answers_is_exit_code_1_unless_none_was_expected() {
    for silent in [udp_collector().address, udp_refused()] {
        let ran = through(silent, b"x\n", &["--wait", "100ms"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("no datagram came back within 100ms"), "{ran:?}");
    }
    let collector = udp_collector();
    through(collector.address, b"log line\nend\n", &["--no-reply", "--wait", "0"]).ok();
    assert_eq!(collector.until(b"end"), [b"log line"]);
}

#[test]
fn input_without_a_datagram_is_not_waited_for() {
    for input in [&b""[..], b"\n\n"] {
        let ran = through(udp_echo(), input, &["--wait", "1day"]);
        assert!(ran.code == Some(1) && ran.err.contains("nothing was sent"), "{ran:?}");
    }
    through(udp_echo(), b"", &["--wait", "1day", "--no-reply"]).ok();
}

#[test]
fn bad_input_is_exit_code_1_and_what_was_before_it_still_answered() {
    let long = [&b"short\n"[..], &[b'x'; UdpStream::MAX + 1]].concat();
    for (framing, input, out, words) in [
        ("lines", &long[..], &b"short\n"[..], "line 2 of standard input is longer than 16384"),
        ("length", b"\0\x01a\x40\x01", b"\0\x01a", "frame 2 of standard input says that it has"),
        ("length", b"\0\x01a\0\x02b", b"\0\x01a", "within frame 2, after 1 of its 2 bytes"),
    ] {
        let ran = through(udp_echo(), input, &["--framing", framing]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains(words) && ran.out == out, "{ran:?}");
    }
    let ran = through(udp_echo(), b"\0", &["--framing", "length", "--wait", "1day"]);
    assert!(ran.code == Some(1) && ran.err.contains("the length of frame 1"), "{ran:?}");
}

#[test]
fn a_refused_destination_ends_it_with_exit_code_1_while_input_is_open() {
    let denied = udp_collector();
    let agent = TestAgent::with(Setup { deny: vec!["127.0.0.0/8".into()], ..Setup::default() });
    let files = agent.pki.files();
    for flags in [&[][..], &["--no-reply"]] {
        let destination = denied.address.to_string();
        let piped = Piped::start(connect(agent.address, &files, &destination).args(flags));
        let (code, err) = piped.end();
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("not allowed (the agent's log says which)"), "{err}");
    }
    assert!(denied.received().is_empty());
}

#[test]
fn a_session_that_the_agent_ends_under_its_user_is_exit_code_1() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--udp-idle", "2s"]);
    let mut piped = Piped::start(&mut connect(agent.address, &files, &brackets().to_string()));
    piped.write(b"x\n");
    assert_eq!(piped.line(), "[x]\n");
    let (code, err) = piped.end();
    assert!(code == Some(1) && err.contains("ended the session while there was input"), "{err}");
    agent.wait_for("why=nothing passed for 2s");
}

#[test]
fn a_signal_tells_the_agent_and_is_exit_code_3() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let mut piped = Piped::start(&mut connect(agent.address, &files, &brackets().to_string()));
    piped.write(b"x\n");
    assert_eq!(piped.line(), "[x]\n");
    let pid = nix::unistd::Pid::from_raw(piped.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(piped.end(), (Some(3), String::new()));
    let line = agent.wait_for("UDP stream ended");
    assert!(line.ends_with("why=the client ended it"), "{line}");
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let mut piped = Piped::start(&mut connect(agent.address, &files, &brackets().to_string()));
    piped.write(b"x\n");
    assert_eq!(piped.line(), "[x]\n");
    let Piped { mut child, lines } = piped;
    drop(lines);
    child.stdin.as_mut().unwrap().write_all(b"y\n").unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn wrong_flags_are_exit_code_2() {
    let files = Pki::new().files();
    for (flags, words) in [
        (&["--udp", "--framing", "words"][..], "there are two: lines and length"),
        (&["--udp", "--wait", "2"], "durations are written"),
        (&["--framing", "lines"], "add --udp"),
        (&["--wait", "2s"], "add --udp"),
    ] {
        let mut command = adit();
        command.args(["connect", "--agent", "127.0.0.1:1", "127.0.0.1:1"]).args(flags);
        let ran = run(command.args(files.flags("client")), b"");
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains(words), "{ran:?}");
    }
}

#[test]
fn an_agent_that_nobody_runs_is_exit_code_1() {
    let ran = run(&mut connect(refused(), &Pki::new().files(), "127.0.0.1:1"), b"x\n");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("cannot reach the agent at UDP"), "{ran:?}");
}

#[test]
fn a_certificate_that_the_agent_does_not_take_is_exit_code_1() {
    let agent = TestAgent::new();
    let (ours, theirs) = (agent.pki.files(), Pki::new().files());
    let pem = |files: &PkiFiles| std::fs::read_to_string(files.path("ca.pem")).unwrap();
    // A CA file that knows both, so that only the agent refuses.
    let both = pem(&ours) + &pem(&theirs);
    std::fs::write(theirs.path("ca.pem"), both).unwrap();
    let ran = run(&mut connect(agent.address, &theirs, "127.0.0.1:1"), b"x\n");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("cannot agree with the agent: refused: "), "{ran:?}");
}
