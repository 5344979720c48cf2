//! `adit agent` and the signals that end it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;

use adit::net::Sink;
use adit::tls::TlsStream;

use crate::support::pattern::{MIB, receive, send};
use crate::support::process::{AgentProcess, adit};
use crate::support::{PATIENCE, Pki, PkiFiles, destinations};

/// An agent with one stream through it that has carried a word.
fn busy(flags: &[&str]) -> (PkiFiles, AgentProcess, TlsStream) {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, flags);
    let mut stream = agent.client(&files).open("127.0.0.1", destinations::echo().port()).unwrap();
    stream.write_all(b"word").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    (files, agent, stream)
}

/// Waits until nobody listens at the agent's port.
fn closed(agent: &AgentProcess) {
    let end = std::time::Instant::now() + PATIENCE;
    while TcpStream::connect(agent.address).is_ok() {
        assert!(std::time::Instant::now() < end, "it still listens");
        std::thread::yield_now();
    }
}

#[test]
fn a_running_stream_drains_to_its_end_and_no_new_one_begins() {
    for signal in ["SIGTERM", "SIGINT"] {
        let (files, mut agent, stream) = busy(&["--drain", "1h"]);
        agent.signal(signal);
        closed(&agent);
        agent.wait_for("INFO  stopping: 1 TCP stream has 1h to end");
        assert!(agent.client(&files).probe().is_err());
        let (mut source, mut sink) = stream.split().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send(&mut sink, 4 * MIB, 64 * 1024);
                sink.finish().unwrap();
            });
            assert_eq!(receive(&mut source), 4 * MIB);
        });
        assert_eq!(agent.wait().code(), Some(0));
        agent.wait_for("agent ended streams=1 cut=0");
    }
}

#[test]
fn a_stream_that_outlasts_the_drain_time_is_cut_and_named() {
    let (_files, mut agent, mut stream) = busy(&["--drain", "50ms"]);
    agent.signal("SIGTERM");
    assert!(stream.read(&mut [0; 1]).is_err(), "cut, not ended");
    assert_eq!(agent.wait().code(), Some(0));
    let line = agent.wait_for("stream cut at shutdown id=1 peer=");
    assert!(line.contains("cert=tester dst=127.0.0.1:") && line.contains("up=4 down=4"), "{line}");
    agent.wait_for("agent ended streams=1 cut=1");
}

#[test]
fn nohup_keeps_what_it_promises() {
    let files = Pki::new().files();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_adit"), "agent"]);
    command.args(["--listen", "127.0.0.1:0"]).args(files.flags("server"));
    let mut agent = AgentProcess::spawn(command);
    agent.signal("SIGHUP");
    agent.client(&files).probe().unwrap();
    agent.signal("SIGTERM");
    assert_eq!(agent.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (_files, mut agent, mut stream) = busy(&["--drain", "1h"]);
    agent.signal("SIGTERM");
    closed(&agent);
    agent.signal("SIGTERM");
    assert!(stream.read(&mut [0; 1]).is_err());
    assert_eq!(agent.wait().code(), Some(3));
    agent.wait_for("stream cut at shutdown id=1");
    agent.wait_for("adit: ended at once by a second signal");
}

#[test]
fn an_idle_agent_ends_without_waiting() {
    let files = Pki::new().files();
    let mut agent = AgentProcess::start(&files, &["--drain", "1h"]);
    agent.signal("SIGTERM");
    assert_eq!(agent.wait().code(), Some(0));
    agent.wait_for("INFO  stopping: no TCP stream runs");
}

#[test]
fn connections_that_carry_no_stream_do_not_delay_the_end() {
    let files = Pki::new().files();
    let mut agent = AgentProcess::start(&files, &["--drain", "1h"]);
    let identity = files.identity("client");
    // One waits for its next request, one never spoke, one is in the middle of its handshake, and
    // one has not sent its header.
    let config = crate::support::tls::config(
        &identity,
        true,
        &[crate::support::tls::HTTP],
        &[&rustls::version::TLS13],
    );
    let mut api = crate::support::tls::connect(agent.address, config).unwrap();
    api.write_all(b"GET /godoxy/agent/name HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    api.read_exact(&mut [0; 12]).unwrap();
    let silent = TcpStream::connect(agent.address).unwrap();
    let mut half = TcpStream::connect(agent.address).unwrap();
    half.write_all(&[22, 3, 1, 0, 200, 1]).unwrap();
    let config = crate::support::tls::stream_config(&identity, &rustls::version::TLS12);
    let header = crate::support::tls::connect(agent.address, config).unwrap();
    agent.client(&files).probe().unwrap();
    agent.signal("SIGTERM");
    assert_eq!(agent.wait().code(), Some(0));
    drop((api, silent, half, header));
}

#[test]
fn an_api_answer_in_progress_is_still_sent() {
    let files = Pki::new().files();
    let mut agent = AgentProcess::start(&files, &["--drain", "1h"]);
    let (asked, is_asked) = crossbeam_channel::bounded(1);
    let (release, gate) = crossbeam_channel::bounded(1);
    let slow = destinations::service(move |mut stream| {
        stream.read_exact(&mut [0; 4]).unwrap();
        asked.send(()).unwrap();
        gate.recv().unwrap();
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    });
    let identity = files.identity("client");
    let connect = || {
        let versions = [&rustls::version::TLS13];
        let http = [crate::support::tls::HTTP];
        let config = crate::support::tls::config(&identity, true, &http, &versions);
        crate::support::tls::connect(agent.address, config).unwrap()
    };
    let (mut api, mut idle) = (connect(), connect());
    let request = "GET /godoxy/agent/health?scheme=http&host=127.0.0.1&port=";
    write!(api, "{request}{}&timeout=60000 HTTP/1.1\r\nHost: x\r\n\r\n", slow.port()).unwrap();
    is_asked.recv_timeout(PATIENCE).unwrap();
    agent.signal("SIGTERM");
    // The one that waits for a request is let go when the agent has begun to drain.
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
    release.send(()).unwrap();
    let mut answer = String::new();
    api.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"healthy\":true"), "{answer}");
    assert_eq!(agent.wait().code(), Some(0));
}

#[test]
fn the_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let files = Pki::new().files();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = adit();
    command.args(["agent", "--listen", "127.0.0.1:0"]).args(files.flags("server"));
    let mut agent = AgentProcess::spawn(command.env("NOTIFY_SOCKET", &path));
    let mut heard = [0; 256];
    let mut next = || {
        let size = socket.recv(&mut heard).unwrap();
        String::from_utf8(heard[..size].to_vec()).unwrap()
    };
    assert_eq!(next().trim(), "READY=1");
    agent.client(&files).probe().unwrap();
    agent.signal("SIGTERM");
    assert_eq!(next().trim(), "STOPPING=1");
    assert_eq!(agent.wait().code(), Some(0));
}
