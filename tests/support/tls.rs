//! TLS clients that are not [`adit::client::Client`]: with chosen versions, protocols and
//! certificates, or with nothing but rustls's own stream.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use adit::lifecycle::Deadline;
use adit::net::Conn;
use adit::pki::{Identity, NameRules};
use adit::tls::{self, ClientAuth, HandshakeError, SERVER_NAME, TlsStream};
use adit::wire::header;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use socket2::SockRef;

use super::{PATIENCE, Pki};

pub const HTTP: &[u8] = b"http/1.1";

/// Both versions, each alone.
pub const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A client of the authorities of `identity`. Without `shows` it has no certificate.
pub fn config(
    identity: &Identity,
    shows: bool,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for authority in &identity.authorities {
        roots.add(authority.clone()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(tls::provider::default())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = if shows {
        let key = identity.key.clone_key();
        builder.with_client_auth_cert(identity.chain.clone(), key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A client that asks for streams.
pub fn stream_config(
    identity: &Identity,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    config(identity, true, &[header::ALPN], &[version])
}

pub fn name() -> ServerName<'static> {
    SERVER_NAME.try_into().unwrap()
}

/// A handshake by this program's own TLS.
pub fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<TlsStream, HandshakeError> {
    let socket = TcpStream::connect(address).unwrap();
    tls::connect(Conn::new(socket), config, name(), Deadline::after("handshake", PATIENCE))
}

/// A stream to a destination with a configuration of one's own.
pub fn open(address: SocketAddr, config: Arc<ClientConfig>, to: SocketAddr) -> TlsStream {
    let mut stream = connect(address, config).unwrap();
    let header = header::encode_stream(&to.ip().to_string(), to.port()).unwrap();
    stream.write_all(&header).unwrap();
    stream.set_deadline(None).unwrap();
    stream
}

/// rustls's own buffered stream, which has not yet shaken hands.
pub fn rustls(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(ClientConnection::new(config, name()).unwrap(), socket)
}

/// The two ends of one TLS connection: the client's and the server's.
pub fn pair(version: &'static SupportedProtocolVersion) -> (TlsStream, TlsStream) {
    let pki = Pki::new();
    let auth = ClientAuth::Required(NameRules::new(&[]).unwrap());
    let server =
        tls::server(&pki.server(), auth, &[header::ALPN], tls::provider::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = stream_config(&pki.client("tester"), version);
    let near = std::thread::spawn(move || connect(address, client).unwrap());
    let far = Conn::new(listener.accept().unwrap().0);
    let mut far = tls::accept(far, server, Deadline::after("handshake", PATIENCE)).unwrap();
    let mut near = near.join().unwrap();
    for end in [&mut near, &mut far] {
        end.set_deadline(None).unwrap();
        // However much the system would buffer: tests fill it.
        let socket = SockRef::from(end.conn().as_ref());
        socket.set_send_buffer_size(1 << 20).unwrap();
        socket.set_recv_buffer_size(1 << 20).unwrap();
    }
    (near, far)
}
