//! GnuTLS as the client.

use std::io::{Read, Write};
use std::process::Stdio;

use adit::wire::header;

use super::{Running, tool};
use crate::support::process::AgentProcess;
use crate::support::{Pki, destinations};

#[test]
fn gnutls_cli_opens_a_stream_in_both_versions() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let echo = destinations::echo();
    for version in ["1.2", "1.3"] {
        let mut command = tool("gnutls-cli", "gnutls-bin");
        command.arg("--logfile").arg(files.path("gnutls.log"));
        command.arg(format!("--priority=NORMAL:-VERS-ALL:+VERS-TLS{version}"));
        command.args(["--alpn=godoxy-agent-stream/1", "--sni-hostname=godoxy.agent"]);
        command.arg("--verify-hostname=godoxy.agent");
        for (flag, file) in [
            ("x509cafile", "ca.pem"),
            ("x509certfile", "client.pem"),
            ("x509keyfile", "client-key.pem"),
        ] {
            command.arg(format!("--{flag}={}", files.path(file).display()));
        }
        command.args(["--port", &agent.address.port().to_string(), "127.0.0.1"]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut client = Running(command.spawn().unwrap());
        let mut input = client.0.stdin.take().unwrap();
        input.write_all(&header::encode_stream("127.0.0.1", echo.port()).unwrap()).unwrap();
        input.write_all(b"a word\n").unwrap();
        let mut seen = [0; 7];
        client.0.stdout.take().unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"a word\n");
        agent.wait_for(&format!("tls=\"TLS {version} "));
    }
}
