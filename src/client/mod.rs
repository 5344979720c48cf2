//! Floor 4: the near end. Reaches destinations through an agent, and asks agents what they are.

mod capabilities;
mod info;
mod udp;

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;

pub use capabilities::Capabilities;
pub use info::{Info, InfoError};
pub use udp::{UdpError, UdpStream};

use crate::lifecycle::{Deadline, clock};
use crate::net::{self, Conn, DialError};
use crate::pki::Identity;
use crate::tls::{self, HandshakeError, TlsStream};
use crate::wire::header;

/// How to reach one agent. Keep it: it remembers TLS sessions, which makes the second connection
/// cheaper than the first.
#[derive(Clone)]
pub struct Client {
    host: String,
    port: u16,
    name: ServerName<'static>,
    stream_config: Arc<ClientConfig>,
    api_config: Arc<ClientConfig>,
    datagrams: Arc<udp::Datagrams>,
    timeouts: Timeouts,
}

/// How long each phase may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Resolving the agent's name and connecting to it (stream protocol: 10 s).
    pub dial: Duration,
    /// The TLS handshake (10 s).
    pub handshake: Duration,
    /// The agent's answer to a probe or an API request (the Go servers' 5 s).
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            answer: Duration::from_secs(5),
        }
    }
}

/// How long an agent took to answer a probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Resolving and connecting.
    pub connect: Duration,
    /// The TLS handshake.
    pub handshake: Duration,
    /// From sending the header to the agent's answer.
    pub answer: Duration,
}

impl Probe {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.connect + self.handshake + self.answer
    }
}

impl Client {
    /// A client of the agent at `address` (`HOST:PORT`, or `HOST` for the default port 8890), whose
    /// certificate must be for `server_name` ([`tls::SERVER_NAME`] unless told otherwise).
    pub fn new(
        address: &str,
        server_name: &str,
        identity: &Identity,
        provider: Arc<CryptoProvider>,
        timeouts: Timeouts,
    ) -> Result<Self, ClientError> {
        let (host, port) = split_address(address, Some(DEFAULT_PORT))
            .map_err(|why| ClientError::Address { address: address.to_owned(), why })?;
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| ClientError::ServerName(server_name.to_owned()))?;
        let config = |alpn: &[u8]| tls::client(identity, &[alpn], provider.clone());
        Ok(Self {
            host,
            port,
            name,
            stream_config: config(header::ALPN).map_err(ClientError::Config)?,
            api_config: config(b"http/1.1").map_err(ClientError::Config)?,
            datagrams: Arc::new(udp::Datagrams::new(identity, server_name)),
            timeouts,
        })
    }

    /// Asks the agent for a stream to `host:port`.
    ///
    /// The protocol has no answer: a destination that the agent refuses or cannot reach shows as a
    /// stream that ends at once without a byte.
    pub fn open(&self, host: &str, port: u16) -> Result<TlsStream, OpenError> {
        let header = header::encode_stream(host, port).map_err(OpenError::Header)?;
        let (mut stream, _, _) = self.connect(&self.stream_config)?;
        if stream.alpn().as_deref() != Some(header::ALPN) {
            return Err(OpenError::NoStreams);
        }
        stream
            .set_deadline(Some(Deadline::after("sending the stream header", self.timeouts.answer)))
            .and_then(|()| stream.write_all(&header))
            .and_then(|()| stream.set_deadline(None))
            .map_err(OpenError::Send)?;
        Ok(stream)
    }

    /// Asks whether the agent would carry streams for us, and waits for its answer: under TLS 1.3
    /// an agent that refuses our certificate says so only after our handshake has succeeded.
    pub fn probe(&self) -> Result<Probe, OpenError> {
        let (mut stream, connect, handshake) = self.connect(&self.stream_config)?;
        if stream.alpn().as_deref() != Some(header::ALPN) {
            return Err(OpenError::NoStreams);
        }
        let sent = clock::now();
        let header = header::encode_probe();
        stream
            .set_deadline(Some(Deadline::after("probe", self.timeouts.answer)))
            .and_then(|()| stream.write_all(&header))
            .map_err(OpenError::Send)?;
        match stream.read(&mut [0; 1]) {
            Ok(0) => {
                let answer = clock::now().duration_since(sent);
                stream.close(Duration::ZERO);
                Ok(Probe { connect, handshake, answer })
            }
            Ok(_) => Err(OpenError::Unexpected),
            Err(error) => Err(OpenError::Answer(error)),
        }
    }

    /// Asks the agent's HTTP API what it is.
    pub fn info(&self) -> Result<Info, InfoError> {
        let open = || self.connect(&self.api_config).map(|(stream, ..)| stream);
        info::fetch(open, self.timeouts.answer)
    }

    /// The agent's address, for people.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn connect(
        &self,
        config: &Arc<ClientConfig>,
    ) -> Result<(TlsStream, Duration, Duration), OpenError> {
        let start = clock::now();
        let deadline = Deadline::after("connecting to the agent", self.timeouts.dial);
        let socket =
            net::dial(&self.host, self.port, &|_| true, &deadline).map_err(OpenError::Dial)?;
        let connected = clock::now();
        let deadline = Deadline::after("TLS handshake", self.timeouts.handshake);
        let stream = tls::connect(Conn::new(socket), config.clone(), self.name.clone(), deadline)
            .map_err(OpenError::Handshake)?;
        let done = clock::now();
        Ok((stream, connected.duration_since(start), done.duration_since(connected)))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("agent", &self.address()).finish_non_exhaustive()
    }
}

/// Splits `HOST:PORT`, `[V6]:PORT`, and where there is a default port, `HOST` and a bare IPv6
/// literal. The error says what is wrong.
pub fn split_address(text: &str, default: Option<u16>) -> Result<(String, u16), &'static str> {
    if text.contains("://") {
        return Err("it is HOST:PORT, without https://");
    }
    let bare = |host: &str| match default {
        Some(port) => Ok((host.to_owned(), port)),
        None => Err("the port is missing (HOST:PORT)"),
    };
    let parse = |host: &str, port: &str| match port.parse::<u16>() {
        Ok(port) if port != 0 => Ok((host.to_owned(), port)),
        _ => Err("the port must be a number from 1 to 65535"),
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        match rest.split_once(']') {
            Some((host, "")) => bare(host),
            Some((host, port)) => match port.strip_prefix(':') {
                Some(port) => parse(host, port),
                None => Err("after the bracket comes :PORT"),
            },
            None => Err("a bracket is not closed"),
        }
    } else {
        match text.split_once(':') {
            None => bare(text),
            Some((_, rest)) if rest.contains(':') => match default {
                Some(_) => bare(text),
                None => Err("an IPv6 address with a port is written [ADDRESS]:PORT"),
            },
            Some((host, port)) => parse(host, port),
        }
    }?;
    if host.is_empty() { Err("the host is missing (HOST:PORT)") } else { Ok((host, port)) }
}

/// The port of an agent (stream protocol, "Constants").
pub const DEFAULT_PORT: u16 = 8890;

/// A client that cannot be made.
#[derive(Debug)]
pub enum ClientError {
    /// The agent's address is not `HOST:PORT`.
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The name is neither a DNS name nor an address.
    ServerName(String),
    /// The identity cannot be used.
    Config(tls::ConfigError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, why } => {
                write!(f, "the agent's address {address:?} is not usable: {why}")
            }
            Self::ServerName(name) => write!(f, "{name:?} is not a server name"),
            Self::Config(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Address { .. } | Self::ServerName(_) => None,
        }
    }
}

/// A stream that could not be opened, or a probe that failed.
#[derive(Debug)]
pub enum OpenError {
    /// The destination does not fit the header.
    Header(header::EncodeError),
    /// The agent cannot be reached.
    Dial(DialError),
    /// The TLS handshake failed.
    Handshake(HandshakeError),
    /// Whatever listens there does not speak the stream protocol.
    NoStreams,
    /// The header could not be sent.
    Send(io::Error),
    /// The agent did not answer the probe by closing the stream in order.
    Answer(io::Error),
    /// The agent answered a probe with data.
    Unexpected,
}

impl OpenError {
    /// Whether something answered at the agent's address.
    pub fn reached_agent(&self) -> bool {
        match self {
            Self::Dial(_) => false,
            Self::Handshake(HandshakeError::Io(error)) => error.kind() != io::ErrorKind::TimedOut,
            _ => true,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => write!(f, "the destination cannot be asked for: {error}"),
            Self::Dial(error) => write!(f, "cannot reach the agent: {error}"),
            Self::Handshake(error) => write!(f, "cannot agree with the agent: {error}"),
            Self::NoStreams => {
                f.write_str("the server does not offer agent streams (is this the agent's port?)")
            }
            Self::Send(error) => write!(f, "sending to the agent: {}", tls::explain(error)),
            Self::Answer(error) => write!(f, "the agent's answer: {}", tls::explain(error)),
            Self::Unexpected => f.write_str("the agent answered a probe with data"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Header(e) => Some(e),
            Self::Dial(e) => Some(e),
            Self::Handshake(e) => Some(e),
            Self::Send(e) | Self::Answer(e) => Some(e),
            Self::NoStreams | Self::Unexpected => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_as_people_write_them() {
        let ok = |text, host: &str, port| {
            assert_eq!(split_address(text, Some(8890)), Ok((host.to_owned(), port)), "{text}");
        };
        ok("edge.example", "edge.example", 8890);
        ok("edge.example:1", "edge.example", 1);
        ok("[2001:db8::1]:65535", "2001:db8::1", 65535);
        ok("[::1]", "::1", 8890);
        ok("::1", "::1", 8890);
        for text in
            ["", ":22", "host:", "host:0", "host:65536", "host:x", "[::1", "[::1]22", "[]:1"]
        {
            assert!(split_address(text, Some(8890)).is_err(), "{text}");
        }
        assert!(split_address("host", None).is_err() && split_address("::1", None).is_err());
    }
}
