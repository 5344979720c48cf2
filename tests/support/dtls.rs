//! A DTLS client that shares no code with ours: OpenSSL on a socket of its own, whatever the test
//! wants of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use adit::pki::Identity;
use adit::wire::header;
use openssl::pkey::PKey;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslStream, SslVerifyMode,
    SslVersion,
};
use openssl::x509::X509;

use super::PATIENCE;

/// A socket whose reads end soon, so that OpenSSL can look at its timers.
#[derive(Debug)]
pub struct Datagrams(pub UdpSocket);

impl Read for Datagrams {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }
}

impl Write for Datagrams {
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        self.0.send(datagram)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a client differs from one that is let in.
pub struct Want<'a> {
    pub identity: Option<&'a Identity>,
    pub ciphers: &'a str,
    pub version: SslVersion,
    pub extended_master_secret: bool,
}

impl<'a> Want<'a> {
    pub fn good(identity: &'a Identity) -> Self {
        Self {
            identity: Some(identity),
            ciphers: "ECDHE-ECDSA-AES128-GCM-SHA256",
            version: SslVersion::DTLS1_2,
            extended_master_secret: true,
        }
    }

    pub fn context(&self) -> SslContext {
        let mut builder = SslContextBuilder::new(SslMethod::dtls_client()).unwrap();
        // The old version and its ciphers are forbidden above this level.
        builder.set_security_level(0);
        builder.set_min_proto_version(Some(self.version)).unwrap();
        builder.set_max_proto_version(Some(self.version)).unwrap();
        builder.set_cipher_list(self.ciphers).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        if !self.extended_master_secret {
            // SSL_OP_NO_EXTENDED_MASTER_SECRET, which the crate does not name.
            builder.set_options(SslOptions::from_bits_retain(1));
        }
        if let Some(identity) = self.identity {
            builder.set_certificate(&X509::from_der(&identity.chain[0]).unwrap()).unwrap();
            let key = PKey::private_key_from_der(identity.key.secret_der()).unwrap();
            builder.set_private_key(&key).unwrap();
        }
        builder.build()
    }
}

/// A client's socket, before or between handshakes.
pub fn socket(from: &str, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket
}

/// A client in the middle of its session.
#[derive(Debug)]
pub struct RawClient(pub SslStream<Datagrams>);

impl RawClient {
    /// Agrees with the agent. The error is the number of the alert that the agent sent.
    pub fn handshake(socket: UdpSocket, want: &Want<'_>) -> Result<Self, u8> {
        let mut ssl = Ssl::new(&want.context()).unwrap();
        ssl.set_mtu(1400).unwrap();
        ssl.set_connect_state();
        let mut stream = SslStream::new(ssl, Datagrams(socket)).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            match stream.do_handshake() {
                Ok(()) => return Ok(Self(stream)),
                Err(error) if error.code() == ErrorCode::WANT_READ => {
                    assert!(Instant::now() < end, "the handshake does not end");
                }
                Err(error) => return Err(alert(&error)),
            }
        }
    }

    /// The same, then asks for a stream.
    pub fn open(socket: UdpSocket, identity: &Identity, to: SocketAddr) -> Self {
        let mut client = Self::handshake(socket, &Want::good(identity)).unwrap();
        client.send(&header::encode_stream(&to.ip().to_string(), to.port()).unwrap());
        client
    }

    pub fn send(&mut self, datagram: &[u8]) {
        assert_eq!(self.0.ssl_write(datagram).unwrap(), datagram.len());
    }

    /// The next datagram, `None` when the agent has ended the session.
    pub fn recv(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 16384];
        let end = Instant::now() + PATIENCE;
        loop {
            match self.0.ssl_read(&mut buffer) {
                Ok(size) => return Some(buffer[..size].to_vec()),
                Err(error) if error.code() == ErrorCode::WANT_READ => {
                    assert!(Instant::now() < end, "nothing comes");
                }
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// One exchange with an echo.
    pub fn exchange(&mut self, datagram: &[u8]) {
        self.send(datagram);
        assert_eq!(self.recv().as_deref(), Some(datagram));
    }

    /// Ends it without a word and gives the socket back.
    pub fn vanish(self) -> UdpSocket {
        self.0.get_ref().0.try_clone().unwrap()
    }
}

/// The number of the alert that ended a session.
fn alert(error: &openssl::ssl::Error) -> u8 {
    let stack = error.ssl_error().unwrap_or_else(|| panic!("no alert but {error:?}"));
    let reason = stack.errors()[0].reason_code();
    u8::try_from(reason - 1000).unwrap_or_else(|_| panic!("no alert but {error}"))
}
