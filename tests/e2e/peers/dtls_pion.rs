//! pion, Go's DTLS, which GoDoxy's servers and agents use, at either end: `tests/peers/go-dtls`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::go;
use crate::support::command::{Ran, run};
use crate::support::pattern::datagram;
use crate::support::process::AgentProcess;
use crate::support::{Pki, PkiFiles, destinations};

/// The program with one of its subcommands.
fn peer(subcommand: &str) -> Command {
    static PROGRAM: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        go::build("go-dtls", &[("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode")])
    });
    // Where something is missing, each test says so, and not only the one that came first.
    drop(go::go());
    let pion = Path::new("/usr/share/gocode/src/github.com/pion/dtls/v2");
    assert!(pion.is_dir(), "no pion: apt-get install -y golang-github-pion-dtls.v2-dev");
    let program = PROGRAM.as_ref().unwrap_or_else(|error| panic!("tests/peers/go-dtls: {error}"));
    let mut command = Command::new(program);
    command.arg(subcommand);
    command
}

/// A pion agent with a server certificate.
fn pion_agent(files: &PkiFiles, flags: &[&str]) -> AgentProcess {
    let mut command = peer("agent");
    shows(&mut command, files, "server");
    command.args(flags);
    AgentProcess::spawn(command)
}

/// A pion client of the agent at `address` with our client certificate.
fn pion(subcommand: &str, address: SocketAddr, files: &PkiFiles) -> Command {
    let mut command = peer(subcommand);
    command.args(["-address", &address.to_string()]);
    shows(&mut command, files, "client");
    command
}

fn shows(command: &mut Command, files: &PkiFiles, who: &str) {
    command.arg("-ca").arg(files.path("ca.pem"));
    command.arg("-cert").arg(files.path(&format!("{who}.pem")));
    command.arg("-key").arg(files.path(&format!("{who}-key.pem")));
}

/// Datagrams as the program reads and writes them: each after its length.
fn frames<'a>(datagrams: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let frame = |datagram: &Vec<u8>| {
        let length = u16::try_from(datagram.len()).unwrap();
        [&length.to_be_bytes()[..], datagram].concat()
    };
    datagrams.into_iter().flat_map(frame).collect()
}

fn unframe(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk() {
        let (datagram, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        datagrams.push(datagram.to_vec());
        stream = rest;
    }
    datagrams
}

/// Sends datagrams, a window at a time, until as many have come back.
fn exchange(command: &mut Command, to: SocketAddr, datagrams: &[Vec<u8>]) -> Ran {
    run(command.arg(to.to_string()), &frames(datagrams)).ok()
}

/// The largest that pion takes at once.
const MOST: usize = 8155;

/// Datagrams of these sizes.
fn of_sizes(sizes: impl IntoIterator<Item = usize>) -> Vec<Vec<u8>> {
    (0..).zip(sizes).map(|(number, size)| datagram(number, size)).collect()
}

#[test]
fn pions_client_and_agent_understand_each_other() {
    let files = Pki::new().files();
    let agent = pion_agent(&files, &[]);
    let sent = of_sizes([12, 1200, MOST]);
    let mut client = pion("client", agent.address, &files);
    let ran = exchange(&mut client, destinations::udp_echo(), &sent);
    assert!(unframe(&ran.out) == sent, "{ran:?}");
    agent.wait_for("hello sni=godoxy.agent");
    agent.wait_for("up=3 down=3 why=<nil>");
    assert_eq!(run(&mut pion("probe", agent.address, &files), b"").ok().text(), "healthy\n");
    agent.wait_for("probe answered");
}
