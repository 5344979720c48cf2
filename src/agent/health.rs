//! Health checks that the agent makes for a server: can this destination be reached from here?

mod query;

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde::Serialize;

pub use self::query::BadCheck;
use self::query::{Check, Family, Target};
use crate::http;
use crate::lifecycle::{Deadline, clock};
use crate::net::{self, udp::connect_udp};

/// The limit of a check that names none: the stream protocol's HTTP API.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The longest limit a check may ask for. It bounds how long a request holds its thread; GoDoxy
/// servers give up after 5 s unless a route says otherwise.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Connects to a host and port, to addresses that the test accepts, within the deadline.
///
/// Destination rules are this function's duty: the test passed to it only adds the address family
/// that a scheme asks for.
pub type Dial = dyn Fn(&str, u16, &dyn Fn(SocketAddr) -> bool, &Deadline) -> io::Result<TcpStream>
    + Send
    + Sync;

/// Resolves a host and port into those addresses that the destination rules and the test accept,
/// best first, at least one.
pub type Resolve = dyn Fn(&str, u16, &dyn Fn(SocketAddr) -> bool, &Deadline) -> io::Result<Vec<SocketAddr>>
    + Send
    + Sync;

/// Makes health checks.
pub struct Health {
    dial: Box<Dial>,
    resolve: Box<Resolve>,
    tls: Arc<ClientConfig>,
}

/// The outcome of a check, as servers read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Whether the destination can be reached (and, over HTTP, answers below 500).
    pub healthy: bool,
    /// Why not; empty when healthy.
    pub detail: String,
    /// Nanoseconds that the check took.
    pub latency: u64,
}

impl Health {
    /// Checks that reach out through `dial` and `resolve` only. Fails when `provider` supports
    /// neither TLS 1.2 nor 1.3.
    pub fn new(
        dial: Box<Dial>,
        resolve: Box<Resolve>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate { schemes }))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Checks of one destination are seconds apart: tickets would only take memory.
        tls.resumption = Resumption::disabled();
        Ok(Self { dial, resolve, tls: Arc::new(tls) })
    }

    /// Makes the check that the decoded pairs of a query describe. Blocks for its timeout at most,
    /// except for `fileserver`, which asks the local file system.
    ///
    /// - `tcp`, `tcp4`, `tcp6`: a connection can be made.
    /// - `udp`, `udp4`, `udp6`: the host resolves and the system has a route to it. Nothing is
    ///   sent: no answer would prove nothing, and many services log or answer stray datagrams.
    /// - `http`, `https`: `HEAD` is answered with a status below 500. Redirects are not followed.
    /// - `fileserver`: the path exists.
    pub fn check(&self, query: &[(String, String)]) -> Result<Checked, BadCheck> {
        let check = Check::parse(query)?;
        let start = clock::now();
        let deadline = Deadline::from("health check", start, check.timeout);
        let outcome = self.reach(&check.target, &deadline);
        let latency = clock::now().duration_since(start).as_nanos();
        Ok(Checked {
            healthy: outcome.is_ok(),
            detail: outcome.err().unwrap_or_default(),
            latency: u64::try_from(latency).unwrap_or(u64::MAX),
        })
    }

    fn reach(&self, target: &Target, deadline: &Deadline) -> Result<(), String> {
        match target {
            Target::Tcp { family, host, port } => {
                family.select(|fits| (self.dial)(host, *port, fits, deadline)).map(drop)
            }
            Target::Udp { family, host, port } => {
                let found = family.select(|fits| (self.resolve)(host, *port, fits, deadline))?;
                connect_udp(&found)
                    .map(drop)
                    .map_err(|failed| net::DialError::Connect(failed).to_string())
            }
            Target::Http { tls, host, port, authority, path } => {
                let stream = Family::Any.select(|fits| (self.dial)(host, *port, fits, deadline))?;
                let mut stream = Bounded { stream, deadline };
                let status = if *tls {
                    let name = server_name(host).map_err(|error| error.to_string())?;
                    let session = ClientConnection::new(self.tls.clone(), name)
                        .map_err(|error| error.to_string())?;
                    http::head(&mut StreamOwned::new(session, stream), authority, path)
                } else {
                    http::head(&mut stream, authority, path)
                };
                match status.map_err(|error| error.to_string())? {
                    // As Go agents have it: a server that redirects or wants a login is alive.
                    status @ 500..=599 => Err(format!("HTTP status {status}")),
                    _ => Ok(()),
                }
            }
            Target::File { path } => {
                std::fs::metadata(path).map(drop).map_err(|error| error.to_string())
            }
        }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

impl Family {
    /// Runs `act` with a test for addresses of this family. When it fails after seeing only
    /// addresses of the other family, that is the reason given.
    fn select<T>(
        self,
        act: impl FnOnce(&dyn Fn(SocketAddr) -> bool) -> io::Result<T>,
    ) -> Result<T, String> {
        let (seen, fitting) = (Cell::new(false), Cell::new(false));
        let outcome = act(&|address: SocketAddr| {
            let fits = match self {
                Self::Any => true,
                Self::V4 => address.is_ipv4(),
                Self::V6 => address.is_ipv6(),
            };
            seen.set(true);
            fitting.set(fitting.get() || fits);
            fits
        });
        outcome.map_err(|error| match self {
            Self::V4 if seen.get() && !fitting.get() => "the host has no IPv4 address".to_owned(),
            Self::V6 if seen.get() && !fitting.get() => "the host has no IPv6 address".to_owned(),
            _ => error.to_string(),
        })
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
    let address = host.split_once('%').map_or(host, |(address, _)| address);
    ServerName::try_from(address.to_owned())
}

/// A socket whose every read and write ends by the deadline.
struct Bounded<'a> {
    stream: TcpStream,
    deadline: &'a Deadline,
}

impl Bounded<'_> {
    /// A socket's own time-out shows as `WouldBlock`.
    fn named(&self, error: io::Error) -> io::Error {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => self.deadline.timed_out(),
            _ => error,
        }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.deadline.remaining()?))?;
        self.stream.read(buf).map_err(|error| self.named(error))
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.deadline.remaining()?))?;
        self.stream.write(buf).map_err(|error| self.named(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Accepts every certificate, in health checks and nowhere else.
///
/// A check asks whether a server is up, and servers inside a network often have certificates of
/// their own making, for other names, or expired ones; Go agents do not look at them either.
/// Nothing secret is sent and only the status code is used: who can pose as the server can make it
/// look healthy, as they could over plain HTTP or TCP.
#[derive(Debug)]
struct AnyCertificate {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
#[path = "health/tests.rs"]
pub(super) mod tests;
