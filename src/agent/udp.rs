//! Datagrams: who may have a session, what it asks for, and how it is watched.

mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::connection::Services;
use super::running::Ids;
use super::server::FLOOD_WINDOW;
use super::sources::{SourceSlot, Sources};
use super::words::{Client, bracketed, since, why_not, word};
use crate::dtls::{
    self, End, HandshakeError, Listener, Registration, ServerContext, Session, Sessions,
};
use crate::lifecycle::threads::Group;
use crate::lifecycle::{Deadline, Flood, Slot, Slots, Stop, clock, heap};
use crate::net::udp::UdpPort;
use crate::net::{self, DialError};
use crate::pki::Names;
use crate::wire::dtls::RECORD_MAX;
use crate::wire::header::{self, Request};
use stream::{Buffers, Destination, Stream};

/// The UDP side of an agent.
#[derive(Debug)]
pub(super) struct Datagrams {
    listeners: Vec<Listener>,
}

/// What all sessions share.
struct Shared {
    services: Arc<Services>,
    sessions: Slots,
    handshakes: Slots,
    per_source: Sources,
    handshakes_per_source: Sources,
    ids: Ids,
    beginning: Group,
    open: Group,
    buffers: Buffers,
    streams: AtomicU64,
}

/// The places a session holds, freed when it ends.
struct Places {
    _session: Slot,
    _source: SourceSlot,
    handshake: Option<(Slot, SourceSlot)>,
}

// One for each kind, so that none hides another.
static FULL: Flood = Flood::new("UDP sessions without a slot", 5, FLOOD_WINDOW);
static SLOW_HANDSHAKES: Flood = Flood::new("DTLS handshakes that took too long", 5, FLOOD_WINDOW);
static NO_CERTIFICATE: Flood = Flood::new("UDP clients without a certificate", 5, FLOOD_WINDOW);
static BAD_CERTIFICATES: Flood =
    Flood::new("certificates that were refused over UDP", 5, FLOOD_WINDOW);
static FAILED_HANDSHAKES: Flood = Flood::new("DTLS handshakes that failed", 5, FLOOD_WINDOW);
static BAD_HEADERS: Flood = Flood::new("bad headers of UDP streams", 5, FLOOD_WINDOW);
static NO_THREAD: Flood = Flood::new("missing threads for UDP", 1, FLOOD_WINDOW);

static FLOODS: [&Flood; 7] = [
    &FULL,
    &SLOW_HANDSHAKES,
    &NO_CERTIFICATE,
    &BAD_CERTIFICATES,
    &FAILED_HANDSHAKES,
    &BAD_HEADERS,
    &NO_THREAD,
];

impl Datagrams {
    pub(super) fn new(ports: Vec<UdpPort>, context: &ServerContext) -> Self {
        let listeners = ports.into_iter().map(|port| Listener::new(port, context.clone()));
        Self { listeners: listeners.collect() }
    }

    /// Where it listens, each address once.
    pub(super) fn local_addrs(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> =
            self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        addresses.dedup();
        addresses
    }

    /// Starts to serve, until `stop` is raised.
    pub(super) fn start(
        self,
        services: &Arc<Services>,
        ids: &Ids,
        stop: &Stop,
    ) -> io::Result<Serving> {
        let limits = &services.limits;
        let shared = Arc::new(Shared {
            services: services.clone(),
            sessions: Slots::new(limits.udp_sessions),
            handshakes: Slots::new(limits.handshakes),
            per_source: Sources::new(limits.per_source.unwrap_or(usize::MAX)),
            handshakes_per_source: Sources::new((limits.handshakes / 4).max(1)),
            ids: ids.clone(),
            beginning: Group::new(),
            open: Group::new(),
            buffers: Buffers::default(),
            streams: AtomicU64::new(0),
        });
        let workers = Group::new();
        let tables: Vec<_> = self.listeners.iter().map(Listener::sessions).collect();
        for (number, listener) in self.listeners.into_iter().enumerate() {
            let (shared, stop) = (shared.clone(), stop.clone());
            workers.spawn(&format!("udp-{number}"), move || {
                listener.run(&stop, &mut |session, registration, replaces| {
                    shared.admit(session, registration, replaces);
                });
            })?;
        }
        let (idle, stop) = (limits.udp_idle, stop.clone());
        workers.spawn("udp-janitor", move || janitor(&tables, idle, &stop))?;
        Ok(Serving { shared, workers })
    }
}

/// The threads of the UDP side.
pub(super) struct Serving {
    shared: Arc<Shared>,
    workers: Group,
}

impl Serving {
    /// Waits for all threads to end, `limit` at the most. Returns how many sessions have not.
    pub(super) fn wait(&self, limit: Duration) -> usize {
        let end = clock::now() + limit;
        let left = || end.saturating_duration_since(clock::now());
        self.workers.wait(left());
        self.shared.beginning.wait(left()) + self.shared.open.wait(left())
    }

    /// Streams carried since the start.
    pub(super) fn streams(&self) -> u64 {
        self.shared.streams.load(Ordering::Relaxed)
    }
}

/// Ends sessions through which nothing passes; before that, they hold less.
fn janitor(tables: &[Sessions], idle: Duration, stop: &Stop) {
    // Ten times within the limit, so that none lives a tenth longer than it may.
    let round = (idle / 10).clamp(Duration::from_millis(20), Duration::from_secs(5));
    while !stop.wait(round) {
        let now = clock::now();
        let rested: usize = tables.iter().map(|table| table.tidy(now, idle, round)).sum();
        if rested >= MANY {
            heap::trim();
        }
        settle(now);
    }
    settle(clock::now() + FLOOD_WINDOW);
}

/// Sessions whose memory is worth to be given back to the system: half a megabyte.
const MANY: usize = 16;

fn settle(now: Instant) {
    for flood in FLOODS.iter().chain(&dtls::FLOODS) {
        flood.settle(now);
    }
}

impl Shared {
    /// Gives a new session a thread, if there is a place for it. Does not wait.
    fn admit(self: &Arc<Self>, session: Arc<Session>, registration: Registration, replaces: bool) {
        let places = match self.places(session.peer(), replaces) {
            Ok(places) => places,
            Err(why) => {
                FULL.log(log::Level::Info, || {
                    format!("UDP session refused peer={} why={why}", canonical(session.peer()))
                });
                return;
            }
        };
        let id = self.ids.next();
        let shared = self.clone();
        let peer = session.peer();
        let started = self.beginning.spawn(&format!("agent-{id}"), move || {
            shared.serve(id, session, registration, places);
        });
        if let Err(error) = started {
            NO_THREAD.log(log::Level::Warn, || {
                format!("UDP session refused peer={peer} why=no thread can be started: {error}")
            });
        }
    }

    /// A session that replaces another may for a moment be one more than there may be: the other's
    /// places are free when its thread has seen its end.
    fn places(&self, peer: SocketAddr, replaces: bool) -> Result<Places, &'static str> {
        let ip = peer.ip();
        let busy = "too many handshakes at the same time (--max-handshakes)";
        let of_source = self.handshakes_per_source.take(ip).ok_or(busy)?;
        let handshake = self.handshakes.take().ok_or(busy)?;
        let (session, source) = if replaces {
            (self.sessions.take_over(), self.per_source.take_over(ip))
        } else {
            let session = self.sessions.take();
            let source = self.per_source.take(ip);
            (
                session.ok_or("all UDP sessions are taken (--max-udp-sessions)")?,
                source.ok_or("its source has all the sessions it may have (--max-per-source)")?,
            )
        };
        Ok(Places { _session: session, _source: source, handshake: Some((handshake, of_source)) })
    }

    /// A session from its handshake to the beginning of its stream, on its own thread.
    fn serve(
        self: Arc<Self>,
        id: u64,
        session: Arc<Session>,
        registration: Registration,
        mut places: Places,
    ) {
        let limits = &self.services.limits;
        let peer = canonical(session.peer());
        let deadline = Deadline::from("DTLS handshake", session.began(), limits.handshake);
        if let Err(error) = session.handshake(&deadline) {
            if matches!(session.end(), Some(End::Replaced | End::Stopped)) {
                log::debug!("UDP session ended id={id} peer={peer} during its handshake");
            } else {
                flood(&error).log(log::Level::Info, || match &error {
                    HandshakeError::NameNotAllowed(label) => {
                        let name = word(label.clone());
                        format!("UDP session refused id={id} peer={peer} cert={name} why={error}")
                    }
                    _ => format!("UDP session refused id={id} peer={peer} why={error}"),
                });
            }
            return;
        }
        places.handshake = None;
        let names = session.peer_certificate().and_then(|der| Names::of(&der).ok());
        let name = names.map_or_else(|| "-".to_owned(), |names| word(names.label()));
        let client = Client { id, peer, name };
        log::debug!("UDP session {client} cipher={}", session.cipher());
        if let Some(stream) = self.request(client, &session) {
            self.carry(stream, registration, places);
        } else {
            session.finish(End::Finished);
        }
    }

    /// Reads the header and reaches the destination.
    fn request(&self, client: Client, session: &Arc<Session>) -> Option<Stream> {
        let limits = &self.services.limits;
        let waiting = clock::now();
        let deadline = Deadline::from("stream header", waiting, limits.header);
        let mut early = Vec::new();
        let request = match read_header(session, &deadline, &mut early) {
            Ok(Some(Request::Stream(request))) => request,
            Ok(Some(Request::Probe)) => {
                log::debug!("UDP probe answered {client}");
                return None;
            }
            Ok(None) => {
                log::debug!("UDP session ended {client} without a header");
                return None;
            }
            Err(why) => {
                let time = since(waiting);
                BAD_HEADERS.log(log::Level::Info, || {
                    format!("UDP stream refused {client} time={time} why={why}")
                });
                return None;
            }
        };
        let destination = format!("{}:{}", bracketed(&request.host), request.port);
        let label = format!("{client} dst={destination}");
        let asked = clock::now();
        let policy = &self.services.policy;
        let dialled = policy.check_name(&request.host, request.port).map_err(|e| e.to_string());
        let dialled = dialled.and_then(|()| {
            let permit = |address| policy.permits(&request.host, address);
            let deadline = Deadline::from("dial", asked, limits.dial);
            net::dial_udp(&request.host, request.port, &permit, &deadline)
                .and_then(|socket| {
                    Destination::new(socket, &label).map_err(|e| DialError::Connect(vec![e]))
                })
                .map_err(|error| why_not(&error, &request.host, policy))
        });
        match dialled {
            Ok(destination) => {
                let dial = since(asked);
                let address = destination.address();
                log::info!("UDP stream opened {label} address={address} dial={dial}");
                self.streams.fetch_add(1, Ordering::Relaxed);
                let stream = Stream::new(client.id, session.clone(), destination);
                stream.open(early);
                Some(stream)
            }
            Err(why) => {
                let time = since(asked);
                log::info!("UDP stream refused {label} time={time} why={why}");
                None
            }
        }
    }

    /// Hands the stream to a thread whose stack never saw a handshake.
    fn carry(self: &Arc<Self>, stream: Stream, registration: Registration, places: Places) {
        let shared = self.clone();
        let stream = Arc::new(stream);
        let (id, failed) = (stream.id(), stream.clone());
        let started = self.open.spawn(&format!("agent-{id}-udp"), move || {
            stream.run(&shared.buffers);
            drop((registration, places));
        });
        if let Err(error) = started {
            failed.refuse(&error);
            NO_THREAD.log(log::Level::Warn, || format!("no thread for a UDP stream: {error}"));
        }
    }
}

/// The kind of a failed handshake.
fn flood(error: &HandshakeError) -> &'static Flood {
    match error {
        HandshakeError::Io(error) if error.kind() == io::ErrorKind::TimedOut => &SLOW_HANDSHAKES,
        HandshakeError::NoCertificate => &NO_CERTIFICATE,
        HandshakeError::Certificate(_) | HandshakeError::NameNotAllowed(_) => &BAD_CERTIFICATES,
        _ => &FAILED_HANDSHAKES,
    }
}

/// Datagrams that may arrive before the header that was sent before them.
const EARLY: usize = 16;

/// What the client asks for, `None` when it has gone. The header is a datagram of its own, told by
/// its length from others that have overtaken it: those are put into `early`.
fn read_header(
    session: &Session,
    deadline: &Deadline,
    early: &mut Vec<Box<[u8]>>,
) -> Result<Option<Request>, String> {
    let mut buffer = vec![0; RECORD_MAX];
    loop {
        let size = session.recv(&mut buffer, deadline).map_err(|error| error.to_string())?;
        let Some(size) = size else { return Ok(None) };
        let datagram = buffer.get(..size).unwrap_or_default();
        if let Some(header) = header::decode_datagram(datagram) {
            let request = header.and_then(|header| header.request());
            return request.map(Some).map_err(|error| error.to_string());
        }
        if early.len() == EARLY {
            return Err(format!(
                "{} datagrams came and none has the {} or {} bytes of a header",
                EARLY + 1,
                header::LEN,
                header::LEGACY_LEN
            ));
        }
        early.push(datagram.into());
    }
}

/// A peer's address as the log has it: an IPv4 one as such, also from a socket of both families.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
