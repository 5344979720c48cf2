//! One TLS connection, two threads.
//!
//! The reading half waits on the socket with no lock held and locks the engine only to decrypt.
//! The writing half locks the engine only to encrypt, then sends with its own lock. Records that
//! reading produces (alerts, key updates) queue in the engine's `pending` and leave in the order
//! in which they were encrypted: whoever sends takes them first.
//!
//! Lock order: `output`, then `state`. Nobody waits for the peer while holding `state`.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::{Engine, Outgoing, Progress};
use crate::lifecycle::Deadline;
use crate::net::{Buffer, Conn, Event, IDLE_AFTER, LARGE, Sink, Source};

/// What both halves share.
pub(super) struct Shared {
    pub(super) conn: Arc<Conn>,
    state: Mutex<State>,
    output: Mutex<Outgoing>,
}

pub(super) struct State {
    pub(super) engine: Engine,
    /// A copy of the received bytes that the engine has not finished with: rustls wants to see
    /// them at every call, also at those that only send.
    held: Vec<u8>,
    /// Records that reading produced and nobody has sent yet.
    pending: Outgoing,
    /// A key update that waits until nothing is held.
    update_due: bool,
}

impl State {
    /// Starts the key update that is due, as soon as it may be started.
    fn update_keys(&mut self, out: &mut Outgoing) -> Result<(), rustls::Error> {
        if !self.update_due || !self.held.is_empty() {
            return Ok(());
        }
        self.update_due = false;
        self.engine.update_keys(&mut self.held, out)
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn output(&self) -> MutexGuard<'_, Outgoing> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends everything in `output`, waiting while the peer does not read.
    fn send(&self, output: &mut Outgoing, deadline: Option<&Deadline>) -> io::Result<()> {
        let result = match deadline {
            Some(deadline) => self.conn.send_all_by(output.bytes(), deadline),
            None => self.conn.send_all(output.bytes()),
        };
        output.clear();
        result
    }
}

/// The two halves of a connection whose handshake has yet to be done.
pub(super) fn halves(conn: Arc<Conn>, engine: Engine) -> (TlsSource, TlsSink) {
    let state = State { engine, held: Vec::new(), pending: Outgoing::new(), update_due: false };
    let shared =
        Arc::new(Shared { conn, state: Mutex::new(state), output: Mutex::new(Outgoing::new()) });
    let reader = TlsSource {
        shared: shared.clone(),
        raw: Buffer::small(),
        filled: 0,
        plain: Vec::new(),
        fresh: false,
        closed: false,
        timed: false,
        deadline: None,
    };
    (reader, TlsSink { shared, deadline: None })
}

/// The receiving half of a TLS connection.
pub struct TlsSource {
    pub(super) shared: Arc<Shared>,
    /// Received bytes; those before `filled` are not done with.
    raw: Buffer,
    filled: usize,
    pub(super) plain: Vec<u8>,
    /// Whether `plain` holds bytes that were not handed out.
    pub(super) fresh: bool,
    /// Whether the peer has sent `close_notify`.
    closed: bool,
    /// Whether the read time-out that tells idleness is set.
    timed: bool,
    deadline: Option<Deadline>,
}

impl TlsSource {
    /// Waits for bytes from the socket and puts them behind those in `raw`.
    pub(super) fn receive(&mut self) -> io::Result<()> {
        if self.filled == self.raw.len() {
            // A record larger than the buffer: at most 16 KiB and its overhead (RFC 8446 §5.2), or
            // handshake messages up to the 64 KiB that rustls takes.
            let size = (self.raw.len() * 2).min(MOST_HELD);
            if size <= self.raw.len() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "handshake message too long",
                ));
            }
            self.raw.reserve(size);
        }
        let size = loop {
            if let Some(deadline) = &self.deadline {
                self.shared.conn.set_read_timeout(Some(deadline.remaining()?))?;
            }
            let free = self.raw.get_mut(self.filled..).unwrap_or_default();
            match (self.shared.conn.recv(free), &self.deadline) {
                (Ok(0), _) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the connection was closed without close_notify",
                    ));
                }
                (Ok(size), _) => break size,
                (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => {}
                (Err(error), Some(deadline)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(deadline.timed_out());
                }
                (Err(error), _) => return Err(error),
            }
        };
        self.filled += size;
        if self.filled == self.raw.len()
            && self.raw.len() < LARGE
            && self.raw.grow()
            && !self.timed
            && self.deadline.is_none()
        {
            self.shared.conn.set_read_timeout(Some(IDLE_AFTER))?;
            self.timed = true;
        }
        Ok(())
    }

    /// Decrypts what is in `raw`.
    pub(super) fn process(&mut self) -> Result<Progress, Failure> {
        if !self.fresh {
            self.plain.clear();
        }
        let mut state = self.shared.state();
        let State { engine, held, pending, .. } = &mut *state;
        let incoming = self.raw.get_mut(..self.filled).unwrap_or_default();
        let (done, result) = engine.receive(incoming, &mut self.plain, pending);
        let rest = incoming.get(done..).unwrap_or_default();
        held.clear();
        held.extend_from_slice(rest);
        let urgent = !pending.is_empty() && (result.is_err() || !engine.may_wait());
        drop(state);
        self.raw.copy_within(done..self.filled, 0);
        self.filled -= done;
        self.fresh = !self.plain.is_empty();
        if urgent {
            self.send_pending();
        }
        if let Ok(Progress::PeerClosed) = result {
            self.closed = true;
        }
        result.map_err(Failure::Tls)
    }

    /// Sends what reading produced, as far as the kernel takes it at once. What is left, or all of
    /// it while a write is under way, goes out with the next write, and not at all without one: a
    /// key update must only come before the next data (RFC 8446 §4.6.3), and an alert that finds
    /// the way to the peer clogged is lost with the connection.
    fn send_pending(&self) {
        let Ok(mut output) = self.shared.output.try_lock() else { return };
        output.take(&mut self.shared.state().pending);
        match self.shared.conn.send_now(output.bytes()) {
            Ok(size) => output.consume(size),
            Err(error) => log::trace!("an alert or key update waits: {error}"),
        }
    }

    /// Waits until `plain` holds bytes. False at the peer's `close_notify`.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        while !self.fresh {
            if self.closed {
                return Ok(false);
            }
            self.receive()?;
            self.process().map_err(Failure::into_io)?;
        }
        Ok(true)
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
        self.deadline = deadline;
        if deadline.is_none() {
            self.timed = false;
            self.shared.conn.set_read_timeout(None)?;
        }
        Ok(())
    }

    /// Gives large buffers back when `error` is the time-out that tells idleness; any other error
    /// stays one.
    pub(super) fn rest(&mut self, error: io::Error) -> io::Result<()> {
        if !self.timed || error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        self.shared.conn.set_read_timeout(None)?;
        self.timed = false;
        self.shrink();
        Ok(())
    }

    fn shrink(&mut self) {
        if self.filled == 0 {
            self.raw.shrink();
            self.plain = Vec::new();
            self.shared.state().held = Vec::new();
        }
    }
}

impl Source for TlsSource {
    fn next(&mut self) -> io::Result<Event<'_>> {
        match self.fill() {
            Ok(true) => {
                self.fresh = false;
                Ok(Event::Data(&self.plain))
            }
            Ok(false) => Ok(Event::End),
            Err(error) => self.rest(error).map(|()| Event::Idle),
        }
    }
}

/// The sending half of a TLS connection.
pub struct TlsSink {
    shared: Arc<Shared>,
    deadline: Option<Deadline>,
}

impl TlsSink {
    /// Starts new TLS 1.3 traffic keys in both directions: now, or with the first write that finds
    /// no half-received record.
    pub fn update_keys(&mut self) -> io::Result<()> {
        self.shared.state().update_due = true;
        self.flush()
    }

    /// Encrypts under the engine's lock and sends without it.
    fn write_records(
        &mut self,
        encrypt: impl FnOnce(&mut State, &mut Outgoing) -> Result<(), rustls::Error>,
    ) -> io::Result<()> {
        let mut output = self.shared.output();
        let encrypted = {
            let mut state = self.shared.state();
            output.take(&mut state.pending);
            state.update_keys(&mut output).and_then(|()| encrypt(&mut state, &mut output))
        };
        let sent = self.shared.send(&mut output, self.deadline.as_ref());
        encrypted.map_err(|error| Failure::Tls(error).into_io())?;
        sent
    }

    /// [`Sink::finish`] that never waits: a peer that takes nothing misses `close_notify`.
    pub(super) fn finish_now(&mut self) -> io::Result<()> {
        let mut output = self.shared.output();
        let encrypted = {
            let mut state = self.shared.state();
            output.take(&mut state.pending);
            let State { engine, held, .. } = &mut *state;
            engine.close(held, &mut output)
        };
        let sent = self.shared.conn.send_now(output.bytes());
        output.clear();
        encrypted.map_err(|error| Failure::Tls(error).into_io())?;
        sent?;
        self.shared.conn.finish()
    }

    /// Sends what is pending.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.write_records(|_, _| Ok(()))
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<Deadline>) {
        self.deadline = deadline;
    }
}

impl Sink for TlsSink {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(LARGE) {
            self.write_records(|state, out| state.engine.encrypt(&mut state.held, part, out))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.write_records(|state, out| state.engine.close(&mut state.held, out))?;
        self.shared.conn.finish()
    }

    /// FIN without `close_notify`: what was sent arrives, and the peer can tell that it is not all.
    fn abandon(&mut self) -> bool {
        let finished = self.shared.conn.finish();
        if let Err(error) = &finished {
            log::trace!("ending a stream on a connection that is gone: {error}");
        }
        finished.is_ok()
    }

    fn shrink(&mut self) {
        self.shared.output().shrink();
    }
}

impl std::fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSource").field("conn", &self.shared.conn).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TlsSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSink").field("conn", &self.shared.conn).finish_non_exhaustive()
    }
}

/// Why records could not be exchanged.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Tls(rustls::Error),
}

impl Failure {
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Io(error) => error,
            Self::Tls(error) => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The most received bytes that may wait for the rest of a record or handshake message: rustls
/// takes handshake messages up to 64 KiB, and a record comes on top.
const MOST_HELD: usize = 256 * 1024;
