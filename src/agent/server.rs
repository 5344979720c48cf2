//! The acceptor: one thread that polls listeners, lobby and the stop flag.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{MsgFlags, recv};

use super::connection::{self, Places, Services, serve};
use super::limits::Limits;
use super::lobby::{Lobby, Waiting};
use super::running::{Ids, Running};
use super::sources::Sources;
use super::udp::Datagrams;
use super::wake::Wake;
use crate::dtls::ServerContext;
use crate::lifecycle::threads::Group;
use crate::lifecycle::{Backoff, Flood, Slots, Stop, clock};
use crate::net::udp::UdpPort;

/// An agent whose ports are bound and that does not serve yet.
#[derive(Debug)]
pub struct Agent {
    listeners: Vec<TcpListener>,
    datagrams: Option<Datagrams>,
    services: Arc<Services>,
    running: Running,
    empty: Stop,
    wake: Arc<Wake>,
}

/// What an agent did.
#[derive(Debug)]
pub struct Summary {
    /// Streams carried, TCP and UDP.
    pub streams: u64,
    /// Streams that still ran when the drain time was over, described as in the log.
    pub cut: Vec<String>,
}

impl Agent {
    /// Takes bound listeners. Fails when no descriptor is left.
    pub fn new(listeners: Vec<TcpListener>, services: Services) -> io::Result<Self> {
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        let empty = Stop::new()?;
        Ok(Self {
            listeners,
            datagrams: None,
            services: Arc::new(services),
            running: Running::new(empty.clone()),
            empty,
            wake: Arc::new(Wake::new()?),
        })
    }

    /// Carries datagrams as well, on these sockets.
    pub fn with_datagrams(mut self, ports: Vec<UdpPort>, context: &ServerContext) -> Self {
        self.datagrams = Some(Datagrams::new(ports, context));
        self
    }

    /// The addresses that the agent listens on: which ports a 0 became.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// The same of its UDP sockets, each address once.
    pub fn udp_addrs(&self) -> Vec<SocketAddr> {
        self.datagrams.as_ref().map(Datagrams::local_addrs).unwrap_or_default()
    }

    /// Serves until `stop` is raised, lets running streams finish until the drain time is over or
    /// `at_once` is raised, and cuts the rest. Blocks meanwhile.
    pub fn run(self, stop: &Stop, at_once: &Stop) -> Summary {
        let Self { listeners, datagrams, services, running, empty, wake } = self;
        let drain = services.limits.drain;
        let threads = Threads::default();
        let ids = Ids::default();
        let udp = datagrams.and_then(|datagrams| {
            datagrams
                .start(&services, &ids, stop)
                .inspect_err(|error| log::error!("no UDP: no thread can be started: {error}"))
                .ok()
        });
        Acceptor::new(listeners, services, running.clone(), wake, threads.clone(), ids)
            .accept(stop);
        let time = humantime::format_duration(drain);
        match running.drain() {
            0 => log::info!("stopping: no stream runs"),
            1 => log::info!("stopping: 1 stream has {time} to end"),
            streams => log::info!("stopping: {streams} streams have {time} to end"),
        }
        wait_either(&empty, at_once, drain);
        let cut = running.cut();
        let limit = if at_once.is_raised() { REAP_AT_ONCE } else { REAP };
        let sessions = udp.as_ref().map_or(0, |udp| udp.wait(limit));
        let left = threads.relays.wait(limit) + threads.handshakes.wait(limit) + sessions;
        // There is no later moment for what is not due yet.
        settle(clock::now() + FLOOD_WINDOW);
        if left > 0 {
            log::warn!("{left} connections were still dialling or closing when the agent ended");
        }
        let datagrams = udp.map_or(0, |udp| udp.streams());
        Summary { streams: running.streams() + datagrams, cut }
    }
}

/// How long threads may take to end after their connections were cut.
const REAP: Duration = Duration::from_secs(2);

/// The same when somebody wants it over at once: long enough to log what was cut.
const REAP_AT_ONCE: Duration = Duration::from_millis(100);

/// The threads of an agent. Handshakes go deep into their stacks and relays do not: kept apart, an
/// idle stream never sits on a stack that a handshake made resident.
#[derive(Clone, Debug, Default)]
struct Threads {
    handshakes: Group,
    relays: Group,
}

struct Acceptor {
    listeners: Vec<TcpListener>,
    lobby: Lobby,
    places: PlaceTable,
    services: Arc<Services>,
    running: Running,
    wake: Arc<Wake>,
    threads: Threads,
    ids: Ids,
    backoff: Backoff,
    /// Accepting failed for want of something; not before this moment again.
    not_before: Option<Instant>,
    /// When to see whether a flood of lines is over.
    settle_at: Option<Instant>,
    /// Given up when descriptors run out, so that the connection that could not be accepted can
    /// be, and be refused visibly, instead of hanging in the backlog.
    spare: Option<EventFd>,
}

struct PlaceTable {
    connections: Slots,
    handshakes: Slots,
    sources: Sources,
    handshakes_per_source: Sources,
}

// One for each kind, so that none hides another.
static CROWDED: Flood = Flood::new("connections that made room in the lobby", 5, FLOOD_WINDOW);
static SILENT: Flood = Flood::new("connections that waited too long", 5, FLOOD_WINDOW);
static GONE: Flood = Flood::new("peers that left without a byte", 5, FLOOD_WINDOW);
static FULL: Flood = Flood::new("connections without a slot", 5, FLOOD_WINDOW);
static BUSY_SOURCE: Flood = Flood::new("sources with too many connections", 5, FLOOD_WINDOW);
static NO_POLL: Flood = Flood::new("polls that failed", 1, FLOOD_WINDOW);
static NO_DESCRIPTOR: Flood = Flood::new("missing file descriptors", 1, FLOOD_WINDOW);
static NO_MEMORY: Flood = Flood::new("missing memory", 1, FLOOD_WINDOW);
static NO_THREAD: Flood = Flood::new("missing threads", 1, FLOOD_WINDOW);

static FLOODS: [&Flood; 9] = [
    &CROWDED,
    &SILENT,
    &GONE,
    &FULL,
    &BUSY_SOURCE,
    &NO_POLL,
    &NO_DESCRIPTOR,
    &NO_MEMORY,
    &NO_THREAD,
];

impl Acceptor {
    fn new(
        listeners: Vec<TcpListener>,
        services: Arc<Services>,
        running: Running,
        wake: Arc<Wake>,
        threads: Threads,
        ids: Ids,
    ) -> Self {
        let limits = &services.limits;
        Self {
            listeners,
            lobby: Lobby::new(lobby_size(limits), limits.handshake),
            places: PlaceTable {
                connections: Slots::new(limits.connections),
                handshakes: Slots::new(limits.handshakes),
                sources: Sources::new(limits.per_source.unwrap_or(usize::MAX)),
                handshakes_per_source: Sources::new((limits.handshakes / 4).max(1)),
            },
            services,
            running,
            wake,
            threads,
            ids,
            backoff: Backoff::new(Duration::from_millis(10), Duration::from_secs(1)),
            not_before: None,
            settle_at: None,
            spare: spare(),
        }
    }

    fn accept(&mut self, stop: &Stop) {
        loop {
            let ready = match self.poll(stop) {
                Ok(ready) => ready,
                Err(error) => {
                    // Out of memory in the kernel, or a bug: do not spin on it.
                    NO_POLL.log(log::Level::Error, || format!("cannot poll: {error}"));
                    if stop.wait(self.backoff.failed()) {
                        return;
                    }
                    continue;
                }
            };
            if stop.is_raised() {
                return;
            }
            self.lobby.mark_ready(ready.silent.into_iter());
            self.wake.clear();
            for (index, _) in ready.listeners.iter().enumerate().filter(|(_, ready)| **ready) {
                self.accept_from(index);
            }
            self.admit();
            for waiting in self.lobby.expire(clock::now()) {
                SILENT.log(log::Level::Info, || {
                    let limit = humantime::format_duration(self.services.limits.handshake);
                    let why = if waiting.ready {
                        "no handshake slot was free"
                    } else {
                        "it sent nothing"
                    };
                    format!("connection refused peer={} why={why} within {limit}", waiting.peer)
                });
            }
            // A thread may leave a line out while we wait. Asked first: one that ends after this
            // has left its line out before.
            let busy = (self.threads.handshakes.running() > 0).then(|| clock::now() + FLOOD_WINDOW);
            self.settle_at = settle(clock::now()).into_iter().chain(busy).min();
        }
    }

    /// Waits for something to do.
    fn poll(&self, stop: &Stop) -> io::Result<Ready> {
        let now = clock::now();
        let paused = self.not_before.is_some_and(|moment| moment > now);
        let listeners: &[TcpListener] = if paused { &[] } else { &self.listeners };
        let watched = [stop.as_fd(), self.wake.as_fd()]
            .into_iter()
            .chain(listeners.iter().map(AsFd::as_fd))
            .chain(self.lobby.silent().map(|w| w.socket.as_fd()));
        let mut fds: Vec<PollFd<'_>> =
            watched.map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let wake_at =
            [self.lobby.next_expiry(), self.not_before.filter(|_| paused), self.settle_at];
        let timeout = match wake_at.into_iter().flatten().min() {
            // Rounded up, or the last millisecond would spin.
            Some(at) => {
                let left = at.saturating_duration_since(now) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut flags =
            fds.iter().skip(2).map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        let listeners = flags.by_ref().take(listeners.len()).collect();
        Ok(Ready { listeners, silent: flags.collect() })
    }

    /// Accepts what waits at one listener.
    fn accept_from(&mut self, index: usize) {
        for _ in 0..ACCEPT_BATCH {
            let Some(listener) = self.listeners.get(index) else { return };
            match listener.accept() {
                Ok((socket, peer)) => {
                    self.backoff.succeeded();
                    self.not_before = None;
                    self.enter(socket, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EMFILE | Errno::ENFILE) => {
                        self.refuse_without_descriptor(index, &error);
                        return;
                    }
                    Some(Errno::ENOBUFS | Errno::ENOMEM) => {
                        self.exhausted(&NO_MEMORY, "no memory for connections", &error);
                        return;
                    }
                    // The peer went away again, or a network error of that one connection
                    // (accept(2), "Error handling").
                    _ => log::debug!("a connection broke before it was accepted: {error}"),
                },
            }
        }
    }

    fn enter(&mut self, socket: TcpStream, peer: SocketAddr) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        if self.running.is_draining() {
            return;
        }
        if let Some(left) = self.lobby.enter(socket, peer, clock::now()) {
            CROWDED.log(log::Level::Info, || {
                format!(
                    "connection refused peer={} why=too many connections wait silently",
                    left.peer
                )
            });
        }
    }

    /// Gives every connection that has spoken and has a place a thread.
    fn admit(&mut self) {
        self.wake.want(true);
        let places = &self.places;
        let admitted = self.lobby.admit(|ip| {
            let handshakes_of_source = places.handshakes_per_source.take(ip).ok_or(true)?;
            let handshake = places.handshakes.take().ok_or(false)?;
            Ok((handshake, handshakes_of_source))
        });
        if !self.lobby.has_ready() {
            self.wake.want(false);
        }
        for (waiting, handshake) in admitted {
            if is_gone(&waiting.socket) {
                self.refuse(&waiting, &GONE, "the peer closed the connection without a byte");
                continue;
            }
            let Some(connection) = self.places.connections.take() else {
                self.refuse(&waiting, &FULL, "all connection slots are taken (--max-connections)");
                continue;
            };
            let Some(source) = self.places.sources.take(waiting.peer.ip()) else {
                self.refuse(
                    &waiting,
                    &BUSY_SOURCE,
                    "its source has all the connections it may have (--max-per-source)",
                );
                continue;
            };
            self.start(waiting, Places::new(connection, source, handshake, self.wake.clone()));
        }
    }

    fn start(&mut self, waiting: Waiting, places: Places) {
        let id = self.ids.next();
        let (services, running, relays) =
            (self.services.clone(), self.running.clone(), self.threads.relays.clone());
        let peer = waiting.peer;
        let started = self.threads.handshakes.spawn(&format!("agent-{id}"), move || {
            serve(id, waiting, places, &services, &running, &relays);
        });
        if let Err(error) = started {
            NO_THREAD.log(log::Level::Warn, || {
                format!("connection refused peer={peer} why=no thread can be started: {error}")
            });
        }
    }

    /// The connection was given a handshake's place and gets no other: it leaves, and someone else
    /// may have that place.
    fn refuse(&self, waiting: &Waiting, flood: &Flood, why: &str) {
        reset(&waiting.socket);
        flood.log(log::Level::Info, || {
            format!("connection refused peer={} why={why}", waiting.peer)
        });
        self.wake.wake();
    }

    /// Uses the spare descriptor to take connections out of the backlog, one after the other, and
    /// refuse them.
    fn refuse_without_descriptor(&mut self, index: usize, error: &io::Error) {
        const WHAT: &str = "connections are refused: no file descriptor is left (LimitNOFILE)";
        self.spare = None;
        let mut taken = Ok(());
        for _ in 0..ACCEPT_BATCH {
            match self.listeners.get(index).map(TcpListener::accept) {
                Some(Ok((socket, peer))) => {
                    reset(&socket);
                    log::debug!("connection refused peer={peer} why={error}");
                }
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    taken = Err(error);
                    break;
                }
                _ => break,
            }
        }
        self.spare = spare();
        match taken {
            Ok(()) => NO_DESCRIPTOR.log(log::Level::Warn, || format!("{WHAT}: {error}")),
            // Another thread has taken the spare one's place: not even refusing works for now.
            Err(error) => self.exhausted(&NO_DESCRIPTOR, WHAT, &error),
        }
    }

    fn exhausted(&mut self, flood: &Flood, what: &str, error: &io::Error) {
        flood.log(log::Level::Warn, || format!("{what}: {error}"));
        self.not_before = Some(clock::now() + self.backoff.failed());
    }
}

/// Tells what floods have left out. Returns when the next one is due.
fn settle(now: Instant) -> Option<Instant> {
    FLOODS.iter().chain(&connection::FLOODS).filter_map(|flood| flood.settle(now)).min()
}

struct Ready {
    listeners: Vec<bool>,
    silent: Vec<bool>,
}

/// Whether a connection that was reported as ready has ended and not spoken: no thread for that.
fn is_gone(socket: &TcpStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [0; 1], flags) {
        Ok(size) => size == 0,
        Err(error) => error != Errno::EAGAIN,
    }
}

fn reset(socket: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        log::trace!("refusing a connection that is gone: {error}");
    }
}

/// Who waits silently never has more than a quarter of the descriptors, so that streams find some.
fn lobby_size(limits: &Limits) -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let quarter = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
    LOBBY.min(limits.connections).min(quarter).max(1)
}

fn spare() -> Option<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok()
}

/// Waits until one of the two is raised, `limit` at the most.
fn wait_either(one: &Stop, other: &Stop, limit: Duration) {
    let end = clock::now() + limit;
    while !one.is_raised() && !other.is_raised() {
        let left = end.saturating_duration_since(clock::now());
        if left.is_zero() {
            return;
        }
        let mut fds = [one.as_fd(), other.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let timeout =
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        if let Err(error) = poll(&mut fds, timeout)
            && error != Errno::EINTR
        {
            log::error!("cannot wait for running streams: {error}");
            return;
        }
    }
}

/// Connections that may wait for their first bytes. At a flood of 10,000 connections a second it
/// still gives each a tenth of a second to speak.
const LOBBY: usize = 1024;

/// The time in which a [`Flood`] lets its few lines through: an operator who follows the log can
/// read them.
pub(super) const FLOOD_WINDOW: Duration = Duration::from_secs(10);

/// Connections accepted from one listener before the others have their turn.
const ACCEPT_BATCH: usize = 64;
