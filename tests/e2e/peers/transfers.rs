//! curl against the API, and a gibibyte each way, while each other runs.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;

use adit::net::Sink;

use super::tool;
use crate::support::command::{Ran, run};
use crate::support::pattern::{MIB, receive, send};
use crate::support::process::AgentProcess;
use crate::support::{Pki, PkiFiles, destinations};

fn curl(agent: SocketAddr, files: &PkiFiles, path: &str) -> Ran {
    let mut command: Command = tool("curl", "curl");
    command.args(["-sS", "--fail-with-body", "--resolve"]);
    command.arg(format!("godoxy.agent:{}:127.0.0.1", agent.port()));
    command.arg("--cacert").arg(files.path("ca.pem"));
    command.arg("--cert").arg(files.path("client.pem"));
    command.arg("--key").arg(files.path("client-key.pem"));
    command.arg(format!("https://godoxy.agent:{}/godoxy/agent/{path}", agent.port()));
    run(&mut command, b"")
}

#[test]
fn a_gibibyte_goes_each_way_while_curl_asks_the_api() {
    const SIZE: usize = 1024 * MIB;
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["--name", "busy"]);
    let echo = destinations::echo().port();
    let stream = agent.client(&files).open("127.0.0.1", echo).unwrap();
    let (mut source, mut sink) = stream.split().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            send(&mut sink, SIZE, 64 * 1024);
            sink.finish().unwrap();
        });
        let received = scope.spawn(move || receive(&mut source));
        let mut asked = 0;
        while !received.is_finished() || asked == 0 {
            assert_eq!(curl(agent.address, &files, "name").ok().text(), "busy");
            asked += 1;
        }
        assert_eq!(received.join().unwrap(), SIZE);
    });
    agent.wait_for(&format!("up={SIZE} down={SIZE} "));
    let info = curl(agent.address, &files, "info").ok();
    assert!(info.text().contains("\"supports_tcp_stream\":true"), "{info:?}");
    assert_eq!(curl(agent.address, &files, "nothing").code, Some(22), "404");
}

#[test]
fn socat_is_served_like_any_destination() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let address = destinations::unused();
    let mut command = tool("socat", "socat");
    command.args([
        "-d",
        "-d",
        &format!("TCP-LISTEN:{},bind={}", address.port(), address.ip()),
        "EXEC:rev",
    ]);
    let mut server = super::Running(command.stderr(std::process::Stdio::piped()).spawn().unwrap());
    let log = std::io::BufReader::new(server.0.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(log).map(Result::unwrap);
    lines.by_ref().find(|line| line.contains("listening")).expect("socat listens");
    let mut command = crate::support::process::adit();
    command.args(["connect", "--agent", &agent.address.to_string()]);
    command.args(files.flags("client")).arg(address.to_string());
    // `rev` answers only when its input has ended: the half-close arrived.
    assert_eq!(run(&mut command, b"desrever\n").ok().text(), "reversed\n");
}
