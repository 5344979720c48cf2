//! A TLS client that sends whatever records a test makes: rustls does the handshake and then hands
//! over its keys.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use adit::pki::Identity;
use adit::tls::{self, SERVER_NAME};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, KeyLog};

use super::PATIENCE;

pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const DATA: u8 = 23;

/// The alert with which a TLS connection ends well.
pub const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// A connection after its handshake. Always AES-128-GCM with SHA-256.
pub struct RawTls {
    pub socket: TcpStream,
    tls13: bool,
    sending: Keys,
    receiving: Keys,
    /// Of TLS 1.3: what the next sending keys are made from.
    secret: Vec<u8>,
}

struct Keys {
    key: Vec<u8>,
    iv: Vec<u8>,
    sequence: u64,
}

impl RawTls {
    /// Does the handshake for streams, over TLS 1.3 or 1.2.
    pub fn connect(agent: SocketAddr, identity: &Identity, tls13: bool) -> Self {
        Self::over(TcpStream::connect(agent).unwrap(), identity, tls13).unwrap()
    }

    /// The same over a connected socket.
    pub fn over(mut socket: TcpStream, identity: &Identity, tls13: bool) -> io::Result<Self> {
        let secrets = Arc::new(Secrets::default());
        let config = Arc::new(config(identity, tls13, secrets.clone()));
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut connection = ClientConnection::new(config, name).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let extracted = connection.dangerous_extract_secrets().unwrap();
        let secret = secrets.0.lock().unwrap().clone();
        let [sending, receiving] = [extracted.tx, extracted.rx].map(|(sequence, secrets)| {
            let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
                panic!("another cipher than was offered")
            };
            Keys { key: key.as_ref().to_vec(), iv: iv.as_ref().to_vec(), sequence }
        });
        Ok(Self { socket, tls13, sending, receiving, secret })
    }

    /// An encrypted record.
    pub fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let Keys { key, iv, sequence } = &mut self.sending;
        let mut tag = [0; 16];
        let (nonce, aad, plain, outer) = if self.tls13 {
            let plain = [content, &[kind]].concat();
            let length = u16::try_from(plain.len() + 16).unwrap();
            (nonce13(iv, *sequence), header(DATA, length).to_vec(), plain, length)
        } else {
            let length = u16::try_from(content.len()).unwrap();
            let nonce = [&iv[..4], &sequence.to_be_bytes()].concat();
            let aad = [&sequence.to_be_bytes()[..], &header(kind, length)].concat();
            (nonce, aad, content.to_vec(), length + 8 + 16)
        };
        let cipher = Cipher::aes_128_gcm();
        let sealed = encrypt_aead(cipher, key, Some(&nonce), &aad, &plain, &mut tag).unwrap();
        let explicit = if self.tls13 { vec![] } else { sequence.to_be_bytes().to_vec() };
        *sequence += 1;
        let kind = if self.tls13 { DATA } else { kind };
        [&header(kind, outer)[..], &explicit, &sealed, &tag].concat()
    }

    /// Sends one record.
    pub fn send(&mut self, kind: u8, content: &[u8]) {
        let record = self.seal(kind, content);
        self.socket.write_all(&record).unwrap();
    }

    /// From now on the keys that follow a key update.
    pub fn next_keys(&mut self) {
        self.secret = expand(&self.secret, "traffic upd", 32);
        self.sending = Keys {
            key: expand(&self.secret, "key", 16),
            iv: expand(&self.secret, "iv", 12),
            sequence: 0,
        };
    }

    /// The next record of the agent, of TLS 1.3; `None` when it has closed.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        assert!(self.tls13);
        let mut head = [0; 5];
        self.socket.read_exact(&mut head).ok()?;
        let mut record = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        self.socket.read_exact(&mut record).ok()?;
        let Keys { key, iv, sequence } = &mut self.receiving;
        let (sealed, tag) = record.split_at(record.len() - 16);
        let nonce = nonce13(iv, *sequence);
        let mut plain =
            decrypt_aead(Cipher::aes_128_gcm(), key, Some(&nonce), &head, sealed, tag).unwrap();
        *sequence += 1;
        let kind = plain.pop().unwrap();
        Some((kind, plain))
    }

    /// The next record that is not a handshake message: session tickets come when they like.
    pub fn receive_past_tickets(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            match self.receive()? {
                (HANDSHAKE, _) => {}
                record => return Some(record),
            }
        }
    }
}

fn header(kind: u8, length: u16) -> [u8; 5] {
    let [high, low] = length.to_be_bytes();
    [kind, 3, 3, high, low]
}

fn nonce13(iv: &[u8], sequence: u64) -> Vec<u8> {
    let padded = [&[0; 4][..], &sequence.to_be_bytes()].concat();
    iv.iter().zip(padded).map(|(a, b)| a ^ b).collect()
}

/// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1), for at most one block.
fn expand(secret: &[u8], label: &str, length: u8) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let mut info = vec![0, length, u8::try_from(label.len()).unwrap()];
    info.extend_from_slice(label.as_bytes());
    info.extend_from_slice(&[0, 1]);
    let key = PKey::hmac(secret).unwrap();
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    let mut block = signer.sign_oneshot_to_vec(&info).unwrap();
    block.truncate(usize::from(length));
    block
}

fn config(identity: &Identity, tls13: bool, secrets: Arc<Secrets>) -> ClientConfig {
    let mut provider = (*tls::provider::default()).clone();
    provider.cipher_suites.retain(|suite| {
        suite.suite().as_str().is_some_and(|name| name.contains("AES_128_GCM_SHA256"))
    });
    let versions = if tls13 { [&rustls::version::TLS13] } else { [&rustls::version::TLS12] };
    let mut roots = rustls::RootCertStore::empty();
    for authority in &identity.authorities {
        roots.add(authority.clone()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![adit::wire::header::ALPN.to_vec()];
    config.enable_secret_extraction = true;
    config.key_log = secrets;
    config
}

/// Keeps the secret of the client's own traffic.
#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<u8>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if label == "CLIENT_TRAFFIC_SECRET_0" {
            *self.0.lock().unwrap() = secret.to_vec();
        }
    }
}
