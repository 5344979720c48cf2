//! What a health check asks for, out of the query of its request.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::{TIMEOUT_DEFAULT, TIMEOUT_MAX};

/// The longest host: what the stream header can carry.
const HOST_MAX: usize = 255;

/// A check that is worth making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) target: Target,
    pub(super) timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Tcp { family: Family, host: String, port: u16 },
    Udp { family: Family, host: String, port: u16 },
    Http { tls: bool, host: String, port: u16, authority: String, path: String },
    File { path: String },
}

/// The addresses that a scheme accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Any,
    V4,
    V6,
}

/// Why a query is no health check. The API answers 400 with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadCheck {
    /// A parameter that must be there is not, or is empty.
    Missing(&'static str),
    /// A parameter is given more than once.
    Repeated(&'static str),
    /// A scheme that is not checked here.
    Scheme(String),
    /// A host that is none.
    Host,
    /// A port that is not 1 to 65535.
    Port,
    /// A port in `host` and `port` as well.
    TwoPorts,
    /// A timeout that is not a number of milliseconds.
    Timeout,
}

impl fmt::Display for BadCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "missing {name}"),
            Self::Repeated(name) => write!(f, "{name} is given more than once"),
            Self::Scheme(scheme) => write!(
                f,
                "unknown scheme \"{}\": give tcp, tcp4, tcp6, udp, udp4, udp6, http, https or \
                 fileserver",
                scheme.escape_debug()
            ),
            Self::Host => f.write_str("host is not a name or an address"),
            Self::Port => f.write_str("port is not a number from 1 to 65535"),
            Self::TwoPorts => f.write_str("port is given, and host carries one as well"),
            Self::Timeout => f.write_str("timeout is not a number of milliseconds"),
        }
    }
}

impl Error for BadCheck {}

impl Check {
    /// Reads the decoded pairs of a query. Names other than the five known ones are ignored.
    pub(super) fn parse(query: &[(String, String)]) -> Result<Self, BadCheck> {
        let parameter = |name: &'static str| {
            let mut values = query.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
            let value = values.next().filter(|value| !value.is_empty());
            if values.next().is_some() { Err(BadCheck::Repeated(name)) } else { Ok(value) }
        };
        let scheme = parameter("scheme")?.ok_or(BadCheck::Missing("scheme"))?;
        let path = parameter("path")?;
        let timeout = timeout(parameter("timeout")?)?;
        let host = || parameter("host")?.ok_or(BadCheck::Missing("host"));
        let port = || parameter("port")?.map(self::port).transpose();
        let family = || match scheme.as_bytes().last() {
            Some(b'4') => Family::V4,
            Some(b'6') => Family::V6,
            _ => Family::Any,
        };
        let target = match scheme {
            "tcp" | "tcp4" | "tcp6" => {
                let (host, port) = host_and_port(host()?, port()?, None)?;
                Target::Tcp { family: family(), host, port }
            }
            "udp" | "udp4" | "udp6" => {
                let (host, port) = host_and_port(host()?, port()?, None)?;
                Target::Udp { family: family(), host, port }
            }
            "http" | "https" => {
                let tls = scheme == "https";
                let default = if tls { 443 } else { 80 };
                let (host, port) = host_and_port(host()?, port()?, Some(default))?;
                let authority = authority(&host, port, default);
                Target::Http { tls, host, port, authority, path: path.unwrap_or("/").to_owned() }
            }
            "fileserver" => {
                Target::File { path: path.ok_or(BadCheck::Missing("path"))?.to_owned() }
            }
            _ => return Err(BadCheck::Scheme(scheme.to_owned())),
        };
        Ok(Self { target, timeout })
    }
}

/// 0 and nothing mean the default, as Go agents have it; more than [`TIMEOUT_MAX`] means that.
fn timeout(text: Option<&str>) -> Result<Duration, BadCheck> {
    let Some(text) = text else { return Ok(TIMEOUT_DEFAULT) };
    match number(text).ok_or(BadCheck::Timeout)? {
        0 => Ok(TIMEOUT_DEFAULT),
        milliseconds => Ok(Duration::from_millis(milliseconds).min(TIMEOUT_MAX)),
    }
}

fn port(text: &str) -> Result<u16, BadCheck> {
    let port = number(text).and_then(|number| u16::try_from(number).ok());
    port.filter(|port| *port != 0).ok_or(BadCheck::Port)
}

/// Digits only, which `parse` alone would not insist on. More than fit are as many as fit.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Splits `name`, `name:port`, `1.2.3.4:port`, `[::1]:port`, `[::1]` or `::1`; addresses lose
/// their brackets.
fn host_and_port(
    text: &str,
    port: Option<u16>,
    default: Option<u16>,
) -> Result<(String, u16), BadCheck> {
    let (host, inner) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(BadCheck::Host)?;
            match rest.strip_prefix(':') {
                _ if !address.contains(':') => return Err(BadCheck::Host),
                None if !rest.is_empty() => return Err(BadCheck::Host),
                inner => (address, inner),
            }
        }
        // More than one colon and no bracket: an IPv6 address alone.
        None if text.matches(':').count() > 1 => (text, None),
        None => match text.split_once(':') {
            Some((name, inner)) => (name, Some(inner)),
            None => (text, None),
        },
    };
    let valid = |c: char| c.is_alphanumeric() || "-._:%~".contains(c);
    if host.is_empty() || host.len() > HOST_MAX || !host.chars().all(valid) {
        return Err(BadCheck::Host);
    }
    let port = match (inner.map(self::port).transpose()?, port) {
        (Some(_), Some(_)) => return Err(BadCheck::TwoPorts),
        (Some(port), None) | (None, Some(port)) => port,
        (None, None) => default.ok_or(BadCheck::Missing("port"))?,
    };
    Ok((host.to_owned(), port))
}

/// The value of `Host`: no zone, and no port where it is the scheme's own.
fn authority(host: &str, port: u16, default: u16) -> String {
    let host = match host.split_once('%') {
        Some((address, _)) => address,
        None => host,
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    if port == default { host } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Check, BadCheck> {
        let pairs: Vec<_> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect();
        Check::parse(&pairs)
    }

    fn tcp(host: &str) -> Result<(String, u16), BadCheck> {
        match parse(&format!("scheme=tcp&host={host}"))?.target {
            Target::Tcp { host, port, .. } => Ok((host, port)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_host_may_carry_the_port() {
        let is = |host: &str, port| Ok((host.to_owned(), port));
        assert_eq!(tcp("db&port=5432"), is("db", 5432));
        assert_eq!(tcp("db:5432"), is("db", 5432));
        assert_eq!(tcp("[::1]:22"), is("::1", 22));
        assert_eq!(tcp("[::1]&port=22"), is("::1", 22));
        assert_eq!(tcp("fe80::1%eth0&port=22"), is("fe80::1%eth0", 22));
        // GoDoxy servers always send a path and leave the port in the host.
        assert_eq!(tcp("db:5432&path=&timeout=5000"), is("db", 5432));
    }

    #[test]
    fn what_cannot_be_checked_is_told() {
        use BadCheck::*;
        assert_eq!(parse("host=h:1"), Err(Missing("scheme")));
        assert_eq!(parse("scheme=&host=h:1"), Err(Missing("scheme")));
        assert_eq!(parse("scheme=tcp"), Err(Missing("host")));
        assert_eq!(parse("scheme=https&host="), Err(Missing("host")));
        assert_eq!(parse("scheme=fileserver"), Err(Missing("path")));
        assert_eq!(tcp("h"), Err(Missing("port")));
        assert_eq!(tcp("h:1&port=1"), Err(TwoPorts));
        assert_eq!(tcp("[::1]:1&port=2"), Err(TwoPorts));
        assert_eq!(tcp("h&host=i"), Err(Repeated("host")));
        for bad in ["h:0", "h:65536", "h:", "h:+1", "h&port=0", "h&port=http"] {
            assert_eq!(tcp(bad), Err(Port), "{bad}");
        }
        let long = format!("{}:1", "h".repeat(HOST_MAX + 1));
        for bad in [":1", "[]:1", "[h]:1", "[::1", "[::1]x", "a b:1", "a\r\nX:1", "u@h:1", &long] {
            assert_eq!(tcp(bad), Err(Host), "{bad:?}");
        }
        let error = parse("scheme=<x>\n&host=h:1").unwrap_err();
        assert_eq!(error, Scheme("<x>\n".to_owned()));
        assert!(error.to_string().starts_with("unknown scheme \"<x>\\n\": give tcp,"));
    }

    #[test]
    fn a_timeout_has_a_default_and_a_bound() {
        let timeout = |ms: &str| Ok(parse(&format!("scheme=tcp&host=h:1&timeout={ms}"))?.timeout);
        assert_eq!(timeout("250"), Ok(Duration::from_millis(250)));
        assert_eq!((timeout(""), timeout("0")), (Ok(TIMEOUT_DEFAULT), Ok(TIMEOUT_DEFAULT)));
        assert_eq!(timeout("99999999999999999999999"), Ok(TIMEOUT_MAX));
        for bad in ["-1", "5s", "1.5"] {
            assert_eq!(timeout(bad), Err(BadCheck::Timeout), "{bad}");
        }
    }

    #[test]
    fn an_http_check_has_a_default_port_and_path() {
        let http = |query: &str| match parse(query).unwrap().target {
            Target::Http { tls, host, port, authority, path } => (tls, host, port, authority, path),
            other => panic!("{other:?}"),
        };
        let expect = |tls, host: &str, port, authority: &str, path: &str| {
            (tls, host.to_owned(), port, authority.to_owned(), path.to_owned())
        };
        assert_eq!(http("scheme=http&host=h"), expect(false, "h", 80, "h", "/"));
        assert_eq!(http("scheme=https&host=h&path=/x"), expect(true, "h", 443, "h", "/x"));
        assert_eq!(
            http("scheme=https&host=[fe80::1%eth0]:8443"),
            expect(true, "fe80::1%eth0", 8443, "[fe80::1]:8443", "/")
        );
    }
}
