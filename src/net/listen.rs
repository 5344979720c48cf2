//! Where to listen, and listening there.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::holder::{Holder, Transport, holder_of_port};
use super::resolve::literal;

/// Connections that may wait to be accepted. The kernel cuts it to `net.core.somaxconn`, 4096 by
/// default; the reserve covers a burst while the accept loop waits for a slot.
pub const BACKLOG: i32 = 1024;

/// A local address to listen on.
///
/// | text | meaning |
/// |---|---|
/// | `8890` or `:8890` | every address of both families |
/// | `0.0.0.0:8890` | every IPv4 address |
/// | `[::]:8890` | every IPv6 address and no IPv4 one, so that it can stand beside `0.0.0.0` |
/// | `192.0.2.1:8890`, `[2001:db8::1]:8890`, `[fe80::1%eth0]:8890` | that address |
///
/// Port 0 lets the kernel choose. Host names are refused: which of a name's addresses is meant, and
/// what happens when they change, would be left to chance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListenAddr {
    /// A port of every address, IPv6 and IPv4 in one socket.
    Every(u16),
    /// One address, or every address of one family.
    One(SocketAddr),
}

impl ListenAddr {
    /// The port, 0 if the kernel is to choose.
    pub fn port(&self) -> u16 {
        match self {
            Self::Every(port) => *port,
            Self::One(address) => address.port(),
        }
    }

    /// The same with this port.
    pub fn with_port(mut self, number: u16) -> Self {
        match &mut self {
            Self::Every(port) => *port = number,
            Self::One(address) => address.set_port(number),
        }
        self
    }
}

impl FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, ListenAddrError> {
        let wrong = |what| ListenAddrError { text: text.to_owned(), what };
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => ("", text),
            None => return Err(wrong("the port is missing")),
        };
        if !host.starts_with('[') && host.contains(':') {
            return Err(wrong("an IPv6 address must be in brackets, with the port behind"));
        }
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong("the port is not a number"));
        }
        let port = port.parse().map_err(|_| wrong("the port is more than 65535"))?;
        if host.is_empty() {
            return Ok(Self::Every(port));
        }
        match literal(host) {
            Some(Ok(mut address)) => {
                address.set_port(port);
                Ok(Self::One(address))
            }
            Some(Err(_)) => Err(wrong("this machine has no interface of that name")),
            None => Err(wrong("the host is not an IP address (names are not looked up here)")),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(port) => write!(f, ":{port}"),
            Self::One(address) => address.fmt(f),
        }
    }
}

/// A text that is no [`ListenAddr`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListenAddrError {
    text: String,
    what: &'static str,
}

impl fmt::Display for ListenAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot listen on \"{}\": {}; use PORT, ADDRESS:PORT or [IPV6]:PORT",
            self.text.escape_debug(),
            self.what
        )
    }
}

impl Error for ListenAddrError {}

/// Listens on a TCP port: blocking, closed on exec, with `SO_REUSEADDR` so that a restart need not
/// wait for old connections to fade, and [`BACKLOG`] places in the queue.
///
/// [`ListenAddr::Every`] falls back to IPv4 alone where the kernel has no IPv6.
pub fn bind_tcp(at: &ListenAddr) -> Result<TcpListener, BindError> {
    let bound = match *at {
        ListenAddr::One(address) => listen(address, true),
        ListenAddr::Every(port) => match listen((Ipv6Addr::UNSPECIFIED, port).into(), false) {
            Err(error) if is_without_ipv6(&error) => {
                listen((Ipv4Addr::UNSPECIFIED, port).into(), true)
            }
            bound => bound,
        },
    };
    bound.map_err(|source| BindError::new(*at, source))
}

fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// No IPv6 in the kernel, or none on any interface (`disable_ipv6`).
pub(super) fn is_without_ipv6(error: &io::Error) -> bool {
    let is = |errno: Errno| error.raw_os_error() == Some(errno as i32);
    is(Errno::EAFNOSUPPORT) || is(Errno::EADDRNOTAVAIL)
}

/// Why a port could not be listened on.
#[derive(Debug)]
pub enum BindError {
    /// Somebody has the port.
    InUse {
        /// What was to be bound.
        at: ListenAddr,
        /// Which of the two.
        transport: Transport,
        /// Who has it, where `/proc` tells.
        holder: Option<Holder>,
        /// The system's error.
        source: io::Error,
    },
    /// Ports below 1024 (`net.ipv4.ip_unprivileged_port_start`) need a privilege.
    NotPermitted {
        /// What was to be bound.
        at: ListenAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The address belongs to no interface of this machine.
    NotLocal {
        /// What was to be bound.
        at: ListenAddr,
        /// The system's error.
        source: io::Error,
    },
    /// Anything else.
    Bind {
        /// What was to be bound.
        at: ListenAddr,
        /// The system's error.
        source: io::Error,
    },
}

impl BindError {
    fn new(at: ListenAddr, source: io::Error) -> Self {
        Self::of(Transport::Tcp, at, source)
    }

    pub(super) fn udp(at: ListenAddr, source: io::Error) -> Self {
        Self::of(Transport::Udp, at, source)
    }

    fn of(transport: Transport, at: ListenAddr, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => {
                let holder = holder_of_port(transport, at.port());
                Self::InUse { at, transport, holder, source }
            }
            Some(Errno::EACCES) => Self::NotPermitted { at, source },
            Some(Errno::EADDRNOTAVAIL) => Self::NotLocal { at, source },
            _ => Self::Bind { at, source },
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { at, transport, holder: Some(holder), .. } => write!(
                f,
                "cannot listen on {at}: {holder} holds the {transport} port; stop it or choose \
                 another port"
            ),
            Self::InUse { at, transport, holder: None, .. } => write!(
                f,
                "cannot listen on {at}: another process holds the {transport} port (as root, \
                 `ss -l{}np sport = {}` names it); stop it or choose another port",
                match transport {
                    Transport::Tcp => 't',
                    Transport::Udp => 'u',
                },
                at.port()
            ),
            Self::NotPermitted { at, source } => write!(
                f,
                "cannot listen on {at}: {source}; a port below 1024 needs CAP_NET_BIND_SERVICE \
                 (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE) or a choice above"
            ),
            Self::NotLocal { at, .. } => write!(
                f,
                "cannot listen on {at}: no interface of this machine has that address; \
                 `ip address` lists those that exist"
            ),
            Self::Bind { at, source } => write!(f, "cannot listen on {at}: {source}"),
        }
    }
}

impl Error for BindError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::InUse { source, .. }
            | Self::NotPermitted { source, .. }
            | Self::NotLocal { source, .. }
            | Self::Bind { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::net::TcpStream;

    fn parse(text: &str) -> ListenAddr {
        text.parse().unwrap()
    }

    fn why(text: &str) -> &'static str {
        text.parse::<ListenAddr>().unwrap_err().what
    }

    #[test]
    fn every_documented_form_parses() {
        assert_eq!(parse("8890"), ListenAddr::Every(8890));
        assert_eq!(parse(":8890"), ListenAddr::Every(8890));
        for text in ["0.0.0.0:8890", "[::]:8890", "192.0.2.1:1", "[2001:db8::1]:0", "[fe80::1%7]:9"]
        {
            assert_eq!(parse(text), ListenAddr::One(text.parse().unwrap()));
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("[::1%lo]:1").to_string(), "[::1%1]:1");
    }

    #[test]
    fn other_texts_say_what_is_wrong() {
        assert_eq!(why(""), "the port is not a number");
        assert_eq!(why("127.0.0.1"), "the port is missing");
        assert_eq!(why("::1"), "an IPv6 address must be in brackets, with the port behind");
        assert_eq!(why("::1:8890"), "an IPv6 address must be in brackets, with the port behind");
        assert_eq!(why("127.0.0.1:"), "the port is not a number");
        assert_eq!(why("127.0.0.1:+1"), "the port is not a number");
        assert_eq!(why(":65536"), "the port is more than 65535");
        assert_eq!(why("[::1%nosuch0]:1"), "this machine has no interface of that name");
        for text in ["localhost:8890", "*:8890", "[localhost]:1", "[::1:1", "0x7f.1:1"] {
            assert!(why(text).starts_with("the host is not an IP address"), "{text}");
        }
    }

    #[test]
    fn an_unspecified_address_without_family_takes_both() {
        let listener = bind_tcp(&parse(":0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
        let flags = FdFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }

    #[test]
    fn the_two_unspecified_addresses_can_stand_side_by_side() {
        let only_v6 = |text| socket2::SockRef::from(&bind_tcp(&parse(text)).unwrap()).only_v6();
        assert!(only_v6("[::]:0").unwrap());
        assert!(bind_tcp(&parse("0.0.0.0:0")).unwrap().local_addr().unwrap().is_ipv4());
    }

    #[test]
    fn a_port_in_use_names_its_holder() {
        let first = bind_tcp(&parse("127.0.0.1:0")).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = bind_tcp(&ListenAddr::Every(port)).unwrap_err();
        let BindError::InUse { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
        assert_eq!(holder.pid, std::process::id());
        assert!(error.to_string().contains(&format!("(pid {})", holder.pid)), "{error}");
    }

    #[test]
    fn an_address_of_another_machine_is_refused_with_the_reason() {
        let error = bind_tcp(&parse("192.0.2.201:0")).unwrap_err();
        assert!(matches!(error, BindError::NotLocal { .. }), "{error:?}");
    }

    #[test]
    fn a_privileged_port_names_the_capability() {
        let denied = io::Error::from_raw_os_error(Errno::EACCES as i32);
        let text = BindError::new(parse(":443"), denied).to_string();
        assert!(text.contains("CAP_NET_BIND_SERVICE"), "{text}");
    }
}
