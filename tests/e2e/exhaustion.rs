//! An agent that runs out of descriptors or threads refuses new connections, says so once in a
//! while, keeps what runs, and recovers.

use std::io::ErrorKind::{TimedOut, WouldBlock};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use adit::tls::TlsStream;

use crate::support::agents::until;
use crate::support::process::{AgentProcess, adit};
use crate::support::{PATIENCE, Pki, PkiFiles, destinations};

/// `adit agent` started by a shell that first runs `limit`.
fn limited(files: &PkiFiles, limit: &str, flags: &[&str]) -> AgentProcess {
    let plain = adit();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]).arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(["agent", "--listen", "127.0.0.1:0"]).args(files.flags("server")).args(flags);
    AgentProcess::spawn(command)
}

fn says(stream: &mut TlsStream, word: &[u8; 5]) -> bool {
    let mut answer = [0; 5];
    stream.write_all(word).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *word
}

/// Streams until one does not work.
fn streams_until_refused(agent: &AgentProcess, pki: &Pki, echo: SocketAddr) -> Vec<TlsStream> {
    let client = agent.client_of(pki);
    let mut streams = Vec::new();
    loop {
        match client.open("127.0.0.1", echo.port()) {
            Ok(mut stream) => {
                if !says(&mut stream, b"hello") {
                    return streams;
                }
                streams.push(stream);
            }
            Err(_) => return streams,
        }
    }
}

#[test]
fn without_descriptors_new_connections_are_refused_and_streams_go_on() {
    let pki = Pki::new();
    let agent = limited(&pki.files(), "ulimit -n 64", &["--no-udp"]);
    let echo = destinations::echo();
    let mut streams = streams_until_refused(&agent, &pki, echo);
    assert!(streams.len() >= 10, "{} streams with 64 descriptors", streams.len());

    // What is left goes to connections that say nothing; each more is taken and reset.
    let mut silent = Vec::new();
    let (mut reset, mut handshakes) = (0, 0);
    while reset < 200 {
        // A reset may be there before `connect` has returned.
        let Ok(mut socket) = TcpStream::connect(agent.address) else {
            reset += 1;
            continue;
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        if agent.descriptors() >= 64 {
            drop(socket.write_all(b"x"));
            match socket.read(&mut [0]) {
                // A stream that is still ending gave a descriptor back in between: this one found
                // it, and its handshake was answered with an alert.
                Ok(1..) => {
                    handshakes += 1;
                    silent.extend(TcpStream::connect(agent.address));
                }
                Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => {
                    panic!("left waiting: {error}")
                }
                Ok(0) | Err(_) => reset += 1,
            }
            assert!(handshakes < 20, "{reset} were refused and {handshakes} were not");
        } else {
            silent.push(socket);
        }
        for stream in streams.iter_mut().step_by(5) {
            assert!(says(stream, b"still"));
        }
    }
    agent.wait_for("no file descriptor is left");
    assert!(agent.count("no file descriptor is left") <= 10, "{:#?}", agent.log());

    drop(silent);
    let half = streams.len() / 2;
    drop(streams.drain(..half));
    let mut again = None;
    until("a stream after descriptors came back", || {
        again = agent.client_of(&pki).open("127.0.0.1", echo.port()).ok();
        again.as_mut().is_some_and(|stream| says(stream, b"again"))
    });
    assert!(streams.iter_mut().all(|stream| says(stream, b"ended")));
    drop((streams, again));
    agent.ends_well();
}

#[test]
fn a_dial_that_finds_no_descriptor_says_so_and_other_streams_go_on() {
    let pki = Pki::new();
    let agent = limited(&pki.files(), "ulimit -n 64", &[]);
    let echo = destinations::echo();
    let client = agent.client_of(&pki);
    let mut streams = streams_until_refused(&agent, &pki, echo);
    // Each round gives two descriptors back and takes one, so that soon the last one is for a
    // connection and none is left for its destination.
    let mut silent = Vec::new();
    until("a dial finds no descriptor", || {
        drop(streams.pop());
        silent.extend(TcpStream::connect(agent.address));
        while let Ok(mut stream) = client.open("127.0.0.1", echo.port()) {
            if !says(&mut stream, b"hello") {
                break;
            }
            streams.push(stream);
        }
        agent.count("stream refused") > 0
    });
    let line = agent.wait_for("stream refused");
    assert!(line.contains("cannot connect to 127.0.0.1"), "{line}");
    assert!(line.contains("Too many open files"), "{line}");
    assert!(streams.iter_mut().all(|stream| says(stream, b"still")));
}

#[test]
fn silent_connections_never_take_the_descriptors_that_streams_need() {
    let pki = Pki::new();
    let agent = limited(&pki.files(), "ulimit -n 64", &[]);
    let echo = destinations::echo();
    let silent: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(agent.address).ok()).collect();
    agent.wait_for("too many connections wait silently");
    let mut stream = agent.client_of(&pki).open("127.0.0.1", echo.port()).unwrap();
    assert!(says(&mut stream, b"hello"));
    drop(silent);
    assert_eq!(agent.count("no file descriptor is left"), 0);
}

/// A shell prefix under which the process and its threads together are `limit`, whoever runs the
/// tests. Root is not bound by RLIMIT_NPROC, and another user's other processes would count: so
/// either a user that nobody else is, or a user namespace, which has its own count (since Linux
/// 5.14).
fn threads_limited(files: &PkiFiles, limit: usize, flags: &[&str]) -> AgentProcess {
    static NEXT: AtomicU32 = AtomicU32::new(1_000_000_000);
    let nobody_else = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(256);
    let binary = env!("CARGO_BIN_EXE_adit");
    let mut command = Command::new("sh");
    let become_someone = if nix::unistd::geteuid().is_root() {
        for entry in ["ca.pem", "server.pem", "server-key.pem", "."] {
            let mode = if entry == "." { 0o755 } else { 0o644 };
            let path = files.path(entry);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        format!("setpriv --reuid {nobody_else} --clear-groups")
    } else {
        "unshare --user".to_owned()
    };
    // The binary is opened first: that user may not be allowed to look where it lies.
    let script = format!(
        "exec 9<\"$0\"; exec {become_someone} prlimit --nproc={limit} /proc/self/fd/9 \"$@\""
    );
    command.args(["-c", &script, binary]);
    command.args(["agent", "--listen", "127.0.0.1:0"]).args(files.flags("server")).args(flags);
    for (name, _) in std::env::vars() {
        if name.starts_with("AGENT_") || name.starts_with("ADIT_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    AgentProcess::spawn(command)
}

#[test]
fn without_threads_new_connections_are_refused_and_streams_go_on() {
    let pki = Pki::new();
    let agent = threads_limited(&pki.files(), 12, &[]);
    let echo = destinations::echo();
    // It says that it listens before its threads for UDP run.
    until("it serves", || agent.threads() == 4);
    let before = agent.threads();
    let mut streams = streams_until_refused(&agent, &pki, echo);
    assert!(!streams.is_empty());
    let mut refused = 0;
    while refused < 100 {
        let opened = agent.client_of(&pki).open("127.0.0.1", echo.port()).ok();
        match opened.and_then(|mut stream| says(&mut stream, b"hello").then_some(stream)) {
            // A thread that was ending had not ended yet when the last one was refused.
            Some(stream) => streams.push(stream),
            None => refused += 1,
        }
        assert!(streams.len() < 12 && streams.iter_mut().all(|stream| says(stream, b"still")));
    }
    agent.wait_for("no thread");
    let warnings = agent.log().iter().filter(|line| line.contains("WARN")).count();
    assert!(warnings <= 20, "{:#?}", agent.log());

    drop(streams.pop());
    let mut again = None;
    until("a stream after threads came back", || {
        again = agent.client_of(&pki).open("127.0.0.1", echo.port()).ok();
        again.as_mut().is_some_and(|stream| says(stream, b"again"))
    });
    assert!(streams.iter_mut().all(|stream| says(stream, b"ended")));
    drop((streams, again));
    until("all threads of streams have ended", || agent.threads() <= before);
    agent.ends_well();
}

#[test]
fn each_thread_of_a_stream_may_be_the_one_that_is_missing() {
    let pki = Pki::new();
    let echo = destinations::echo();
    // The agent itself has two threads, and two for UDP. The next is the handshake's, which then starts the
    // stream's first and ends, while that one starts the second.
    for (limit, why) in
        [(4, "connection refused peer="), (5, "cert=tester dst="), (6, "why=no thread for it")]
    {
        let agent = threads_limited(&pki.files(), limit, &[]);
        let client = agent.client_of(&pki);
        // With the last limit it is a race within the agent that only some streams lose.
        until(why, || {
            let opened = client.open("127.0.0.1", echo.port());
            let works = opened.is_ok_and(|mut stream| says(&mut stream, b"hello"));
            assert!(limit == 6 || !works);
            agent.count(why) > 0
        });
        let warning = agent.wait_for("no thread can be started");
        assert!(warning.contains("WARN"), "{warning}");
        agent.ends_well();
    }
}
