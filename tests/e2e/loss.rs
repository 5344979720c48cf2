//! Datagrams through a network that loses, repeats and reorders them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::thread;

use adit::client::{Client, Timeouts, UdpStream};
use adit::lifecycle::Deadline;
use adit::pki::Identity;
use adit::tls::{SERVER_NAME, provider};

use crate::support::destinations::{udp_collector, udp_echo};
use crate::support::lossy::{
    Action, BOTH, Direction, Lossy, Message, Record, Seen, dtls, pass, records, roll,
};
use crate::support::pattern::{datagram, datagram_number};
use crate::support::{PATIENCE, TestAgent};

use Direction::{Down, Up};

/// A client with the limits that everyone has.
pub(crate) fn client(address: SocketAddr, identity: &Identity) -> Client {
    let address = address.to_string();
    Client::new(&address, SERVER_NAME, identity, provider::default(), Timeouts::default()).unwrap()
}

/// The next datagram.
pub(crate) fn receive(stream: &UdpStream) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let size = stream.recv(&mut buffer, Some(Deadline::after("a datagram", PATIENCE))).unwrap();
    buffer.truncate(size.expect("a session that goes on"));
    buffer
}

/// Fails unless the datagram comes back, and nothing before it.
fn echoes(stream: &UdpStream, sent: &[u8]) {
    stream.send(sent).unwrap();
    assert!(receive(stream) == sent, "{} bytes", sent.len());
}

/// A session with the agent through the relay.
fn session(agent: &TestAgent, relay: &Lossy, to: SocketAddr) -> UdpStream {
    let client = client(relay.address, &agent.pki.client("tester"));
    client.udp("127.0.0.1", to.port()).unwrap()
}

/// Whether it belongs to a handshake.
fn is_handshake(bytes: &[u8]) -> bool {
    records(bytes)
        .first()
        .is_some_and(|record| [dtls::HANDSHAKE, dtls::CHANGE_CIPHER_SPEC].contains(&record.kind))
}

/// Whether the session's own datagrams are in it, or its header.
fn is_data(bytes: &[u8]) -> bool {
    records(bytes).first().is_some_and(|record| record.kind == dtls::DATA)
}

/// Spares the header, which is sent once and which nobody asks for again, and the first datagram.
fn but_the_first(
    mut rule: impl FnMut(Direction, usize, &[u8]) -> Action,
) -> impl FnMut(Direction, usize, &[u8]) -> Action {
    let mut to_come = 2;
    move |direction, number, bytes| {
        if to_come > 0 && direction == Up && is_data(bytes) {
            to_come -= 1;
            return Action::Pass;
        }
        rule(direction, number, bytes)
    }
}

/// How many datagrams of a handshake went in each direction.
fn handshake_of(relay: &Lossy) -> [usize; 2] {
    let seen = relay.seen();
    BOTH.map(|direction| {
        let of = |seen: &&Seen| seen.direction == direction && is_handshake(&seen.bytes);
        seen.iter().filter(of).count()
    })
}

/// Which of the six flights of a handshake with a cookie (RFC 6347, section 4.2.4) it belongs to.
fn flight(direction: Direction, records: &[Record<'_>]) -> usize {
    let messages: Vec<_> = records.iter().flat_map(Record::messages).collect();
    let has = |kind| messages.iter().any(|message: &Message| message.kind == kind);
    let is_second_hello = |message: &Message| message.sequence > 0;
    match direction {
        Up if has(dtls::CLIENT_HELLO) && messages.iter().any(is_second_hello) => 3,
        Up if has(dtls::CLIENT_HELLO) => 1,
        Up => 5,
        Down if has(dtls::HELLO_VERIFY_REQUEST) => 2,
        Down if has(dtls::NEW_SESSION_TICKET) => 6,
        Down if !messages.is_empty() => 4,
        Down => 6,
    }
}

/// Loses one whole flight, and nothing when it is sent again.
fn lose_flight(lost: usize) -> impl FnMut(Direction, usize, &[u8]) -> Action {
    let mut seen = HashSet::new();
    let mut over = false;
    move |direction, _, bytes| {
        let records = records(bytes);
        if over || !is_handshake(bytes) || flight(direction, &records) != lost {
            return Action::Pass;
        }
        // A repetition is told by what is not encrypted.
        for record in &records {
            let change = (record.kind == dtls::CHANGE_CIPHER_SPEC).then_some(None);
            for part in record.messages().into_iter().map(Some).chain(change) {
                over |= !seen.insert(part);
            }
        }
        if over { Action::Pass } else { Action::Drop }
    }
}

#[test]
fn a_handshake_completes_whichever_of_its_datagrams_is_lost() {
    let (agent, echo) = (TestAgent::new(), udp_echo());
    let relay = Lossy::start(agent.address, pass());
    echoes(&session(&agent, &relay, echo), b"nothing is lost");
    let counts = handshake_of(&relay);
    thread::scope(|scope| {
        for (direction, count) in BOTH.into_iter().zip(counts) {
            for number in 1..=count {
                let (agent, echo) = (&agent, &echo);
                scope.spawn(move || {
                    let relay = Lossy::start(agent.address, move |d, n, bytes: &[u8]| {
                        let lost = (d, n) == (direction, number) && is_handshake(bytes);
                        if lost { Action::Drop } else { Action::Pass }
                    });
                    echoes(&session(agent, &relay, *echo), b"there all the same");
                    let seen = relay.seen();
                    let lost = seen.iter().any(|seen| seen.action == Action::Drop);
                    // What was sent twice the first time may not be this time.
                    let place = usize::from(direction == Down);
                    assert!(lost || handshake_of(&relay)[place] < number, "{seen:#?}");
                });
            }
        }
    });
    let [up, down] = counts;
    assert!(up >= 3 && down >= 3, "three flights each way: {:#?}", relay.seen());
}

#[test]
fn a_handshake_completes_whichever_of_its_flights_is_lost() {
    let (agent, echo) = (TestAgent::new(), udp_echo());
    thread::scope(|scope| {
        for lost in 1..=6 {
            let (agent, echo) = (&agent, &echo);
            scope.spawn(move || {
                let relay = Lossy::start(agent.address, lose_flight(lost));
                echoes(&session(agent, &relay, *echo), b"there all the same");
                let seen = relay.seen();
                assert!(seen.iter().any(|seen| seen.action == Action::Drop), "{lost}: {seen:#?}");
            });
        }
    });
}

#[test]
fn with_a_fifth_lost_a_session_begins_in_time_and_what_arrives_is_unchanged() {
    let agent = TestAgent::new();
    thread::scope(|scope| {
        for seed in 1..=12 {
            let agent = &agent;
            scope.spawn(move || a_fifth_is_lost(agent, seed));
        }
    });
}

fn a_fifth_is_lost(agent: &TestAgent, seed: u64) {
    let collector = udp_collector();
    let relay = Lossy::start(
        agent.address,
        but_the_first(move |direction, number, _| {
            if roll(seed, direction, number) % 100 < 20 { Action::Drop } else { Action::Pass }
        }),
    );
    let stream = session(agent, &relay, collector.address);
    stream.send(b"first").unwrap();
    assert!(collector.until(b"first").is_empty());
    let passed = |seen: &[Seen]| {
        let data = seen.iter().filter(|seen| seen.direction == Up && is_data(&seen.bytes));
        // After the header and the first.
        let actions = data.skip(2).map(|seen| seen.action);
        (0..)
            .zip(actions)
            .filter(|(_, action)| *action == Action::Pass)
            .map(|(number, _)| number)
            .collect::<Vec<u64>>()
    };
    // A few on their way at a time, or a queue would overflow.
    for number in 0..100 {
        stream.send(&datagram(number, 12 + usize::try_from(number).unwrap() * 13)).unwrap();
        if number % 10 == 9 {
            let up = usize::try_from(number).unwrap() + 3;
            let data = |seen: &&Seen| seen.direction == Up && is_data(&seen.bytes);
            relay.wait_until(|seen| seen.iter().filter(data).count() == up);
            collector.wait_for(passed(&relay.seen()).len());
        }
    }
    let arrived: Vec<_> = collector.received().iter().map(|bytes| datagram_number(bytes)).collect();
    assert_eq!(arrived, passed(&relay.seen()), "seed {seed}");
    assert!(arrived.len() < 100, "seed {seed} loses something");
}

#[test]
fn what_the_network_repeats_is_delivered_once() {
    let agent = TestAgent::new();
    let relay = Lossy::start(agent.address, |_, _, _: &[u8]| Action::Duplicate);
    let stream = session(&agent, &relay, udp_echo());
    for number in 0..200 {
        // Each echo is there twice too, and would be what the next one finds.
        echoes(&stream, &datagram(number, 200));
    }
}

#[test]
fn a_record_that_is_sent_again_later_delivers_nothing() {
    let agent = TestAgent::new();
    let collector = udp_collector();
    let relay = Lossy::start(agent.address, pass());
    let stream = session(&agent, &relay, collector.address);
    for batch in 0..10 {
        for number in batch * 20..batch * 20 + 20 {
            stream.send(&datagram(number, 100)).unwrap();
        }
        // Only what has been delivered is a repetition.
        let count = usize::try_from(batch).unwrap() * 20 + 20;
        collector.wait_for(count);
        let data: Vec<_> = relay.seen().into_iter().filter(|seen| is_data(&seen.bytes)).collect();
        // The header, what came long ago, and what came right before.
        for place in [0, 1, count / 2, count - 19, count - 1, count] {
            relay.replay(&data[place]);
        }
    }
    stream.send(b"last").unwrap();
    let arrived = collector.until(b"last");
    let arrived: Vec<_> = arrived.iter().map(|bytes| datagram_number(bytes)).collect();
    assert_eq!(arrived, (0..200).collect::<Vec<_>>());
}

#[test]
fn an_answer_that_is_sent_again_later_is_not_received_again() {
    let agent = TestAgent::new();
    let relay = Lossy::start(agent.address, pass());
    let stream = session(&agent, &relay, udp_echo());
    for number in 0..100 {
        echoes(&stream, &datagram(number, 100));
        let seen = relay.seen();
        let answers = seen.iter().filter(|seen| seen.direction == Down && is_data(&seen.bytes));
        let answers: Vec<_> = answers.collect();
        for answer in [answers[0], answers[answers.len() / 2], answers[answers.len() - 1]] {
            relay.replay(answer);
        }
    }
    echoes(&stream, b"last");
}

#[test]
fn what_the_network_reorders_arrives_whole_and_once() {
    let agent = TestAgent::new();
    thread::scope(|scope| {
        for seed in 1..=3 {
            let agent = &agent;
            scope.spawn(move || reordered(agent, seed));
        }
    });
}

fn reordered(agent: &TestAgent, seed: u64) {
    const COUNT: u64 = 300;
    let relay = Lossy::start(
        agent.address,
        but_the_first(move |direction, number, _| match roll(seed, direction, number) % 30 {
            // Far less than what protects from repetitions remembers (64 records).
            behind @ 1..10 => Action::Hold(usize::try_from(behind).unwrap()),
            _ => Action::Pass,
        }),
    );
    let stream = session(agent, &relay, udp_echo());
    stream.send(b"first").unwrap();
    assert_eq!(receive(&stream), b"first");
    let mut arrived = Vec::new();
    let mut sent = 0..COUNT;
    // A few on their way at a time, or a queue would overflow. The last are held in vain, and come
    // when their time is over.
    for number in sent.by_ref().take(40) {
        stream.send(&datagram(number, 300)).unwrap();
    }
    while arrived.len() < usize::try_from(COUNT).unwrap() {
        arrived.push(datagram_number(&receive(&stream)));
        if let Some(number) = sent.next() {
            stream.send(&datagram(number, 300)).unwrap();
        }
    }
    assert!(!arrived.is_sorted(), "seed {seed} reorders something");
    arrived.sort_unstable();
    assert_eq!(arrived, (0..COUNT).collect::<Vec<_>>(), "seed {seed}");
}

#[test]
fn a_handshake_whose_datagrams_overtake_each_other_completes() {
    let (agent, echo) = (TestAgent::new(), udp_echo());
    thread::scope(|scope| {
        for seed in 1..=6 {
            let (agent, echo) = (&agent, &echo);
            scope.spawn(move || {
                let relay = Lossy::start(agent.address, move |direction, number, bytes: &[u8]| {
                    match roll(seed, direction, number) % 8 {
                        behind @ 1..3 if is_handshake(bytes) => {
                            Action::Hold(usize::try_from(behind).unwrap())
                        }
                        _ => Action::Pass,
                    }
                });
                echoes(&session(agent, &relay, *echo), b"in the end");
            });
        }
    });
}

#[test]
fn a_hello_that_is_sent_again_does_not_disturb_its_session() {
    let (agent, echo) = (TestAgent::new(), udp_echo());
    let relay = Lossy::start(agent.address, pass());
    let stream = session(&agent, &relay, echo);
    echoes(&stream, b"before");
    let hellos: Vec<_> =
        relay.seen().into_iter().filter(|seen| seen.has_handshake(dtls::CLIENT_HELLO)).collect();
    assert!(hellos.len() >= 2, "one of them with the cookie: {hellos:#?}");
    for number in 0..30 {
        for hello in &hellos {
            relay.replay(hello);
        }
        echoes(&stream, &datagram(number, 100));
    }
    // Nor does everything that the client said to begin with.
    for seen in relay.seen() {
        if seen.direction == Up && is_handshake(&seen.bytes) {
            relay.replay(&seen);
        }
    }
    echoes(&stream, b"after");
}

/// pion keeps the first part of a message that it gets, and never completes it when the rest is
/// lost and the message comes again in other parts. OpenSSL cuts at other places when it repeats.
#[test]
fn no_message_of_a_handshake_is_cut_that_has_room_in_a_datagram() {
    let agent = TestAgent::new();
    let relay = Lossy::start(agent.address, pass());
    // Its certificate leaves little room in the datagram for what follows.
    let identity = agent.pki.client(&"long-name.".repeat(6));
    let stream = client(relay.address, &identity).udp("127.0.0.1", udp_echo().port()).unwrap();
    echoes(&stream, b"and then");
    for seen in relay.seen() {
        for message in seen.records().iter().flat_map(Record::messages) {
            let cut = message.part < message.length && message.length < 1000;
            assert!(!cut, "{message:?} in {seen:?}");
        }
    }
}

#[test]
fn before_the_cookie_the_agent_never_says_more_than_it_has_heard() {
    let agent = TestAgent::new();
    let relay = Lossy::start(agent.address, pass());
    echoes(&session(&agent, &relay, udp_echo()), b"and then");
    let (mut heard, mut said) = (0, 0);
    let mut verified = false;
    for seen in relay.seen() {
        match seen.direction {
            Up if flight(Up, &seen.records()) == 3 => verified = true,
            Up => heard += seen.bytes.len(),
            Down if !verified => said += seen.bytes.len(),
            Down => {}
        }
        assert!(verified || said <= heard, "{said} for {heard}");
    }
    assert!(verified && said > 0, "a cookie came and went: {:#?}", relay.seen());
}

#[test]
fn a_probe_succeeds_also_when_the_first_answer_is_lost() {
    let agent = TestAgent::new();
    let mut lost = false;
    let relay = Lossy::start(agent.address, move |direction, _, bytes: &[u8]| {
        // The agent says nothing but goodbye.
        let goodbye = direction == Down && records(bytes).iter().any(|r| r.kind == dtls::ALERT);
        if !goodbye || std::mem::replace(&mut lost, true) { Action::Pass } else { Action::Drop }
    });
    client(relay.address, &agent.pki.client("tester")).probe_udp().unwrap();
    assert_eq!(relay.seen().iter().filter(|seen| seen.action == Action::Drop).count(), 1);
}
