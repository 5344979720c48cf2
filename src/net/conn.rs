//! A connected TCP socket that two threads use, one each way, and any third may abort.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use socket2::SockRef;

use super::half::{Buffer, Event, Sink, Source};
use crate::lifecycle::Deadline;

/// A connected TCP socket shared by a reading thread, a writing thread and whoever may abort it.
///
/// Reads and writes block in the kernel without any lock. Closing happens when the last owner
/// drops it: with FIN after a clean end, with RST after [`Conn::break_off`] or [`Conn::abort`].
#[derive(Debug)]
pub struct Conn {
    socket: TcpStream,
    aborted: AtomicBool,
    /// Reading was ended from our side; writing goes on.
    deaf: AtomicBool,
    sending: AtomicBool,
}

impl Conn {
    /// Takes a connected, blocking socket.
    pub fn new(socket: TcpStream) -> Arc<Self> {
        let flag = || AtomicBool::new(false);
        Arc::new(Self { socket, aborted: flag(), deaf: flag(), sending: flag() })
    }

    /// Waits for bytes. Zero is the peer's FIN. After [`Conn::abort`] or [`Conn::stop_reading`] the
    /// error `ConnectionAborted`; after a read time-out `WouldBlock`. `Interrupted` is for callers
    /// with a deadline: the kernel would begin the whole time-out anew.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // Linux goes on delivering what arrives after reading was shut down.
        if self.is_deaf() {
            return Err(aborted());
        }
        match (&self.socket).read(buffer) {
            Ok(0) if self.is_deaf() => Err(aborted()),
            result => result,
        }
    }

    /// Sends all of `data`, waiting while the peer does not read. After [`Conn::abort`] the error
    /// `ConnectionAborted`.
    pub fn send_all(&self, data: &[u8]) -> io::Result<()> {
        self.send(|mut socket| socket.write_all(data))
    }

    /// [`Conn::send_all`] by `deadline`, however slowly the peer reads. [`Conn::unlimit_writes`]
    /// makes later writes free of it.
    pub fn send_all_by(&self, data: &[u8], deadline: &Deadline) -> io::Result<()> {
        self.send(|mut socket| {
            let mut rest = data;
            while !rest.is_empty() {
                // The kernel's limit is for one call, and one that sends a part is a success.
                socket.set_write_timeout(Some(deadline.remaining()?))?;
                match socket.write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(size) => rest = rest.get(size..).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Err(deadline.timed_out());
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    fn send(&self, write: impl FnOnce(&TcpStream) -> io::Result<()>) -> io::Result<()> {
        // Either we see the abort here, or the aborting thread sees that we are sending and wakes
        // us: both flags are sequentially consistent.
        self.sending.store(true, Ordering::SeqCst);
        let result = if self.is_aborted() { Err(aborted()) } else { write(&self.socket) };
        self.sending.store(false, Ordering::SeqCst);
        match result {
            Err(_) if self.is_aborted() => Err(aborted()),
            result => result,
        }
    }

    /// Sends what the kernel takes at once and never waits. Returns the number of bytes.
    pub fn send_now(&self, data: &[u8]) -> io::Result<usize> {
        use std::os::fd::AsRawFd;
        Ok(send(self.socket.as_raw_fd(), data, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Sends FIN: no more bytes will come from us.
    pub fn finish(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Makes the close a reset, so that a broken stream does not look finished to the peer.
    pub fn break_off(&self) {
        if let Err(error) = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)) {
            log::debug!("cannot make the close of a broken stream a reset: {error}");
        }
    }

    /// Ends both directions from any thread: blocked reads and writes return at once, and the
    /// close is a reset.
    pub fn abort(&self) {
        self.break_off();
        self.aborted.store(true, Ordering::SeqCst);
        // Reading is always shut down; writing only while a write is under way, because a FIN
        // would tell the peer that the stream ended well. Errors mean that it is closed already.
        let how = if self.sending.load(Ordering::SeqCst) { Shutdown::Both } else { Shutdown::Read };
        if let Err(error) = self.socket.shutdown(how) {
            log::trace!("aborting a connection that is closed already: {error}");
        }
    }

    /// Ends reading: a blocked [`Conn::recv`] returns `ConnectionAborted`. Sending goes on, what was
    /// sent is still delivered, and the close stays what it was.
    pub fn stop_reading(&self) {
        self.deaf.store(true, Ordering::SeqCst);
        if let Err(error) = self.socket.shutdown(Shutdown::Read) {
            log::trace!("ending the reading of a connection that is closed already: {error}");
        }
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Whether no more is read, for whatever reason.
    fn is_deaf(&self) -> bool {
        self.is_aborted() || self.deaf.load(Ordering::SeqCst)
    }

    /// Limits every later read; `None` lifts the limit.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(limit)
    }

    /// Lifts the limit that [`Conn::send_all_by`] has left behind.
    pub fn unlimit_writes(&self) -> io::Result<()> {
        self.socket.set_write_timeout(None)
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// The receiving and the sending half of a plain TCP stream.
    pub fn halves(self: &Arc<Self>) -> (TcpSource, TcpSink) {
        let source = TcpSource { conn: self.clone(), buffer: Buffer::small(), timed: false };
        (source, TcpSink { conn: self.clone() })
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "ended from our side")
}

/// How long a source with a large buffer waits before it gives the buffer back.
pub const IDLE_AFTER: Duration = Duration::from_secs(2);

/// The receiving half of a plain TCP stream.
#[derive(Debug)]
pub struct TcpSource {
    conn: Arc<Conn>,
    buffer: Buffer,
    /// Whether the read time-out that tells idleness is set.
    timed: bool,
}

impl Source for TcpSource {
    fn next(&mut self) -> io::Result<Event<'_>> {
        match self.conn.recv(&mut self.buffer) {
            Ok(0) => Ok(Event::End),
            Ok(size) => {
                if size == self.buffer.len() && self.buffer.grow() && !self.timed {
                    self.conn.set_read_timeout(Some(IDLE_AFTER))?;
                    self.timed = true;
                }
                Ok(self.buffer.get(..size).map_or(Event::Idle, Event::Data))
            }
            Err(error) if self.timed && error.kind() == io::ErrorKind::WouldBlock => {
                self.conn.set_read_timeout(None)?;
                self.timed = false;
                self.buffer.shrink();
                Ok(Event::Idle)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Event::Idle),
            Err(error) => Err(error),
        }
    }
}

/// The sending half of a plain TCP stream.
#[derive(Debug)]
pub struct TcpSink {
    conn: Arc<Conn>,
}

impl Sink for TcpSink {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.conn.send_all(data)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.conn.finish()
    }

    fn abandon(&mut self) {
        self.conn.break_off();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::threads;
    use std::net::TcpListener;

    fn pair() -> (Arc<Conn>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Conn::new(near), listener.accept().unwrap().0)
    }

    #[test]
    fn an_aborted_connection_ends_in_a_reset() {
        let (near, mut far) = pair();
        near.send_all(b"half of an answ").unwrap();
        far.read_exact(&mut [0; 15]).unwrap();
        near.abort();
        near.abort();
        assert_eq!(near.send_all(b"more").unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(near.recv(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(near);
        assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    /// Each call takes a little: a limit for one call would never be over.
    #[test]
    fn a_peer_that_reads_slowly_does_not_extend_the_deadline() {
        let (near, mut far) = pair();
        let reader =
            threads::spawn("reader", move || while let Ok(1..) = far.read(&mut [0; 1]) {}).unwrap();
        let deadline = Deadline::after("answer", Duration::from_millis(100));
        let error = near.send_all_by(&vec![0; 256 << 20], &deadline).unwrap_err();
        assert_eq!(error.to_string(), "answer timed out after 100ms");
        near.abort();
        drop(near);
        reader.join().unwrap();
    }

    #[test]
    fn who_stops_reading_can_still_send() {
        let (near, mut far) = pair();
        let reader = {
            let near = near.clone();
            threads::spawn("reader", move || near.recv(&mut [0; 1])).unwrap()
        };
        near.stop_reading();
        let aborted = io::ErrorKind::ConnectionAborted;
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), aborted);
        near.send_all(b"answer").unwrap();
        drop(near);
        let mut answer = String::new();
        far.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn aborting_wakes_a_waiting_reader_and_a_stuck_writer() {
        let (near, _far) = pair();
        let (stuck, is_stuck) = crossbeam_channel::bounded(0);
        let reader = {
            let near = near.clone();
            threads::spawn("reader", move || near.recv(&mut [0; 1])).unwrap()
        };
        let writer = {
            let near = near.clone();
            threads::spawn("writer", move || {
                // Full first without waiting, then one write that must wait.
                while near.send_now(&[0; 65536]).is_ok() {}
                stuck.send(()).ok();
                near.send_all(&[0; 1 << 20])
            })
            .unwrap()
        };
        is_stuck.recv().unwrap();
        near.abort();
        let aborted = io::ErrorKind::ConnectionAborted;
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), aborted);
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), aborted);
    }
}
