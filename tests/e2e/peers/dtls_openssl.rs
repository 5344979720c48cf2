//! OpenSSL's own programs at either end of DTLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use adit::client::{Client, Timeouts};
use adit::tls::{SERVER_NAME, provider};
use adit::wire::header;

use super::{Running, tool};
use crate::loss;
use crate::support::lossy::{Direction, Lossy, Record, Seen, dtls, pass};
use crate::support::process::AgentProcess;
use crate::support::{Pki, PkiFiles, client_of, destinations};

/// An `s_client` through the relay, with what `files` says of `who`.
fn s_client(relay: &Lossy, files: &PkiFiles) -> Command {
    let mut command = tool("openssl", "openssl");
    command.args(["s_client", "-connect", &relay.address.to_string()]);
    command.args(["-servername", "godoxy.agent", "-verify_hostname", "godoxy.agent"]);
    command.arg("-verify_return_error").arg("-CAfile").arg(files.path("ca.pem"));
    command
}

fn shows(command: &mut Command, files: &PkiFiles, who: &str) {
    command.arg("-cert").arg(files.path(&format!("{who}.pem")));
    command.arg("-key").arg(files.path(&format!("{who}-key.pem")));
}

/// A program whose standard input travels as datagrams, one for each time that it reads.
pub(super) struct Typed<'a> {
    pub(super) running: Running,
    input: ChildStdin,
    relay: &'a Lossy,
    typed: usize,
}

impl<'a> Typed<'a> {
    pub(super) fn new(mut child: Child, relay: &'a Lossy) -> Self {
        Self { input: child.stdin.take().unwrap(), running: Running(child), relay, typed: 0 }
    }

    /// Types it, and waits until it is on its way: what comes next is another datagram.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
        self.typed += 1;
        let data = |record: &Record<'_>| record.kind == dtls::DATA;
        let sent =
            |seen: &&Seen| seen.direction == Direction::Up && seen.records().iter().any(data);
        self.relay.wait_until(|seen| seen.iter().filter(sent).count() == self.typed);
    }
}

/// Reads until exactly this has come.
pub(super) fn until(output: &mut impl Read, expected: &[u8]) {
    let mut seen = Vec::new();
    let mut byte = [0; 1];
    while !seen.ends_with(expected) {
        let size = output.read(&mut byte).unwrap();
        assert_eq!(size, 1, "it ended after {:?}", String::from_utf8_lossy(&seen));
        seen.extend(byte);
    }
}

#[test]
fn a_header_typed_into_s_client_opens_a_datagram_session() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let echo = destinations::udp_echo();
    let relay = Lossy::start(agent.address, pass());
    let mut command = s_client(&relay, &files);
    shows(&mut command, &files, "client");
    command.args(["-dtls1_2", "-quiet"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = Typed::new(command.spawn().unwrap(), &relay);
    let mut output = client.running.0.stdout.take().unwrap();
    // It is not given anything to read before it has agreed with the agent.
    let agreed = |seen: &Seen| {
        seen.direction == Direction::Down && seen.records().iter().any(|record| record.epoch == 1)
    };
    relay.wait_until(|seen| seen.iter().any(agreed));
    client.send(&header::encode_stream("127.0.0.1", echo.port()).unwrap());
    for word in ["spoken by hand\n", "and again\n", &"much\n".repeat(300)] {
        client.send(word.as_bytes());
        until(&mut output, word.as_bytes());
    }
}

#[test]
fn s_client_is_told_what_is_wrong_with_it() {
    let (files, strangers) = (Pki::new().files(), Pki::new().files());
    let agent = AgentProcess::start(&files, &["-v"]);
    let relay = Lossy::start(agent.address, pass());
    for (cert, flags, alert) in [
        (None, &["-dtls1_2"][..], "alert number 40"),
        (Some((&strangers, "client")), &["-dtls1_2"], "alert number 48"),
        (Some((&files, "server")), &["-dtls1_2"], "alert number 4"),
        (
            Some((&files, "client")),
            &["-dtls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA"],
            "alert number 40",
        ),
        (Some((&files, "client")), &["-dtls1", "-cipher", "ALL@SECLEVEL=0"], "alert number 70"),
    ] {
        let mut command = s_client(&relay, &files);
        if let Some((files, who)) = cert {
            shows(&mut command, files, who);
        }
        // It hears of a refusal of its certificate only when it reads; at the end of its input it
        // would go.
        let child = command.args(flags).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut client = Running(child.stderr(Stdio::piped()).spawn().unwrap());
        until(client.0.stderr.as_mut().unwrap(), alert.as_bytes());
    }
}

/// An `s_server` that asks for our client certificate, its address, and its two ends.
fn s_server(files: &PkiFiles) -> (Running, String, ChildStdin, impl Read + use<>) {
    let mut command = tool("openssl", "openssl");
    command.args(["s_server", "-dtls1_2", "-accept", "127.0.0.1:0", "-naccept", "1"]);
    command.args(["-Verify", "1", "-verify_return_error", "-CAfile"]).arg(files.path("ca.pem"));
    shows(&mut command, files, "server");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = Running(command.spawn().unwrap());
    let mut output = BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("ACCEPT ") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended");
    }
    let address = line.trim_end().trim_start_matches("ACCEPT ").to_owned();
    let input = server.0.stdin.take().unwrap();
    (server, address, input, output)
}

#[test]
fn our_client_speaks_with_s_server() {
    let files = Pki::new().files();
    let (mut server, address, mut input, mut output) = s_server(&files);
    let client = client_of(address.parse().unwrap(), &files.identity("client"));
    let stream = client.udp("db.example", 53).unwrap();
    stream.send(b"a question\n").unwrap();
    let header = header::encode_stream("db.example", 53).unwrap();
    until(&mut output, &header);
    until(&mut output, b"a question\n");
    input.write_all(b"typed\n").unwrap();
    assert_eq!(loss::receive(&stream), b"typed\n");
    stream.close();
    // It has one client and then no more to do.
    until(&mut output, b"shutting down SSL");
    assert!(server.0.wait().unwrap().success());
}

#[test]
fn a_server_that_never_answers_our_probe_is_no_agent() {
    let files = Pki::new().files();
    let (_server, address, _input, mut output) = s_server(&files);
    let timeouts = Timeouts { answer: Duration::from_secs(1), ..Timeouts::default() };
    let identity = files.identity("client");
    let client = Client::new(&address, SERVER_NAME, &identity, provider::default(), timeouts);
    let error = client.unwrap().probe_udp().unwrap_err();
    assert!(error.reached_agent() && error.to_string().contains("timed out"), "{error}");
    until(&mut output, &header::encode_probe());
}

#[test]
fn our_client_names_what_is_wrong_with_a_datagram_server() {
    let (files, strangers) = (Pki::new().files(), Pki::new().files());
    let (_server, address, _input, _output) = s_server(&strangers);
    let client = client_of(address.parse().unwrap(), &files.identity("client"));
    let error = client.udp("db.example", 53).unwrap_err().to_string();
    assert!(error.contains("authority"), "{error}");
}
