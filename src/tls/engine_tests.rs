//! The engine against rustls's own buffered connection, on bytes cut at any point.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::engine::{Engine, Outgoing, Progress};
use super::{ClientAuth, SERVER_NAME, client, provider, server};
use crate::lifecycle::clock;
use crate::pki::{Authority, Identity, NameRules, Purpose, Request, Validity};

/// One end: the engine, with its input held twice as the two halves of a stream hold it.
struct Ours {
    engine: Engine,
    raw: Vec<u8>,
    held: Vec<u8>,
    plain: Vec<u8>,
    open: bool,
    sent: Vec<u8>,
}

impl Ours {
    fn new(engine: Engine) -> Self {
        Self { engine, raw: vec![], held: vec![], plain: vec![], open: false, sent: vec![] }
    }

    /// Takes bytes from the peer, as the reading half does.
    fn receive(&mut self, bytes: &[u8], to_peer: &mut VecDeque<u8>) {
        self.raw.extend_from_slice(bytes);
        let mut out = Outgoing::new();
        let (done, progress) = self.engine.receive(&mut self.raw, &mut self.plain, &mut out);
        self.open = progress.unwrap() == Progress::Open;
        self.raw.drain(..done);
        self.held = self.raw.clone();
        to_peer.extend(out.bytes());
    }

    /// Sends, as the writing half does: it knows the held bytes only.
    fn send(&mut self, data: &[u8], to_peer: &mut VecDeque<u8>) {
        let mut out = Outgoing::new();
        self.engine.encrypt(&mut self.held, data, &mut out).unwrap();
        self.sent.extend_from_slice(data);
        to_peer.extend(out.bytes());
    }

    /// As the writing half does: only while nothing is held.
    fn update_keys(&mut self, to_peer: &mut VecDeque<u8>) {
        if !self.held.is_empty() {
            return;
        }
        let mut out = Outgoing::new();
        self.engine.update_keys(&mut self.held, &mut out).unwrap();
        to_peer.extend(out.bytes());
    }
}

/// The other end.
struct Theirs {
    connection: Connection,
    plain: Vec<u8>,
    sent: Vec<u8>,
}

impl Theirs {
    fn exchange(
        &mut self,
        from: &mut VecDeque<u8>,
        to: &mut VecDeque<u8>,
    ) -> Result<(), rustls::Error> {
        while !from.is_empty() {
            self.connection.read_tls(from).unwrap();
            self.connection.process_new_packets()?;
            let mut buffer = [0; 4096];
            while let Ok(size @ 1..) = self.connection.reader().read(&mut buffer) {
                self.plain.extend_from_slice(&buffer[..size]);
            }
        }
        while self.connection.wants_write() {
            self.connection.write_tls(to).unwrap();
        }
        Ok(())
    }

    fn send(&mut self, data: &[u8], to: &mut VecDeque<u8>) {
        self.connection.writer().write_all(data).unwrap();
        self.sent.extend_from_slice(data);
        while self.connection.wants_write() {
            self.connection.write_tls(to).unwrap();
        }
    }
}

/// What happens after a piece of input.
#[derive(Clone, Debug)]
enum Act {
    Nothing,
    WeSend(usize),
    TheySend(usize),
    WeUpdateKeys,
    TheyUpdateKeys,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => Just(Act::Nothing),
        3 => (1..40_000usize).prop_map(Act::WeSend),
        3 => (1..40_000usize).prop_map(Act::TheySend),
        1 => Just(Act::WeUpdateKeys),
        1 => Just(Act::TheyUpdateKeys),
    ]
}

/// Short pieces for what splits headers, long ones to get on.
fn piece() -> impl Strategy<Value = usize> {
    prop_oneof![1..8usize, 1..600usize, 1..20_000usize]
}

struct Identities {
    server: Identity,
    client: Identity,
}

static IDENTITIES: LazyLock<Identities> = LazyLock::new(|| {
    let validity = Validity::days(clock::wall(), 2);
    let authority = Authority::create("engine", validity).unwrap();
    let issue = |purpose| {
        let request = Request { purpose, names: vec![SERVER_NAME.to_owned()], validity };
        authority.identity(&request).unwrap()
    };
    Identities { server: issue(Purpose::Server), client: issue(Purpose::Client) }
});

fn configs() -> (ServerConfig, ClientConfig) {
    let auth = ClientAuth::Required(NameRules::new(&[]).unwrap());
    let server = server(&IDENTITIES.server, auth, &[], provider::default()).unwrap();
    let client = client(&IDENTITIES.client, &[], provider::default()).unwrap();
    (ServerConfig::clone(&server), ClientConfig::clone(&client))
}

/// The engine as a client or a server, and a peer that splits all it sends, handshake messages
/// after the handshake (tickets, which hold our certificate) among them, into small records.
fn ends(as_client: bool, tls13: bool, fragment: usize) -> (Ours, Theirs) {
    let (mut server, mut client) = configs();
    let name = SERVER_NAME.try_into().unwrap();
    let version = if tls13 { &TLS13 } else { &TLS12 };
    let fragment = Some(fragment);
    let mut limited = ClientConfig::builder_with_provider(provider::default())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier())
        .with_client_auth_cert(IDENTITIES.client.chain.clone(), IDENTITIES.client.key.clone_key())
        .unwrap();
    limited.resumption = client.resumption.clone();
    client = limited;
    let (ours, theirs) = if as_client {
        server.max_fragment_size = fragment;
        server.send_tls13_tickets = 4;
        let ours = UnbufferedClientConnection::new(Arc::new(client), name).unwrap();
        let theirs = ServerConnection::new(Arc::new(server)).unwrap();
        (Engine::client(ours), Connection::Server(theirs))
    } else {
        client.max_fragment_size = fragment;
        let ours = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
        let theirs = ClientConnection::new(Arc::new(client), name).unwrap();
        (Engine::server(ours), Connection::Client(theirs))
    };
    (Ours::new(ours), Theirs { connection: theirs, plain: vec![], sent: vec![] })
}

fn verifier() -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
    let roots = super::config::roots(&IDENTITIES.client).unwrap();
    rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider::default())
        .build()
        .unwrap()
}

fn data(seed: usize, size: usize) -> Vec<u8> {
    (0..size).map(|n| ((seed * 7919 + n * 31 + n / 251) % 256) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is wrong, it is one error and at most one alert.
    #[test]
    fn damaged_bytes_are_an_error_once(
        as_client: bool,
        tls13: bool,
        damage in prop::collection::vec((0..6_000usize, 1u8..), 1..4),
        piece in piece(),
    ) {
        let (mut ours, mut theirs) = ends(as_client, tls13, 600);
        let (mut to_us, mut to_them) = (VecDeque::new(), VecDeque::new());
        ours.receive(&[], &mut to_them);
        let mut seen = 0;
        while seen < 12_000 {
            // What we answer to damaged bytes may be wrong for them.
            if theirs.exchange(&mut to_them, &mut to_us).is_err() {
                break;
            }
            if !theirs.connection.is_handshaking() {
                theirs.send(&data(1, 6_000), &mut to_us);
            }
            let mut part: Vec<u8> = to_us.drain(..piece.min(to_us.len())).collect();
            for (at, flip) in &damage {
                if let Some(byte) = at.checked_sub(seen).and_then(|at| part.get_mut(at)) {
                    *byte ^= flip;
                }
            }
            seen += part.len();
            ours.raw.extend_from_slice(&part);
            let mut out = Outgoing::new();
            let (done, progress) = ours.engine.receive(&mut ours.raw, &mut ours.plain, &mut out);
            // Or a damaged length has us wait for bytes that nobody will send.
            if progress.is_err() || part.is_empty() {
                break;
            }
            ours.raw.drain(..done);
            to_them.extend(out.bytes());
        }
    }

    #[test]
    fn nothing_is_lost_wherever_the_bytes_are_cut(
        as_client: bool,
        tls13: bool,
        fragment in prop_oneof![Just(32usize), 32..16_000usize],
        steps in prop::collection::vec((piece(), act()), 1..120),
    ) {
        let (mut ours, mut theirs) = ends(as_client, tls13, fragment);
        let (mut to_us, mut to_them) = (VecDeque::new(), VecDeque::new());
        ours.receive(&[], &mut to_them);
        theirs.exchange(&mut to_them, &mut to_us).unwrap();
        let finish = std::iter::repeat((usize::MAX, Act::Nothing));
        for (at, (piece, act)) in steps.into_iter().chain(finish.take(8)).enumerate() {
            let part: Vec<u8> = to_us.drain(..piece.min(to_us.len())).collect();
            ours.receive(&part, &mut to_them);
            theirs.exchange(&mut to_them, &mut to_us).unwrap();
            match act {
                Act::WeSend(size) if ours.open => ours.send(&data(at, size), &mut to_them),
                Act::WeUpdateKeys if ours.open && tls13 => ours.update_keys(&mut to_them),
                Act::TheySend(size) if !theirs.connection.is_handshaking() => {
                    theirs.send(&data(at, size), &mut to_us);
                }
                Act::TheyUpdateKeys if !theirs.connection.is_handshaking() && tls13 => {
                    theirs.connection.refresh_traffic_keys().unwrap();
                }
                _ => {}
            }
            theirs.exchange(&mut to_them, &mut to_us).unwrap();
        }
        prop_assert!(ours.open && !theirs.connection.is_handshaking());
        prop_assert!(to_us.is_empty() && ours.raw.is_empty());
        prop_assert!(ours.plain == theirs.sent, "what they sent");
        prop_assert!(theirs.plain == ours.sent, "what we sent");
    }
}
