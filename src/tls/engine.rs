//! rustls without its buffers: records in, plaintext and records out. No socket, no lock.
//!
//! rustls 0.23 has one object for both directions and hands out states that borrow it; this room
//! turns them into three calls. What rustls 0.24 splits in two ends here.

use rustls::Error;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};

use crate::net::Buffer;

/// One end of a TLS connection.
pub(super) struct Engine {
    side: Side,
    /// What ended it. rustls does not remember every error, and looks at the same bytes again
    /// when it is called again, which its own debug assertions call a mistake.
    failed: Option<Error>,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// Where processing stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The handshake is not over and needs bytes from the peer.
    Handshaking,
    /// Every complete record is processed and data may be sent.
    Open,
    /// The peer has sent `close_notify`; nothing after it counts.
    PeerClosed,
}

/// Bytes to send: a buffer with a filled part at its front.
#[derive(Debug)]
pub(super) struct Outgoing {
    buffer: Buffer,
    filled: usize,
}

impl Outgoing {
    pub(super) const fn new() -> Self {
        Self { buffer: Buffer::empty(), filled: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Forgets the first `size` bytes, which were sent.
    pub(super) fn consume(&mut self, size: usize) {
        let size = size.min(self.filled);
        self.buffer.copy_within(size..self.filled, 0);
        self.filled -= size;
    }

    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Moves all of `other` to the end of this.
    pub(super) fn take(&mut self, other: &mut Self) {
        if !other.is_empty() {
            self.buffer.reserve(self.filled + other.filled);
            if let Some(room) = self.buffer.get_mut(self.filled..self.filled + other.filled) {
                room.copy_from_slice(other.bytes());
                self.filled += other.filled;
            }
            *other = Self::new();
        }
    }

    pub(super) fn shrink(&mut self) {
        if self.filled == 0 {
            self.buffer = Buffer::empty();
        }
    }

    /// Lets `fill` write to the free part, which is made larger when it says so.
    fn fill<E>(
        &mut self,
        expected: usize,
        mut fill: impl FnMut(&mut [u8]) -> Result<usize, Filled<E>>,
    ) -> Result<(), E> {
        let mut needed = expected;
        loop {
            self.buffer.reserve(self.filled + needed);
            let free = self.buffer.get_mut(self.filled..).unwrap_or_default();
            match fill(free) {
                Ok(size) => {
                    self.filled += size;
                    return Ok(());
                }
                Err(Filled::TooSmall(InsufficientSizeError { required_size })) => {
                    needed = required_size;
                }
                Err(Filled::Failed(error)) => return Err(error),
            }
        }
    }
}

enum Filled<E> {
    TooSmall(InsufficientSizeError),
    Failed(E),
}

impl From<EncryptError> for Filled<Error> {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::TooSmall(size),
            EncryptError::EncryptExhausted => Self::Failed(Error::EncryptError),
        }
    }
}

impl From<EncodeError> for Filled<Error> {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Self::TooSmall(size),
            EncodeError::AlreadyEncoded => Self::Failed(Error::General("encoded twice".into())),
        }
    }
}

/// What to do once data may be sent.
#[derive(Clone, Copy)]
enum Then<'a> {
    Nothing,
    Send(&'a [u8]),
    Close,
    UpdateKeys,
}

impl Engine {
    pub(super) fn server(connection: UnbufferedServerConnection) -> Self {
        Self { side: Side::Server(connection), failed: None }
    }

    pub(super) fn client(connection: UnbufferedClientConnection) -> Self {
        Self { side: Side::Client(connection), failed: None }
    }

    /// Processes the records in `incoming`. Plaintext is appended to `plain`, what must be sent to
    /// `out`. Returns how many bytes at the front of `incoming` are done with; the rest must be
    /// there again, at the front, at every later call.
    ///
    /// An error ends the connection: every later call returns it again. `out` may hold an alert for
    /// the peer.
    pub(super) fn receive(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Outgoing,
    ) -> (usize, Result<Progress, Error>) {
        self.drive(incoming, plain, out, Then::Nothing)
    }

    /// Encrypts `data` to `out`. `held` is what [`Engine::receive`] left in `incoming`.
    pub(super) fn encrypt(
        &mut self,
        held: &mut [u8],
        data: &[u8],
        out: &mut Outgoing,
    ) -> Result<(), Error> {
        self.drive(held, &mut Vec::new(), out, Then::Send(data)).1.map(drop)
    }

    /// Puts `close_notify` on `out`. `held` is what [`Engine::receive`] left in `incoming`.
    pub(super) fn close(&mut self, held: &mut [u8], out: &mut Outgoing) -> Result<(), Error> {
        self.drive(held, &mut Vec::new(), out, Then::Close).1.map(drop)
    }

    /// Puts a TLS 1.3 key update on `out`; the peer answers with its own. Only while nothing is
    /// held: rustls gives the connection up when half a handshake message is.
    pub(super) fn update_keys(&mut self, held: &mut [u8], out: &mut Outgoing) -> Result<(), Error> {
        if self.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return Err(Error::General("only TLS 1.3 has key updates".into()));
        }
        self.drive(held, &mut Vec::new(), out, Then::UpdateKeys).1?;
        self.drive(held, &mut Vec::new(), out, Then::Nothing).1.map(drop)
    }

    pub(super) fn is_handshaking(&self) -> bool {
        match &self.side {
            Side::Server(c) => c.is_handshaking(),
            Side::Client(c) => c.is_handshaking(),
        }
    }

    /// Whether all that can be pending is session tickets, or what may wait for the next write as
    /// well: after the handshake of a TLS 1.3 server. One system call and one wake-up of the client
    /// less for each connection.
    pub(super) fn may_wait(&self) -> bool {
        matches!(self.side, Side::Server(_))
            && !self.is_handshaking()
            && self.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
    }

    pub(super) fn alpn(&self) -> Option<&[u8]> {
        match &self.side {
            Side::Server(c) => c.alpn_protocol(),
            Side::Client(c) => c.alpn_protocol(),
        }
    }

    pub(super) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        match &self.side {
            Side::Server(c) => c.peer_certificates(),
            Side::Client(c) => c.peer_certificates(),
        }
        .unwrap_or_default()
    }

    pub(super) fn protocol_version(&self) -> Option<rustls::ProtocolVersion> {
        match &self.side {
            Side::Server(c) => c.protocol_version(),
            Side::Client(c) => c.protocol_version(),
        }
    }

    pub(super) fn cipher_suite(&self) -> Option<rustls::SupportedCipherSuite> {
        match &self.side {
            Side::Server(c) => c.negotiated_cipher_suite(),
            Side::Client(c) => c.negotiated_cipher_suite(),
        }
    }

    pub(super) fn handshake_kind(&self) -> Option<rustls::HandshakeKind> {
        match &self.side {
            Side::Server(c) => c.handshake_kind(),
            Side::Client(c) => c.handshake_kind(),
        }
    }

    fn drive(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Outgoing,
        then: Then<'_>,
    ) -> (usize, Result<Progress, Error>) {
        if let Some(error) = &self.failed {
            return (0, Err(error.clone()));
        }
        let mut done = 0;
        loop {
            let rest = incoming.get_mut(done..).unwrap_or_default();
            let (discard, step) = self.step(rest, plain, out, then);
            done += discard;
            match step {
                Ok(None) => {}
                // A server that asks for no certificate may send before the client has finished.
                Ok(Some(Progress::Open)) if self.is_handshaking() => {
                    return (done, Ok(Progress::Handshaking));
                }
                Ok(Some(progress)) => return (done, Ok(progress)),
                Err(error) => {
                    self.failed = Some(error.clone());
                    let rest = incoming.get_mut(done..).unwrap_or_default();
                    self.last_words(rest, plain, out);
                    return (done, Err(error));
                }
            }
        }
    }

    fn step(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Outgoing,
        then: Then<'_>,
    ) -> (usize, Result<Option<Progress>, Error>) {
        match &mut self.side {
            Side::Server(c) => handle(c.process_tls_records(incoming), plain, out, then),
            Side::Client(c) => handle(c.process_tls_records(incoming), plain, out, then),
        }
    }

    /// Moves the alert that tells the peer what was wrong to `out`. As long as there is something
    /// to send, rustls does not look at what has come in.
    fn last_words(&mut self, incoming: &mut [u8], plain: &mut Vec<u8>, out: &mut Outgoing) {
        while self.wants_write() {
            if self.step(incoming, plain, out, Then::Nothing).1.is_err() {
                return;
            }
        }
    }

    fn wants_write(&self) -> bool {
        match &self.side {
            Side::Server(c) => c.wants_write(),
            Side::Client(c) => c.wants_write(),
        }
    }
}

/// Handles one state; `None` means that there is more to do.
fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Vec<u8>,
    out: &mut Outgoing,
    then: Then<'_>,
) -> (usize, Result<Option<Progress>, Error>) {
    let mut discard = status.discard;
    let result = status.state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                plain.extend_from_slice(record.payload);
            }
            Ok(None)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            out.fill(RECORD, |free| data.encode(free).map_err(Filled::from))?;
            Ok(None)
        }
        // The caller sends `out` in order, so it counts as sent.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(None)
        }
        ConnectionState::BlockedHandshake => Ok(Some(Progress::Handshaking)),
        ConnectionState::WriteTraffic(mut traffic) => {
            match then {
                Then::Nothing => {}
                Then::Send(data) => {
                    let expected = data.len() + (data.len() / FRAGMENT + 1) * OVERHEAD;
                    out.fill(expected, |free| traffic.encrypt(data, free).map_err(Filled::from))?;
                }
                Then::Close => {
                    out.fill(RECORD, |free| {
                        traffic.queue_close_notify(free).map_err(Filled::from)
                    })?;
                }
                Then::UpdateKeys => traffic.refresh_traffic_keys()?,
            }
            Ok(Some(Progress::Open))
        }
        // Sending may go on: rustls says so once and then goes back to `WriteTraffic`.
        ConnectionState::PeerClosed => match then {
            Then::Nothing => Ok(Some(Progress::PeerClosed)),
            _ => Ok(None),
        },
        ConnectionState::Closed => match then {
            Then::Send(_) => Err(Error::General("data after close_notify".into())),
            _ => Ok(Some(Progress::PeerClosed)),
        },
        _ => Err(Error::General("early data was not offered".into())),
    });
    (discard, result)
}

/// Bytes of plaintext in one record (RFC 8446 §5.1).
const FRAGMENT: usize = 16 * 1024;

/// The most that a record of the suites rustls has adds to its plaintext: 5 bytes of header,
/// 8 of explicit nonce (TLS 1.2) or 1 of content type (TLS 1.3), 16 of tag.
const OVERHEAD: usize = 29;

/// Room for a small record such as an alert; handshake flights ask for what they need.
const RECORD: usize = 64;
