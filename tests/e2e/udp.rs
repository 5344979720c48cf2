//! Datagrams through the agent, with our client.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use adit::client::UdpStream;
use adit::lifecycle::Deadline;

use crate::support::{PATIENCE, TestAgent};

fn soon() -> Option<Deadline> {
    Some(Deadline::after("the test's answer", PATIENCE))
}

fn echo() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            let (size, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..size], from).unwrap();
        }
    });
    port
}

fn exchange(stream: &UdpStream, datagram: &[u8]) {
    let mut buffer = vec![0; UdpStream::MAX];
    stream.send(datagram).unwrap();
    let size = stream.recv(&mut buffer, soon()).unwrap().expect("the agent ended it");
    assert_eq!(&buffer[..size], datagram);
}

#[test]
fn datagrams_reach_the_destination_and_come_back_whole() {
    let agent = TestAgent::new();
    let client = agent.client();
    let stream = client.udp("127.0.0.1", echo()).unwrap();
    for size in [1, 64, 1200, 8192, UdpStream::MAX] {
        exchange(&stream, &vec![0x5a; size]);
    }
    client.probe_udp().unwrap();
    exchange(&stream, b"still there");
}
