//! Datagrams through an agent: client → DTLS over loopback → agent → UDP over loopback → echo, and
//! back. Everything in one process, so the figures are for comparing one version of adit with the
//! next; `benches/datagrams` is for comparing it with others.
#![expect(clippy::expect_used, reason = "a benchmark says what it expects by panicking")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use adit::agent::api::{Api, GODOXY_VERSION, Runtime};
use adit::agent::policy::Policy;
use adit::agent::{Agent, Limits, Services, Summary, health_checks};
use adit::client::{Client, Timeouts, UdpStream};
use adit::dtls::ServerContext;
use adit::lifecycle::{Deadline, Stop, clock, threads};
use adit::net::udp::bind_both;
use adit::pki::{Authority, Identity, NameRules, Purpose, Request, Validity, provider};
use adit::tls::{self, ClientAuth, SERVER_NAME};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A session from its handshake to its end, with one echo.
fn session(c: &mut Criterion) {
    let stage = Stage::new();
    let mut group = c.benchmark_group("dtls_session");
    group.throughput(Throughput::Elements(1));
    group.bench_function("setup", |b| {
        b.iter(|| {
            let stream = stage.stream();
            echo(&stream, &[7; 64], 1, 1);
            stream.close();
        });
    });
    group.finish();
    stage.end();
}

/// Datagrams there and back: one at a time, and eight on their way at once.
fn datagrams(c: &mut Criterion) {
    let stage = Stage::new();
    let stream = stage.stream();
    echo(&stream, &[7; 64], 1, 1);
    for (title, window) in [("dtls_round_trip", 1), ("dtls_datagrams", 8)] {
        let mut group = c.benchmark_group(title);
        group.throughput(Throughput::Elements(1));
        for size in [64, 512, 1200, 8192] {
            let datagram = vec![7; size];
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter_custom(|times| {
                    let start = clock::now();
                    echo(&stream, &datagram, times, window);
                    start.elapsed()
                });
            });
        }
        group.finish();
    }
    stream.close();
    stage.end();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = session, datagrams
}
criterion_main!(benches);

/// Long for a datagram that is still on its way.
const LOST: Duration = Duration::from_millis(100);

/// Gets `times` datagrams echoed, `window` on their way at once. A lost one is sent again.
fn echo(stream: &UdpStream, datagram: &[u8], times: u64, window: u64) {
    let mut answer = vec![0; UdpStream::MAX];
    let (mut done, mut under_way) = (0, 0);
    while done < times {
        while under_way < window.min(times - done) {
            stream.send(datagram).expect("the session goes on");
            under_way += 1;
        }
        let answered = stream.recv(&mut answer, Some(Deadline::after("an echo", LOST)));
        if answered.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            under_way = 0;
            continue;
        }
        let size = answered.expect("the session goes on");
        assert!(size.is_some(), "the agent ended the session");
        // Another length is the late answer to one that was given up before.
        if size == Some(datagram.len()) {
            done += 1;
            under_way = u64::saturating_sub(under_way, 1);
        }
    }
}

/// An agent, an echo, and a client of the agent.
struct Stage {
    client: Client,
    echo: SocketAddr,
    stop: Stop,
    agent: JoinHandle<Summary>,
    answering: JoinHandle<()>,
}

impl Stage {
    fn new() -> Self {
        let validity = Validity::days(clock::wall(), 1);
        let authority = Authority::create("bench", validity).expect("a CA");
        let identity = |purpose, name: &str| {
            let request = Request { purpose, names: vec![name.to_owned()], validity };
            authority.identity(&request).expect("a certificate")
        };
        let (address, stop, agent) = agent(&identity(Purpose::Server, SERVER_NAME));
        let (agent_at, client) = (address.to_string(), identity(Purpose::Client, "client"));
        let (provider, timeouts) = (provider::default(), Timeouts::default());
        let client = Client::new(&agent_at, SERVER_NAME, &client, provider, timeouts);

        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let echo = socket.local_addr().expect("its number");
        let answering = threads::spawn("echo", move || answer(&socket)).expect("a thread");
        Self { client: client.expect("a client"), echo, stop, agent, answering }
    }

    fn stream(&self) -> UdpStream {
        self.client.udp(&self.echo.ip().to_string(), self.echo.port()).expect("a session")
    }

    fn end(self) {
        self.stop.raise();
        self.agent.join().expect("the agent ends");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.send_to(&[], self.echo).expect("loopback");
        self.answering.join().expect("the echo ends");
    }
}

fn agent(server: &Identity) -> (SocketAddr, Stop, JoinHandle<Summary>) {
    let provider = provider::default();
    let policy = Arc::new(Policy::parse(&[], &[]).expect("no rules"));
    let clients = ClientAuth::Required(NameRules::default());
    let services = Services {
        tls: tls::server(server, clients, &Services::ALPN, provider.clone()).expect("a server"),
        api: Api {
            name: "bench".to_owned(),
            runtime: Runtime::Docker,
            version: GODOXY_VERSION,
            supports_tcp_stream: true,
            supports_udp_stream: true,
            health: health_checks(&policy, provider).expect("clients"),
        },
        policy,
        limits: Limits { drain: Duration::from_millis(100), ..Limits::default() },
    };
    let context = ServerContext::new(server, NameRules::default()).expect("DTLS");
    let listen = "127.0.0.1:0".parse().expect("an address");
    let (tcp, udp) = bind_both(&listen, 1).expect("a port");
    let agent = Agent::new(vec![tcp], services).expect("an agent").with_datagrams(udp, &context);
    let address = *agent.local_addrs().expect("its port").first().expect("one port");
    let stop = Stop::new().expect("descriptors");
    let stopping = stop.clone();
    let at_once = Stop::new().expect("descriptors");
    let thread = threads::spawn("agent", move || agent.run(&stopping, &at_once));
    (address, stop, thread.expect("a thread"))
}

/// Sends back what comes until an empty datagram does.
fn answer(socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    loop {
        let (size, from) = socket.recv_from(&mut buffer).expect("a datagram");
        let Some(datagram) = buffer.get(..size).filter(|datagram| !datagram.is_empty()) else {
            return;
        };
        socket.send_to(datagram, from).expect("loopback");
    }
}
