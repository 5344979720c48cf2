//! Datagrams through an agent.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use super::{Client, Probe};
use crate::dtls::{self, ClientContext, ClientSession, ContextError, HandshakeError};
use crate::lifecycle::{Deadline, clock};
use crate::net::resolve::{ResolveError, resolve};
use crate::pki::Identity;
use crate::wire::dtls::RECORD_MAX;
use crate::wire::header;

/// Datagrams to and from one destination. Each is delivered whole, at most once, and may be lost
/// or overtaken on its way. Sending and receiving may be done by two threads at once.
///
/// Dropping it ends it.
#[derive(Debug)]
pub struct UdpStream {
    session: ClientSession,
}

impl UdpStream {
    /// The most bytes of a datagram. Agents of GoDoxy drop what is longer than 8155.
    pub const MAX: usize = RECORD_MAX;

    /// Sends one datagram of 1 to [`UdpStream::MAX`] bytes.
    ///
    /// # Errors
    /// `InvalidInput` when it cannot travel; others when the stream has ended.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.session.send(datagram)
    }

    /// Waits for the next datagram and returns its length, or `None` when the agent has ended the
    /// stream or [`close`](Self::close) was called. A datagram that is longer than `buffer` is cut.
    ///
    /// The protocol has no answer: a destination that the agent refuses shows as the end.
    ///
    /// # Errors
    /// The deadline's, when it passes; `ConnectionRefused` when nothing listens at the agent's port
    /// any more; others when the session broke.
    pub fn recv(&self, buffer: &mut [u8], deadline: Option<Deadline>) -> io::Result<Option<usize>> {
        self.session.recv(buffer, deadline.as_ref())
    }

    /// Tells the agent that this is the end and wakes who receives.
    pub fn close(&self) {
        self.session.close();
    }
}

/// The DTLS side of a client. OpenSSL wakes up when it is first used: it costs a client that
/// only wants TCP some milliseconds and a megabyte.
pub(super) struct Datagrams {
    identity: Identity,
    server_name: String,
    context: OnceLock<ClientContext>,
}

impl Datagrams {
    pub(super) fn new(identity: &Identity, server_name: &str) -> Self {
        let Identity { authorities, chain, key, .. } = identity;
        Self {
            identity: Identity::from_parts(authorities.clone(), chain.clone(), key.clone_key()),
            server_name: server_name.to_owned(),
            context: OnceLock::new(),
        }
    }

    fn context(&self) -> Result<&ClientContext, ContextError> {
        match self.context.get() {
            Some(context) => Ok(context),
            None => {
                let made = ClientContext::new(&self.identity, &self.server_name)?;
                Ok(self.context.get_or_init(|| made))
            }
        }
    }
}

impl Client {
    /// Asks the agent for datagrams to and from `host:port`.
    ///
    /// The request itself travels as a datagram and has no answer. When it is lost, the agent ends
    /// the stream after its limit for it (10 s).
    pub fn udp(&self, host: &str, port: u16) -> Result<UdpStream, UdpError> {
        let header = header::encode_stream(host, port).map_err(UdpError::Header)?;
        let (session, ..) = self.udp_session()?;
        session.send(&header).map_err(UdpError::Send)?;
        Ok(UdpStream { session })
    }

    /// Asks whether the agent would carry datagrams for us, and waits for its answer.
    pub fn probe_udp(&self) -> Result<Probe, UdpError> {
        let (mut session, connect, handshake) = self.udp_session()?;
        let sent = clock::now();
        let whole = Deadline::from("probe", sent, self.timeouts.answer);
        for attempt in 1_u32.. {
            // Either it or the answer may get lost. When it was the answer, the agent has forgotten
            // the session and hears no repetition.
            if attempt > 1 && attempt % 2 == 1 {
                (session, ..) = self.udp_session()?;
            }
            session.send(&header::encode_probe()).map_err(UdpError::Send)?;
            let patience = whole.remaining().map_err(UdpError::Answer)?.min(AGAIN);
            let part = Deadline::after("probe", patience);
            match session.recv(&mut [0; 1], Some(&part)) {
                Ok(None) => {
                    let answer = clock::now().duration_since(sent);
                    return Ok(Probe { connect, handshake, answer });
                }
                Ok(Some(_)) => return Err(UdpError::Unexpected),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    whole.remaining().map_err(UdpError::Answer)?;
                }
                Err(error) => return Err(UdpError::Answer(error)),
            }
        }
        Err(UdpError::Answer(whole.timed_out()))
    }

    /// A session with the first of the agent's addresses that answers. Each gets an equal part of
    /// the time that is left.
    fn udp_session(&self) -> Result<(ClientSession, Duration, Duration), UdpError> {
        let context = self.datagrams.context().map_err(UdpError::Context)?;
        let start = clock::now();
        let deadline = Deadline::after("connecting to the agent", self.timeouts.dial);
        let addresses = resolve(&self.host, self.port, &deadline).map_err(UdpError::Resolve)?;
        let resolved = clock::now();
        let whole = Deadline::from("DTLS handshake", resolved, self.timeouts.handshake);
        let mut failed = None;
        for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
            let Ok(time) = whole.remaining() else { break };
            // The last one has what is left, and the limit as it was given in its error.
            let deadline = match u32::try_from(left) {
                Ok(left @ 2..) => Deadline::after("DTLS handshake", time / left),
                _ => whole,
            };
            match dtls::connect(*address, context, &deadline) {
                Ok(session) => {
                    let done = clock::now();
                    let connect = resolved.duration_since(start);
                    let handshake = done.duration_since(resolved);
                    log::debug!("UDP session with {address} after {handshake:?}");
                    return Ok((session, connect, handshake));
                }
                // Another address of the same agent would say the same.
                Err(error) if !matches!(error, HandshakeError::Io(_)) => {
                    return Err(UdpError::Handshake(*address, error));
                }
                Err(error) => {
                    log::debug!("no UDP session with {address}: {error}");
                    failed = Some(UdpError::Handshake(*address, error));
                }
            }
        }
        Err(failed.unwrap_or_else(|| UdpError::Answer(whole.timed_out())))
    }
}

/// How long to wait before a probe is sent again: OpenSSL's first wait for a handshake.
const AGAIN: Duration = Duration::from_secs(1);

/// Datagrams that cannot be had, or a probe that failed.
#[derive(Debug)]
pub enum UdpError {
    /// The destination does not fit the header.
    Header(header::EncodeError),
    /// The identity cannot be used for UDP.
    Context(ContextError),
    /// The agent's name could not be resolved.
    Resolve(ResolveError),
    /// The handshake with this address of the agent failed.
    Handshake(SocketAddr, HandshakeError),
    /// The header could not be sent.
    Send(io::Error),
    /// The agent did not answer the probe by ending the session.
    Answer(io::Error),
    /// The agent answered a probe with data.
    Unexpected,
}

impl UdpError {
    /// Whether something answered at the agent's address.
    pub fn reached_agent(&self) -> bool {
        !matches!(
            self,
            Self::Context(_) | Self::Resolve(_) | Self::Handshake(_, HandshakeError::Io(_))
        )
    }
}

impl fmt::Display for UdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => write!(f, "the destination cannot be asked for: {error}"),
            Self::Context(error) => error.fmt(f),
            Self::Resolve(error) => write!(f, "cannot reach the agent: {error}"),
            Self::Handshake(address, HandshakeError::Io(error))
                if error.kind() == io::ErrorKind::TimedOut =>
            {
                write!(
                    f,
                    "cannot reach the agent at UDP {address}: {error}; does it carry UDP, does a \
                     firewall let UDP through, and has it room for one more?"
                )
            }
            Self::Handshake(address, HandshakeError::Io(error))
                if error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                write!(
                    f,
                    "cannot reach the agent at UDP {address}: {error}; does it run, and carry UDP?"
                )
            }
            Self::Handshake(address, HandshakeError::Io(error)) => {
                write!(f, "cannot reach the agent at UDP {address}: {error}")
            }
            Self::Handshake(_, error) => write!(f, "cannot agree with the agent: {error}"),
            Self::Send(error) => write!(f, "sending to the agent: {error}"),
            Self::Answer(error) => write!(f, "the agent's answer: {error}"),
            Self::Unexpected => f.write_str("the agent answered a probe with data"),
        }
    }
}

impl std::error::Error for UdpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Header(error) => Some(error),
            Self::Context(error) => Some(error),
            Self::Resolve(error) => Some(error),
            Self::Handshake(_, error) => Some(error),
            Self::Send(error) | Self::Answer(error) => Some(error),
            Self::Unexpected => None,
        }
    }
}
