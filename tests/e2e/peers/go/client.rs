//! Go as the client: what a GoDoxy server does with our agent.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::super::Running;
use super::peer;
use crate::support::agents::until;
use crate::support::command::{Ran, run};
use crate::support::pattern::{MIB, Pattern};
use crate::support::process::AgentProcess;
use crate::support::{Pki, PkiFiles, destinations};

/// A client of the agent with our client certificate.
fn client(subcommand: &str, agent: &AgentProcess, files: &PkiFiles) -> Command {
    let mut command = stranger(subcommand, agent, files);
    shows(&mut command, &files.path("client.pem"), &files.path("client-key.pem"));
    command
}

/// One that shows no certificate yet.
fn stranger(subcommand: &str, agent: &AgentProcess, files: &PkiFiles) -> Command {
    let mut command = peer(subcommand);
    command.args(["-address", &agent.address.to_string()]);
    command.arg("-ca").arg(files.path("ca.pem"));
    command
}

fn shows(command: &mut Command, cert: &Path, key: &Path) {
    command.arg("-cert").arg(cert).arg("-key").arg(key);
}

fn stream(agent: &AgentProcess, files: &PkiFiles, flags: &[&str], to: SocketAddr) -> Command {
    let mut command = client("stream", agent, files);
    command.args(flags).arg(to.to_string());
    command
}

/// With its standard input and output in our hands.
fn by_hand(command: &mut Command) -> Running {
    Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

#[test]
fn a_go_client_gets_its_echo_in_both_versions() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let echo = destinations::echo();
    for version in ["1.2", "1.3"] {
        let ran = run(&mut stream(&agent, &files, &["-tls", version], echo), b"spoken in Go").ok();
        assert_eq!(ran.text(), "spoken in Go");
        let agreed = format!("connected tls={version} resumed=false alpn=godoxy-agent-stream/1");
        assert!(ran.err.contains(&agreed), "{ran:?}");
        agent.wait_for(&format!("tls=\"TLS {version} "));
    }
}

#[test]
fn the_header_of_older_go_servers_opens_a_stream() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let ran = run(&mut stream(&agent, &files, &["-legacy"], destinations::echo()), b"274").ok();
    assert_eq!(ran.text(), "274");
}

#[test]
fn what_a_go_client_sends_and_receives_at_the_same_time_is_unchanged() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let (data, echo) = (Pattern::bytes(32 * MIB), destinations::echo());
    for version in ["1.2", "1.3"] {
        let ran = run(&mut stream(&agent, &files, &["-tls", version], echo), &data).ok();
        assert!(ran.out == data, "32 MiB there and back over TLS {version}");
    }
    for id in 1..=2 {
        let line = agent.wait_for(&format!("stream ended id={id} "));
        let size = data.len();
        assert!(line.contains(&format!("up={size} down={size} ")), "{line}");
    }
}

#[test]
fn a_go_client_that_half_closes_still_gets_the_whole_answer() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    for version in ["1.2", "1.3"] {
        let mut command = stream(&agent, &files, &["-tls", version], destinations::count());
        assert_eq!(run(&mut command, &[7; 300_000]).ok().text(), "300000");
    }
}

#[test]
fn a_go_client_still_sends_to_a_destination_that_has_finished() {
    let (told, heard) = crossbeam_channel::bounded(2);
    let finishes_first = destinations::service(move |mut stream| {
        stream.write_all(b"that was all").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        told.send(std::io::copy(&mut stream, &mut std::io::sink()).unwrap()).unwrap();
    });
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    for version in ["1.2", "1.3"] {
        let mut running = by_hand(&mut stream(&agent, &files, &["-tls", version], finishes_first));
        let mut answer = String::new();
        running.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "that was all");
        running.0.stdin.take().unwrap().write_all(&[7; 300_000]).unwrap();
        assert_eq!(heard.recv().unwrap(), 300_000);
        assert!(running.0.wait().unwrap().success());
    }
}

#[test]
fn a_destination_that_speaks_first_is_heard_by_a_go_client() {
    let greeter = destinations::service(|mut stream| {
        stream.write_all(b"login: ").unwrap();
        let mut name = [0; 5];
        stream.read_exact(&mut name).unwrap();
        stream.write_all(&name).unwrap();
    });
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let mut running = by_hand(&mut stream(&agent, &files, &[], greeter));
    let (mut input, mut output) =
        (running.0.stdin.take().unwrap(), running.0.stdout.take().unwrap());
    let mut prompt = [0; 7];
    output.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"login: ");
    input.write_all(b"alice").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "alice");
}

#[test]
fn a_destination_that_cannot_be_reached_is_a_clean_end_without_a_byte_to_go() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    for version in ["1.2", "1.3"] {
        let mut command = stream(&agent, &files, &["-tls", version], destinations::refused());
        assert_eq!(run(&mut command, b"").ok().text(), "");
    }
    agent.wait_for("stream refused id=2 ");
}

#[test]
fn a_go_probe_succeeds_whether_or_not_it_waits_and_is_not_logged_above_debug() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    for version in ["1.2", "1.3"] {
        for wait in ["-wait", "-wait=false", "-wait=false", "-wait=false"] {
            run(client("probe", &agent, &files).args(["-tls", version, wait]), b"").ok();
        }
    }
    until("eight probes are answered", || agent.count("probe answered") == 8);
    let lines = agent.ends_well();
    let loud = |line: &&String| line.contains("peer=") && !line.contains(" DEBUG ");
    assert_eq!(lines.iter().find(loud), None, "{lines:#?}");
}

#[test]
fn go_resumes_its_sessions_in_both_versions() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let echo = destinations::echo().to_string();
    for version in ["1.2", "1.3"] {
        let ran = run(client("resume", &agent, &files).args(["-tls", version, &echo]), b"").ok();
        let seen = lines(&ran);
        let expected = |resumed| json!({"tls": version, "resumed": resumed, "echo": "again"});
        assert_eq!(seen, [expected(false), expected(true), expected(true)]);
    }
    for id in [2, 3, 5, 6] {
        let line = agent.wait_for(&format!("connection id={id} "));
        assert!(line.contains("cert=tester ") && line.contains("resumed=true"), "{line}");
    }
}

/// A JSON value a line.
fn lines(ran: &Ran) -> Vec<Value> {
    ran.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn go_names_the_alert_with_which_it_is_refused() {
    let (files, others) = (Pki::new().files(), Pki::new().files());
    let agent = AgentProcess::start(&files, &[]);
    let fixture = crate::godoxy::fixture;
    let same_name = (others.path("client.pem"), others.path("client-key.pem"));
    let other_name = (fixture("other-client.pem"), fixture("other-client-key.pem"));
    let wrong_use = (files.path("server.pem"), files.path("server-key.pem"));
    for (shown, alert, logged) in [
        (None, "certificate required", "showed no certificate"),
        // Go shows no certificate of an authority that the agent does not ask for.
        (Some(other_name), "certificate required", "showed no certificate"),
        (Some(same_name), "error decrypting message", "another one of the same name"),
        (Some(wrong_use), "unsupported certificate", "for another use"),
    ] {
        for version in ["1.2", "1.3"] {
            for (subcommand, what) in [("stream", "127.0.0.1:1"), ("api", "GET /info")] {
                let mut command = stranger(subcommand, &agent, &files);
                if let Some((cert, key)) = &shown {
                    shows(&mut command, cert, key);
                }
                let ran = run(command.args(["-tls", version, what]), b"");
                assert_eq!((ran.code, ran.text().as_str()), (Some(1), ""), "{ran:?}");
                let error = format!("remote error: tls: {alert}\n");
                assert!(ran.err.ends_with(&error), "TLS {version}, {subcommand}: {ran:?}");
            }
        }
        agent.wait_for(logged);
    }
}

#[test]
fn go_and_the_agent_agree_on_version_protocol_and_name_or_not_at_all() {
    let (files, others) = (Pki::new().files(), Pki::new().files());
    let agent = AgentProcess::start(&files, &[]);
    let another = others.path("ca.pem");
    for (id, (flags, error, logged)) in (1..).zip([
        (["-tls", "1.1"], "remote error: tls: ", "neither TLS 1.2 nor 1.3"),
        (["-alpn", "h2"], "remote error: tls: no application protocol", "(ALPN)"),
        (["-server-name", "x.example"], "valid for godoxy.agent, not x.example", "bad_certificate"),
        (["-ca", another.to_str().unwrap()], "signed by unknown authority", "refused: the peer "),
    ]) {
        let ran = run(client("stream", &agent, &files).args(flags).arg("127.0.0.1:1"), b"");
        assert!(ran.code == Some(1) && ran.err.contains(error), "{flags:?}: {ran:?}");
        let line = agent.wait_for(&format!("connection refused id={id} "));
        assert!(line.contains(logged), "{flags:?}: {line}");
    }
}

/// Calls of the API, and what Go makes of the answers.
fn api(agent: &AgentProcess, files: &PkiFiles, flags: &[&str], requests: &[&str]) -> Vec<Value> {
    lines(&run(client("api", agent, files).args(flags).args(requests), b"").ok())
}

#[test]
fn go_reads_every_endpoint_over_one_connection() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--name", "box"]);
    let (echo, refused) = (destinations::echo(), destinations::refused());
    let up = format!("GET /health?scheme=tcp&host=127.0.0.1&port={}&timeout=5000", echo.port());
    let down = format!("GET /health?scheme=tcp&host={refused}&path=&timeout=5000");
    let requests = [
        "GET /info",
        "GET /version",
        "GET /name",
        "GET /runtime",
        &up,
        &down,
        "HEAD /info",
        "GET /health",
        "GET /nothing",
        "POST /info",
        "GET /name",
    ];
    for version in ["1.2", "1.3"] {
        let answers = api(&agent, &files, &["-tls", version], &requests);
        let status: Vec<_> =
            answers.iter().map(|answer| answer["status"].as_u64().unwrap()).collect();
        assert_eq!(status, [200, 200, 200, 200, 200, 200, 200, 400, 404, 405, 200]);
        for (index, answer) in answers.iter().enumerate() {
            assert_eq!(answer["reused"], index > 0, "{answer}");
            assert_eq!(answer["proto"], "HTTP/1.1");
        }
        let info = json!({
            "version": "v0.31.0", "name": "box", "runtime": "docker",
            "supports_tcp_stream": true, "supports_udp_stream": true,
        });
        assert_eq!(
            (&answers[0]["decoded"], &answers[0]["type"]),
            (&info, &"application/json".into())
        );
        for (answer, text) in answers[1..4].iter().zip(["v0.31.0", "box", "docker"]) {
            assert_eq!((&answer["body"], &answer["length"]), (&text.into(), &text.len().into()));
        }
        let [up, down] = [&answers[4]["decoded"], &answers[5]["decoded"]];
        assert_eq!((&up["healthy"], &up["detail"]), (&true.into(), &"".into()));
        assert!(up["latency"].as_u64().unwrap() > 0, "{up}");
        assert_eq!(down["healthy"], false);
        assert!(down["detail"].as_str().unwrap().contains("refused"), "{down}");
        let [get, head] = [&answers[0], &answers[6]];
        assert_eq!((&head["length"], &head["body"]), (&get["length"], &"".into()));
    }
}

#[test]
fn go_gets_http_1_1_whatever_else_it_offers() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--name", "box"]);
    for flags in [&["-http2"][..], &["-alpn", "http/1.1"], &["-alpn", "h2,http/1.1"], &[]] {
        let answers = api(&agent, &files, flags, &["GET /name", "GET /name"]);
        for answer in answers {
            assert_eq!((&answer["proto"], &answer["body"]), (&"HTTP/1.1".into(), &"box".into()));
        }
    }
}

#[test]
fn go_calls_the_api_many_times_at_once_while_its_streams_run() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--name", "busy"]);
    let mut streaming = by_hand(&mut stream(&agent, &files, &[], destinations::echo()));
    let (mut input, mut output) =
        (streaming.0.stdin.take().unwrap(), streaming.0.stdout.take().unwrap());
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let mut sent = Pattern::new();
            while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
                input.write_all(sent.take(64 * 1024)).unwrap();
            }
            sent.at
        });
        let received = scope.spawn(move || {
            let (mut seen, mut buffer) = (Pattern::new(), [0; 64 * 1024]);
            while let size @ 1.. = output.read(&mut buffer).unwrap() {
                seen.check(&buffer[..size]);
            }
            seen.at
        });
        let answers = api(&agent, &files, &["-at-once"], &["GET /info"; 24]);
        assert_eq!(answers.len(), 24);
        for answer in answers {
            assert_eq!(answer["decoded"]["name"], "busy");
        }
        drop(stop);
        assert_eq!(received.join().unwrap(), sent.join().unwrap());
    });
    assert!(streaming.0.wait().unwrap().success());
}

#[test]
fn a_go_server_uses_our_agent_with_the_certificates_of_godoxys_generator() {
    let agent = crate::godoxy::agent(&[("AGENT_NAME", "nas")]);
    let fixture = crate::godoxy::fixture;
    let server = |subcommand: &str| {
        let mut command = peer(subcommand);
        command.args(["-address", &agent.address.to_string()]).arg("-ca").arg(fixture("ca.pem"));
        shows(&mut command, &fixture("client.pem"), &fixture("client-key.pem"));
        command
    };
    let answers = lines(&run(server("api").arg("GET /info"), b"").ok());
    assert_eq!(answers[0]["decoded"]["name"], "nas");
    run(&mut server("probe"), b"").ok();
    let echo = destinations::echo().to_string();
    assert_eq!(run(server("stream").arg(echo), b"to 3026").ok().text(), "to 3026");
}
