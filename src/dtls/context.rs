//! OpenSSL contexts for both ends. Made once: making one costs more than a handshake.

use std::cell::Cell;
use std::ffi::c_long;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    ClientHelloResponse, Ssl, SslAlert, SslContext, SslContextBuilder, SslMethod, SslMode,
    SslOptions, SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use openssl::stack::Stack;
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::{X509CheckFlags, X509VerifyFlags};
use rustls_pki_types::CertificateDer;

use super::cookie::Cookies;
use super::ffi::{certificate_rejected, client_hello_has, limit_chain, retransmit_soon};
use super::link::{HANDSHAKE_DATAGRAM, PeerRoute};
use crate::lifecycle::clock;
use crate::pki::{Identity, NameRules, Names, provider};

/// What a server needs for its sessions.
#[derive(Clone)]
pub struct ServerContext {
    ssl: SslContext,
    mtu: u32,
    cookies: Arc<Cookies>,
    peer: Index<Ssl, PeerRoute>,
}

/// What a client needs for its sessions.
#[derive(Clone)]
pub struct ClientContext {
    ssl: SslContext,
    mtu: u32,
    server_name: String,
}

thread_local! {
    /// The label of the last client whose name was not allowed: OpenSSL's error has no room for
    /// it, and a handshake stays on one thread.
    static REFUSED: Cell<Option<String>> = const { Cell::new(None) };
}

/// Who was refused for its name by the handshake that has just failed on this thread.
pub(super) fn take_refused() -> Option<String> {
    REFUSED.take()
}

impl ServerContext {
    /// Takes clients with a certificate of the identity's authorities and a name that `rules`
    /// allow. DTLS 1.2 only, with the extended master secret and without resumption, so every
    /// session proves itself anew.
    pub fn new(identity: &Identity, rules: NameRules) -> Result<Self, ContextError> {
        let mut builder = builder(SslMethod::dtls_server(), identity)?;
        let fail = |error| ContextError { act: "setting up DTLS", source: error };
        builder.set_options(SslOptions::COOKIE_EXCHANGE | SslOptions::CIPHER_SERVER_PREFERENCE);
        let mut names = Stack::new().map_err(fail)?;
        for authority in &identity.authorities {
            let name = x509(authority).and_then(|authority| authority.subject_name().to_owned());
            names.push(name.map_err(fail)?).map_err(fail)?;
        }
        builder.set_client_ca_list(names);
        builder.set_session_id_context(b"adit").map_err(fail)?;
        builder.set_verify_callback(
            SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
            move |trusted, chain| {
                if !trusted || chain.error_depth() > 0 || rules.is_empty() {
                    return trusted;
                }
                let der = chain.current_cert().and_then(|certificate| certificate.to_der().ok());
                let names = der.and_then(|der| Names::of(&CertificateDer::from(der)).ok());
                let allowed = names.as_ref().is_some_and(|names| rules.allows(names));
                if !allowed {
                    REFUSED.set(names.map(|names| names.label()));
                    chain.set_error(certificate_rejected());
                }
                allowed
            },
        );
        builder.set_client_hello_callback(|ssl, alert| {
            if client_hello_has(ssl, EXTENDED_MASTER_SECRET) {
                return Ok(ClientHelloResponse::SUCCESS);
            }
            // RFC 7627, section 5.3: whoever does without is refused with this alert.
            *alert = SslAlert::HANDSHAKE_FAILURE;
            Err(ErrorStack::get())
        });
        let peer = Ssl::new_ex_index::<PeerRoute>().map_err(fail)?;
        let cookies = Arc::new(Cookies::new(clock::now()).map_err(fail)?);
        // It never comes to that: `first_contact` hands on those only who bring one.
        builder.set_cookie_generate_cb(|_, _| Err(ErrorStack::get()));
        let check = cookies.clone();
        builder.set_cookie_verify_cb(move |ssl, cookie| {
            let held =
                address(ssl.ex_data(peer)).map(|peer| check.holds(cookie, peer, clock::now()));
            matches!(held, Some(Ok(true)))
        });
        Ok(Self { ssl: builder.build(), mtu: handshake_mtu(identity), cookies, peer })
    }

    /// The cookies of first contacts.
    pub(super) fn cookies(&self) -> &Cookies {
        &self.cookies
    }

    /// A session that has not begun, with a peer that may change until it does.
    pub(super) fn session(&self, peer: PeerRoute) -> Result<Ssl, ErrorStack> {
        let mut ssl = session(&self.ssl, self.mtu)?;
        ssl.set_ex_data(self.peer, peer);
        limit_chain(&mut ssl, CHAIN_MAX);
        ssl.set_accept_state();
        Ok(ssl)
    }
}

/// The most bytes of a client's chain: OpenSSL has room for a message of that many anyway.
const CHAIN_MAX: c_long = 16 * 1024;

/// The extension by which a client offers it (RFC 7627, section 6).
const EXTENDED_MASTER_SECRET: u16 = 23;

fn address(route: Option<&PeerRoute>) -> Option<SocketAddr> {
    route.and_then(PeerRoute::peer)
}

impl ClientContext {
    /// Connects to agents with a certificate of the identity's authorities for `server_name`, a
    /// DNS name or an IP address.
    pub fn new(identity: &Identity, server_name: &str) -> Result<Self, ContextError> {
        let mut builder = builder(SslMethod::dtls_client(), identity)?;
        builder.set_verify(SslVerifyMode::PEER);
        let (ssl, mtu) = (builder.build(), handshake_mtu(identity));
        Ok(Self { ssl, mtu, server_name: server_name.to_owned() })
    }

    pub(super) fn session(&self) -> Result<Ssl, ErrorStack> {
        let mut ssl = session(&self.ssl, self.mtu)?;
        let name = &self.server_name;
        if let Ok(address) = name.parse::<IpAddr>() {
            ssl.param_mut().set_ip(address)?;
        } else {
            ssl.set_hostname(name)?;
            ssl.param_mut().set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
            ssl.param_mut().set_host(name)?;
        }
        ssl.set_connect_state();
        Ok(ssl)
    }
}

fn session(context: &SslContext, mtu: u32) -> Result<Ssl, ErrorStack> {
    let mut ssl = Ssl::new(context)?;
    ssl.set_mtu(mtu)?;
    retransmit_soon(&mut ssl);
    Ok(ssl)
}

fn builder(method: SslMethod, identity: &Identity) -> Result<SslContextBuilder, ContextError> {
    let fail = |act| move |source| ContextError { act, source };
    let mut builder = SslContextBuilder::new(method).map_err(fail("setting up DTLS"))?;
    let version = Some(SslVersion::DTLS1_2);
    builder
        .set_min_proto_version(version)
        .and_then(|()| builder.set_max_proto_version(version))
        .and_then(|()| builder.set_cipher_list(&ciphers()))
        .and_then(|()| builder.set_groups_list(GROUPS))
        .map_err(fail("setting up DTLS"))?;
    builder.set_options(
        SslOptions::NO_QUERY_MTU | SslOptions::NO_TICKET | SslOptions::NO_RENEGOTIATION,
    );
    // The chain is what the identity has. OpenSSL would build and verify one for each handshake: a
    // tenth of the processor time of setting a session up.
    builder.set_mode(SslMode::RELEASE_BUFFERS | SslMode::NO_AUTO_CHAIN);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    let mut store = X509StoreBuilder::new().map_err(fail("setting up DTLS"))?;
    for authority in &identity.authorities {
        x509(authority)
            .and_then(|authority| store.add_cert(authority))
            .map_err(fail("using the CA certificate"))?;
    }
    // Whatever the operator gave as an authority is one, also an intermediate one; as on TCP.
    store.set_flags(X509VerifyFlags::PARTIAL_CHAIN).map_err(fail("using the CA certificate"))?;
    builder.set_cert_store(store.build());
    let (own, rest) = identity.chain.split_first().ok_or_else(|| ContextError {
        act: "using the certificate: there is none",
        source: ErrorStack::get(),
    })?;
    x509(own)
        .and_then(|own| builder.set_certificate(&own))
        .map_err(fail("using the certificate"))?;
    for certificate in rest {
        x509(certificate)
            .and_then(|certificate| builder.add_extra_chain_cert(certificate))
            .map_err(fail("using the certificate's chain"))?;
    }
    private_key(identity)
        .and_then(|key| builder.set_private_key(&key))
        .map_err(fail("using the key"))?;
    Ok(builder)
}

fn x509(certificate: &CertificateDer<'_>) -> Result<X509, ErrorStack> {
    X509::from_der(certificate)
}

/// PKCS#8, SEC1 and PKCS#1 alike.
fn private_key(identity: &Identity) -> Result<PKey<Private>, ErrorStack> {
    PKey::private_key_from_der(identity.key.secret_der())
}

/// The one that every existing peer has comes first, so that it is the one that is used with them;
/// RSA certificates and processors without AES are served by the others.
fn ciphers() -> String {
    let (aes, chacha) = ("AES128-GCM-SHA256", "CHACHA20-POLY1305");
    let order = if provider::has_aes_instructions() { [aes, chacha] } else { [chacha, aes] };
    let of = |kind: &str| {
        order.iter().map(|cipher| format!("ECDHE-{kind}-{cipher}")).collect::<Vec<_>>().join(":")
    };
    format!("{}:{}:{STRONGER}", of("ECDSA"), of("RSA"))
}

const STRONGER: &str = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384";

/// What existing peers offer (spec of their first message), in their order.
const GROUPS: &str = "X25519:P-256:P-384";

/// What OpenSSL is told that a datagram of the handshake may have.
///
/// It fills datagrams and cuts the message that is at the end of one. When it sends a flight again,
/// it cuts nothing. GoDoxy's peers (pion) keep the first part that they have got of a message and
/// pass over the whole one, so when the other part is lost, they never agree. Where each message
/// has room in a datagram of its own, OpenSSL is therefore given so much that it cuts none, and
/// [`Link`](super::link::Link) makes datagrams of what it writes.
fn handshake_mtu(identity: &Identity) -> u32 {
    // Each with its length; and those of the message and the record.
    let certificates: usize = identity.chain.iter().map(|der| 3 + der.len()).sum();
    // More than their names.
    let names: usize = identity.authorities.iter().map(|der| der.len()).sum();
    let room = HANDSHAKE_DATAGRAM - MESSAGE_OVERHEAD;
    if certificates.max(names) <= room { UNCUT } else { HANDSHAKE_DATAGRAM as u32 }
}

/// What a message of the handshake has around its certificates or names: headers of the record
/// (13) and of the message (12), lengths and lists of algorithms.
const MESSAGE_OVERHEAD: usize = 128;

/// More than a flight of messages that are within [`HANDSHAKE_DATAGRAM`] has, and less than the
/// 4096 bytes at which OpenSSL's own buffer is full.
const UNCUT: u32 = 4000;

impl fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerContext")
    }
}

impl fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientContext").field("server_name", &self.server_name).finish()
    }
}

/// A context that cannot be made.
#[derive(Debug)]
pub struct ContextError {
    act: &'static str,
    source: ErrorStack,
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for DTLS", self.act)?;
        match self.source.errors().first().and_then(|error| error.reason()) {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ContextError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
