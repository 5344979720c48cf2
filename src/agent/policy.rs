//! Which destinations clients may reach: `--allow RULE` and `--deny RULE`.
//!
//! A rule is `HOST[:PORTS]`:
//!
//! | HOST | matches |
//! |---|---|
//! | `db.internal.example`, `*.internal.example`, `db-?` | the host as the client wrote it; case and a final dot do not matter |
//! | `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]` | that address, however the client named it |
//! | `10.0.0.0/8`, `fd00::/8`, `[fd00::/8]` | every address of that network |
//! | `*` | everything |
//!
//! PORTS is `*` or a list such as `22,80,8000-8100`; without it, every port. An IPv6 address needs
//! brackets to be given ports.
//!
//! A deny rule that matches decides. Otherwise, when there are allow rules, one of them must match;
//! when there are none, everything is allowed.
//!
//! A name is judged twice: as text before it is resolved ([`Policy::check_name`]) and together with
//! each address it resolved to before that is dialled ([`Policy::check_address`]), so a name cannot
//! point into a denied network, whatever its spelling or its name server says.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use wildmatch::WildMatch;

/// The destination rules of one agent. The default allows everything.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

impl Policy {
    /// Rules from their texts.
    pub fn parse(allow: &[String], deny: &[String]) -> Result<Self, RuleError> {
        let rules = |texts: &[String]| {
            texts.iter().map(|text| text.parse()).collect::<Result<Vec<Rule>, _>>()
        };
        Ok(Self { allow: rules(allow)?, deny: rules(deny)? })
    }

    /// Whether a destination might be reached, as far as its text tells: refuses what no address
    /// could make right, so that it need not be resolved.
    pub fn check_name(&self, host: &str, port: u16) -> Result<(), Denied> {
        refuse_escapes(host)?;
        let host = normal(host);
        match literal(&host) {
            Some(address) => self.check(&host, address, port),
            None => {
                if let Some(rule) = self.deny.iter().find(|rule| rule.matches_name(&host, port)) {
                    return Err(Denied::By(rule.clone()));
                }
                let may_match = |rule: &Rule| match rule.host {
                    Host::Name(_) => rule.matches_name(&host, port),
                    // Known when it is resolved.
                    Host::Network(_) => rule.matches_port(port),
                };
                if self.allow.is_empty() || self.allow.iter().any(may_match) {
                    Ok(())
                } else {
                    Err(Denied::NotAllowed)
                }
            }
        }
    }

    /// Whether `address`, which the client asked for as `host`, may be dialled.
    ///
    /// An allow rule matches the host as written or the address itself. A deny rule also matches
    /// other addresses that lead to the same place: `0.0.0.0` and `::` reach loopback (Linux's
    /// reading of an unspecified destination), and IPv4-mapped, IPv4-compatible and NAT64
    /// (`64:ff9b::/96`, RFC 6052) addresses reach the IPv4 address in them.
    pub fn check_address(&self, host: &str, address: SocketAddr) -> Result<(), Denied> {
        refuse_escapes(host)?;
        self.check(&normal(host), address.ip(), address.port())
    }

    /// [`Policy::check_address`] as a plain answer.
    pub fn permits(&self, host: &str, address: SocketAddr) -> bool {
        self.check_address(host, address).is_ok()
    }

    fn check(&self, host: &str, address: IpAddr, port: u16) -> Result<(), Denied> {
        let reached = reached(address);
        let denies = |rule: &&Rule| {
            rule.matches_name(host, port) || reached.iter().any(|a| rule.matches_address(*a, port))
        };
        if let Some(rule) = self.deny.iter().find(denies) {
            return Err(Denied::By(rule.clone()));
        }
        let address = address.to_canonical();
        let allows =
            |rule: &Rule| rule.matches_name(host, port) || rule.matches_address(address, port);
        if self.allow.is_empty() || self.allow.iter().any(allows) {
            Ok(())
        } else {
            Err(Denied::NotAllowed)
        }
    }
}

/// Resolvers read `\100b` as `db`, which no rule would recognise. No host name has a backslash.
fn refuse_escapes(host: &str) -> Result<(), Denied> {
    if host.contains('\\') { Err(Denied::Backslash) } else { Ok(()) }
}

/// A host as rules see it: DNS does not tell case (of ASCII, RFC 4343), a final dot only says that
/// the name is complete, brackets are punctuation.
fn normal(host: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.trim_end_matches('.').to_ascii_lowercase()
}

/// The address of a literal, whatever its zone.
fn literal(host: &str) -> Option<IpAddr> {
    match host.split_once('%') {
        Some((address, _zone)) => address.parse().ok().map(IpAddr::V6),
        None => host.parse().ok(),
    }
}

/// `address` and every address that it is another way to reach.
fn reached(address: IpAddr) -> Vec<IpAddr> {
    let mut all = vec![address];
    if let IpAddr::V6(v6) = address {
        all.extend(embedded(v6).map(IpAddr::V4));
    }
    if all.iter().any(IpAddr::is_unspecified) {
        all.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    }
    all
}

/// The IPv4 address that an IPv6 address stands for.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [head @ .., high, low] = v6.segments();
    let v4 = Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match head {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => Some(v4),
        // Compatible addresses, but `::` and `::1` are not among them.
        [0, 0, 0, 0, 0, 0] if high != 0 || low > 1 => Some(v4),
        _ => None,
    }
}

/// One rule, shown as it was written.
#[derive(Clone, Debug)]
pub struct Rule {
    text: String,
    host: Host,
    /// Empty for every port.
    ports: Vec<RangeInclusive<u16>>,
}

#[derive(Clone, Debug)]
enum Host {
    Name(WildMatch),
    Network(IpNet),
}

impl Rule {
    fn matches_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|ports| ports.contains(&port))
    }

    /// `host` is [`normal`].
    fn matches_name(&self, host: &str, port: u16) -> bool {
        matches!(&self.host, Host::Name(glob) if glob.matches(host)) && self.matches_port(port)
    }

    fn matches_address(&self, address: IpAddr, port: u16) -> bool {
        matches!(&self.host, Host::Network(net) if net.contains(&address))
            && self.matches_port(port)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = |what| RuleError { text: text.to_owned(), what };
        let (host, ports) = split(text).map_err(wrong)?;
        Ok(Self {
            text: text.to_owned(),
            host: parse_host(host).map_err(wrong)?,
            ports: parse_ports(ports).map_err(wrong)?,
        })
    }
}

/// The host without brackets, and the ports.
fn split(text: &str) -> Result<(&str, &str), &'static str> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the closing bracket is missing")?;
        if !host.contains(':') {
            return Err("only an IPv6 address goes in brackets");
        }
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((host, ports)),
            None if rest.is_empty() => Ok((host, "*")),
            None => Err("only a colon and ports may follow the closing bracket (a network's \
                         length goes inside)"),
        };
    }
    match text.split_once(':') {
        None => Ok((text, "*")),
        Some((host, ports)) if !ports.contains(':') => Ok((host, ports)),
        Some(_) if text.parse::<IpNet>().is_ok() || text.parse::<Ipv6Addr>().is_ok() => {
            Ok((text, "*"))
        }
        Some(_) => Err("an IPv6 address or network must be in brackets when ports follow"),
    }
}

fn parse_host(host: &str) -> Result<Host, &'static str> {
    if host.is_empty() {
        return Err("the host is missing; use * for every host");
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(Host::Network(address.to_canonical().into()));
    }
    if host.contains('/') {
        let net = host.parse().map_err(|_| {
            "not a network; write ADDRESS/LENGTH with a length of at most 32 (IPv4) or 128 (IPv6)"
        })?;
        return Ok(Host::Network(canonical_net(net)));
    }
    if host.contains('%') {
        return Err("an address in a rule has no zone; it matches in every zone");
    }
    if host.contains(':') {
        return Err("not an IPv6 address");
    }
    if host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("a host has no spaces or control characters");
    }
    let name = normal(host);
    if name.is_empty() {
        return Err("the host is only dots");
    }
    if looks_numeric(&name) {
        return Err(
            "not an IPv4 address; write all four numbers in decimal, or a network such as \
                    10.0.0.0/8",
        );
    }
    if is_numeric_pattern(&name) {
        return Err("a pattern of numbers matches one spelling of an address and none of the \
                    others; write a network such as 10.0.0.0/8");
    }
    Ok(Host::Name(WildMatch::new(&name)))
}

/// A mapped network as the IPv4 network it covers: addresses are compared in that form.
fn canonical_net(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let mapped = match net {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED_BITS)),
        IpNet::V4(_) => None,
    };
    match mapped.map(|(address, length)| Ipv4Net::new(address, length)) {
        Some(Ok(v4)) => v4.into(),
        _ => net,
    }
}

/// Whether the resolver would read a name as an IPv4 address (`127.1`, `0x7f.1`, `2130706433`): it
/// does when the last label is a number. As a name, such a rule would match this one spelling and
/// none of the others.
fn looks_numeric(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Whether a pattern is meant for addresses: `127.*`, `10.0.?.*`.
fn is_numeric_pattern(name: &str) -> bool {
    let digits = name.bytes().any(|byte| byte.is_ascii_digit());
    digits && name.bytes().all(|byte| byte.is_ascii_digit() || b".*?".contains(&byte))
}

fn parse_ports(text: &str) -> Result<Vec<RangeInclusive<u16>>, &'static str> {
    if text == "*" {
        return Ok(Vec::new());
    }
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 && !text.starts_with('+') => Ok(port),
        _ => Err("a port is a number from 1 to 65535; write 22, 22,80, 8000-8100 or *"),
    };
    let range = |part: &str| {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(part)?, port(part)?),
        };
        if first > last {
            return Err("the first port of a range is above the last");
        }
        Ok(first..=last)
    };
    text.split(',').map(range).collect()
}

/// A text that is no rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuleError {
    text: String,
    what: &'static str,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "destination rule \"{}\": {}", self.text.escape_debug(), self.what)
    }
}

impl Error for RuleError {}

/// Why a destination is refused.
#[derive(Clone, Debug)]
pub enum Denied {
    /// This deny rule matches it.
    By(Rule),
    /// There are allow rules, and none matches it.
    NotAllowed,
    /// The host has a backslash: an escape that resolvers undo.
    Backslash,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(rule) => write!(f, "denied by rule {rule}"),
            Self::NotAllowed => f.write_str("no allow rule matches"),
            Self::Backslash => f.write_str("a host has no backslash"),
        }
    }
}

impl Error for Denied {}

#[cfg(test)]
mod tests;
