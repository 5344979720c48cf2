//! Drop-in for an existing deployment: the certificates and variables of GoDoxy's own generator.

use std::path::PathBuf;
use std::process::Command;

use adit::pki::Identity;
use adit::tls::SERVER_NAME;

use crate::support::command::run;
use crate::support::process::{AgentProcess, adit};
use crate::support::{client_of, destinations};

pub(crate) fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/godoxy-pki", name].iter().collect()
}

fn identity(set: &str, pair: &str) -> Identity {
    let file = |name: String| fixture(&name);
    Identity::from_files(
        &file(format!("{set}ca.pem")),
        &file(format!("{set}{pair}.pem")),
        &file(format!("{set}{pair}-key.pem")),
    )
    .unwrap()
}

/// The agent with nothing but the variables of an existing deployment, and more of them.
pub(crate) fn agent(more: &[(&str, &str)]) -> AgentProcess {
    let mut command: Command = adit();
    let text = std::fs::read_to_string(fixture("agent.env")).unwrap();
    command.envs(text.lines().filter_map(|line| line.split_once('=')));
    command.env("AGENT_PORT", "0").envs(more.iter().copied()).arg("agent");
    let mut agent = AgentProcess::spawn(command);
    // It listens on every address.
    agent.address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    agent
}

#[test]
fn the_environment_of_an_existing_deployment_runs_the_agent() {
    let agent = agent(&[("AGENT_NAME", "nas"), ("RUNTIME", "podman")]);
    let client = client_of(agent.address, &identity("", "client"));
    client.probe().unwrap();
    let info = client.info().unwrap();
    assert_eq!((info.name.as_str(), info.runtime.as_str()), ("nas", "podman"));
    let mut stream = client.open("127.0.0.1", destinations::echo().port()).unwrap();
    std::io::Write::write_all(&mut stream, b"to 3026").unwrap();
    let mut answer = [0; 7];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(&answer, b"to 3026");
}

#[test]
fn the_certificates_of_another_set_do_not_get_in() {
    let agent = agent(&[]);
    let mut stranger = identity("other-", "client");
    stranger.authorities = identity("", "client").authorities;
    let error = client_of(agent.address, &stranger).probe().unwrap_err().to_string();
    assert!(error.contains("authority"), "{error}");
    agent.wait_for("connection refused id=1 peer=127.0.0.1:");
}

#[test]
fn skipping_the_check_lets_strangers_in_and_says_so_loudly() {
    let agent = agent(&[("AGENT_SKIP_CLIENT_CERT_CHECK", "true")]);
    agent.wait_for("WARN  CLIENT CERTIFICATES ARE NOT CHECKED");
    let mut stranger = identity("other-", "client");
    stranger.authorities = identity("", "client").authorities;
    client_of(agent.address, &stranger).probe().unwrap();
}

#[test]
fn flags_win_over_the_environment() {
    let mut command = adit();
    command.envs([("AGENT_NAME", "from-env"), ("AGENT_PORT", "1")]);
    command.args(["agent", "--listen", "127.0.0.1:0", "--name", "from-flag"]);
    for (flag, file) in [("--ca", "ca.pem"), ("--cert", "server.pem"), ("--key", "server-key.pem")]
    {
        command.arg(flag).arg(fixture(file));
    }
    let agent = AgentProcess::spawn(command);
    let info = client_of(agent.address, &identity("", "client")).info().unwrap();
    assert_eq!(info.name, "from-flag");
}

#[test]
fn a_zip_that_we_make_serves_as_the_other_sides_identity() {
    let dir = tempfile::tempdir().unwrap();
    let zip = dir.path().join("nas.zip");
    let mut command = adit();
    command.arg("pki").arg("zip").arg(fixture("")).arg("--out").arg(&zip);
    run(&mut command, b"").ok();
    let agent = agent(&[]);
    let mut command = adit();
    command.arg("probe").arg("--zip").arg(&zip).args(["--server-name", SERVER_NAME]);
    let ran = run(command.arg(agent.address.to_string()), b"").ok();
    assert!(ran.text().contains("TCP       works"), "{ran:?}");
}
