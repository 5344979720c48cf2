//! Connecting to a host within a deadline: every address it has, both families, on one thread.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::options::tune;
use super::resolve::{ResolveError, resolve};
use super::udp::connect_udp;
use crate::lifecycle::{Deadline, clock};

/// How long one address may take before the next is tried beside it (RFC 8305, section 5,
/// "Connection Attempt Delay").
pub const STAGGER: Duration = Duration::from_millis(250);

/// Connections attempted at the same time for one destination, so that a name with a thousand dead
/// addresses costs no more descriptors than this.
pub const CONCURRENT: usize = 16;

/// Connects to `host` and `port`, whichever address answers first.
///
/// Resolves the host ([`resolve`]), leaves out the addresses that `permit` refuses, and tries the
/// others as RFC 8305 says: families in turn, [`STAGGER`] apart, or at once when the one before has
/// failed. The stream is blocking and has the options of [`tune`].
pub fn dial(
    host: &str,
    port: u16,
    permit: &dyn Fn(SocketAddr) -> bool,
    deadline: &Deadline,
) -> Result<TcpStream, DialError> {
    connect(&permitted(host, port, permit, deadline)?, deadline)
}

/// A UDP socket for `host` and `port`: the first address that `permit` takes and the system has a
/// route to. Whether anybody is there shows later, if at all.
pub fn dial_udp(
    host: &str,
    port: u16,
    permit: &dyn Fn(SocketAddr) -> bool,
    deadline: &Deadline,
) -> Result<UdpSocket, DialError> {
    connect_udp(&permitted(host, port, permit, deadline)?).map_err(DialError::Connect)
}

fn permitted(
    host: &str,
    port: u16,
    permit: &dyn Fn(SocketAddr) -> bool,
    deadline: &Deadline,
) -> Result<Vec<SocketAddr>, DialError> {
    let (permitted, denied): (Vec<_>, Vec<_>) =
        resolve(host, port, deadline)?.into_iter().partition(|address| permit(*address));
    if permitted.is_empty() { Err(DialError::Denied(denied)) } else { Ok(permitted) }
}

/// Connects to whichever of these addresses answers first; [`dial`] without the name.
pub fn connect(addresses: &[SocketAddr], deadline: &Deadline) -> Result<TcpStream, DialError> {
    let mut untried = interleave(addresses).into_iter();
    let mut pending: Vec<Attempt> = Vec::new();
    let mut failed: Vec<(SocketAddr, io::Error)> = Vec::new();
    let mut next_start = clock::now();
    loop {
        while pending.len() < CONCURRENT && (pending.is_empty() || clock::now() >= next_start) {
            let Some(address) = untried.next() else { break };
            match Attempt::start(address) {
                Ok(attempt) => {
                    pending.push(attempt);
                    next_start = clock::now() + STAGGER;
                }
                Err(error) => failed.push((address, error)),
            }
        }
        if pending.is_empty() {
            return Err(DialError::Connect(failed));
        }
        let more = !untried.as_slice().is_empty() && pending.len() < CONCURRENT;
        let wake = if more { next_start.min(deadline.at()) } else { deadline.at() };
        let ready = match wait(&pending, wake) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => Vec::new(),
            Err(errno) => return Err(DialError::Poll(errno.into())),
        };
        // From the back, so that the places of those not looked at yet stay what they are.
        for at in ready.into_iter().rev() {
            let attempt = pending.swap_remove(at);
            let address = attempt.address;
            match attempt.finish() {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failed.push((address, error));
                    next_start = clock::now();
                }
            }
        }
        if !pending.is_empty()
            && let Err(source) = deadline.remaining()
        {
            let waiting = pending.into_iter().map(|attempt| attempt.address).collect();
            return Err(DialError::TimedOut {
                phase: Phase::Connecting { waiting, failed },
                source,
            });
        }
    }
}

/// The families in turn, beginning with the one the system prefers, each in its own order
/// (RFC 8305, section 4).
fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let mut first = addresses.iter().filter(|a| a.is_ipv6() == first_is_v6);
    let mut second = addresses.iter().filter(|a| a.is_ipv6() != first_is_v6);
    let mut turns = Vec::with_capacity(addresses.len());
    while turns.len() < addresses.len() {
        turns.extend(first.next());
        turns.extend(second.next());
    }
    turns
}

/// The places of the attempts that have ended one way or the other.
fn wait(pending: &[Attempt], until: Instant) -> Result<Vec<usize>, Errno> {
    let mut fds: Vec<_> =
        pending.iter().map(|a| PollFd::new(a.socket.as_fd(), PollFlags::POLLOUT)).collect();
    poll(&mut fds, timeout(until.saturating_duration_since(clock::now())))?;
    let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    Ok(fds.iter().enumerate().filter(|(_, fd)| ready(fd)).map(|(at, _)| at).collect())
}

/// Rounded up to poll's milliseconds: rounded down, the last one would be spent spinning.
fn timeout(left: Duration) -> PollTimeout {
    let millis = left.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

/// A connection on its way.
struct Attempt {
    address: SocketAddr,
    socket: Socket,
}

impl Attempt {
    fn start(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { address, socket })
    }

    fn finish(self) -> io::Result<TcpStream> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        let stream = TcpStream::from(self.socket);
        // A connection to a free port of this machine can by chance be given that very port and
        // meet itself (simultaneous open, RFC 9293, section 3.5). Nobody listens there.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        stream.set_nonblocking(false)?;
        tune(&stream)?;
        Ok(stream)
    }
}

/// Why no connection was made.
#[derive(Debug)]
pub enum DialError {
    /// The host could not be resolved.
    Resolve(ResolveError),
    /// The host has no address.
    NoAddress(ResolveError),
    /// Too many resolutions are running already: a name server is slow.
    ResolverBusy(ResolveError),
    /// Every address of the host was refused by the caller's `permit`.
    Denied(Vec<SocketAddr>),
    /// Every address failed.
    Connect(Vec<(SocketAddr, io::Error)>),
    /// The deadline passed.
    TimedOut {
        /// What was being done.
        phase: Phase,
        /// The deadline's text.
        source: io::Error,
    },
    /// The system could not wait for the connections.
    Poll(io::Error),
}

/// What a dial was doing when its deadline passed.
#[derive(Debug)]
pub enum Phase {
    /// Looking up the host's addresses.
    Resolving,
    /// Connecting to them.
    Connecting {
        /// Addresses that had not answered.
        waiting: Vec<SocketAddr>,
        /// Addresses that had failed before.
        failed: Vec<(SocketAddr, io::Error)>,
    },
}

impl From<ResolveError> for DialError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::TimedOut(source) => Self::TimedOut { phase: Phase::Resolving, source },
            ResolveError::NoAddress { .. } => Self::NoAddress(error),
            ResolveError::Busy { .. } => Self::ResolverBusy(error),
            ResolveError::LookUp { .. } | ResolveError::Thread(_) => Self::Resolve(error),
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(error) | Self::NoAddress(error) | Self::ResolverBusy(error) => {
                error.fmt(f)
            }
            Self::Denied(addresses) => {
                f.write_str("destination rules deny ")?;
                list(f, addresses, |f, address| write!(f, "{}", address.ip()))
            }
            Self::Connect(failed) => {
                f.write_str("cannot connect to ")?;
                list(f, failed, |f, (address, error)| write!(f, "{address}: {error}"))
            }
            Self::TimedOut { phase: Phase::Resolving, source } => {
                write!(f, "resolving the name: {source}; the name server does not answer")
            }
            Self::TimedOut { phase: Phase::Connecting { waiting, failed }, source } => {
                f.write_str("connecting to ")?;
                list(f, waiting, |f, address| write!(f, "{address}"))?;
                write!(f, ": {source}")?;
                if !failed.is_empty() {
                    f.write_str("; before that ")?;
                    list(f, failed, |f, (address, error)| write!(f, "{address}: {error}"))?;
                }
                Ok(())
            }
            Self::Poll(source) => write!(f, "waiting for a connection: {source}"),
        }
    }
}

/// The addresses that an error names.
pub const SHOWN: usize = 4;

/// The first few, so that a name with a thousand addresses cannot fill the log.
fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    show: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (at, item) in items.iter().take(SHOWN).enumerate() {
        if at > 0 {
            f.write_str(", ")?;
        }
        show(f, item)?;
    }
    match items.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // Their text is already this error's own.
            Self::Resolve(error) | Self::NoAddress(error) | Self::ResolverBusy(error) => {
                error.source()
            }
            Self::Denied(_) => None,
            Self::Connect(failed) => {
                failed.first().map(|(_, error)| error as &(dyn Error + 'static))
            }
            Self::TimedOut { source, .. } | Self::Poll(source) => Some(source),
        }
    }
}

#[cfg(test)]
mod tests;
