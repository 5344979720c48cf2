//! Host names and literals to socket addresses, within a deadline.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::LazyLock;

use crossbeam_channel::RecvTimeoutError;

use crate::lifecycle::{Deadline, Slots, threads};

/// How many resolutions may run at once in the process. Each holds a thread, and a name server that
/// does not answer holds it for as long as the C library tries: 5 s for each server and attempt by
/// default (resolv.conf(5), `timeout` and `attempts`).
pub const CONCURRENT: usize = 64;

static RUNNING: LazyLock<Slots> = LazyLock::new(|| Slots::new(CONCURRENT));

/// Every address of `host`, in the order the system prefers (RFC 6724), each once, IPv4-mapped
/// IPv6 addresses as the IPv4 they are.
///
/// `host` is a name, an IPv4 or IPv6 literal (the latter perhaps in brackets, or with a zone:
/// `fe80::1%eth0`). Literals are answered at once; a name is looked up on a thread of its own, so
/// that a name server that does not answer cannot hold the caller beyond `deadline`.
pub fn resolve(
    host: &str,
    port: u16,
    deadline: &Deadline,
) -> Result<Vec<SocketAddr>, ResolveError> {
    match literal(host) {
        Some(address) => {
            let address = address.map_err(|e| ResolveError::failed(host, e))?;
            Ok(vec![canonical(with_port(address, port))])
        }
        None => {
            let name = host.to_owned();
            let look_up = move || Ok((name.as_str(), port).to_socket_addrs()?.collect());
            look_up_within(host, look_up, &RUNNING, deadline)
        }
    }
}

/// An IPv4-mapped IPv6 address as the IPv4 address it reaches, any other as it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

/// An IP literal's address, with port 0. `None` when `host` is not a literal, an error when its
/// zone names no interface of this machine.
pub(super) fn literal(host: &str) -> Option<io::Result<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if bare.is_none()
        && let Ok(v4) = host.parse()
    {
        return Some(Ok(SocketAddr::new(IpAddr::V4(v4), 0)));
    }
    let text = bare.unwrap_or(host);
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let scope = zone.map_or(Ok(0), scope_id);
    Some(scope.map(|scope| SocketAddrV6::new(address, 0, 0, scope).into()))
}

/// A zone is the name or the number of an interface (RFC 4007, section 11.2).
fn scope_id(zone: &str) -> io::Result<u32> {
    if let Ok(number) = zone.parse() {
        return Ok(number);
    }
    nix::net::if_::if_nametoindex(zone).map_err(|errno| {
        let text = format!("no interface named \"{}\": {}", zone.escape_debug(), errno.desc());
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

fn look_up_within(
    host: &str,
    look_up: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    running: &Slots,
    deadline: &Deadline,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let left = deadline.remaining().map_err(ResolveError::TimedOut)?;
    let slot = running.take().ok_or(ResolveError::Busy { limit: running.limit() })?;
    let (answer, answered) = crossbeam_channel::bounded(1);
    let thread = threads::spawn("resolve", move || {
        let addresses = look_up();
        drop(slot);
        // An error means that the caller's deadline passed and nobody wants the answer.
        answer.send(addresses).ok();
    })
    .map_err(ResolveError::Thread)?;

    let addresses = match answered.recv_timeout(left) {
        Ok(addresses) => addresses.map_err(|e| ResolveError::failed(host, e))?,
        Err(RecvTimeoutError::Timeout) => {
            // The C library cannot be interrupted. The thread is left to end by itself; its slot
            // stays taken until then, which bounds how many such there can be.
            return Err(ResolveError::TimedOut(deadline.timed_out()));
        }
        Err(RecvTimeoutError::Disconnected) => {
            return Err(ResolveError::failed(
                host,
                io::Error::other("the resolver thread panicked"),
            ));
        }
    };
    // It has sent its last word, so this waits for next to nothing, and no ended thread is left
    // behind to be counted.
    thread.join().ok();

    let mut unique = Vec::with_capacity(addresses.len());
    for address in addresses.into_iter().map(canonical) {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    if unique.is_empty() {
        return Err(ResolveError::NoAddress { host: host.to_owned() });
    }
    Ok(unique)
}

/// Why a host has no addresses.
#[derive(Debug)]
pub enum ResolveError {
    /// Looking it up failed.
    LookUp {
        /// What was looked up, as the peer wrote it.
        host: String,
        /// What the system's resolver said.
        source: io::Error,
    },
    /// It exists but has no address.
    NoAddress {
        /// What was looked up, as the peer wrote it.
        host: String,
    },
    /// The deadline passed first.
    TimedOut(io::Error),
    /// Too many resolutions are running already.
    Busy {
        /// How many may.
        limit: usize,
    },
    /// The system has no thread left.
    Thread(io::Error),
}

impl ResolveError {
    fn failed(host: &str, source: io::Error) -> Self {
        Self::LookUp { host: host.to_owned(), source }
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LookUp { host, source } => {
                write!(f, "cannot resolve \"{}\": {source}", host.escape_debug())
            }
            Self::NoAddress { host } => {
                write!(f, "\"{}\" has no IPv4 or IPv6 address", host.escape_debug())
            }
            Self::TimedOut(source) => {
                write!(f, "resolving the name: {source}; the name server does not answer")
            }
            Self::Busy { limit } => write!(
                f,
                "{limit} name resolutions are running already; the name server answers slowly or \
                 not at all"
            ),
            Self::Thread(source) => {
                write!(f, "cannot start a thread to resolve the name: {source}")
            }
        }
    }
}

impl Error for ResolveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::LookUp { source, .. } | Self::TimedOut(source) | Self::Thread(source) => {
                Some(source)
            }
            Self::NoAddress { .. } | Self::Busy { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after("dial", Duration::from_secs(60))
    }

    fn one(host: &str) -> String {
        let all = resolve(host, 80, &soon()).unwrap();
        assert_eq!(all.len(), 1);
        all[0].to_string()
    }

    #[test]
    fn literals_are_their_own_answer() {
        assert_eq!(one("127.0.0.1"), "127.0.0.1:80");
        assert_eq!(one("::1"), "[::1]:80");
        assert_eq!(one("[::1]"), "[::1]:80");
        assert_eq!(one("fe80::1%7"), "[fe80::1%7]:80");
        assert_eq!(one("[::1%lo]"), "[::1%1]:80");
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_it_reaches() {
        assert_eq!(one("::ffff:127.0.0.1"), "127.0.0.1:80");
        assert_eq!(one("[::ffff:7f00:1]"), "127.0.0.1:80");
    }

    #[test]
    fn an_unknown_zone_is_named() {
        let error = resolve("fe80::1%nosuch0", 80, &soon()).unwrap_err();
        assert!(error.to_string().contains("no interface named \"nosuch0\""), "{error}");
    }

    #[test]
    fn localhost_is_loopback() {
        let all = resolve("localhost", 80, &soon()).unwrap();
        assert!(all.iter().all(|address| address.ip().is_loopback()), "{all:?}");
    }

    #[test]
    fn names_that_cannot_be_looked_up_are_refused() {
        for host in ["", "a\0b"] {
            let error = resolve(host, 80, &soon()).unwrap_err();
            assert!(matches!(error, ResolveError::LookUp { .. }), "{host:?} gave {error:?}");
        }
    }

    #[test]
    fn a_silent_name_server_holds_its_slot_but_not_the_caller() {
        let slots = Slots::new(1);
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        let short = Deadline::after("dial", Duration::from_millis(20));
        let (ended, end) = crossbeam_channel::bounded::<()>(0);
        let silent = move || {
            let _ended = ended;
            gate.recv().ok();
            Ok(Vec::new())
        };
        let error = look_up_within("silent.example", silent, &slots, &short).unwrap_err();
        assert!(matches!(error, ResolveError::TimedOut(_)), "{error:?}");

        let error =
            look_up_within("other.example", || Ok(Vec::new()), &slots, &soon()).unwrap_err();
        assert!(matches!(error, ResolveError::Busy { limit: 1 }), "{error:?}");

        drop(release);
        end.recv().unwrap_err();
    }

    #[test]
    fn answers_are_canonical_and_unique() {
        let slots = Slots::new(1);
        let answer = || {
            Ok(["[::ffff:192.0.2.1]:80", "192.0.2.1:80", "[2001:db8::1]:80"]
                .map(|text| text.parse().unwrap())
                .to_vec())
        };
        let all = look_up_within("twice.example", answer, &slots, &soon()).unwrap();
        assert_eq!(
            all.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1:80", "[2001:db8::1]:80"]
        );
        assert_eq!(slots.taken(), 0);
        let error = look_up_within("none.example", || Ok(Vec::new()), &slots, &soon()).unwrap_err();
        assert!(matches!(error, ResolveError::NoAddress { .. }), "{error:?}");
    }
}
