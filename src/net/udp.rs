//! UDP sockets: one that serves many peers, and connected ones.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::listen::{BindError, ListenAddr, bind_tcp, is_without_ipv6};

/// Bytes of datagrams that the kernel may hold for a socket that serves many peers. The kernel
/// counts twice that (socket(7)) and cuts it to `net.core.rmem_max`, 208 KiB by default.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Where a datagram came from, and to which of our addresses: replies must leave from that one, or
/// the peer (and every NAT on the way) will not know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The other end.
    pub peer: SocketAddr,
    /// Our address; `None` when the socket has only one.
    pub local: Option<IpAddr>,
}

/// A bound socket that serves many peers. Never blocks: wait for it with `poll`.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    /// Whether it is bound to every address, and datagrams tell to which one they came.
    every: bool,
}

impl UdpPort {
    /// Binds `count` sockets to one port. With more than one (`SO_REUSEPORT`), the kernel gives
    /// all datagrams of one peer to the same socket.
    ///
    /// [`ListenAddr::Every`] falls back to IPv4 alone where the kernel has no IPv6.
    pub fn bind(at: &ListenAddr, count: usize) -> Result<Vec<Self>, BindError> {
        let mut ports = Vec::with_capacity(count);
        let mut at = *at;
        for _ in 0..count {
            let bound = match at {
                ListenAddr::One(address) => Self::open(address, true, count > 1),
                ListenAddr::Every(port) => {
                    match Self::open((Ipv6Addr::UNSPECIFIED, port).into(), false, count > 1) {
                        Err(error) if is_without_ipv6(&error) => {
                            Self::open((Ipv4Addr::UNSPECIFIED, port).into(), true, count > 1)
                        }
                        bound => bound,
                    }
                }
            };
            let bound = bound.map_err(|source| BindError::udp(at, source))?;
            // The kernel chose the first one's port: the others share it.
            if let Ok(address) = bound.local_addr() {
                at = at.with_port(address.port());
            }
            ports.push(bound);
        }
        Ok(ports)
    }

    fn open(address: SocketAddr, only_v6: bool, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        let every = address.ip().is_unspecified();
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
            if every {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
        } else if every {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        socket.set_reuse_port(shared)?;
        if let Err(error) = socket.set_recv_buffer_size(RECEIVE_BUFFER) {
            log::debug!("a UDP socket keeps its small receive buffer: {error}");
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self { socket: socket.into(), every })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes one datagram, cut to the buffer's length. `WouldBlock` when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Route)> {
        if !self.every {
            let (size, peer) = self.socket.recv_from(buffer)?;
            return Ok((size, Route { peer, local: None }));
        }
        // Room for either kind; both are at most 20 bytes behind a header of 16.
        let mut control = [0; 64];
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let peer = message.address.as_ref().and_then(socket_addr);
        let peer = peer.ok_or_else(|| io::Error::other("a datagram without a source"))?;
        let local = message.cmsgs().ok().and_then(|mut all| all.find_map(destination));
        Ok((message.bytes, Route { peer, local }))
    }

    /// Sends one datagram back along a route. `WouldBlock` when the socket's buffer is full.
    pub fn send(&self, datagram: &[u8], route: &Route) -> io::Result<()> {
        match route.local {
            None => self.socket.send_to(datagram, route.peer).map(drop),
            Some(_) => self.send_with(datagram, None, route),
        }
    }

    /// Sends what a burst holds back along a route, and empties it. Returns how many datagrams the
    /// system did not take.
    pub fn send_burst(&self, burst: &mut Burst, route: &Route) -> usize {
        burst.send(|bytes, size| match size {
            Some(size) => self.send_with(bytes, Some(size), route),
            None => self.send(bytes, route),
        })
    }

    fn send_with(&self, bytes: &[u8], size: Option<u16>, route: &Route) -> io::Result<()> {
        // No interface: the route decides.
        let (v4, v6) = match route.local {
            Some(IpAddr::V4(address)) => {
                let spec = libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
                let none = libc::in_addr { s_addr: 0 };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: spec, ipi_addr: none };
                (Some(info), None)
            }
            Some(IpAddr::V6(address)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: address.octets() };
                (None, Some(libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 }))
            }
            None => (None, None),
        };
        let control: Vec<_> = v4
            .iter()
            .map(ControlMessage::Ipv4PacketInfo)
            .chain(v6.iter().map(ControlMessage::Ipv6PacketInfo))
            .chain(size.iter().map(ControlMessage::UdpGsoSegments))
            .collect();
        let (slices, to) = ([IoSlice::new(bytes)], SockaddrStorage::from(route.peer));
        sendmsg(self.socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }
}

/// Datagrams of one length, the last one perhaps shorter, that leave in one call of the system
/// (`UDP_SEGMENT`, udp(7), since Linux 4.18; elsewhere one after the other). Most of what a datagram
/// costs is the way through the kernel, which they take together.
#[derive(Debug, Default)]
pub struct Burst {
    bytes: Vec<u8>,
    /// Of all but the last.
    size: usize,
    count: usize,
}

impl Burst {
    /// The longest datagrams that are put together: what is longer may not fit in the packets of
    /// the network, and the kernel does not cut those of a burst.
    pub const LONGEST: usize = 1200;

    /// How many leave together: half of what the kernel takes.
    const MOST: usize = 32;

    /// Whether one of this length can be added.
    pub fn takes(&self, length: usize) -> bool {
        let fits = (1..=Self::LONGEST).contains(&length);
        let follows = self.bytes.len() == self.size * self.count && length <= self.size;
        fits && (self.count == 0 || (self.count < Self::MOST && follows))
    }

    /// Adds a datagram, of a length that it takes.
    pub fn push(&mut self, datagram: &[u8]) {
        if self.count == 0 {
            self.size = datagram.len();
        }
        self.bytes.extend_from_slice(datagram);
        self.count += 1;
    }

    /// Datagrams in it.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Their bytes together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Gives all to `act`, with the length of each, or one after the other without; and forgets
    /// them. Returns how many it failed for.
    fn send(&mut self, act: impl Fn(&[u8], Option<u16>) -> io::Result<()>) -> usize {
        // Not kept: a stream without datagrams on their way holds nothing.
        let Self { bytes, size, count } = std::mem::take(self);
        if count > 1
            && can_segment()
            && let Ok(together) = u16::try_from(size)
        {
            match act(&bytes, Some(together)) {
                Ok(()) => return 0,
                // Not by this interface, or not of this length: one by one it may go.
                Err(error) if is_no_burst(&error) => {}
                Err(error) => {
                    log::trace!("{count} datagrams were not sent: {error}");
                    return count;
                }
            }
        }
        let failed = bytes.chunks(size.max(1)).filter(|datagram| {
            let sent = act(datagram, None);
            sent.inspect_err(|error| log::trace!("a datagram was not sent: {error}")).is_err()
        });
        failed.count()
    }
}

/// Sends what a burst holds to the peer of a connected socket, without waiting, and empties it.
/// Returns how many datagrams the system did not take. `icmp` is told of what the network reports
/// of earlier ones: the report comes instead of the sending, which is tried again.
pub fn send_burst(socket: &UdpSocket, burst: &mut Burst, icmp: &dyn Fn()) -> usize {
    burst.send(|bytes, size| {
        let slices = [IoSlice::new(bytes)];
        let control: Vec<_> = size.iter().map(ControlMessage::UdpGsoSegments).collect();
        let attempt = || {
            sendmsg::<()>(socket.as_raw_fd(), &slices, &control, MsgFlags::MSG_DONTWAIT, None)
                .map_err(io::Error::from)
        };
        match attempt() {
            Err(error) if is_icmp(&error) && !is_no_burst(&error) => {
                icmp();
                attempt()
            }
            sent => sent,
        }
        .map(drop)
    })
}

/// Whether the kernel knows of bursts. One that does not would send them as one datagram.
fn can_segment() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        socket.is_ok_and(|socket| getsockopt(&socket, sockopt::UdpGsoSegment).is_ok())
    })
}

/// What the kernel says of a burst that it cannot send as one: no checksums in hardware, too long
/// for the way (udp(7)).
fn is_no_burst(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP)
    )
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Which of our addresses a datagram came to. Multicast and broadcast are none to reply from.
fn destination(message: ControlMessageOwned) -> Option<IpAddr> {
    let address = match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            // The local address that the kernel would reply from, also to a broadcast.
            IpAddr::V4(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))
        }
        _ => return None,
    };
    (!address.is_multicast()).then_some(address)
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

/// Listens on a TCP port and binds `udp_sockets` UDP sockets (none for 0) to the same number.
///
/// Where the kernel is to choose (port 0), it is asked again when the number it gave for TCP is
/// taken on UDP.
pub fn bind_both(
    at: &ListenAddr,
    udp_sockets: usize,
) -> Result<(TcpListener, Vec<UdpPort>), BindError> {
    /// Ten numbers in a row that are taken: there is no number left.
    const TRIES: usize = 10;
    let mut tries = 0;
    loop {
        let tcp = bind_tcp(at)?;
        let port = tcp.local_addr().map_err(|source| BindError::Bind { at: *at, source })?.port();
        tries += 1;
        match UdpPort::bind(&at.with_port(port), udp_sockets) {
            Err(BindError::InUse { .. }) if at.port() == 0 && tries < TRIES => {}
            udp => return Ok((tcp, udp?)),
        }
    }
}

/// A socket that speaks with one peer only: the first of these addresses that the system has a
/// route to. Connecting sends nothing.
///
/// # Errors
/// What became of each address.
pub fn connect_udp(addresses: &[SocketAddr]) -> Result<UdpSocket, Vec<(SocketAddr, io::Error)>> {
    let mut failed = Vec::new();
    for address in addresses {
        match connect_one(*address) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed.push((*address, error)),
        }
    }
    Err(failed)
}

/// The same for one address.
pub fn connect_one(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

/// Whether an error of a connected UDP socket is what the network said of an earlier datagram
/// (ICMP): the socket goes on.
pub fn is_icmp(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNREFUSED
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::ENOPROTOOPT
                | Errno::EPROTO
                | Errno::EMSGSIZE
                | Errno::EACCES
                | Errno::EPERM
                | Errno::ENETDOWN
                | Errno::EOPNOTSUPP
        )
    )
}

/// Ends a wait in [`UdpSocket::recv`] on a connected socket, now and from now on: it returns 0.
pub fn wake_reader(socket: &UdpSocket) {
    // Fails on a socket that is not connected, whose reader nobody waits for.
    if let Err(error) = SockRef::from(socket).shutdown(std::net::Shutdown::Read) {
        log::debug!("cannot wake the reader of a UDP socket: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        (connect_one(far.local_addr().unwrap()).unwrap(), far)
    }

    fn sizes(burst: &Burst, lengths: &[usize]) -> Vec<bool> {
        lengths.iter().map(|length| burst.takes(*length)).collect()
    }

    #[test]
    fn a_burst_takes_one_length_and_a_shorter_end() {
        let mut burst = Burst::default();
        assert_eq!(sizes(&burst, &[0, 1, 1200, 1201]), [false, true, true, false]);
        burst.push(&[1; 100]);
        burst.push(&[2; 100]);
        assert_eq!(sizes(&burst, &[0, 1, 99, 100, 101]), [false, true, true, true, false]);
        burst.push(&[3; 99]);
        assert_eq!(sizes(&burst, &[1, 99, 100]), [false; 3], "nothing goes behind a shorter one");
        let mut full = Burst::default();
        (0..32).for_each(|_| full.push(&[0; 10]));
        assert!(!full.takes(10));
    }

    #[test]
    fn the_datagrams_of_a_burst_arrive_one_by_one() {
        let (near, far) = pair();
        let mut burst = Burst::default();
        let sent: Vec<Vec<u8>> =
            (0..20_u8).map(|number| vec![number; if number == 19 { 7 } else { 300 }]).collect();
        for datagram in &sent {
            assert!(burst.takes(datagram.len()));
            burst.push(datagram);
        }
        assert_eq!((burst.len(), burst.bytes()), (20, 19 * 300 + 7));
        assert_eq!(send_burst(&near, &mut burst, &|| panic!("no ICMP")), 0);
        assert!(burst.is_empty());
        let mut buffer = [0; 2048];
        for datagram in sent {
            let size = far.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..size], datagram);
        }
    }

    #[test]
    fn a_burst_leaves_from_the_address_that_was_asked() {
        let at = ListenAddr::One(([0, 0, 0, 0], 0).into());
        let port = UdpPort::bind(&at, 1).unwrap().remove(0);
        let number = port.local_addr().unwrap().port();
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let local = Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 7)));
        let route = Route { peer: far.local_addr().unwrap(), local };
        let mut burst = Burst::default();
        burst.push(b"one");
        burst.push(b"two");
        assert_eq!(port.send_burst(&mut burst, &route), 0);
        for expected in [b"one", b"two"] {
            let mut buffer = [0; 8];
            let (size, from) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..size], expected);
            assert_eq!(from, ([127, 0, 0, 7], number).into());
        }
    }

    #[test]
    fn what_the_network_says_of_earlier_datagrams_costs_none() {
        let (near, far) = pair();
        let to = far.local_addr().unwrap();
        drop(far);
        near.send(b"nobody there").unwrap();
        // Its answer is there before `send` returns, on this machine's own interface.
        let told = std::cell::Cell::new(0);
        let mut burst = Burst::default();
        burst.push(b"x");
        assert_eq!(send_burst(&near, &mut burst, &|| told.set(told.get() + 1)), 0);
        assert!(told.get() <= 1, "{to}");
    }
}
