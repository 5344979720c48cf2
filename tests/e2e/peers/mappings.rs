//! A local port made of `adit connect --udp`, as its manual page shows it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;

use super::{Running, tool};
use crate::support::command::run;
use crate::support::process::AgentProcess;
use crate::support::{Pki, destinations};

/// Waits for a line of a program's standard error that contains `text`, and returns it.
fn wait_for(child: &mut Running, text: &str) -> String {
    let lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let line = lines.by_ref().find(|line| line.contains(text));
    thread::spawn(move || lines.for_each(drop));
    line.unwrap_or_else(|| panic!("it ended without {text:?}"))
}

#[test]
fn a_name_server_answers_dig_through_frames_with_their_length() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let server = destinations::unused();
    let mut dnsmasq = tool("dnsmasq", "dnsmasq-base");
    dnsmasq.args(["--no-daemon", "--conf-file=/dev/null", "--pid-file=", "--bind-interfaces"]);
    dnsmasq.args(["--no-resolv", "--no-hosts", "--log-facility=-"]);
    dnsmasq.arg("--host-record=printer.example,192.0.2.53");
    dnsmasq.arg(format!("--listen-address={}", server.ip()));
    dnsmasq.arg(format!("--port={}", server.port()));
    let mut dnsmasq = Running(dnsmasq.stderr(Stdio::piped()).spawn().unwrap());
    wait_for(&mut dnsmasq, "started");

    let mut ask = format!("'{}' connect --udp --framing length", env!("CARGO_BIN_EXE_adit"));
    ask += &format!(" --agent '{}'", agent.address);
    for flag in files.flags("client") {
        ask += &format!(" '{flag}'");
    }
    let mut socat = tool("socat", "socat");
    socat.args(["-dd", "TCP-LISTEN:0,bind=127.0.0.1,fork"]);
    socat.arg(format!("SYSTEM:\"{}\"", format!("{ask} '{server}'").replace(':', "\\:")));
    let mut socat = Running(socat.stderr(Stdio::piped()).spawn().unwrap());
    let listening = wait_for(&mut socat, "listening on ");
    let port = listening.rsplit(':').next().unwrap();

    let mut dig = tool("dig", "bind9-dnsutils");
    dig.args(["@127.0.0.1", "-p", port, "+tcp", "+short", "+time=30", "+tries=1"]);
    assert_eq!(run(dig.arg("printer.example"), b"").ok().text(), "192.0.2.53\n");
    let line = agent.wait_for("UDP stream opened");
    assert!(line.contains(&format!("dst={server}")), "{line}");
}
