//! The load generator: blocking rustls clients, the same for every server and independent of
//! adit's own client.
//!
//! All clients speak TLS 1.3 with AES-128-GCM (the first choice of Go's TLS, which GoDoxy uses) and, unless
//! told otherwise, X25519, so that every server does the same arithmetic. Under load the server's
//! certificate is taken as it comes: checking it would cost the machine what belongs to the
//! servers. [`Clients::check`] has verified it before.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, NamedGroup,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::Result;
use crate::certs::{Certificates, SERVER_NAME};
use crate::servers::{Kind, Server, Service};

/// The protocol adit's agent forwards streams under; the rivals do not look at it.
const STREAM_PROTOCOL: &[u8] = b"godoxy-agent-stream/1";

/// No answer for this long is a failure of the run, not a slow server.
const PATIENCE: Duration = Duration::from_secs(10);

/// One small message of the echo measurements, in bytes.
const SMALL: usize = 64;

/// Plaintext handed to rustls at once while filling a connection.
const BLOCK: usize = 128 << 10;

/// How a new connection comes about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    Full,
    Resumed,
    /// Full, with the post-quantum hybrid X25519MLKEM768 as key exchange.
    Hybrid,
}

/// What it takes to open connections.
pub(crate) struct Clients {
    full: ClientConfig,
    hybrid: Option<ClientConfig>,
    verified: ClientConfig,
}

impl Clients {
    pub(crate) fn new(certificates: &Certificates) -> Result<Self> {
        let chain = vec![CertificateDer::from_pem_file(&certificates.client_cert)?];
        let key = PrivateKeyDer::from_pem_file(&certificates.client_key)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&certificates.ca)?)?;

        let versions = &[&rustls::version::TLS13];
        let provider = Arc::new(only(NamedGroup::X25519));
        let mut verified = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        verified.alpn_protocols = vec![STREAM_PROTOCOL.to_vec()];

        let unverified = |provider: Arc<CryptoProvider>| -> Result<ClientConfig> {
            let verifier = Arc::new(AnyServer(Arc::clone(&provider)));
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(versions)?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_client_auth_cert(chain.clone(), key.clone_key())?;
            config.alpn_protocols = vec![STREAM_PROTOCOL.to_vec()];
            config.resumption = Resumption::disabled();
            Ok(config)
        };
        let full = unverified(provider)?;
        let hybrid = only(NamedGroup::X25519MLKEM768);
        let hybrid =
            if hybrid.kx_groups.is_empty() { None } else { Some(unverified(Arc::new(hybrid))?) };
        Ok(Self { full, hybrid, verified })
    }

    /// Whether the provider this was built with has the hybrid key exchange.
    pub(crate) fn has_hybrid(&self) -> bool {
        self.hybrid.is_some()
    }

    /// One exchange with the certificate verified and the negotiated parameters checked.
    pub(crate) fn check(&self, server: &Server, echo: SocketAddr) -> Result<()> {
        let config = Arc::new(self.verified.clone());
        let mut session = Session::open(&config, server.address(Service::Echo))?;
        session.begin(server.kind, echo)?;
        session.round_trip()?;
        let suite = session.tls.negotiated_cipher_suite().map(|suite| suite.suite());
        if suite != Some(CipherSuite::TLS13_AES_128_GCM_SHA256) {
            return Err(format!("{} chose {suite:?}", server.kind.name()).into());
        }
        if session.tls.handshake_kind() != Some(HandshakeKind::Full) {
            return Err(format!("{} asked for a second ClientHello", server.kind.name()).into());
        }
        session.close()
    }

    /// Fills one connection towards the sink until `stop` says so.
    pub(crate) fn fill(
        &self,
        server: &Server,
        sink: SocketAddr,
        mut stop: impl FnMut() -> bool,
    ) -> Result<()> {
        let config = Arc::new(self.full.clone());
        let mut session = Session::open(&config, server.address(Service::Sink))?;
        session.begin(server.kind, sink)?;
        session.tls.set_buffer_limit(None);
        let block = vec![0xa5_u8; BLOCK];
        while !stop() {
            session.send(&block)?;
        }
        session.close()
    }

    /// Empties one connection from the source, counting plaintext bytes, until `stop` says so.
    ///
    /// rustls' unbuffered interface decrypts in place: the least a client can do.
    pub(crate) fn empty(
        &self,
        server: &Server,
        source: SocketAddr,
        received: &AtomicU64,
        mut stop: impl FnMut() -> bool,
    ) -> Result<()> {
        let mut tls = UnbufferedClientConnection::new(Arc::new(self.full.clone()), peer_name()?)?;
        let mut socket = connect(server.address(Service::Source))?;
        let mut header = header(server.kind, source)?;
        let mut incoming = vec![0_u8; 512 << 10];
        let mut outgoing = vec![0_u8; 32 << 10];
        let (mut start, mut end, mut pending) = (0, 0, 0);
        while !stop() {
            let bytes = incoming.get_mut(start..end).ok_or("lost track of the input")?;
            let UnbufferedStatus { mut discard, state, .. } = tls.process_tls_records(bytes);
            let mut starved = false;
            match state? {
                ConnectionState::EncodeTlsData(mut state) => {
                    let room = outgoing.get_mut(pending..).unwrap_or_default();
                    pending += state.encode(room).map_err(|error| match error {
                        EncodeError::InsufficientSize(_) => "a flight over 32 KiB".to_owned(),
                        other => format!("{other:?}"),
                    })?;
                }
                ConnectionState::TransmitTlsData(state) => {
                    socket.write_all(outgoing.get(..pending).unwrap_or_default())?;
                    pending = 0;
                    state.done();
                }
                ConnectionState::WriteTraffic(mut state) => match header.take() {
                    Some(header) => {
                        let length = state
                            .encrypt(&header, &mut outgoing)
                            .map_err(|error| format!("cannot encrypt: {error:?}"))?;
                        socket.write_all(outgoing.get(..length).unwrap_or_default())?;
                    }
                    None => starved = true,
                },
                ConnectionState::ReadTraffic(mut state) => {
                    while let Some(record) = state.next_record() {
                        let record = record?;
                        discard += record.discard;
                        received.fetch_add(record.payload.len() as u64, Ordering::Relaxed);
                    }
                }
                ConnectionState::BlockedHandshake => starved = true,
                other => return Err(format!("the server ended the stream: {other:?}").into()),
            }
            start += discard;
            if starved {
                incoming.copy_within(start..end, 0);
                (start, end) = (0, end - start);
                let room = incoming.get_mut(end..).unwrap_or_default();
                match socket.read(room)? {
                    0 => return Err("the server closed the connection".into()),
                    count => end += count,
                }
            }
        }
        Ok(())
    }

    /// Round-trip times of 64 bytes on one open connection, for as long as `duration`.
    pub(crate) fn round_trips(
        &self,
        server: &Server,
        echo: SocketAddr,
        duration: Duration,
    ) -> Result<Vec<Duration>> {
        let config = Arc::new(self.full.clone());
        let mut session = Session::open(&config, server.address(Service::Echo))?;
        session.begin(server.kind, echo)?;
        for _ in 0..100 {
            session.round_trip()?;
        }
        let mut times = Vec::new();
        let start = Instant::now();
        while start.elapsed() < duration {
            let before = Instant::now();
            session.round_trip()?;
            times.push(before.elapsed());
        }
        session.close()?;
        Ok(times)
    }

    /// Opens, echoes once and closes, over and over on four threads; returns how many connections
    /// that made and how long it took.
    pub(crate) fn reconnect(
        &self,
        server: &Server,
        echo: SocketAddr,
        handshake: Handshake,
        duration: Duration,
    ) -> Result<(u64, Duration)> {
        let start = Instant::now();
        let worker = || -> Result<u64> {
            let mut config = match handshake {
                Handshake::Hybrid => self.hybrid.clone().ok_or("no hybrid key exchange")?,
                Handshake::Full | Handshake::Resumed => self.full.clone(),
            };
            if handshake == Handshake::Resumed {
                config.resumption = Resumption::in_memory_sessions(16);
            }
            let config = Arc::new(config);
            let (mut count, mut resumed) = (0, 0);
            while start.elapsed() < duration {
                let mut session = Session::open(&config, server.address(Service::Echo))?;
                session.begin(server.kind, echo)?;
                session.round_trip()?;
                resumed += u64::from(session.tls.handshake_kind() == Some(HandshakeKind::Resumed));
                session.close()?;
                count += 1;
            }
            // The first connection of a thread has nothing to resume.
            match handshake {
                Handshake::Resumed if resumed + 1 < count => {
                    Err(format!("{resumed} of {count} connections were resumed").into())
                }
                Handshake::Full | Handshake::Hybrid if resumed > 0 => {
                    Err(format!("{resumed} of {count} handshakes were not full").into())
                }
                _ => Ok(count),
            }
        };
        let counts: Vec<Result<u64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<u64>>| {
                thread.join().unwrap_or_else(|_| Err("a client thread panicked".into()))
            };
            threads.into_iter().map(join).collect()
        });
        let total = counts.into_iter().sum::<Result<u64>>()?;
        Ok((total, start.elapsed()))
    }

    /// Opens `count` connections with one exchange each, and keeps them.
    pub(crate) fn open_idle(
        &self,
        server: &Server,
        echo: SocketAddr,
        count: usize,
    ) -> Result<Vec<Session>> {
        let config = Arc::new(self.full.clone());
        let mut sessions = Vec::with_capacity(count);
        for number in 0..count {
            let open = || -> Result<Session> {
                let mut session = Session::open(&config, server.address(Service::Echo))?;
                session.begin(server.kind, echo)?;
                session.round_trip()?;
                Ok(session)
            };
            let session = open().map_err(|error| format!("idle connection {number}: {error}"))?;
            sessions.push(session);
        }
        Ok(sessions)
    }
}

/// One open connection.
pub(crate) struct Session {
    tls: ClientConnection,
    socket: TcpStream,
}

impl Session {
    fn open(config: &Arc<ClientConfig>, address: SocketAddr) -> Result<Self> {
        let mut socket = connect(address)?;
        let mut tls = ClientConnection::new(Arc::clone(config), peer_name()?)?;
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut socket)?;
        }
        Ok(Self { tls, socket })
    }

    /// Tells adit where the stream goes; the rivals know from their configuration.
    fn begin(&mut self, kind: Kind, destination: SocketAddr) -> Result<()> {
        if let Some(header) = header(kind, destination)? {
            self.tls.writer().write_all(&header)?;
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.tls.writer().write_all(bytes)?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    fn round_trip(&mut self) -> Result<()> {
        let message = [0x42_u8; SMALL];
        self.send(&message)?;
        let mut answer = [0_u8; SMALL];
        let mut filled = 0;
        while filled < SMALL {
            if self.tls.read_tls(&mut self.socket)? == 0 {
                return Err("the server closed the connection".into());
            }
            let state = self.tls.process_new_packets()?;
            let room = answer.get_mut(filled..).unwrap_or_default();
            if state.plaintext_bytes_to_read() > 0 {
                filled += self.tls.reader().read(room)?;
            }
        }
        if answer == message { Ok(()) } else { Err("the echo came back changed".into()) }
    }

    /// close_notify, then FIN.
    pub(crate) fn close(mut self) -> Result<()> {
        self.tls.send_close_notify();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// The 275 bytes that ask adit for a stream to `destination`; `None` for a rival.
fn header(kind: Kind, destination: SocketAddr) -> Result<Option<[u8; 275]>> {
    if kind != Kind::Adit {
        return Ok(None);
    }
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
    Ok(Some(header.try_into().map_err(|_| "a header is 275 bytes")?))
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn peer_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(SERVER_NAME)?)
}

/// The provider of this build, with one cipher suite and one key exchange.
fn only(group: NamedGroup) -> CryptoProvider {
    #[cfg(feature = "aws-lc-rs")]
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    let mut provider = rustls::crypto::ring::default_provider();
    #[cfg(all(feature = "rustls-openssl", not(any(feature = "aws-lc-rs", feature = "ring"))))]
    let mut provider = rustls_openssl::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider.kx_groups.retain(|known| known.name() == group);
    provider
}

/// Takes every server certificate, without arithmetic.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
