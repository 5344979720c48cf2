//! pion, Go's DTLS, which GoDoxy's servers and agents use, at either end: `tests/peers/go-dtls`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use adit::client::{Client, Timeouts};
use adit::tls::{SERVER_NAME, provider};

use super::go;
use crate::loss;
use crate::support::command::{Ran, run};
use crate::support::lossy::{Action, BOTH, Direction, Lossy, dtls, only};
use crate::support::pattern::{datagram, datagram_number};
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
    agent.wait_for("up=3");
    assert_eq!(run(&mut pion("probe", agent.address, &files), b"").ok().text(), "healthy\n");
    agent.wait_for("probe answered");
}

#[test]
fn pions_datagrams_come_back_from_our_agent_as_they_were() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let sizes = [12, 13, 64, 512, 1200, 1472, 1500, 4096, MOST - 1, MOST];
    let sent = of_sizes(sizes.into_iter().cycle().take(300));
    for flags in [&[][..], &["-legacy"]] {
        let mut client = pion("client", agent.address, &files);
        let ran = exchange(client.args(flags), destinations::udp_echo(), &sent);
        assert!(unframe(&ran.out) == sent, "in this order: {}", ran.err);
    }
}

#[test]
fn datagrams_of_one_byte_travel_between_pion_and_our_agent() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let sent: Vec<_> = (0..=255).map(|byte| vec![byte]).collect();
    let mut client = pion("client", agent.address, &files);
    let ran = exchange(&mut client, destinations::udp_echo(), &sent);
    assert_eq!(unframe(&ran.out), sent);
}

#[test]
fn a_pion_client_that_restarts_from_the_same_port_is_served_again() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    let mut command = pion("restart", agent.address, &files);
    command.args(["-times", "5"]).arg(destinations::udp_echo().to_string());
    let ran = run(&mut command, b"").ok();
    let expected = "session 1\nsession 2\nsession 3\nsession 4\nsession 5\n";
    assert_eq!(ran.text(), expected, "{}", ran.err);
}

#[test]
fn a_pion_probe_is_answered() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &["-v"]);
    for _ in 0..3 {
        let ran = run(&mut pion("probe", agent.address, &files), b"").ok();
        assert_eq!(ran.text(), "healthy\n");
    }
}

#[test]
fn pion_is_told_what_is_wrong_with_it() {
    let (files, strangers) = (Pki::new().files(), Pki::new().files());
    let agent = AgentProcess::start(&files, &["-v"]);
    let address = agent.address.to_string();
    let ca = files.path("ca.pem");
    let echo = destinations::udp_echo().to_string();
    let ask = |shown: Option<(&PkiFiles, &str)>, flags: &[&str]| {
        let mut command = peer("client");
        command.args(["-address", &address]).arg("-ca").arg(&ca).args(flags);
        if let Some((files, who)) = shown {
            command.arg("-cert").arg(files.path(&format!("{who}.pem")));
            command.arg("-key").arg(files.path(&format!("{who}-key.pem")));
        }
        run(command.arg(&echo), &frames(&[b"a word".to_vec()]))
    };
    for (shown, flags, alert) in [
        (None, &[][..], "HandshakeFailure"),
        (Some((&strangers, "client")), &[], "UnknownCA"),
        (Some((&files, "server")), &[], ""),
        (Some((&files, "client")), &["-cipher", "0xc00a"], "HandshakeFailure"),
        (Some((&files, "client")), &["-no-ems"], ""),
    ] {
        let ran = ask(shown, flags);
        assert_eq!(ran.code, Some(1), "{flags:?}: {ran:?}");
        assert!(ran.err.contains(alert), "{flags:?}: {ran:?}");
    }
    // And those that are right are served all the while.
    assert_eq!(unframe(&ask(Some((&files, "client")), &[]).ok().out), [b"a word"]);
}

#[test]
fn our_datagrams_come_back_from_a_pion_agent_as_they_were() {
    let files = Pki::new().files();
    let agent = pion_agent(&files, &[]);
    let echo = destinations::udp_echo();
    let stream = agent.client(&files).udp("127.0.0.1", echo.port()).unwrap();
    for sent in of_sizes([12, 64, 1200, 1500, 4096, MOST - 1, MOST].into_iter().cycle().take(300)) {
        stream.send(&sent).unwrap();
        assert!(loss::receive(&stream) == sent, "{} bytes", sent.len());
    }
    // It drops larger ones, and goes on.
    stream.send(&datagram(7, MOST + 1)).unwrap();
    stream.send(b"last").unwrap();
    assert_eq!(loss::receive(&stream), b"last");
    agent.wait_for("dropped: ");
    agent.wait_for("hello sni=godoxy.agent");
    agent.wait_for("session cert=\"tester\"");
    stream.close();
    agent.wait_for(&format!("dst=127.0.0.1:{} up=301 down=301", echo.port()));
}

#[test]
fn sending_and_receiving_at_once_through_a_pion_agent_mixes_nothing_up() {
    const COUNT: u64 = 2000;
    let files = Pki::new().files();
    let agent = pion_agent(&files, &[]);
    let collector = destinations::udp_collector();
    let flood = destinations::udp_flood(50, 1000);
    let client = agent.client(&files);
    let up = client.udp("127.0.0.1", collector.address.port()).unwrap();
    let down = client.udp("127.0.0.1", flood.port()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for batch in 0..COUNT / 50 {
                for number in 0..50 {
                    up.send(&datagram(batch * 50 + number, 1000)).unwrap();
                }
                let last = format!("batch {batch}");
                up.send(last.as_bytes()).unwrap();
                let arrived = collector.until(last.as_bytes());
                let arrived: Vec<_> = arrived.iter().map(|bytes| datagram_number(bytes)).collect();
                assert_eq!(arrived, (batch * 50..batch * 50 + 50).collect::<Vec<_>>());
            }
        });
        for _ in 0..COUNT / 50 {
            down.send(b"more").unwrap();
            for number in 0..50 {
                assert_eq!(datagram_number(&loss::receive(&down)), number);
            }
        }
    });
}

#[test]
fn our_probe_is_answered_by_a_pion_agent() {
    let files = Pki::new().files();
    let agent = pion_agent(&files, &[]);
    agent.client(&files).probe_udp().unwrap();
    agent.wait_for("probe answered");
}

#[test]
fn a_pion_agent_that_is_not_ours_is_not_trusted() {
    let (files, strangers) = (Pki::new().files(), Pki::new().files());
    let agent = pion_agent(&files, &[]);
    let error = agent.client(&strangers).probe_udp().unwrap_err().to_string();
    assert!(error.contains("authority"), "{error}");
    let limits = Timeouts::default();
    let identity = files.identity("client");
    let address = agent.address.to_string();
    let other = Client::new(&address, "other.example", &identity, provider::default(), limits);
    let error = other.unwrap().probe_udp().unwrap_err().to_string();
    assert!(error.contains("name"), "{error}");
}

#[test]
fn a_pion_agent_that_refuses_our_certificate_is_not_healthy() {
    let (files, strangers) = (Pki::new().files(), Pki::new().files());
    // It knows another authority; we know its.
    let mut command = peer("agent");
    command.arg("-ca").arg(strangers.path("ca.pem"));
    command.arg("-cert").arg(files.path("server.pem"));
    command.arg("-key").arg(files.path("server-key.pem"));
    let agent = AgentProcess::spawn(command);
    let error = agent.client(&files).probe_udp().unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    agent.wait_for("handshake failed: ");
}

#[test]
fn an_agent_that_is_silent_over_udp_holds_nobody_longer_than_the_limit() {
    let files = Pki::new().files();
    let agent = pion_agent(&files, &["-silent"]);
    let limit = Duration::from_secs(1);
    let limits = Timeouts { handshake: limit, ..Timeouts::default() };
    let identity = files.identity("client");
    let address = agent.address.to_string();
    let client = Client::new(&address, SERVER_NAME, &identity, provider::default(), limits);
    let error = client.unwrap().udp("127.0.0.1", 9).unwrap_err();
    assert!(!error.reached_agent() && error.to_string().contains("timed out"), "{error}");
    agent.wait_for("heard ");
}

/// The datagrams of a handshake with pion at either end, by direction and number: as many as there
/// are at the least.
fn each_of_a_handshake() -> impl Iterator<Item = (Direction, usize)> {
    BOTH.into_iter().flat_map(|direction| (1..=4).map(move |number| (direction, number)))
}

fn is_data(bytes: &[u8]) -> bool {
    bytes.first() == Some(&dtls::DATA)
}

#[test]
fn a_pion_client_reaches_our_agent_whichever_datagram_of_the_handshake_is_lost() {
    let files = Pki::new().files();
    let (agent, echo) = (AgentProcess::start(&files, &["-v"]), destinations::udp_echo());
    thread::scope(|scope| {
        for (direction, number) in each_of_a_handshake() {
            let (agent, files) = (&agent, &files);
            scope.spawn(move || {
                let relay = Lossy::start(agent.address, lose_of_handshake(direction, number));
                let sent = of_sizes([100]);
                let mut client = pion("client", relay.address, files);
                let ran = run(client.arg(echo.to_string()), &frames(&sent));
                let came = unframe(&ran.out) == sent;
                assert!(came, "{direction:?} {number}: {} {:#?}", ran.err, relay.seen());
            });
        }
    });
}

#[test]
fn our_client_reaches_a_pion_agent_whichever_datagram_of_the_handshake_is_lost() {
    let files = Pki::new().files();
    let (agent, echo) = (pion_agent(&files, &[]), destinations::udp_echo());
    thread::scope(|scope| {
        for (direction, number) in each_of_a_handshake() {
            let (agent, files) = (&agent, &files);
            scope.spawn(move || {
                let relay = Lossy::start(agent.address, lose_of_handshake(direction, number));
                let client = loss::client(relay.address, &files.identity("client"));
                let stream = client.udp("127.0.0.1", echo.port()).unwrap();
                // pion 2 rests for a second at each part of a flight that it gets again.
                stream.send(b"there all the same").unwrap();
                assert_eq!(loss::receive(&stream), b"there all the same", "{direction:?} {number}");
            });
        }
    });
}

/// Loses one datagram, unless the handshake is over.
fn lose_of_handshake(
    direction: Direction,
    number: usize,
) -> impl FnMut(Direction, usize, &[u8]) -> Action + Send {
    let mut rule = only(direction, number, Action::Drop);
    move |direction, number, bytes| {
        if is_data(bytes) { Action::Pass } else { rule(direction, number, bytes) }
    }
}
