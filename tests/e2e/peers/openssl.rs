//! `openssl s_client` speaks the header by hand; `openssl s_server` is what our client meets.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use adit::wire::header;

use super::{Running, tool};
use crate::support::command::run;
use crate::support::process::{AgentProcess, adit};
use crate::support::{Pki, PkiFiles, destinations};

/// An `s_client` of the agent, with the certificate of `who`.
fn s_client(agent: &AgentProcess, files: &PkiFiles, who: &str) -> Command {
    let mut command = tool("openssl", "openssl");
    command.args(["s_client", "-connect", &agent.address.to_string()]);
    command.args(["-alpn", "godoxy-agent-stream/1", "-servername", "godoxy.agent"]);
    command.args(["-verify_return_error", "-verify_hostname", "godoxy.agent"]);
    command.arg("-CAfile").arg(files.path("ca.pem"));
    command.arg("-cert").arg(files.path(&format!("{who}.pem")));
    command.arg("-key").arg(files.path(&format!("{who}-key.pem")));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Reads until `text` has come.
fn until(output: &mut impl Read, text: &str) {
    let mut seen = Vec::new();
    let mut byte = [0; 1];
    while !seen.ends_with(text.as_bytes()) {
        let size = output.read(&mut byte).unwrap();
        assert_eq!(size, 1, "it ended without {text:?}: {}", String::from_utf8_lossy(&seen));
        seen.extend(byte);
    }
}

#[test]
fn a_header_typed_into_s_client_opens_a_stream() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let echo = destinations::echo();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = s_client(&agent, &files, "client");
        command.args([version, "-quiet"]);
        let mut client = Running(command.spawn().unwrap());
        let mut input = client.0.stdin.take().unwrap();
        let mut output = client.0.stdout.take().unwrap();
        input.write_all(&header::encode_stream("127.0.0.1", echo.port()).unwrap()).unwrap();
        for word in ["spoken by hand\n", "and again\n"] {
            input.write_all(word.as_bytes()).unwrap();
            until(&mut output, word);
        }
    }
    agent.wait_for("TLS 1.2 TLS_ECDHE_ECDSA");
    agent.wait_for("TLS 1.3 TLS13_");
    agent.wait_for("stream ended id=1 ");
}

#[test]
fn s_clients_key_update_is_answered() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let mut command = s_client(&agent, &files, "client");
    // Without -quiet a line that starts with K is a command: update the keys of both directions.
    command.arg("-tls1_3");
    let echo = destinations::echo();
    let mut client = Running(command.spawn().unwrap());
    let mut input = client.0.stdin.take().unwrap();
    let mut output = client.0.stdout.take().unwrap();
    let mut said = client.0.stderr.take().unwrap();
    input.write_all(&header::encode_stream("127.0.0.1", echo.port()).unwrap()).unwrap();
    for word in ["before\n", "between\n", "after\n"] {
        input.write_all(word.as_bytes()).unwrap();
        until(&mut output, word);
        input.write_all(b"K\n").unwrap();
        until(&mut said, "KEYUPDATE\n");
    }
}

/// An `s_server` with these files and flags, and its address.
fn s_server(files: &PkiFiles, cert: &str, flags: &[&str]) -> (Running, String) {
    let mut command = tool("openssl", "openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "3"]);
    command.arg("-cert").arg(files.path(&format!("{cert}.pem")));
    command.arg("-key").arg(files.path(&format!("{cert}-key.pem")));
    command.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let accept = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("ACCEPT"));
    let address = accept.unwrap().trim_start_matches("ACCEPT ").to_owned();
    std::thread::spawn(move || lines.for_each(drop));
    (server, address)
}

#[test]
fn our_client_names_what_is_wrong_with_a_server() {
    let (files, strangers) = (Pki::new().files(), Pki::new().files());
    let ca = files.path("ca.pem");
    let ca = ca.to_str().unwrap();
    for (server, flags, words) in [
        ((&files, "server"), vec!["-alpn", "h2"], "no_application_protocol"),
        ((&files, "server"), vec![], "does not offer agent streams"),
        ((&files, "client"), vec![], "for another use"),
        ((&strangers, "server"), vec![], "not from our certificate authority"),
        ((&files, "server"), vec!["-no_tls1_2", "-no_tls1_3"], ""),
        (
            (&files, "server"),
            vec!["-alpn", "godoxy-agent-stream/1", "-Verify", "1", "-CAfile", ca, "-tls1_2"],
            "",
        ),
    ] {
        let (_server, address) = s_server(server.0, server.1, &flags);
        let mut command = adit();
        // One needs the whole time: `s_server` takes the call of the API and says nothing.
        let limit = if words.is_empty() { "1s" } else { "5s" };
        command.args(["probe", &address, "--timeout", limit]).args(files.flags("client"));
        let ran = run(&mut command, b"");
        assert_eq!(ran.code, Some(1), "{flags:?}: {ran:?}");
        assert!(ran.err.contains(words), "{flags:?}: {ran:?}");
    }
}
