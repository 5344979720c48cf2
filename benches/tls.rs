//! What each compiled-in crypto provider makes of TLS 1.3: handshakes with certificates at both
//! ends, resumed handshakes, and records. In memory, without sockets.
//!
//! `cargo bench --bench tls --features aws-lc-rs,ring,rustls-openssl` compares all three.
//! What `AWS_LC_SYS_NO_JITTER_ENTROPY` spares (see `.cargo/config.toml`) does not show here: it
//! is paid once in a process, before the first random number.
#![expect(clippy::expect_used, reason = "a benchmark says what it expects by panicking")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use adit::lifecycle::clock;
use adit::pki::{Authority, Identity, NameRules, Purpose, Request, Validity, provider};
use adit::tls::{self, ClientAuth, SERVER_NAME};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, Connection, HandshakeKind, NamedGroup,
    ServerConfig, ServerConnection,
};

/// New connections with X25519, which every provider has.
fn full(c: &mut Criterion) {
    let mut group = c.benchmark_group("tls_full");
    group.throughput(Throughput::Elements(1));
    for (name, provider) in provider::all() {
        let ends = Ends::new(name, with_group(&provider, NamedGroup::X25519)).forgetful();
        ends.check(HandshakeKind::Full);
        group.bench_function(name, |b| b.iter(|| black_box(ends.handshake())));
    }
    group.finish();
}

/// The share of the server in `full`.
fn full_server(c: &mut Criterion) {
    let mut group = c.benchmark_group("tls_full_server");
    group.throughput(Throughput::Elements(1));
    for (name, provider) in provider::all() {
        let ends = Ends::new(name, with_group(&provider, NamedGroup::X25519)).forgetful();
        group.bench_function(name, |b| {
            b.iter_custom(|times| (0..times).map(|_| ends.handshake().in_server).sum());
        });
    }
    group.finish();
}

/// As `full`, with the hybrid post-quantum key exchange, for the providers that have it.
fn full_hybrid(c: &mut Criterion) {
    let mut group = c.benchmark_group("tls_full_x25519mlkem768");
    group.throughput(Throughput::Elements(1));
    for (name, provider) in provider::all() {
        let provider = with_group(&provider, NamedGroup::X25519MLKEM768);
        if provider.kx_groups.is_empty() {
            continue;
        }
        let ends = Ends::new(name, provider).forgetful();
        ends.check(HandshakeKind::Full);
        group.bench_function(name, |b| b.iter(|| black_box(ends.handshake())));
    }
    group.finish();
}

/// Reconnecting with the ticket of the connection before.
fn resumed(c: &mut Criterion) {
    let mut group = c.benchmark_group("tls_resumed");
    group.throughput(Throughput::Elements(1));
    for (name, provider) in provider::all() {
        let ends = Ends::new(name, with_group(&provider, NamedGroup::X25519));
        ends.check(HandshakeKind::Full);
        ends.check(HandshakeKind::Resumed);
        group.bench_function(name, |b| b.iter(|| black_box(ends.handshake())));
        ends.check(HandshakeKind::Resumed);
    }
    group.finish();
}

/// One mebibyte sealed by the server and opened by the client.
fn bulk(c: &mut Criterion) {
    let suites = [
        ("tls_bulk_aes128", CipherSuite::TLS13_AES_128_GCM_SHA256),
        ("tls_bulk_aes256", CipherSuite::TLS13_AES_256_GCM_SHA384),
        ("tls_bulk_chacha20", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    ];
    let data = vec![7; MEBIBYTE];
    for (title, suite) in suites {
        let mut group = c.benchmark_group(title);
        group.throughput(Throughput::Bytes(MEBIBYTE as u64));
        for (name, mut provider) in provider::all() {
            provider.cipher_suites.retain(|offered| offered.suite() == suite);
            let mut pair = Ends::new(name, provider).handshake();
            assert_eq!(pair.client.negotiated_cipher_suite().map(|used| used.suite()), Some(suite));
            let (mut wire, mut plain) = (Vec::new(), vec![0; MEBIBYTE]);
            pair.carry(&data, &mut wire, &mut plain);
            assert!(plain == data, "{name} must deliver what was sent");
            group.bench_function(name, |b| b.iter(|| pair.carry(&data, &mut wire, &mut plain)));
        }
        group.finish();
    }
}

criterion_group!(benches, full, full_server, full_hybrid, resumed, bulk);
criterion_main!(benches);

const MEBIBYTE: usize = 1 << 20;

/// The same provider with only this key exchange; with none if it does not have it.
fn with_group(provider: &CryptoProvider, group: NamedGroup) -> CryptoProvider {
    let mut provider = provider.clone();
    provider.kx_groups.retain(|offered| offered.name() == group);
    provider
}

/// The configurations of both ends.
struct Ends {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Ends {
    fn new(name: &str, provider: CryptoProvider) -> Self {
        let validity = Validity::days(clock::wall(), 1);
        let authority = Authority::create("bench", validity).expect("a CA");
        let identity = |purpose, name: &str| -> Identity {
            let request = Request { purpose, names: vec![name.to_owned()], validity };
            authority.identity(&request).expect("a certificate")
        };
        let provider = Arc::new(provider);
        let clients = ClientAuth::Required(NameRules::default());
        let server = identity(Purpose::Server, SERVER_NAME);
        let server = tls::server(&server, clients, &[], provider.clone()).expect("a server");
        let client = identity(Purpose::Client, "client");
        let client = tls::client(&client, &[], provider).expect("a client");
        Self {
            server: with_own_tickets(&server, name),
            client,
            name: ServerName::try_from(SERVER_NAME).expect("a name"),
        }
    }

    /// With a client that does not remember its sessions.
    fn forgetful(mut self) -> Self {
        Arc::make_mut(&mut self.client).resumption = Resumption::disabled();
        self
    }

    fn check(&self, kind: HandshakeKind) {
        assert_eq!(self.handshake().server.handshake_kind(), Some(kind));
    }

    /// A handshake up to the moment when the client has its ticket.
    fn handshake(&self) -> Pair {
        let client = ClientConnection::new(self.client.clone(), self.name.clone());
        let server = ServerConnection::new(self.server.clone());
        let mut pair = Pair {
            client: client.expect("a client").into(),
            server: server.expect("a server").into(),
            in_server: Duration::ZERO,
        };
        let mut wire = Vec::with_capacity(8 * 1024);
        while pair.client.wants_write() || pair.server.wants_write() {
            send(&mut pair.client, &mut wire);
            let start = clock::now();
            receive(&mut pair.server, &mut wire);
            send(&mut pair.server, &mut wire);
            pair.in_server += start.elapsed();
            receive(&mut pair.client, &mut wire);
        }
        assert!(!pair.client.is_handshaking() && !pair.server.is_handshaking());
        pair
    }
}

/// The tickets that `tls::server` would give out if this provider were the only one.
fn with_own_tickets(config: &ServerConfig, name: &str) -> Arc<ServerConfig> {
    let mut config = config.clone();
    match name {
        #[cfg(feature = "aws-lc-rs")]
        "aws-lc-rs" => config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("keys"),
        #[cfg(feature = "ring")]
        "ring" => config.ticketer = rustls::crypto::ring::Ticketer::new().expect("keys"),
        // It has none of its own: the server remembers the sessions.
        _ => {
            config.ticketer = Arc::new(NoTickets);
            config.session_storage = ServerSessionMemoryCache::new(256);
            return Arc::new(config);
        }
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }
    fn lifetime(&self) -> u32 {
        0
    }
    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// Both ends of a connection.
struct Pair {
    client: Connection,
    server: Connection,
    /// The time that the server's side of the handshake took.
    in_server: Duration,
}

impl Pair {
    /// Carries `data` from the server to the client, in pieces of what rustls buffers.
    fn carry(&mut self, data: &[u8], wire: &mut Vec<u8>, plain: &mut [u8]) {
        let mut filled = 0;
        for piece in data.chunks(PIECE) {
            self.server.writer().write_all(piece).expect("it fits");
            send(&mut self.server, wire);
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).expect("memory");
                self.client.process_new_packets().expect("good records");
                let space = plain.get_mut(filled..).unwrap_or_default();
                match self.client.reader().read(space) {
                    Ok(size) => filled += size,
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
            wire.clear();
        }
        assert_eq!(filled, data.len());
    }
}

/// What the relay encrypts in one go, and no more than rustls buffers.
const PIECE: usize = 64 * 1024;

fn send(from: &mut Connection, wire: &mut Vec<u8>) {
    while from.wants_write() {
        from.write_tls(wire).expect("memory");
    }
}

fn receive(to: &mut Connection, wire: &mut Vec<u8>) {
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).expect("memory");
        to.process_new_packets().expect("the peer speaks TLS");
    }
    wire.clear();
}
