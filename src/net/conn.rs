//! A connected TCP socket that two threads use, one each way, and any third may abort.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, getsockopt, send};
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
    /// Odd while a send is in the kernel.
    sends: AtomicU32,
    /// The error number with which a send found the connection broken, or 0. The kernel tells it
    /// once only; a read after it looks like the peer's FIN.
    failure: AtomicI32,
}

impl Conn {
    /// Takes a connected, blocking socket.
    pub fn new(socket: TcpStream) -> Arc<Self> {
        let flag = || AtomicBool::new(false);
        Arc::new(Self {
            socket,
            aborted: flag(),
            deaf: flag(),
            sends: AtomicU32::new(0),
            failure: AtomicI32::new(0),
        })
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
            Ok(0) => self.failure().map_or(Ok(0), Err),
            result => result,
        }
    }

    /// How a send has found the connection broken, if one has.
    fn failure(&self) -> Option<io::Error> {
        // One that is in the kernel may have taken the error and not noted it yet. It never waits
        // there.
        let sends = self.sends.load(Ordering::SeqCst);
        while sends % 2 == 1 && self.sends.load(Ordering::SeqCst) == sends {
            std::thread::yield_now();
        }
        match self.failure.load(Ordering::SeqCst) {
            0 => None,
            failure => Some(io::Error::from_raw_os_error(failure)),
        }
    }

    /// Sends all of `data`, waiting while the peer does not read. After [`Conn::abort`] the error
    /// `ConnectionAborted`.
    pub fn send_all(&self, data: &[u8]) -> io::Result<()> {
        self.send(data, None)
    }

    /// [`Conn::send_all`] by `deadline`, however slowly the peer reads.
    pub fn send_all_by(&self, data: &[u8], deadline: &Deadline) -> io::Result<()> {
        self.send(data, Some(deadline))
    }

    fn send(&self, data: &[u8], deadline: Option<&Deadline>) -> io::Result<()> {
        let mut rest = data;
        loop {
            if self.is_aborted() {
                return Err(aborted());
            }
            if rest.is_empty() {
                return Ok(());
            }
            if let Some(deadline) = deadline {
                deadline.remaining()?;
            }
            match self.send_now(rest) {
                Ok(size) => rest = rest.get(size..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_for_room(deadline)?;
                }
                Err(_) if self.is_aborted() => return Err(aborted()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the kernel takes more or [`Conn::abort`] is called; may return early.
    ///
    /// A write that waits in the kernel could only be woken by shutting down writing, and that
    /// sends a FIN behind what is queued. A poll is woken by shutting down reading.
    fn wait_for_room(&self, deadline: Option<&Deadline>) -> io::Result<()> {
        let wait = |events: PollFlags, slice: Option<Duration>| {
            let left = deadline.map(Deadline::remaining).transpose()?;
            let limit = left.into_iter().chain(slice).min().map_or(PollTimeout::NONE, |limit| {
                // Rounded up: a rest below a millisecond is not a busy loop.
                PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let mut polled = [PollFd::new(self.socket.as_fd(), events)];
            match poll(&mut polled, limit) {
                // Flags that nix does not know are `None`, so there is no room.
                Ok(_) => Ok(polled.iter().any(|socket| {
                    socket.revents().is_some_and(|seen| seen.contains(PollFlags::POLLOUT))
                })),
                Err(Errno::EINTR) => Ok(false),
                Err(error) => Err(io::Error::from(error)),
            }
        };
        let ended = PollFlags::from_bits_retain(libc::POLLRDHUP);
        if !wait(PollFlags::POLLOUT | ended, None)? && !self.is_aborted() {
            // The peer's own FIN has ended reading, so that flag stands and tells nothing more.
            wait(PollFlags::POLLOUT, Some(ABORT_SEEN_AFTER))?;
        }
        Ok(())
    }

    /// Sends what the kernel takes at once and never waits. Returns the number of bytes.
    pub fn send_now(&self, data: &[u8]) -> io::Result<usize> {
        use std::os::fd::AsRawFd;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.sends.fetch_add(1, Ordering::SeqCst);
        let result = send(self.socket.as_raw_fd(), data, flags);
        if let Err(error) = result
            // After the peer's FIN a reset is EPIPE: then the FIN was the end of what it sent.
            && !matches!(error, Errno::EAGAIN | Errno::EINTR | Errno::EPIPE)
        {
            self.failure.store(error as i32, Ordering::SeqCst);
        }
        self.sends.fetch_add(1, Ordering::SeqCst);
        Ok(result?)
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
        // Never writing: a FIN would tell the peer that the stream ended well. Writers wait in a
        // poll that this ends, too. Errors mean that it is closed already.
        if let Err(error) = self.socket.shutdown(Shutdown::Read) {
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

    /// Whether our FIN, or bytes before it, have yet to be acknowledged. False before
    /// [`Conn::finish`].
    pub fn owes_end(&self) -> bool {
        // Linux, net/tcp_states.h.
        const FIN_WAIT1: u8 = 4;
        const LAST_ACK: u8 = 9;
        const CLOSING: u8 = 11;
        matches!(getsockopt(&self.socket, TcpState), Ok(FIN_WAIT1 | LAST_ACK | CLOSING))
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

/// The first byte of `struct tcp_info`, which is the state of the connection.
#[derive(Clone, Copy, Debug)]
struct TcpState;

nix::getsockopt_impl!(
    TcpState,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    u8,
    nix::sys::socket::sockopt::GetStruct<u8>
);

/// How soon a writer that waits for a peer which has finished sending sees that it was aborted.
const ABORT_SEEN_AFTER: Duration = Duration::from_millis(50);

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

    fn abandon(&mut self) -> bool {
        self.conn.break_off();
        false
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

    /// Waits until the kernel knows that the connection is gone.
    fn until_gone(near: &Conn) {
        let mut polled = [PollFd::new(near.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::NONE).unwrap();
    }

    fn reset(far: TcpStream) {
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    }

    #[test]
    fn a_reset_that_a_write_has_seen_is_not_an_end_for_the_reader() {
        let (near, far) = pair();
        reset(far);
        until_gone(&near);
        let reset = io::ErrorKind::ConnectionReset;
        assert_eq!(near.send_all(b"more").unwrap_err().kind(), reset);
        assert_eq!(near.recv(&mut [0; 1]).unwrap_err().kind(), reset);
    }

    #[test]
    fn an_end_stays_one_when_a_reset_follows() {
        let (near, far) = pair();
        far.shutdown(Shutdown::Write).unwrap();
        reset(far);
        until_gone(&near);
        assert_eq!(near.send_all(b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(near.recv(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_reset_is_never_an_end_whoever_sees_it_first() {
        for _ in 0..200 {
            let (near, mut far) = pair();
            let writer = {
                let near = near.clone();
                threads::spawn("writer", move || while near.send_all(&[0; 1000]).is_ok() {})
            };
            far.read_exact(&mut [0; 50_000]).unwrap();
            let reader = {
                let near = near.clone();
                threads::spawn("reader", move || near.recv(&mut [0; 1])).unwrap()
            };
            reset(far);
            let error = reader.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            writer.unwrap().join().unwrap();
        }
    }

    #[test]
    fn an_upload_that_is_aborted_never_looks_finished() {
        for _ in 0..100 {
            let (near, mut far) = pair();
            let writer = {
                let near = near.clone();
                threads::spawn("writer", move || while near.send_all(&[0; 65536]).is_ok() {})
            };
            far.read_exact(&mut [0; 100_000]).unwrap();
            let aborting = threads::spawn("aborting", move || {
                near.abort();
                writer.unwrap().join().unwrap();
            });
            let error = io::copy(&mut far, &mut io::sink()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            aborting.unwrap().join().unwrap();
        }
    }

    #[test]
    fn aborting_wakes_a_writer_whose_peer_has_finished_sending() {
        let (near, far) = pair();
        far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(near.recv(&mut [0; 1]).unwrap(), 0);
        while near.send_now(&[0; 65536]).is_ok() {}
        let writer = {
            let near = near.clone();
            threads::spawn("writer", move || near.send_all(&[0; 1 << 20])).unwrap()
        };
        near.abort();
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
