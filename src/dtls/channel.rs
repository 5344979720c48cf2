//! OpenSSL for one peer: datagrams of the network in, datagrams of the stream out, and back.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use openssl::error::ErrorStack;
use openssl::ssl::{self, ErrorCode, SslStream};
use rustls_pki_types::CertificateDer;

use super::context::take_refused;
use super::error::{HandshakeError, explain};
use super::ffi::{ensure_buffers, free_buffers};
use super::link::Link;
use crate::wire::dtls::RECORD_MAX;

/// A session's encryption. The lock is held while OpenSSL works, which includes sending and never
/// waiting.
pub(super) struct Channel(Mutex<Inner>);

struct Inner {
    stream: SslStream<Link>,
    /// Whether OpenSSL's buffers were taken back.
    rests: bool,
}

/// The stream, ready to be used.
struct Locked<'a>(MutexGuard<'a, Inner>);

impl Deref for Locked<'_> {
    type Target = SslStream<Link>;

    fn deref(&self) -> &Self::Target {
        &self.0.stream
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0.stream
    }
}

/// What reading gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A datagram of this many bytes.
    Datagram(usize),
    /// Nothing; more must arrive first.
    Nothing,
    /// The peer has ended the session (close_notify).
    End,
}

impl Channel {
    pub(super) fn new(stream: SslStream<Link>) -> Self {
        Self(Mutex::new(Inner { stream, rests: false }))
    }

    fn lock(&self) -> Locked<'_> {
        // What an earlier call on this thread has left would be taken for this call's failure.
        drop(ErrorStack::get());
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.rests {
            match ensure_buffers(&mut inner.stream) {
                Ok(()) => inner.rests = false,
                // As everywhere when there is no memory.
                Err(_) => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; 17_000]>()),
            }
        }
        Locked(inner)
    }

    /// Takes back what OpenSSL holds for the next datagram, of a session whose handshake is
    /// complete and that has none on its way.
    pub(super) fn rest(&self) {
        let Locked(mut inner) = self.lock();
        inner.rests = true;
        free_buffers(&mut inner.stream);
    }

    /// Goes on with the handshake, with what has arrived or because time has passed. Returns
    /// whether it is complete.
    pub(super) fn handshake(&self, datagram: Option<Box<[u8]>>) -> Result<bool, HandshakeError> {
        let mut stream = self.lock();
        if let Some(datagram) = datagram {
            stream.get_mut().push(datagram);
        }
        match stream.do_handshake() {
            Ok(()) if stream.ssl().extms_support() == Some(true) => {
                let cipher = stream.ssl().current_cipher().map_or("none", |cipher| cipher.name());
                stream.get_mut().agreed(cipher);
                Ok(true)
            }
            Ok(()) => {
                end(&mut stream);
                Err(HandshakeError::NoExtendedMasterSecret)
            }
            Err(error) if is_wait(&error) => Ok(false),
            Err(error) => {
                let verdict = stream.ssl().verify_result();
                Err(HandshakeError::of(error, verdict, take_refused()))
            }
        }
    }

    /// Gives OpenSSL a datagram to read next.
    pub(super) fn push(&self, datagram: Box<[u8]>) {
        self.lock().get_mut().push(datagram);
    }

    /// Takes the next datagram of the stream out of what was pushed.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Read> {
        take(&mut self.lock(), buffer)
    }

    /// Gives OpenSSL a datagram if there is one, and each of the stream's datagrams in it to
    /// `deliver`, under the lock: it must not wait. Returns whether the peer has ended the session.
    pub(super) fn feed(
        &self,
        datagram: Option<Box<[u8]>>,
        buffer: &mut [u8],
        mut deliver: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        let mut stream = self.lock();
        if let Some(datagram) = datagram {
            stream.get_mut().push(datagram);
        }
        loop {
            match take(&mut stream, buffer)? {
                Read::Datagram(size) => deliver(buffer.get(..size).unwrap_or_default()),
                Read::Nothing => return Ok(false),
                Read::End => return Ok(true),
            }
        }
    }

    /// Sends one datagram: 1 to 16384 bytes.
    pub(super) fn write(&self, datagram: &[u8]) -> io::Result<()> {
        if datagram.is_empty() || datagram.len() > RECORD_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a datagram of {} bytes: 1 to {RECORD_MAX} can travel", datagram.len()),
            ));
        }
        match self.lock().ssl_write(datagram) {
            Ok(_) => Ok(()),
            Err(error) => Err(failure(error)),
        }
    }

    /// The same, to leave with those that follow until [`release`](Self::release).
    pub(super) fn hold(&self, datagram: &[u8]) -> io::Result<()> {
        self.lock().get_mut().hold();
        self.write(datagram)
    }

    /// Sends what was held back.
    pub(super) fn release(&self) {
        self.lock().get_mut().release();
    }

    /// Tells the peer that the session has ended.
    pub(super) fn close(&self) {
        end(&mut self.lock());
    }

    /// The peer's own certificate, DER.
    pub(super) fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        let der = self.lock().ssl().peer_certificate()?.to_der().ok()?;
        Some(CertificateDer::from(der))
    }

    /// The cipher suite, for the log.
    pub(super) fn cipher(&self) -> &'static str {
        self.lock().ssl().current_cipher().map_or("none", |cipher| cipher.name())
    }

    /// Datagrams that the system did not take to send.
    pub(super) fn unsent(&self) -> u64 {
        self.lock().get_ref().unsent()
    }
}

fn take(stream: &mut SslStream<Link>, buffer: &mut [u8]) -> io::Result<Read> {
    match stream.ssl_read(buffer) {
        Ok(size) => Ok(Read::Datagram(size)),
        Err(error) if is_wait(&error) => Ok(Read::Nothing),
        Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(Read::End),
        Err(error) => Err(failure(error)),
    }
}

fn end(stream: &mut SslStream<Link>) {
    if let Err(error) = stream.shutdown() {
        log::trace!("a session ended without telling its peer: {error}");
    }
}

fn is_wait(error: &ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

fn failure(error: ssl::Error) -> io::Error {
    error.into_io_error().unwrap_or_else(|error| match error.ssl_error() {
        Some(stack) => io::Error::other(explain(stack)),
        None => io::ErrorKind::ConnectionAborted.into(),
    })
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel")
    }
}
