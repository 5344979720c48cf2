//! IPv6 and IPv4, at the agent's port and at the destination's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use crate::support::destinations::udp_echo;
use crate::support::dtls::{RawClient, socket};
use crate::support::process::{AgentProcess, adit};
use crate::support::{Pki, Setup, TestAgent, client_of};

fn greeter(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"hi").unwrap();
        }
    });
    address
}

#[test]
fn an_agent_and_a_destination_may_live_on_ipv6() {
    let agent = TestAgent::with(Setup { listen: "[::1]:0", ..Setup::default() });
    let port = greeter("[::1]:0").port();
    for host in ["::1", "[::1]"] {
        let mut word = [0; 2];
        let mut stream = agent.client().open(host, port).unwrap();
        stream.read_exact(&mut word).unwrap_or_else(|error| panic!("{host}: {error}"));
        assert_eq!(&word, b"hi");
    }
}

#[test]
fn a_bare_port_listens_on_both_families_and_the_log_shows_ipv4_as_ipv4() {
    let files = Pki::new().files();
    let mut command = adit();
    command.args(["agent", "--listen", "0", "-v"]).args(files.flags("server"));
    let agent = AgentProcess::spawn(command);
    let client = files.identity("client");
    for address in ["127.0.0.1", "[::1]"] {
        let address = format!("{address}:{}", agent.address.port()).parse().unwrap();
        client_of(address, &client).probe().unwrap();
    }
    agent.wait_for("peer=127.0.0.1:");
    agent.wait_for("peer=[::1]:");
}

#[test]
fn an_agent_may_listen_at_several_addresses() {
    let files = Pki::new().files();
    let mut command = adit();
    command.args(["agent", "--listen", "127.0.0.1:0", "--listen", "[::1]:0"]);
    let agent = AgentProcess::spawn(command.args(files.flags("server")));
    agent.wait_for("listening on [::1]:");
    agent.wait_for(" with ");
    let client = files.identity("client");
    for line in agent.log().iter().filter(|line| line.contains("listening on")) {
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        client_of(address, &client).probe().unwrap();
    }
}

/// A client's socket is connected: it hears nothing that comes from elsewhere.
#[test]
fn datagrams_are_answered_from_the_address_that_they_were_sent_to() {
    let to_each = [
        ("0", &[("127.0.0.2", "127.0.0.3"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")][..]),
        ("0.0.0.0:0", &[("127.0.0.2", "127.0.0.3"), ("127.0.0.3", "127.0.0.2")]),
        ("[::]:0", &[("::1", "::1")]),
        ("127.0.0.4:0", &[("127.0.0.1", "127.0.0.4")]),
    ];
    for (listen, ways) in to_each {
        let agent = TestAgent::with(Setup { listen, udp_sockets: 2, ..Setup::default() });
        let identity = agent.pki.client("tester");
        for (from, to) in ways {
            let to = SocketAddr::new(to.parse().unwrap(), agent.address.port());
            RawClient::open(socket(from, to), &identity, udp_echo())
                .exchange(to.to_string().as_bytes());
        }
    }
}
