//! Go as the agent: what our client meets at GoDoxy's.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use adit::net::Sink;

use super::super::Running;
use super::peer;
use crate::support::agents::until;
use crate::support::command::run;
use crate::support::pattern::{MIB, Pattern, receive, send};
use crate::support::process::{AgentProcess, adit};
use crate::support::{Pki, PkiFiles, destinations};

/// A Go agent with a server certificate.
fn agent(files: &PkiFiles, flags: &[&str]) -> AgentProcess {
    let path = |name: &str| files.path(name);
    start(&path("ca.pem"), &path("server.pem"), &path("server-key.pem"), flags)
}

fn start(ca: &Path, cert: &Path, key: &Path, flags: &[&str]) -> AgentProcess {
    let mut command = peer("agent");
    command.arg("-ca").arg(ca).arg("-cert").arg(cert).arg("-key").arg(key).args(flags);
    AgentProcess::spawn(command)
}

fn connect(agent: &AgentProcess, files: &PkiFiles, to: SocketAddr) -> Command {
    let mut command = adit();
    command.args(["connect", "--agent", &agent.address.to_string(), &to.to_string()]);
    command.args(files.flags("client"));
    command
}

fn probe(agent: &AgentProcess, files: &PkiFiles, flags: &[&str]) -> Command {
    let mut command = adit();
    command.args(["probe", &agent.address.to_string()]).args(files.flags("client")).args(flags);
    command
}

#[test]
fn a_go_agent_carries_a_stream_in_both_versions() {
    let files = Pki::new().files();
    for version in ["1.2", "1.3"] {
        let agent = agent(&files, &["-tls", version]);
        let ran = run(&mut connect(&agent, &files, destinations::echo()), b"heard in Go").ok();
        assert_eq!((ran.text().as_str(), ran.err.as_str()), ("heard in Go", ""));
        let line = agent.wait_for("connection tls=");
        let expected = format!("tls={version} resumed=false sni=godoxy.agent cert=\"tester\"");
        assert!(line.contains(&expected), "{line}");
        agent.wait_for("up=11 down=11 errors=<nil>/<nil>");
    }
}

#[test]
fn what_goes_both_ways_through_a_go_agent_at_the_same_time_is_unchanged() {
    const SIZE: usize = 32 * MIB;
    let files = Pki::new().files();
    for version in ["1.2", "1.3"] {
        let agent = agent(&files, &["-tls", version]);
        let echo = destinations::echo().port();
        let (mut source, mut sink) =
            agent.client(&files).open("127.0.0.1", echo).unwrap().split().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                send(&mut sink, SIZE, 64 * 1024);
                sink.finish().unwrap();
            });
            assert_eq!(receive(&mut source), SIZE);
        });
        agent.wait_for(&format!("up={SIZE} down={SIZE} errors=<nil>/<nil>"));
        let data = Pattern::bytes(SIZE);
        let ran = run(&mut connect(&agent, &files, destinations::echo()), &data).ok();
        assert!(ran.out == data, "32 MiB there and back over TLS {version}");
    }
}

#[test]
fn streams_through_a_go_agent_do_not_mix() {
    let files = Pki::new().files();
    let agent = agent(&files, &[]);
    let (client, echo) = (agent.client(&files), destinations::echo().port());
    thread::scope(|scope| {
        for number in 1..=12 {
            let client = &client;
            scope.spawn(move || {
                let (mut source, mut sink) =
                    client.open("127.0.0.1", echo).unwrap().split().unwrap();
                let size = number * 100_003;
                scope.spawn(move || {
                    send(&mut sink, size, number * 777);
                    sink.finish().unwrap();
                });
                assert_eq!(receive(&mut source), size);
            });
        }
        client.info().unwrap();
    });
}

#[test]
fn a_half_close_reaches_the_destination_through_a_go_agent() {
    let files = Pki::new().files();
    for version in ["1.2", "1.3"] {
        let agent = agent(&files, &["-tls", version]);
        let ran = run(&mut connect(&agent, &files, destinations::count()), &[7; 300_000]).ok();
        assert_eq!(ran.text(), "300000");
        agent.wait_for("up=300000 down=6 errors=<nil>/<nil>");
    }
}

#[test]
fn a_destination_that_has_finished_still_gets_our_bytes_through_a_go_agent() {
    let files = Pki::new().files();
    let finishes_first = destinations::service(|mut stream| {
        stream.write_all(b"that was all").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    });
    for version in ["1.2", "1.3"] {
        let agent = agent(&files, &["-tls", version]);
        let mut command = connect(&agent, &files, finishes_first);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running(command.spawn().unwrap());
        let mut answer = String::new();
        running.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "that was all");
        running.0.stdin.take().unwrap().write_all(&[7; 300_000]).unwrap();
        assert!(running.0.wait().unwrap().success());
        agent.wait_for("up=300000 down=12 errors=<nil>/<nil>");
    }
}

#[test]
fn a_destination_that_speaks_first_is_heard_through_a_go_agent() {
    let files = Pki::new().files();
    let agent = agent(&files, &[]);
    let greeter = destinations::service(|mut stream| {
        stream.write_all(b"220 ready").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    });
    let mut stream = agent.client(&files).open("127.0.0.1", greeter.port()).unwrap();
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ready");
    stream.write_all(b"QUIT").unwrap();
    assert_eq!(stream.read(&mut greeting).unwrap(), 0, "a clean end");
}

#[test]
fn a_destination_that_a_go_agent_cannot_reach_is_exit_code_1() {
    let files = Pki::new().files();
    let agent = agent(&files, &[]);
    let ran = run(&mut connect(&agent, &files, destinations::refused()), b"");
    assert!(ran.code == Some(1) && ran.err.contains("without a byte"), "{ran:?}");
    let line = agent.wait_for("stream refused: ");
    assert!(line.contains("connection refused"), "{line}");
}

#[test]
fn a_go_agent_is_described_to_people_and_to_machines() {
    let files = Pki::new().files();
    for version in ["1.2", "1.3"] {
        let agent = agent(&files, &["-tls", version, "-name", "nas"]);
        let ran = run(&mut probe(&agent, &files, &[]), b"").ok();
        for row in [
            format!("agent     {}\n", agent.address),
            "name      nas\nversion   v0.31.0\nruntime   podman\n".to_owned(),
            "TCP       works (connect ".to_owned(),
            "UDP       not offered\n".to_owned(),
        ] {
            assert!(ran.text().contains(&row), "{row:?} in {}", ran.text());
        }
        agent.wait_for("probe answered");
        let ran = run(&mut probe(&agent, &files, &["--json"]), b"").ok();
        let found: serde_json::Value = serde_json::from_slice(&ran.out).unwrap();
        let info = serde_json::json!({
            "version": "v0.31.0", "name": "nas", "runtime": "podman",
            "supports_tcp_stream": true, "supports_udp_stream": false,
        });
        assert_eq!((&found["info"], &found["healthy"]), (&info, &true.into()));
        assert!(
            found.get("info_error").is_none() && found["tcp"].get("error").is_none(),
            "{found}"
        );
    }
}

#[test]
fn a_go_agent_from_before_info_is_described_by_its_plain_text() {
    let files = Pki::new().files();
    let agent = agent(&files, &["-old", "-name", "nas"]);
    let ran = run(&mut probe(&agent, &files, &[]), b"").ok();
    let rows = "name      nas\nversion   v0.31.0\nruntime   podman\nTCP       works";
    assert!(ran.text().contains(rows), "{ran:?}");
    // It does not say whether it carries UDP, so that was tried.
    assert!(ran.text().contains("UDP       does not work: cannot reach"), "{ran:?}");
}

#[test]
fn a_client_that_is_kept_resumes_its_sessions_with_a_go_agent_in_both_versions() {
    let files = Pki::new().files();
    let echo = destinations::echo().port();
    for version in ["1.2", "1.3"] {
        let agent = agent(&files, &["-tls", version]);
        let client = agent.client(&files);
        for _ in 0..3 {
            let (mut source, mut sink) = client.open("127.0.0.1", echo).unwrap().split().unwrap();
            send(&mut sink, 1000, 1000);
            sink.finish().unwrap();
            assert_eq!(receive(&mut source), 1000);
        }
        until("three streams end", || agent.count("stream ended ") == 3);
        let lines = agent.log();
        let of = |line: &&String| line.starts_with("connection ");
        let seen: Vec<_> = lines.iter().filter(of).map(String::as_str).collect();
        let line = |resumed: bool| {
            format!("connection tls={version} resumed={resumed} sni=godoxy.agent cert=\"tester\"")
        };
        assert_eq!(seen, [line(false), line(true), line(true)]);
    }
}

#[test]
fn a_go_agent_that_refuses_our_certificate_is_not_healthy() {
    let (files, others) = (Pki::new().files(), Pki::new().files());
    for version in ["1.2", "1.3"] {
        // It knows another authority; we know its.
        let path = |name: &str| files.path(name);
        let (cert, key) = (path("server.pem"), path("server-key.pem"));
        let agent = start(&others.path("ca.pem"), &cert, &key, &["-tls", version]);
        for mut command in
            [probe(&agent, &files, &["--json"]), connect(&agent, &files, destinations::echo())]
        {
            let ran = run(&mut command, b"");
            assert_eq!(ran.code, Some(1), "{ran:?}");
            // Older releases of Go have one alert for whatever is wrong with a certificate.
            assert!(ran.err.contains("refused: ") && ran.err.contains("authority"), "{ran:?}");
        }
        agent.wait_for("tls: failed to verify ");
    }
}

#[test]
fn a_go_agent_that_is_not_ours_is_not_trusted() {
    let (files, others) = (Pki::new().files(), Pki::new().files());
    let agent = agent(&files, &[]);
    let ran = run(&mut probe(&agent, &others, &[]), b"");
    assert!(
        ran.code == Some(1) && ran.err.contains("peer's certificate is not from our"),
        "{ran:?}"
    );
    agent.wait_for("remote error: tls: ");
    let ran = run(&mut probe(&agent, &files, &["--server-name", "other.example"]), b"");
    assert!(ran.code == Some(1) && ran.err.contains("for another name"), "{ran:?}");
    agent.wait_for("remote error: tls: bad certificate");
}

#[test]
fn a_go_agent_that_only_speaks_an_old_tls_is_named_as_such() {
    let files = Pki::new().files();
    let agent = agent(&files, &["-tls", "1.1"]);
    let ran = run(&mut probe(&agent, &files, &[]), b"");
    assert!(ran.code == Some(1) && ran.err.contains("neither TLS 1.2 nor 1.3"), "{ran:?}");
}

#[test]
fn a_go_server_without_streams_is_told_from_an_agent() {
    let files = Pki::new().files();
    let agent = agent(&files, &["-alpn", "http/1.1"]);
    let ran = run(&mut probe(&agent, &files, &[]), b"");
    assert!(ran.code == Some(1) && ran.err.contains("no_application_protocol"), "{ran:?}");
    assert!(ran.text().contains("name      go-agent\n"), "its API answers: {ran:?}");
}

#[test]
fn the_zip_of_a_godoxy_server_reaches_its_go_agent() {
    let fixture = crate::godoxy::fixture;
    let agent = start(&fixture("ca.pem"), &fixture("server.pem"), &fixture("server-key.pem"), &[]);
    let dir = tempfile::tempdir().unwrap();
    let zip = dir.path().join("nas.zip");
    run(adit().arg("pki").arg("zip").arg(fixture("")).arg("--out").arg(&zip), b"").ok();
    let address = agent.address.to_string();
    let ran = run(adit().args(["probe", &address, "--zip"]).arg(&zip), b"").ok();
    assert!(ran.text().contains("TCP       works"), "{ran:?}");
    let mut command = adit();
    command.args(["connect", "--agent", &address, "--zip"]).arg(&zip);
    command.arg(destinations::echo().to_string());
    assert_eq!(run(&mut command, b"to 3026").ok().text(), "to 3026");
    agent.wait_for("cert=\"godoxy.agent\"");
}
