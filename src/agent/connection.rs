//! One connection from its first byte: handshake, ALPN, and what ALPN chose.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;

use super::api::Api;
use super::limits::Limits;
use super::lobby::Waiting;
use super::policy::Policy;
use super::running::{Entry, Running};
use super::server::FLOOD_WINDOW;
use super::sources::SourceSlot;
use super::wake::Wake;
use super::words::{Client, bracketed, since, why_not, word};
use crate::http;
use crate::lifecycle::threads::Group;
use crate::lifecycle::{Deadline, Flood, Slot, clock};
use crate::net::{self, Conn};
use crate::pki::Names;
use crate::relay::{End, Ended, Relay};
use crate::tls::{self, HandshakeError, TlsStream};
use crate::wire;

/// What an agent offers and to whom.
pub struct Services {
    /// The TLS side, made by [`tls::server`] with [`Services::ALPN`].
    pub tls: Arc<ServerConfig>,
    /// Which destinations streams may have.
    pub policy: Arc<Policy>,
    /// The HTTP API.
    pub api: Api,
    /// Sizes and times.
    pub limits: Limits,
}

impl Services {
    /// The protocols that an agent offers: the HTTP API and streams.
    pub const ALPN: [&'static [u8]; 2] = [wire::header::ALPN, b"http/1.1"];
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The places a connection holds, freed when it ends.
#[derive(Debug)]
pub(super) struct Places {
    _connection: Slot,
    _source: SourceSlot,
    handshake: Option<(Slot, SourceSlot)>,
    wake: Arc<Wake>,
}

impl Places {
    pub(super) fn new(
        connection: Slot,
        source: SourceSlot,
        handshake: (Slot, SourceSlot),
        wake: Arc<Wake>,
    ) -> Self {
        Self { _connection: connection, _source: source, handshake: Some(handshake), wake }
    }

    /// The handshake is over: another may begin.
    fn handshake_over(&mut self) {
        self.handshake = None;
        self.wake.wake();
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if self.handshake.is_some() {
            self.handshake_over();
        }
    }
}

// One for each kind, so that none hides another: a scanner must not silence the line that tells an
// operator of an expired certificate.
static NOT_TLS: Flood = Flood::new("peers that do not speak TLS", 5, FLOOD_WINDOW);
static SLOW_HANDSHAKES: Flood = Flood::new("handshakes that took too long", 5, FLOOD_WINDOW);
static BROKEN_HANDSHAKES: Flood = Flood::new("handshakes that broke", 5, FLOOD_WINDOW);
static NO_CERTIFICATE: Flood = Flood::new("clients without a certificate", 5, FLOOD_WINDOW);
static BAD_CERTIFICATES: Flood = Flood::new("certificates that were refused", 5, FLOOD_WINDOW);
static FAILED_HANDSHAKES: Flood = Flood::new("handshakes that failed", 5, FLOOD_WINDOW);
static BAD_HEADERS: Flood = Flood::new("bad stream headers", 5, FLOOD_WINDOW);
static NO_THREAD: Flood = Flood::new("missing threads", 1, FLOOD_WINDOW);

pub(super) static FLOODS: [&Flood; 8] = [
    &NOT_TLS,
    &SLOW_HANDSHAKES,
    &BROKEN_HANDSHAKES,
    &NO_CERTIFICATE,
    &BAD_CERTIFICATES,
    &FAILED_HANDSHAKES,
    &BAD_HEADERS,
    &NO_THREAD,
];

/// Serves one connection, or hands it to the threads of its stream.
pub(super) fn serve(
    id: u64,
    waiting: Waiting,
    mut places: Places,
    services: &Services,
    running: &Running,
    relays: &Group,
) {
    let Waiting { socket, peer, since, .. } = waiting;
    let limits = &services.limits;
    // Accepted sockets do not inherit non-blocking mode on Linux; elsewhere they may.
    if let Err(error) = socket.set_nonblocking(false).and_then(|()| net::tune(&socket)) {
        log::debug!("connection ended id={id} peer={peer} why={error}");
        return;
    }
    let conn = Conn::new(socket);
    let entry = running.enter(id, conn.clone());
    let deadline = Deadline::from("TLS handshake", since, limits.handshake);
    let stream = match tls::accept(conn, services.tls.clone(), deadline) {
        Ok(stream) => stream,
        Err(error) => {
            flood(&error).log(log::Level::Info, || match &error {
                HandshakeError::NameNotAllowed(label) => {
                    let name = word(label.clone());
                    format!("connection refused id={id} peer={peer} cert={name} why={error}")
                }
                _ => format!("connection refused id={id} peer={peer} why={error}"),
            });
            return;
        }
    };
    places.handshake_over();
    let name = match client_name(&stream, clock::wall()) {
        Ok(name) => name,
        Err(why) => {
            log::info!("connection refused id={id} peer={peer} why={why}");
            stream.conn().abort();
            return;
        }
    };
    let client = Client { id, peer, name };
    log::debug!(
        "connection {client} tls={:?} resumed={}",
        stream.description(),
        stream.is_resumed()
    );
    if stream.alpn().as_deref() == Some(wire::header::ALPN) {
        open_stream(client, stream, places, entry, services, relays);
    } else {
        serve_api(&client, stream, services, running);
    }
}

/// The kind of a failed handshake.
fn flood(error: &HandshakeError) -> &'static Flood {
    match error {
        error if error.is_not_tls() => &NOT_TLS,
        HandshakeError::Io(error) if error.kind() == io::ErrorKind::TimedOut => &SLOW_HANDSHAKES,
        HandshakeError::Io(_) => &BROKEN_HANDSHAKES,
        HandshakeError::Tls(rustls::Error::NoCertificatesPresented) => &NO_CERTIFICATE,
        HandshakeError::Tls(rustls::Error::InvalidCertificate(_))
        | HandshakeError::NameNotAllowed(_) => &BAD_CERTIFICATES,
        HandshakeError::Tls(_) => &FAILED_HANDSHAKES,
    }
}

/// The name on the certificate that the client showed.
///
/// Its validity is looked at again here, because a resumed session skips the verifier and may be
/// younger than the certificate's end by less than a ticket's life.
fn client_name(stream: &TlsStream, now: SystemTime) -> Result<String, String> {
    let Some(certificate) = stream.peer_certificate() else { return Ok("-".to_owned()) };
    let names = Names::of(&certificate)
        .map_err(|error| format!("the client's certificate cannot be read: {error}"))?;
    if names.not_after < now {
        return Err(format!("the certificate of {} has expired", names.label()));
    }
    Ok(word(names.label()))
}

/// Answers API requests on one connection.
fn serve_api(client: &Client, mut stream: TlsStream, services: &Services, running: &Running) {
    let served = http::serve(
        &mut stream,
        &http::Limits::default(),
        &|| running.is_draining(),
        &mut |request| services.api.answer(request),
    );
    match served {
        Ok(served) => log::debug!("API connection ended {client} {served:?}"),
        Err(error) => log::debug!("API connection ended {client} why={error}"),
    }
    stream.close(CLOSE);
}

/// Reads the header, dials, and starts the relay's threads.
fn open_stream(
    client: Client,
    mut stream: TlsStream,
    places: Places,
    entry: Entry,
    services: &Services,
    relays: &Group,
) {
    let limits = &services.limits;
    let waiting = clock::now();
    let deadline = Deadline::from("stream header", waiting, limits.header);
    let request = stream
        .set_deadline(Some(deadline))
        .map_err(|error| error.to_string())
        .and_then(|()| wire::header::read(&mut stream).map_err(|error| error.to_string()))
        .and_then(|header| header.request().map_err(|error| error.to_string()));
    let request = match request {
        Ok(wire::header::Request::Stream(request)) => request,
        Ok(wire::header::Request::Probe) => {
            log::debug!("probe answered {client}");
            stream.close(CLOSE);
            return;
        }
        Err(error) => {
            let time = since(waiting);
            BAD_HEADERS.log(log::Level::Info, || {
                format!("stream refused {client} time={time} why={error}")
            });
            stream.close(CLOSE);
            return;
        }
    };
    let destination = format!("{}:{}", bracketed(&request.host), request.port);
    let asked = clock::now();
    let dialled = match services.policy.check_name(&request.host, request.port) {
        Ok(()) => net::dial(
            &request.host,
            request.port,
            &|address| services.policy.permits(&request.host, address),
            &Deadline::from("dial", asked, limits.dial),
        )
        .map_err(|error| why_not(&error, &request.host, &services.policy)),
        Err(denied) => Err(denied.to_string()),
    };
    let far = match dialled {
        Ok(socket) => socket,
        Err(error) => {
            let time = since(asked);
            log::info!("stream refused {client} dst={destination} time={time} why={error}");
            stream.close(CLOSE);
            return;
        }
    };
    let dialled = Dialled { destination, socket: far, asked };
    start_relay(client, stream, dialled, (places, entry), limits, relays);
}

/// A destination that was reached.
struct Dialled {
    /// As the client wrote it, for the log.
    destination: String,
    socket: std::net::TcpStream,
    /// When the client had asked for it.
    asked: Instant,
}

fn start_relay(
    client: Client,
    stream: TlsStream,
    dialled: Dialled,
    held: (Places, Entry),
    limits: &Limits,
    relays: &Group,
) {
    let Dialled { destination, socket: far, asked } = dialled;
    let dial = since(asked);
    let address = far.peer_addr().map_or_else(|_| "-".to_owned(), |address| address.to_string());
    let near = stream.conn().clone();
    let far = Conn::new(far);
    let relay = Relay::new(&near, &far, limits.half_close);
    let label = format!("{client} dst={destination}");
    if !held.1.carries(relay.clone(), label.clone()) {
        log::info!("stream refused {label} time={} why=the agent is stopping", since(asked));
        stream.close(CLOSE);
        return;
    }
    let (source, sink) = match stream.split() {
        Ok(halves) => halves,
        Err(error) => {
            log::info!("stream refused {label} time={} why={error}", since(asked));
            return;
        }
    };
    let near_end = End { source: Box::new(source), sink: Box::new(sink), conn: near };
    let started = clock::now();
    let down_name = format!("agent-{}-down", client.id);
    let up_name = format!("agent-{}-up", client.id);
    let (label_if_not, relay_if_not) = (label.clone(), relay.clone());
    let threads = relays.clone();
    let spawned = relays.spawn(&up_name, move || {
        log::info!("stream opened {label} address={address} dial={dial}");
        let report = relay.run(near_end, End::tcp(far), &threads, &down_name);
        log::info!(
            "stream ended {label} up={} down={} time={} why={}",
            report.up,
            report.down,
            since(started),
            report.why
        );
        if let Ended::NoThread(error) = &report.why {
            NO_THREAD.log(log::Level::Warn, || format!("no thread can be started: {error}"));
        }
        drop(held);
    });
    if let Err(error) = spawned {
        relay_if_not.cut();
        NO_THREAD.log(log::Level::Warn, || {
            let time = since(asked);
            format!(
                "stream refused {label_if_not} time={time} why=no thread can be started: {error}"
            )
        });
    }
}

/// How long a peer may take to see our last words and close its side too.
const CLOSE: Duration = Duration::from_secs(1);
