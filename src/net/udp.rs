//! UDP sockets: one that serves many peers, and connected ones.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
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
        let Some(local) = route.local else {
            return self.socket.send_to(datagram, route.peer).map(drop);
        };
        let slices = [IoSlice::new(datagram)];
        let send = |control| {
            let to = SockaddrStorage::from(route.peer);
            let flags = MsgFlags::empty();
            sendmsg(self.socket.as_raw_fd(), &slices, &[control], flags, Some(&to))
        };
        match local {
            IpAddr::V4(address) => {
                // No interface: the route decides.
                send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                }))
            }
            IpAddr::V6(address) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: 0,
            })),
        }?;
        Ok(())
    }
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
