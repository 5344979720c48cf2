//! Programs that speak UDP by themselves, through a local port whose datagrams go through an agent.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use adit::client::Client;
use adit::net::{Event, Sink, Source};
use serde_json::Value;

use super::{Running, tool};
use crate::support::command::run;
use crate::support::process::AgentProcess;
use crate::support::{Pki, destinations};

/// A local UDP port with a session of its own for each address that sends to it.
fn mapping(client: Client, socket: UdpSocket, to: SocketAddr) {
    let socket = Arc::new(socket);
    thread::spawn(move || {
        let mut streams = HashMap::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            // An error is about an answer that nobody waits for any more.
            let Ok((size, from)) = socket.recv_from(&mut buffer) else { continue };
            let stream = streams.entry(from).or_insert_with(|| {
                let stream = Arc::new(client.udp(&to.ip().to_string(), to.port()).unwrap());
                let (answers, socket) = (stream.clone(), socket.clone());
                thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(Some(size)) = answers.recv(&mut buffer, None) {
                        drop(socket.send_to(&buffer[..size], from));
                    }
                });
                stream
            });
            stream.send(&buffer[..size]).unwrap();
        }
    });
}

/// The same for TCP.
fn streams(client: Client, listener: TcpListener, to: SocketAddr) {
    thread::spawn(move || {
        for connection in listener.incoming() {
            let near = connection.unwrap();
            let stream = client.open(&to.ip().to_string(), to.port()).unwrap();
            let (mut source, mut sink) = stream.split().unwrap();
            let (mut out, mut into) = (near.try_clone().unwrap(), near);
            thread::spawn(move || {
                while let Ok(Event::Data(data)) = source.next() {
                    if out.write_all(data).is_err() {
                        return;
                    }
                }
                drop(out.shutdown(std::net::Shutdown::Write));
            });
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 14];
                while let Ok(size @ 1..) = std::io::Read::read(&mut into, &mut buffer) {
                    if sink.write_all(&buffer[..size]).is_err() {
                        return;
                    }
                }
                drop(sink.finish());
            });
        }
    });
}

#[test]
fn a_name_server_answers_dig_through_the_agent() {
    const QUERIES: usize = 200;
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let server = destinations::unused();
    let mut command = tool("dnsmasq", "dnsmasq-base");
    command.args(["--no-daemon", "--conf-file=/dev/null", "--pid-file=", "--bind-interfaces"]);
    command.args(["--no-resolv", "--no-hosts", "--log-facility=-"]);
    command.arg(format!("--listen-address={}", server.ip()));
    command.arg(format!("--port={}", server.port()));
    for number in 0..QUERIES {
        command.arg(format!("--host-record=h{number}.example,10.1.2.{number}"));
    }
    let mut dnsmasq = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(dnsmasq.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    lines.by_ref().find(|line| line.contains("started")).expect("dnsmasq starts");
    thread::spawn(move || lines.for_each(drop));

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port().to_string();
    mapping(agent.client(&files), socket, server);
    let questions: String = (0..QUERIES).map(|number| format!("h{number}.example A\n")).collect();
    std::fs::write(files.path("questions"), questions).unwrap();
    let mut dig = tool("dig", "bind9-dnsutils");
    // One try for each: what is lost is missing.
    dig.args(["@127.0.0.1", "-p", &port, "+short", "+tries=1", "+time=60", "-f"]);
    let answers = run(dig.arg(files.path("questions")), b"").ok();
    let expected: String = (0..QUERIES).map(|number| format!("10.1.2.{number}\n")).collect();
    assert_eq!(answers.text(), expected, "{}", answers.err);
}

#[test]
fn iperf3_measures_datagrams_through_the_agent() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let server = destinations::unused();
    let mut command = tool("iperf3", "iperf3");
    command.args(["--server", "--one-off", "--forceflush", "--bind", &server.ip().to_string()]);
    command.args(["--port", &server.port().to_string()]);
    let mut iperf = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(iperf.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.by_ref().find(|line| line.contains("listening")).expect("iperf3 listens");
    thread::spawn(move || lines.for_each(drop));

    // It wants the same port for both.
    let near = destinations::unused();
    streams(agent.client(&files), TcpListener::bind(near).unwrap(), server);
    mapping(agent.client(&files), UdpSocket::bind(near).unwrap(), server);
    let mut command = tool("iperf3", "iperf3");
    command.args(["--client", &near.ip().to_string(), "--port", &near.port().to_string()]);
    command.args(["--udp", "--length", "1200", "--bitrate", "5M", "--blockcount", "500"]);
    let ran = run(command.arg("--json"), b"").ok();
    let report: Value = serde_json::from_slice(&ran.out).unwrap();
    let sum = &report["end"]["sum"];
    assert_eq!((&sum["packets"], &sum["lost_packets"]), (&500.into(), &0.into()), "{report}");
}
