//! `adit connect` as a command.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::support::command::{Ran, run};
use crate::support::pattern::{MIB, Pattern};
use crate::support::process::adit;
use crate::support::{Pki, PkiFiles, TestAgent, destinations};

fn connect(agent: SocketAddr, files: &PkiFiles, destination: &str) -> Command {
    let mut command = adit();
    command.args(["connect", "--agent", &agent.to_string(), destination]);
    command.args(files.flags("client"));
    command
}

/// Runs it through a new agent.
fn through(destination: SocketAddr, input: &[u8]) -> Ran {
    let agent = TestAgent::new();
    let files = agent.pki.files();
    run(&mut connect(agent.address, &files, &destination.to_string()), input)
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
    let ran = through(sink, b"log line\n");
    assert_eq!(ran.code, Some(0), "{ran:?}");
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
