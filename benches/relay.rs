//! Throughput of one stream through TLS and the relay: client → TLS over loopback → relay → TCP
//! over loopback → destination, and back. Everything in one process, so the figures are for
//! comparing one version of adit with the next; `benches/compare` is for comparing it with others.
#![expect(clippy::expect_used, reason = "a benchmark says what it expects by panicking")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use adit::lifecycle::{Deadline, clock, threads};
use adit::net::{Conn, Event, LARGE, Sink, Source, tune};
use adit::pki::{Authority, NameRules, Purpose, Request, Validity, provider};
use adit::relay::{End, Ended, Relay, Report};
use adit::tls::{self, ClientAuth, SERVER_NAME};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustls::pki_types::ServerName;

fn relay(c: &mut Criterion) {
    let (mut source, mut sink, agent) = stream();
    let (near, far) = socket_pair();
    let (order, orders) = channel();
    let (done, finished) = channel();
    let destination = start("destination", move || serve(far, &orders, &done));
    agent.far.send(near).expect("the agent waits for it");

    let mut group = c.benchmark_group("relay");
    group.throughput(Throughput::Bytes(MEBIBYTE));
    group.bench_function("up", |b| {
        b.iter_custom(|times| {
            order.send(Order::Take(times * MEBIBYTE)).expect("the destination runs");
            let start = clock::now();
            for _ in 0..times * MEBIBYTE / LARGE as u64 {
                sink.write_all(&[7; LARGE]).expect("the agent takes it");
            }
            finished.recv().expect("it arrives");
            start.elapsed()
        });
    });
    group.bench_function("down", |b| {
        b.iter_custom(|times| {
            let start = clock::now();
            order.send(Order::Give(times * MEBIBYTE)).expect("the destination runs");
            let mut missing = times * MEBIBYTE;
            while missing > 0 {
                match source.next().expect("it arrives") {
                    Event::Data(data) => missing -= data.len() as u64,
                    Event::Idle => {}
                    Event::End => unreachable!("the destination is not done"),
                }
            }
            finished.recv().expect("the destination runs");
            start.elapsed()
        });
    });
    group.finish();

    drop(order);
    sink.finish().expect("the agent is there");
    while !matches!(source.next().expect("a clean end"), Event::End) {}
    destination.join().expect("the destination ends");
    let report = agent.thread.join().expect("the relay ends");
    assert!(matches!(report.why, Ended::Finished), "{}", report.why);
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = relay
}
criterion_main!(benches);

const MEBIBYTE: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(10);

/// The agent's side: a TLS connection that waits for the socket it is to be relayed to.
struct Agent {
    far: Sender<TcpStream>,
    thread: JoinHandle<Report>,
}

/// A TLS stream to an agent, as its two halves.
fn stream() -> (tls::TlsSource, tls::TlsSink, Agent) {
    let validity = Validity::days(clock::wall(), 1);
    let authority = Authority::create("bench", validity).expect("a CA");
    let identity = |purpose, name: &str| {
        let request = Request { purpose, names: vec![name.to_owned()], validity };
        authority.identity(&request).expect("a certificate")
    };
    let provider = provider::default();
    let clients = ClientAuth::Required(NameRules::default());
    let server = identity(Purpose::Server, SERVER_NAME);
    let server = tls::server(&server, clients, &[], provider.clone()).expect("a server");
    let client = identity(Purpose::Client, "client");
    let client = tls::client(&client, &[], provider).expect("a client");

    let (ours, theirs) = socket_pair();
    let (far, given) = channel();
    let thread = start("agent", move || run(theirs, server, &given));
    let name = ServerName::try_from(SERVER_NAME).expect("a name");
    let deadline = Deadline::after("the handshake", LIMIT);
    let stream = tls::connect(Conn::new(ours), client, name, deadline).expect("a handshake");
    let (source, sink) = stream.split().expect("two halves");
    (source, sink, Agent { far, thread })
}

fn run(near: TcpStream, config: Arc<rustls::ServerConfig>, far: &Receiver<TcpStream>) -> Report {
    let deadline = Deadline::after("the handshake", LIMIT);
    let stream = tls::accept(Conn::new(near), config, deadline).expect("a handshake");
    let near = stream.conn().clone();
    let far = Conn::new(far.recv().expect("a destination"));
    let relay = Relay::new(&near, &far, LIMIT);
    let (source, sink) = stream.split().expect("two halves");
    let end = End { source: Box::new(source), sink: Box::new(sink), conn: near };
    relay.run(end, End::tcp(far), &threads::Group::new(), "agent-down")
}

/// What the destination does next, and for how many bytes.
enum Order {
    Take(u64),
    Give(u64),
}

/// The destination: obeys until there are no more orders, then ends as its peer did.
fn serve(mut socket: TcpStream, orders: &Receiver<Order>, done: &Sender<()>) {
    let mut buffer = vec![7; LARGE];
    for order in orders {
        match order {
            Order::Take(mut missing) => {
                while missing > 0 {
                    let size = socket.read(&mut buffer).expect("the relay sends");
                    assert!(size > 0, "the relay ended with {missing} bytes missing");
                    missing -= size as u64;
                }
            }
            Order::Give(size) => {
                for _ in 0..size / LARGE as u64 {
                    socket.write_all(&buffer).expect("the relay takes it");
                }
            }
        }
        done.send(()).expect("the benchmark waits");
    }
    assert_eq!(socket.read(&mut buffer).expect("a clean end"), 0);
}

/// Both ends of a loopback connection, with the options that every stream has.
fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("its number");
    let one = TcpStream::connect(address).expect("loopback");
    let (other, _) = listener.accept().expect("loopback");
    for socket in [&one, &other] {
        tune(socket).expect("options");
    }
    (one, other)
}

fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    threads::spawn(name, work).expect("a thread")
}
