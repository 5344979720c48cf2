//! GnuTLS as the client of DTLS.

use std::process::Stdio;

use adit::wire::header;

use super::dtls_openssl::{Typed, until};
use super::tool;
use crate::support::lossy::{Lossy, pass};
use crate::support::process::AgentProcess;
use crate::support::{Pki, destinations};

#[test]
fn gnutls_cli_reaches_a_datagram_echo() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let echo = destinations::udp_echo();
    let relay = Lossy::start(agent.address, pass());
    let mut command = tool("gnutls-cli", "gnutls-bin");
    command.arg("--logfile").arg(files.path("gnutls.log"));
    command.args(["--udp", "--priority=NORMAL:-VERS-ALL:+VERS-DTLS1.2"]);
    command.args(["--sni-hostname=godoxy.agent", "--verify-hostname=godoxy.agent"]);
    for (flag, file) in [
        ("x509cafile", "ca.pem"),
        ("x509certfile", "client.pem"),
        ("x509keyfile", "client-key.pem"),
    ] {
        command.arg(format!("--{flag}={}", files.path(file).display()));
    }
    command.args(["--port", &relay.address.port().to_string(), "127.0.0.1"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = Typed::new(command.spawn().unwrap(), &relay);
    let mut output = client.running.0.stdout.take().unwrap();
    client.send(&header::encode_stream("127.0.0.1", echo.port()).unwrap());
    for word in ["a word\n", "another\n", &"many\n".repeat(200)] {
        client.send(word.as_bytes());
        until(&mut output, word.as_bytes());
    }
}
