//! A UDP stream: a session on one side, a destination's socket on the other.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::super::words::since;
use crate::dtls::{Consumer, End, Session};
use crate::lifecycle::clock;
use crate::net::udp::{Burst, is_icmp, send_burst, wake_reader};
use crate::wire::dtls::RECORD_MAX;

/// How long a thread waits for the destination before it looks whether the session is over (stream
/// protocol, "read deadline of UDP destination sockets").
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// Datagrams taken from a destination before its buffer is given back.
const BATCH: usize = 32;

/// A stream that is open.
pub(super) struct Stream {
    id: u64,
    session: Arc<Session>,
    destination: Arc<Destination>,
    opened: Instant,
}

/// The destination of a stream: a connected socket, and what has passed.
pub(super) struct Destination {
    socket: UdpSocket,
    address: SocketAddr,
    label: String,
    /// What is to leave together.
    held: Mutex<Burst>,
    up: Passed,
    down: Passed,
    /// Datagrams that cannot travel: empty, or longer than a record.
    unfit: AtomicU64,
    /// What the network answered to datagrams that we sent (ICMP).
    icmp: AtomicU64,
    /// Datagrams that the system did not take.
    unsent: AtomicU64,
    told: AtomicBool,
}

#[derive(Default)]
struct Passed {
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

impl Passed {
    fn count(&self, datagrams: u64, bytes: u64) {
        self.datagrams.fetch_add(datagrams, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Destination {
    /// Takes a connected socket. `label` is how the log names the stream.
    pub(super) fn new(socket: UdpSocket, label: &str) -> Result<Self, (SocketAddr, io::Error)> {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = socket.peer_addr().map_err(|error| (nowhere, error))?;
        socket.set_read_timeout(Some(READ_DEADLINE)).map_err(|error| (address, error))?;
        Ok(Self {
            socket,
            address,
            label: label.to_owned(),
            held: Mutex::default(),
            up: Passed::default(),
            down: Passed::default(),
            unfit: AtomicU64::new(0),
            icmp: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            told: AtomicBool::new(false),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds a datagram back to leave with others like it, and sends those that it cannot leave
    /// with.
    fn hold(&self, datagram: &[u8]) {
        let mut held = self.held();
        if !held.takes(datagram.len()) {
            self.send(&mut held);
        }
        if held.takes(datagram.len()) {
            held.push(datagram);
        } else {
            // Too long for that.
            self.send_one(datagram);
        }
    }

    fn send(&self, burst: &mut Burst) {
        let (count, bytes) = (burst.len() as u64, burst.bytes() as u64);
        if count == 0 {
            return;
        }
        let icmp = || _ = self.icmp.fetch_add(1, Ordering::Relaxed);
        match send_burst(&self.socket, burst, &icmp) as u64 {
            0 => self.up.count(count, bytes),
            failed => {
                self.unsent.fetch_add(failed, Ordering::Relaxed);
                self.up.count(count - failed, bytes * (count - failed) / count);
            }
        }
    }

    /// Sends without waiting. An error that the network reports of an earlier datagram comes
    /// instead of this one's being sent, so it is tried again.
    fn send_one(&self, datagram: &[u8]) {
        let attempt = || send(self.socket.as_raw_fd(), datagram, MsgFlags::MSG_DONTWAIT);
        let mut sent = attempt();
        if sent.is_err_and(|error| is_icmp(&error.into())) {
            self.icmp.fetch_add(1, Ordering::Relaxed);
            sent = attempt();
        }
        match sent {
            Ok(_) => self.up.count(1, datagram.len() as u64),
            Err(error) => {
                self.unsent.fetch_add(1, Ordering::Relaxed);
                log::trace!("a datagram to {} was not sent: {error}", self.address);
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Burst> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a datagram that cannot travel, with one line for all of them.
    fn unfit(&self, size: usize) {
        self.unfit.fetch_add(1, Ordering::Relaxed);
        if !self.told.swap(true, Ordering::Relaxed) {
            let label = &self.label;
            log::info!(
                "UDP stream drops what cannot travel {label} size={size} why=a datagram of a \
                 stream has 1 to {RECORD_MAX} bytes (told once for each stream)"
            );
        }
    }
}

impl Consumer for Destination {
    fn datagram(&self, datagram: &[u8]) {
        self.hold(datagram);
    }

    fn flush(&self) {
        self.send(&mut self.held());
    }

    fn ended(&self) {
        wake_reader(&self.socket);
    }
}

/// Room for a datagram, lent to whoever has one to carry: a stream without any holds none.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// As many as may usefully work at once on a small box.
    const KEPT: usize = 8;

    fn take(&self) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| vec![0; RECORD_MAX])
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < Self::KEPT {
            kept.push(buffer);
        }
    }
}

impl Stream {
    pub(super) fn new(id: u64, session: Arc<Session>, destination: Destination) -> Self {
        Self { id, session, destination: Arc::new(destination), opened: clock::now() }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Carries datagrams to the destination from now on, beginning with those that came early.
    pub(super) fn open(&self, early: Vec<Box<[u8]>>) {
        for datagram in early {
            self.destination.hold(&datagram);
        }
        self.session.open(self.destination.clone());
    }

    /// Carries datagrams to the client until the session ends, and logs what passed.
    pub(super) fn run(&self, buffers: &Buffers) {
        while self.session.end().is_none() {
            match self.wait() {
                Ok(true) => {
                    let mut buffer = buffers.take();
                    let carried = self.carry(&mut buffer);
                    self.session.release();
                    buffers.give_back(buffer);
                    if let Err(error) = carried {
                        self.session.finish(End::Broken(error));
                    }
                }
                Ok(false) => {}
                Err(error) => self.session.finish(End::Broken(error)),
            }
        }
        self.log_end();
    }

    /// There is no thread to carry it.
    pub(super) fn refuse(&self, error: &io::Error) {
        let why = io::Error::new(error.kind(), format!("no thread can be started: {error}"));
        self.session.finish(End::Broken(why));
        self.log_end();
    }

    /// Waits for the destination, [`READ_DEADLINE`] at the most. Returns whether it may have sent
    /// something.
    fn wait(&self) -> io::Result<bool> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        self.received(recv(self.destination.socket.as_raw_fd(), &mut [], flags))
            .map(|size| size.is_some())
    }

    /// Carries what is there.
    fn carry(&self, buffer: &mut [u8]) -> io::Result<()> {
        let Destination { socket, down, .. } = &*self.destination;
        for _ in 0..BATCH {
            // The size of one that is too long is told, not how much of it was read.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            let received = recv(socket.as_raw_fd(), buffer, flags);
            if received == Err(Errno::EAGAIN) {
                break;
            }
            let Some(size) = self.received(received)? else { continue };
            match buffer.get(..size) {
                Some(datagram) if !datagram.is_empty() => {
                    self.session.hold(datagram)?;
                    down.count(1, datagram.len() as u64);
                }
                // Reading a socket that was woken gives nothing, for ever.
                _ if self.session.end().is_some() => break,
                _ => self.destination.unfit(size),
            }
        }
        Ok(())
    }

    /// The size of what was received, `None` when it was nothing. Only what makes the socket
    /// useless is an error.
    fn received(&self, received: Result<usize, Errno>) -> io::Result<Option<usize>> {
        match received {
            Ok(size) => Ok(Some(size)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) if is_icmp(&error.into()) => {
                self.destination.icmp.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => Err(io::Error::new(
                io::Error::from(error).kind(),
                format!("the destination's socket: {}", io::Error::from(error)),
            )),
        }
    }

    fn log_end(&self) {
        let Destination { label, up, down, unfit, icmp, unsent, .. } = &*self.destination;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut lost = String::new();
        for (name, count) in [
            ("unfit", get(unfit)),
            ("icmp", get(icmp)),
            ("lost", get(unsent) + self.session.lost()),
        ] {
            if count > 0 {
                lost.push_str(&format!(" {name}={count}"));
            }
        }
        let why = self.session.end().map_or_else(|| "-".to_owned(), End::to_string);
        log::info!(
            "UDP stream ended {label} up={} down={} up-datagrams={} down-datagrams={}{lost} time={} \
             why={why}",
            get(&up.bytes),
            get(&down.bytes),
            get(&up.datagrams),
            get(&down.datagrams),
            since(self.opened),
        );
    }
}
