//! The client's end of a session.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use openssl::ssl::SslStream;

use super::channel::{Channel, Read};
use super::context::ClientContext;
use super::error::HandshakeError;
use super::link::Link;
use super::session::TICK;
use crate::lifecycle::{Deadline, clock};
use crate::net::udp::{connect_one, is_icmp, wake_reader};
use crate::wire::dtls::{RECORD_MAX, WIRE_MAX};

/// A session with an agent. Sending and receiving may be done by two threads at once.
///
/// Dropping it ends it.
#[derive(Debug)]
pub struct ClientSession {
    channel: Channel,
    socket: Arc<UdpSocket>,
    /// Room for a datagram of the network and one of the stream; whoever holds it receives.
    receiver: Mutex<Buffers>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Buffers {
    wire: Box<[u8]>,
    plain: Box<[u8]>,
}

/// Agrees with the agent at `address`: the certificates of both are verified when this returns.
pub fn connect(
    address: SocketAddr,
    context: &ClientContext,
    deadline: &Deadline,
) -> Result<ClientSession, HandshakeError> {
    let socket = connect_one(address)
        .and_then(|socket| socket.set_nonblocking(true).map(|()| Arc::new(socket)))
        .map_err(HandshakeError::Io)?;
    let stream = context
        .session()
        .and_then(|ssl| SslStream::new(ssl, Link::own(socket.clone())))
        .map_err(HandshakeError::Dtls)?;
    let session = ClientSession {
        channel: Channel::new(stream),
        socket,
        receiver: Mutex::new(Buffers {
            wire: vec![0; WIRE_MAX].into_boxed_slice(),
            plain: vec![0; RECORD_MAX].into_boxed_slice(),
        }),
        closed: AtomicBool::new(false),
    };
    session.handshake(deadline)?;
    Ok(session)
}

impl ClientSession {
    fn handshake(&self, deadline: &Deadline) -> Result<(), HandshakeError> {
        let mut buffers = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        let mut datagram = None;
        loop {
            if self.channel.handshake(datagram.take())? {
                return Ok(());
            }
            let left = deadline.remaining().map_err(HandshakeError::Io)?;
            let size = self
                .wait(clock::now() + left.min(TICK))
                .and_then(|ready| if ready { self.take(&mut buffers.wire) } else { Ok(None) })
                .map_err(HandshakeError::Io)?;
            datagram = size.and_then(|size| buffers.wire.get(..size)).map(Box::from);
        }
    }

    /// Sends one datagram of 1 to 16384 bytes. It may be lost on its way, as any datagram.
    ///
    /// # Errors
    /// `InvalidInput` when it cannot travel; others when the session has ended.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.channel.write(datagram)
    }

    /// Waits for the next datagram and returns its length, or `None` when the agent has ended the
    /// session or [`close`](Self::close) was called. A datagram that is longer than `buffer` is
    /// cut; 16384 bytes hold every one.
    ///
    /// # Errors
    /// The deadline's, when it passes; `ConnectionRefused` when nothing listens at the agent's port
    /// any more; others when the session broke. What else the network says of a datagram that was
    /// sent (ICMP) is none.
    pub fn recv(
        &self,
        buffer: &mut [u8],
        deadline: Option<&Deadline>,
    ) -> io::Result<Option<usize>> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffers { wire, plain } = &mut *receiver;
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Ok(None);
            }
            // OpenSSL would give the rest of a cut datagram as another one.
            let read = if buffer.len() < RECORD_MAX {
                let read = self.channel.read(plain)?;
                if let Read::Datagram(size) = read {
                    let size = size.min(buffer.len());
                    for (to, from) in buffer.iter_mut().zip(plain.iter()) {
                        *to = *from;
                    }
                    return Ok(Some(size));
                }
                read
            } else {
                self.channel.read(buffer)?
            };
            match read {
                Read::Datagram(size) => return Ok(Some(size)),
                Read::End => return Ok(None),
                Read::Nothing => {}
            }
            let until = match deadline {
                Some(deadline) => {
                    deadline.remaining()?;
                    deadline.at()
                }
                None => clock::now() + LONG,
            };
            if !self.wait(until)? {
                continue;
            }
            let size = match self.take(wire) {
                Err(error) if is_passing(&error) => {
                    log::debug!("the network says of a datagram to the agent: {error}");
                    continue;
                }
                size => size?,
            };
            if let Some(datagram) = size.and_then(|size| wire.get(..size)) {
                self.channel.push(datagram.into());
            }
        }
    }

    /// Ends the session and wakes who receives.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.channel.close();
            wake_reader(&self.socket);
        }
    }

    /// The cipher suite, as OpenSSL names it.
    pub fn cipher(&self) -> &'static str {
        self.channel.cipher()
    }

    /// The agent's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Waits until a datagram is there or the moment has come. Returns whether one may be there.
    fn wait(&self, until: Instant) -> io::Result<bool> {
        let left = until.saturating_duration_since(clock::now()) + Duration::from_millis(1);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&self, wire: &mut [u8]) -> io::Result<Option<usize>> {
        match self.socket.recv(wire) {
            // Empty, which OpenSSL would take for the end of everything; or we were woken.
            Ok(0) => Ok(None),
            Ok(size) => Ok(Some(size)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            // An earlier datagram was too long for some network on its way: the kernel cuts those
            // that follow.
            Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether an error of the socket leaves a session that is open as it is: the network said it of an
/// earlier datagram, and the next one may arrive. A closed port is no such thing: the agent that
/// knew the session is gone.
fn is_passing(error: &io::Error) -> bool {
    is_icmp(error) && error.kind() != io::ErrorKind::ConnectionRefused
}

/// Any time will do for who has no deadline.
const LONG: Duration = Duration::from_secs(3600);

impl Drop for ClientSession {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_port_is_the_end_of_what_the_network_can_say() {
        let is = |errno: Errno| is_passing(&errno.into());
        for errno in [Errno::EMSGSIZE, Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::ENONET] {
            assert!(is(errno), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EBADF, Errno::ENOMEM] {
            assert!(!is(errno), "{errno}");
        }
    }
}
