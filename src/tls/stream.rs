//! A TLS connection in the hands of one thread: its handshake, and use like any other stream.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::duplex::{self, Failure, TlsSink, TlsSource};
use super::engine::{Engine, Progress};
use crate::http;
use crate::lifecycle::Deadline;
use crate::net::{Conn, Sink};

/// A TLS connection used by one thread, until [`TlsStream::split`].
///
/// Reads and writes obey the deadline that is set; none is set at first.
pub struct TlsStream {
    reader: TlsSource,
    writer: TlsSink,
    /// Plaintext of `reader` that `read` has not handed out yet starts here.
    taken: usize,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("conn", &self.reader.shared.conn).finish_non_exhaustive()
    }
}

impl TlsStream {
    pub(super) fn new(conn: Arc<Conn>, engine: Engine) -> Self {
        let (reader, writer) = duplex::halves(conn, engine);
        Self { reader, writer, taken: 0 }
    }

    /// Exchanges flights until the handshake is over. On failure the alert has been sent.
    pub(super) fn handshake(&mut self) -> Result<(), Failure> {
        let mut progress = self.reader.process()?;
        loop {
            if !self.reader.shared.state().engine.may_wait() {
                self.writer.flush()?;
            }
            match progress {
                Progress::Handshaking => {}
                Progress::Open => return Ok(()),
                // A peer that has little to say may have said all of it by now.
                Progress::PeerClosed if !self.reader.shared.state().engine.is_handshaking() => {
                    return Ok(());
                }
                Progress::PeerClosed => {
                    return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            self.reader.receive()?;
            progress = match self.reader.process() {
                Ok(progress) => progress,
                Err(failure) => {
                    if let Err(error) = self.writer.flush() {
                        log::trace!("the alert could not be sent: {error}");
                    }
                    return Err(failure);
                }
            };
        }
    }

    /// The protocol that ALPN chose.
    pub fn alpn(&self) -> Option<Vec<u8>> {
        self.reader.shared.state().engine.alpn().map(<[u8]>::to_vec)
    }

    /// The peer's certificate, verified, when it has shown one.
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.reader.shared.state().engine.peer_certificates().first().cloned()
    }

    /// The negotiated protocol version, cipher suite and kind of handshake, for people.
    pub fn description(&self) -> String {
        let state = self.reader.shared.state();
        let version = match state.engine.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS",
        };
        let suite = state.engine.cipher_suite().map(|suite| format!(" {:?}", suite.suite()));
        format!("{version}{}", suite.unwrap_or_default())
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.reader.shared.state().engine.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// The socket below, for aborting it from another thread.
    pub fn conn(&self) -> &Arc<Conn> {
        &self.reader.shared.conn
    }

    /// Bounds every later read and write by a deadline; `None` lifts it.
    pub fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
        self.writer.set_deadline(deadline);
        self.reader.set_deadline(deadline)
    }

    /// Sends `close_notify` and FIN, then waits until the peer has closed too or `limit` is over,
    /// so that bytes of the peer still on their way do not turn our last words into a reset. With a
    /// `limit` of zero it sends what the kernel takes at once and waits for nothing.
    pub fn close(mut self, limit: Duration) {
        let finished = if limit.is_zero() {
            self.writer.finish_now()
        } else {
            self.set_deadline(Some(Deadline::after("closing", limit)))
                .and_then(|()| Sink::finish(&mut self.writer))
        };
        if let Err(error) = finished {
            log::trace!("closing a connection that is gone: {error}");
            return;
        }
        drain(&self.reader.shared.conn, limit);
    }

    /// The two halves, for two threads. The deadline is lifted.
    pub fn split(mut self) -> io::Result<(TlsSource, TlsSink)> {
        self.set_deadline(None)?;
        let taken = if self.reader.fresh { self.taken } else { usize::MAX };
        self.reader.plain.drain(..taken.min(self.reader.plain.len()));
        self.reader.fresh = !self.reader.plain.is_empty();
        self.reader.plain.shrink_to_fit();
        self.writer.shrink();
        Ok((self.reader, self.writer))
    }

    /// Hands out plaintext, waiting for some. Zero is the peer's `close_notify`; a stream cut short
    /// without it is an error.
    fn read_plain(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.reader.fresh && self.taken < self.reader.plain.len() {
                let rest = self.reader.plain.get(self.taken..).unwrap_or_default();
                let size = rest.len().min(buffer.len());
                if let (Some(to), Some(from)) = (buffer.get_mut(..size), rest.get(..size)) {
                    to.copy_from_slice(from);
                }
                self.taken += size;
                return Ok(size);
            }
            self.reader.fresh = false;
            self.taken = 0;
            match self.reader.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => self.reader.rest(error)?,
            }
        }
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() { Ok(0) } else { self.read_plain(buffer) }
    }
}

impl Write for TlsStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Sink::write_all(&mut self.writer, data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl http::Connection for TlsStream {
    fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
        TlsStream::set_deadline(self, deadline)
    }

    fn close_write(&mut self) -> io::Result<()> {
        Sink::finish(&mut self.writer)
    }
}

/// Reads and drops bytes until the peer's FIN, an error, `limit` or 256 KiB, after we have sent
/// FIN: closing a socket with unread bytes would reset it.
pub(super) fn drain(conn: &Conn, limit: Duration) {
    let mut left: usize = 256 * 1024;
    let mut buffer = [0; 2048];
    let deadline = Deadline::after("closing", limit);
    while left > 0 {
        let Ok(wait) = deadline.remaining() else { return };
        if conn.set_read_timeout(Some(wait)).is_err() {
            return;
        }
        match conn.recv(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(size) => left = left.saturating_sub(size),
        }
    }
}
