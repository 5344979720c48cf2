//! What OpenSSL reads from and writes to: whole datagrams, never merged and never cut.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use crate::net::udp::{Burst, Route, UdpPort, send_burst};
use crate::wire::dtls::{Sealed, encrypted, is_plausible, whole_records};

/// Encrypted records that a peer may send before its handshake is complete: the last message of it,
/// sent again each time that the flight is (at most a dozen times), and an alert.
const EARLY: usize = 16;

/// The most bytes of one. Those that there are have fewer than a hundred.
const EARLY_LENGTH: usize = 512;

/// The datagrams of one peer. Neither reading nor writing ever waits.
#[derive(Debug)]
pub(super) struct Link {
    incoming: VecDeque<Box<[u8]>>,
    /// What the peer's encrypted records have at least.
    sealed: Sealed,
    /// How many of them may still come before the handshake is complete; then, as many as like.
    early: Option<usize>,
    out: Out,
    /// What is to leave together, while that is wanted.
    held: Option<Burst>,
    /// Datagrams that the system did not take, such as when its buffer was full. The protocol
    /// treats them like those that the network loses.
    unsent: u64,
}

/// How datagrams reach the peer.
#[derive(Debug)]
enum Out {
    /// From a socket that others use too.
    Shared(Arc<UdpPort>, PeerRoute),
    /// From a socket that is connected to this peer.
    Own(Arc<UdpSocket>),
}

/// Where a peer is. Clones share it: the cookie callbacks learn by it whom they are asked about.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerRoute(Arc<Mutex<Option<Route>>>);

impl PeerRoute {
    pub(super) fn set(&self, route: Route) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(route);
    }

    fn get(&self) -> Option<Route> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.get().map(|route| route.peer)
    }
}

impl Link {
    pub(super) fn shared(port: Arc<UdpPort>, route: PeerRoute) -> Self {
        Self {
            incoming: VecDeque::new(),
            sealed: Sealed::Tag,
            early: Some(EARLY),
            out: Out::Shared(port, route),
            held: None,
            unsent: 0,
        }
    }

    pub(super) fn own(socket: Arc<UdpSocket>) -> Self {
        Self {
            incoming: VecDeque::new(),
            sealed: Sealed::Tag,
            early: Some(EARLY),
            out: Out::Own(socket),
            held: None,
            unsent: 0,
        }
    }

    /// The handshake is complete, with this cipher suite.
    pub(super) fn agreed(&mut self, cipher: &str) {
        self.sealed = if cipher.contains("GCM") { Sealed::NonceAndTag } else { Sealed::Tag };
        self.early = None;
    }

    /// Adds a datagram that OpenSSL will read next. Forgeries that would harm it are left out.
    pub(super) fn push(&mut self, datagram: Box<[u8]>) {
        if is_plausible(&datagram, self.sealed) && self.is_not_too_early(&datagram) {
            self.incoming.push_back(datagram);
        }
    }

    /// Whether OpenSSL may have what is encrypted in a datagram. Before it has the keys, it keeps a
    /// hundred such records, each in a buffer for the longest.
    fn is_not_too_early(&mut self, datagram: &[u8]) -> bool {
        let Some(early) = &mut self.early else { return true };
        let lengths = || encrypted(datagram);
        match early.checked_sub(lengths().count()) {
            Some(left) if lengths().all(|length| length <= EARLY_LENGTH) => {
                *early = left;
                true
            }
            _ => false,
        }
    }

    /// Forgets what was not read.
    pub(super) fn clear(&mut self) {
        self.incoming.clear();
    }

    /// From now on what is written is held back, to leave together.
    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Sends what was held back, and holds back no more.
    pub(super) fn release(&mut self) {
        if let Some(mut burst) = self.held.take() {
            self.send_burst(&mut burst);
        }
    }

    fn send_burst(&mut self, burst: &mut Burst) {
        let failed = match &self.out {
            _ if burst.is_empty() => 0,
            Out::Shared(port, route) => match route.get() {
                Some(route) => port.send_burst(burst, &route),
                None => burst.len(),
            },
            Out::Own(socket) => send_burst(socket, burst, &|| {}),
        };
        self.unsent += failed as u64;
    }

    /// Datagrams that the system did not take.
    pub(super) fn unsent(&self) -> u64 {
        self.unsent
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(datagram) = self.incoming.pop_front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        // OpenSSL has room for the largest record; what is longer is none.
        (&*datagram).read(buffer)
    }
}

impl Write for Link {
    fn write(&mut self, records: &[u8]) -> io::Result<usize> {
        let mut rest = records;
        while !rest.is_empty() {
            let (datagram, behind) = rest.split_at(whole_records(rest, HANDSHAKE_DATAGRAM));
            match self.held.take() {
                None => self.send(datagram),
                Some(mut burst) => {
                    if !burst.takes(datagram.len()) {
                        self.send_burst(&mut burst);
                    }
                    if burst.takes(datagram.len()) {
                        burst.push(datagram);
                    } else {
                        self.send(datagram);
                    }
                    self.held = Some(burst);
                }
            }
            rest = behind;
        }
        Ok(records.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Link {
    fn send(&mut self, datagram: &[u8]) {
        let sent = match &self.out {
            Out::Shared(port, route) => match route.get() {
                Some(route) => port.send(datagram, &route),
                None => Err(io::ErrorKind::NotConnected.into()),
            },
            Out::Own(socket) => match socket.send(datagram) {
                // What the network said of an earlier datagram; this one was not sent yet.
                Err(error) if crate::net::udp::is_icmp(&error) => socket.send(datagram).map(drop),
                sent => sent.map(drop),
            },
        };
        if let Err(error) = sent {
            self.unsent += 1;
            log::trace!("a datagram was not sent: {error}");
        }
    }
}

/// The most bytes of a datagram with several records, which only a handshake has: as existing
/// peers have it, and below what the common tunnels leave of Ethernet's 1500.
pub(super) const HANDSHAKE_DATAGRAM: usize = 1200;
