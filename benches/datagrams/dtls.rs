//! The client's side of DTLS: OpenSSL over a blocking, connected socket, with nothing of adit's.
//!
//! All sessions speak DTLS 1.2 with ECDHE-ECDSA-AES128-GCM-SHA256 over X25519, the only suite of
//! GoDoxy's peers. Under load the server's certificate is taken as it comes: checking it would cost
//! the machine what belongs to the servers. [`Clients::check`] verifies it before.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use openssl::ssl::{
    ErrorCode, HandshakeError, Ssl, SslContext, SslContextBuilder, SslFiletype, SslMethod,
    SslOptions, SslStream, SslVerifyMode, SslVersion,
};

use crate::Result;
use crate::certs::{Certificates, SERVER_NAME};
use crate::servers::{Kind, Server};

/// No answer for this long is a failure of the run, not a slow server.
const PATIENCE: Duration = Duration::from_secs(10);

/// A handshake that takes this long will not end.
const STUCK: Duration = Duration::from_millis(2500);

/// When nothing comes for this long, what is on its way is lost.
pub(crate) const LOST: Duration = Duration::from_millis(20);

const SUITE: &str = "ECDHE-ECDSA-AES128-GCM-SHA256";

/// What it takes to open sessions.
pub(crate) struct Clients {
    unverified: SslContext,
    verified: SslContext,
}

impl Clients {
    pub(crate) fn new(certificates: &Certificates) -> Result<Self> {
        let unverified = context(certificates)?;
        let mut verified = context(certificates)?;
        verified.set_ca_file(&certificates.ca)?;
        verified.set_verify(SslVerifyMode::PEER);
        Ok(Self { unverified: unverified.build(), verified: verified.build() })
    }

    /// One exchange with the certificate verified and the negotiated parameters checked.
    pub(crate) fn check(&self, server: &Server, echo: SocketAddr) -> Result<()> {
        let mut flow = if server.kind == Kind::Direct {
            Flow::Plain(connect(server.address)?)
        } else {
            let tls = handshake(&self.verified, server.address)?;
            let suite = tls.ssl().current_cipher().map(|cipher| cipher.name());
            if suite != Some(SUITE) || tls.ssl().version_str() != "DTLSv1.2" {
                let version = tls.ssl().version_str();
                return Err(format!("{} chose {version}, {suite:?}", server.kind.name()).into());
            }
            if tls.ssl().extms_support() != Some(true) {
                return Err(format!("{}: no extended master secret", server.kind.name()).into());
            }
            Flow::Dtls(tls)
        };
        flow.begin(server.kind, echo)?;
        flow.round_trip()?;
        flow.close();
        Ok(())
    }

    /// A session, or for the direct way a socket, ready for datagrams.
    pub(crate) fn open(&self, server: &Server, echo: SocketAddr) -> Result<Flow> {
        let mut flow = match server.kind {
            Kind::Direct => Flow::Plain(connect(server.address)?),
            _ => Flow::Dtls(handshake(&self.unverified, server.address)?),
        };
        flow.begin(server.kind, echo)?;
        Ok(flow)
    }

    /// The first datagram of a new session: a ClientHello without a cookie.
    pub(crate) fn first_datagram(&self) -> Result<Vec<u8>> {
        match new_ssl(&self.unverified)?.connect(Captured(Vec::new())) {
            Err(HandshakeError::WouldBlock(waiting)) => Ok(waiting.get_ref().0.clone()),
            Err(error) => Err(error.into()),
            Ok(_) => Err("a handshake with nobody".into()),
        }
    }
}

fn context(certificates: &Certificates) -> Result<SslContextBuilder> {
    let mut context = SslContext::builder(SslMethod::dtls_client())?;
    context.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_max_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_cipher_list(SUITE)?;
    context.set_groups_list("X25519:P-256")?;
    context.set_options(SslOptions::NO_QUERY_MTU | SslOptions::NO_TICKET);
    context.set_certificate_file(&certificates.client_cert, SslFiletype::PEM)?;
    context.set_private_key_file(&certificates.client_key, SslFiletype::PEM)?;
    context.set_verify(SslVerifyMode::NONE);
    Ok(context)
}

fn new_ssl(context: &SslContext) -> Result<Ssl> {
    let mut ssl = Ssl::new(context)?;
    ssl.set_hostname(SERVER_NAME)?;
    ssl.param_mut().set_host(SERVER_NAME)?;
    ssl.set_mtu(1400)?;
    Ok(ssl)
}

fn connect(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20)?;
    socket.connect(address)?;
    Ok(socket)
}

fn handshake(context: &SslContext, address: SocketAddr) -> Result<SslStream<Wire>> {
    let start = Instant::now();
    loop {
        let (socket, began) = (connect(address)?, Instant::now());
        // OpenSSL looks at its own timer, of one second at first, when it is called again.
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut result = new_ssl(context)?.connect(Wire(socket));
        loop {
            match result {
                Ok(stream) => return Ok(stream),
                Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
                // pion does not answer on a port that it has not forgotten: take another one.
                Err(HandshakeError::WouldBlock(_)) if began.elapsed() > STUCK => break,
                Err(HandshakeError::WouldBlock(waiting)) => result = waiting.handshake(),
                // Nobody listens between one of socat's sessions and the next.
                Err(HandshakeError::Failure(failed)) if is_refused(failed.error()) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_refused(error: &openssl::ssl::Error) -> bool {
    error.io_error().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Datagrams to an echo and back.
pub(crate) enum Flow {
    Plain(UdpSocket),
    Dtls(SslStream<Wire>),
}

impl Flow {
    /// Tells an agent where the datagrams go; socat knows from its command line.
    fn begin(&mut self, kind: Kind, destination: SocketAddr) -> Result<()> {
        if kind.wants_header() {
            self.send(&header(destination)?)?;
        }
        self.socket().set_read_timeout(Some(LOST))?;
        Ok(())
    }

    fn socket(&self) -> &UdpSocket {
        match self {
            Self::Plain(socket) => socket,
            Self::Dtls(tls) => &tls.get_ref().0,
        }
    }

    pub(crate) fn send(&mut self, datagram: &[u8]) -> Result<()> {
        let sent = match self {
            Self::Plain(socket) => socket.send(datagram)?,
            Self::Dtls(tls) => tls.ssl_write(datagram)?,
        };
        if sent == datagram.len() { Ok(()) } else { Err("a datagram was cut".into()) }
    }

    /// The length of the next datagram; `None` when [`LOST`] has passed without one.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match self {
            Self::Plain(socket) => match socket.recv(buffer) {
                Ok(length) => Ok(Some(length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::Dtls(tls) => match tls.ssl_read(buffer) {
                Ok(length) => Ok(Some(length)),
                Err(error) if error.code() == ErrorCode::WANT_READ => Ok(None),
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => {
                    Err("the server closed the session".into())
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// One datagram there and back, sent again when it is lost.
    pub(crate) fn round_trip(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut answer = [0_u8; 2048];
        let message = [0x42_u8; 200];
        // A session's first answer may take a while: the echo is still being connected.
        while start.elapsed() < PATIENCE {
            self.send(&message)?;
            for _ in 0..50 {
                if let Some(length) = self.receive(&mut answer)? {
                    return match answer.get(..length) == Some(&message) {
                        true => Ok(()),
                        false => Err("the echo came back changed".into()),
                    };
                }
            }
        }
        Err("no echo came back".into())
    }

    /// Says goodbye; nobody waits for the answer.
    pub(crate) fn close(self) {
        if let Self::Dtls(mut tls) = self {
            // A server that has gone first is none the worse for it.
            tls.shutdown().ok();
        }
    }
}

/// The 275 bytes that ask an agent for datagrams to `destination`.
fn header(destination: SocketAddr) -> Result<[u8; 275]> {
    let (host, port) = (destination.ip().to_string(), destination.port().to_string());
    let mut header = Vec::with_capacity(275);
    header.extend(b"0.1.0\0\0\0");
    header.push(u8::try_from(host.len())?);
    header.extend(host.as_bytes());
    header.resize(264, 0);
    header.push(u8::try_from(port.len())?);
    header.extend(port.as_bytes());
    header.resize(271, 0);
    header.extend(crc32fast::hash(&header).to_be_bytes());
    header.try_into().map_err(|_| "a header is 275 bytes".into())
}

/// One datagram for each call, as DTLS wants it.
#[derive(Debug)]
pub(crate) struct Wire(UdpSocket);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.recv(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, datagram: &[u8]) -> std::io::Result<usize> {
        self.0.send(datagram)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps what would be sent and never answers.
#[derive(Debug)]
struct Captured(Vec<u8>);

impl Read for Captured {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }
}

impl Write for Captured {
    fn write(&mut self, datagram: &[u8]) -> std::io::Result<usize> {
        self.0.extend(datagram);
        Ok(datagram.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
