//! The relay that loses datagrams does what it is told, and only that.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::destinations::{UdpCollector, udp_collector, udp_echo, udp_refused};
use crate::support::lossy::{
    Action, Direction, HOLD, Lossy, Rule, chance, dtls, only, pass, records,
};
use crate::support::pattern::{datagram, datagram_number};

use Direction::{Down, Up};

fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(to).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let size = socket.recv(&mut buffer).unwrap();
    buffer.truncate(size);
    buffer
}

/// Sends datagrams 1 to `count` to a collector through a relay with this rule, and then, without
/// it, a last one. Returns the numbers in the order in which they arrived.
fn arrivals(rule: Rule, count: u64) -> Vec<u64> {
    let collector = udp_collector();
    let relay = Lossy::start(collector.address, rule);
    let client = client(relay.address);
    for number in 1..=count {
        client.send(&datagram(number, 64)).unwrap();
    }
    let all = usize::try_from(count).unwrap();
    relay.wait_for(|seen| seen.number == all);
    finish(&relay, &collector, &client)
}

fn finish(relay: &Lossy, collector: &UdpCollector, client: &UdpSocket) -> Vec<u64> {
    relay.set_rule(pass());
    client.send(b"last").unwrap();
    collector.until(b"last").iter().map(|bytes| datagram_number(bytes)).collect()
}

#[test]
fn without_a_rule_datagrams_of_all_sizes_pass_both_ways() {
    let relay = Lossy::start(udp_echo(), pass());
    let client = client(relay.address);
    for (number, size) in [0, 1, 1200, 16_384, 65_507].into_iter().enumerate() {
        let sent = &datagram(7, 65_507)[..size];
        client.send(sent).unwrap();
        assert!(receive(&client) == sent, "{size} bytes");
        assert_eq!((relay.count(Up), relay.count(Down)), (number + 1, number + 1));
    }
}

#[test]
fn a_dropped_datagram_never_arrives_and_the_others_do() {
    assert_eq!(arrivals(only(Up, 2, Action::Drop), 4), [1, 3, 4]);
    let relay = Lossy::start(udp_echo(), only(Down, 1, Action::Drop));
    let client = client(relay.address);
    client.send(b"one").unwrap();
    relay.wait_for(|seen| seen.direction == Down);
    client.send(b"two").unwrap();
    assert_eq!(receive(&client), b"two");
}

#[test]
fn a_duplicated_datagram_arrives_twice() {
    assert_eq!(arrivals(only(Up, 2, Action::Duplicate), 3), [1, 2, 2, 3]);
}

#[test]
fn a_held_datagram_arrives_after_as_many_others_as_it_was_held_for() {
    assert_eq!(arrivals(only(Up, 2, Action::Hold(1)), 5), [1, 3, 2, 4, 5]);
    assert_eq!(arrivals(only(Up, 2, Action::Hold(3)), 6), [1, 3, 4, 5, 2, 6]);
    let odd = |_, number: usize, _: &[u8]| match number {
        1 | 3 => Action::Hold(2),
        _ => Action::Pass,
    };
    // Only what came later counts, and it counts for all that it overtakes.
    assert_eq!(arrivals(Box::new(odd), 6), [2, 4, 1, 5, 3, 6]);
}

#[test]
fn a_held_datagram_that_nothing_follows_arrives_all_the_same() {
    let relay = Lossy::start(udp_echo(), only(Up, 1, Action::Hold(1)));
    let client = client(relay.address);
    client.send(b"alone").unwrap();
    assert_eq!(receive(&client), b"alone");
}

#[test]
fn a_delayed_datagram_is_overtaken_by_any_number_of_others() {
    let collector = udp_collector();
    let relay = Lossy::start(collector.address, only(Up, 1, Action::Delay(HOLD)));
    let client = client(relay.address);
    for number in 1..=20 {
        client.send(&datagram(number, 64)).unwrap();
    }
    let before = collector.until(&datagram(1, 64));
    let before: Vec<_> = before.iter().map(|bytes| datagram_number(bytes)).collect();
    assert_eq!(before, (2..=20).collect::<Vec<_>>());
}

#[test]
fn each_client_has_numbers_and_an_address_of_its_own() {
    let relay = Lossy::start(udp_echo(), only(Up, 1, Action::Drop));
    let clients = [client(relay.address), client(relay.address)];
    for word in ["lost", "kept"] {
        for (flow, client) in clients.iter().enumerate() {
            client.send(format!("{word} {flow}").as_bytes()).unwrap();
            relay.wait_for(|seen| seen.bytes == format!("{word} {flow}").as_bytes());
        }
    }
    for (flow, client) in clients.iter().enumerate() {
        assert_eq!(receive(client), format!("kept {flow}").as_bytes());
    }
    let flows: Vec<_> = relay.seen().iter().map(|seen| (seen.flow, seen.direction)).collect();
    for flow in 0..2 {
        assert!(flows.contains(&(flow, Up)) && flows.contains(&(flow, Down)), "{flows:?}");
    }
}

#[test]
fn what_has_passed_can_be_sent_again_and_what_never_came_be_injected() {
    let collector = udp_collector();
    let relay = Lossy::start(collector.address, pass());
    let client = client(relay.address);
    client.send(&datagram(1, 64)).unwrap();
    client.send(&datagram(2, 64)).unwrap();
    let first = relay.wait_for(|seen| seen.number == 1);
    relay.wait_for(|seen| seen.number == 2);
    relay.replay(&first);
    relay.inject(0, Up, &datagram(3, 64));
    assert_eq!(finish(&relay, &collector, &client), [1, 2, 1, 3]);
    relay.inject(0, Down, b"out of the blue");
    assert_eq!(receive(&client), b"out of the blue");
}

#[test]
fn the_same_seed_does_the_same_to_the_same_datagrams() {
    let lost = |seed| {
        let arrived = arrivals(chance(seed, 20, Action::Drop), 100);
        (1..=100).filter(|number| !arrived.contains(number)).collect::<Vec<_>>()
    };
    let (first, other) = (lost(1), lost(2));
    assert_eq!(first, lost(1));
    assert_ne!(first, other);
    for lost in [first, other] {
        assert!((10..=30).contains(&lost.len()), "{lost:?}");
    }
    assert!(arrivals(chance(1, 100, Action::Drop), 10).is_empty());
}

#[test]
fn a_server_that_is_not_there_does_not_end_the_relay() {
    let relay = Lossy::start(udp_refused(), pass());
    let client = client(relay.address);
    for number in 1..=3 {
        client.send(b"anybody?").unwrap();
        relay.wait_for(|seen| seen.number == number);
    }
    relay.inject(0, Down, b"nobody");
    assert_eq!(receive(&client), b"nobody");
}

#[test]
fn records_are_told_apart_without_keys() {
    // Two records: a ServerHello cut after its header, and something encrypted.
    let hello = [22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 1, 0, 14, 2, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 2];
    let plain = [&hello[..], &[7, 7]].concat();
    let sealed = [22, 254, 253, 0, 1, 0, 0, 0, 0, 1, 0, 0, 3, 1, 2, 3];
    let both = [&plain[..], &sealed].concat();
    let [first, second] = &records(&both)[..] else { panic!("two records") };
    assert_eq!((first.kind, first.epoch, first.sequence), (dtls::HANDSHAKE, 0, 1));
    assert_eq!(first.handshakes(), [dtls::SERVER_HELLO]);
    assert_eq!((second.kind, second.epoch, second.sequence), (dtls::HANDSHAKE, 1, 256));
    assert_eq!((second.handshakes(), second.body), (vec![], &[1, 2, 3][..]));
    assert_eq!(records(&both[..both.len() - 1]).len(), 1);
    assert!(records(b"no record").is_empty());
}

#[test]
fn a_relay_that_is_dropped_is_gone() {
    let token = Arc::new(());
    let held = token.clone();
    let relay = Lossy::start(udp_echo(), move |_, _, _: &[u8]| {
        let _held = &held;
        Action::Delay(Duration::from_secs(3600))
    });
    client(relay.address).send(b"on its way").unwrap();
    relay.wait_for(|seen| seen.number == 1);
    drop(relay);
    assert_eq!(Arc::strong_count(&token), 1);
}
