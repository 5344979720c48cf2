//! `adit connect` as a command.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::support::command::{Ran, run};
use crate::support::pattern::{MIB, Pattern};
use crate::support::process::{AgentProcess, adit};
use crate::support::{PATIENCE, Pki, PkiFiles, TestAgent, destinations};

fn connect(agent: SocketAddr, files: &PkiFiles, destination: &str) -> Command {
    let mut command = adit();
    command.args(["connect", "--agent", &agent.to_string(), destination]);
    command.args(files.flags("client"));
    command
}

/// Runs it through a new agent.
fn through(destination: SocketAddr, input: &[u8]) -> Ran {
    through_with(destination, input, &[])
}

fn through_with(destination: SocketAddr, input: &[u8], flags: &[&str]) -> Ran {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    run(connect(agent.address, &files, &destination.to_string()).args(flags), input)
}

#[test]
fn input_and_output_are_piped_both_ways() {
    let ran = through(destinations::echo(), b"hello").ok();
    assert_eq!((ran.text().as_str(), ran.err.as_str()), ("hello", ""));
}

#[test]
fn the_end_of_input_is_a_half_close() {
    assert_eq!(through(destinations::count(), &[7; 300_000]).ok().text(), "300000");
}

#[test]
fn a_large_transfer_arrives_unchanged() {
    let data = Pattern::bytes(32 * MIB);
    assert!(through(destinations::echo(), &data).ok().out == data);
}

#[test]
fn a_prompt_arrives_before_a_newline_does() {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let asks = destinations::service(|mut stream| {
        stream.write_all(b"login: ").unwrap();
        let mut name = [0; 5];
        stream.read_exact(&mut name).unwrap();
        stream.write_all(&name).unwrap();
    });
    let mut child = connect(agent.address, &files, &asks.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut prompt = [0; 7];
    output.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"login: ");
    input.write_all(b"alice").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "alice");
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_destination_that_gives_no_byte_is_exit_code_1() {
    for destination in [destinations::refused(), destinations::service(drop)] {
        let ran = through(destination, b"");
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("without a byte") && ran.err.contains("agent's log"), "{ran:?}");
    }
}

#[test]
fn a_destination_that_only_takes_is_no_failure() {
    let sink = destinations::service(|mut stream| {
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    });
    let ran = through_with(sink, b"log line\n", &["--no-reply"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // Without that word it looks like a destination that was never reached.
    let ran = through(sink, b"log line\n");
    assert!(ran.code == Some(1) && ran.err.contains("--no-reply"), "{ran:?}");
    // And with it, input that nobody took is still missed.
    let endless = destinations::service(drop);
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let mut child = connect(agent.address, &files, &endless.to_string())
        .arg("--no-reply")
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    while input.write_all(&[0; 4096]).is_ok() {}
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_signal_passes_the_end_on_and_nothing_looks_broken() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let (tell, told) = crossbeam_channel::bounded(1);
    let greets = destinations::service(move |mut stream| {
        stream.write_all(b"hello").unwrap();
        let mut all = String::new();
        tell.send(stream.read_to_string(&mut all).map(|_| all)).unwrap();
    });
    let mut child = connect(agent.address, &files, &greets.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"last words").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    let signal = nix::sys::signal::Signal::SIGHUP;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let all = told.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!("last words".starts_with(&all), "{all:?}");
    let line = agent.wait_for("stream ended");
    assert!(line.contains("why=finished"), "{line}");
}

#[test]
fn an_output_that_someone_made_non_blocking_still_gets_everything() {
    let source = destinations::service(|mut stream| stream.write_all(&[7; 1 << 20]).unwrap());
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    let mut command = connect(agent.address, &files, &source.to_string());
    let mut child = command.stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    drop(command);
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 1 << 20);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_broken_stream_is_exit_code_1_and_what_came_is_kept() {
    let breaks = destinations::service(|mut stream| {
        stream.write_all(b"half").unwrap();
        // The client's byte says that it has the half.
        stream.read_exact(&mut [0; 1]).unwrap();
        let linger = Some(std::time::Duration::ZERO);
        socket2::SockRef::from(&stream).set_linger(linger).unwrap();
    });
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let mut child = connect(agent.address, &files, &breaks.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut half = [0; 4];
    output.read_exact(&mut half).unwrap();
    input.write_all(b"x").unwrap();
    assert_eq!(output.read(&mut half).unwrap(), 0);
    // Its input is still open: it must not wait for that.
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn wrong_flags_are_exit_code_2() {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    for destination in ["nonsense", "host:0", "::1"] {
        let ran = run(&mut connect(agent.address, &files, destination), b"");
        assert_eq!(ran.code, Some(2), "{ran:?}");
    }
    let ran = run(adit().args(["connect", "--agent", "x", "h:1"]), b"");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("--cert"), "{ran:?}");
}

#[test]
fn an_agent_that_nobody_runs_is_exit_code_1() {
    let files = Pki::new().files();
    let ran = run(&mut connect(destinations::refused(), &files, "127.0.0.1:1"), b"");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("cannot reach the agent"), "{ran:?}");
}

#[test]
fn of_two_authorities_the_message_says_whose_is_wrong() {
    let agent = TestAgent::new();
    let (ours, theirs) = (agent.pki.files(), Pki::new().files());
    let path = |files: &PkiFiles, name: &str| files.path(name).to_str().unwrap().to_owned();
    let mut command = connect(agent.address, &theirs, "127.0.0.1:1");
    let ran = run(&mut command, b"");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("peer's certificate is not from our"), "{ran:?}");

    // A CA file that knows both, so that only the agent refuses.
    let both = theirs.path("both.pem");
    let pem = |files: &PkiFiles| std::fs::read_to_string(files.path("ca.pem")).unwrap();
    std::fs::write(&both, pem(&ours) + &pem(&theirs)).unwrap();
    let mut command = adit();
    command.args(["connect", "--agent", &agent.address.to_string(), "127.0.0.1:1"]);
    command.args(["--ca", both.to_str().unwrap(), "--cert", &path(&theirs, "client.pem")]);
    let ran = run(command.args(["--key", &path(&theirs, "client-key.pem")]), b"");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("refused: the peer knows another authority"), "{ran:?}");
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    let endless =
        destinations::service(|mut stream| while stream.write_all(&[b'y'; 4096]).is_ok() {});
    let mut child = connect(agent.address, &files, &endless.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _open = child.stdin.take();
    child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}
