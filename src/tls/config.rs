//! rustls configurations for both ends.

use std::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::{
    NoServerSessionStorage, ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::clients::NamedClients;
use super::provider::has_aes_instructions;
use crate::pki::{Identity, NameRules};

/// The DNS name in an agent's certificate, sent as SNI and verified, unless told otherwise
/// (stream protocol, "Constants").
pub const SERVER_NAME: &str = "godoxy.agent";

/// Whether a server wants to see the client's certificate.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// A certificate from our authority with a name that the rules allow, or the handshake fails.
    Required(NameRules),
    /// Anyone may connect.
    Off,
}

/// A configuration for accepting TLS 1.2 and 1.3 connections.
///
/// `alpn` are the protocols offered; a client that asks for none of them is refused with alert 120,
/// one that does not ask at all is let in.
pub fn server(
    identity: &Identity,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(ConfigError::Versions)?;
    let builder = match client_auth {
        ClientAuth::Required(rules) => {
            let inner = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider)
                .build()
                .map_err(ConfigError::Verifier)?;
            builder.with_client_cert_verifier(Arc::new(NamedClients { inner, rules }))
        }
        ClientAuth::Off => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(ConfigError::Certificate)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // A box without AES hardware is the slower end nearly always, so its order counts.
    config.ignore_client_order = !has_aes_instructions();
    match ticketer() {
        Some(ticketer) => {
            config.ticketer = ticketer.map_err(ConfigError::Ticketer)?;
            config.session_storage = Arc::new(NoServerSessionStorage {});
        }
        None => {
            let cache: Arc<dyn StoresServerSessions> =
                ServerSessionMemoryCache::new(CACHED_SESSIONS);
            config.session_storage = cache;
        }
    }
    config.send_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}

/// A configuration for connecting to an agent, with the session cache that makes reconnecting
/// cheap: keep it for as long as connections are made.
pub fn client(
    identity: &Identity,
    alpn: &[&[u8]],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(identity)?, provider.clone())
        .build()
        .map_err(ConfigError::Verifier)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ConfigError::Versions)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(ConfigError::Certificate)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(CACHED_SESSIONS);
    Ok(Arc::new(config))
}

pub(super) fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, ConfigError> {
    let mut roots = RootCertStore::empty();
    for authority in &identity.authorities {
        roots.add(authority.clone()).map_err(ConfigError::Authority)?;
    }
    Ok(Arc::new(roots))
}

/// The preferred provider's tickets: sessions are kept by the clients, sealed with a key that
/// only this process knows and that changes every six hours, so they cost the agent no memory.
fn ticketer() -> Option<Result<Arc<dyn rustls::server::ProducesTickets>, rustls::Error>> {
    #[cfg(feature = "aws-lc-rs")]
    return Some(rustls::crypto::aws_lc_rs::Ticketer::new());
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    return Some(rustls::crypto::ring::Ticketer::new());
    #[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
    return None;
}

/// Sessions kept in memory, by a client for its agents and by a server without tickets.
const CACHED_SESSIONS: usize = 256;

/// Tickets per TLS 1.3 handshake. A client that reconnects gets a new one each time, so one lasts.
/// Measured in four alternating runs, a second one (rustls's own number) makes no difference beyond
/// noise: 0.59 to 0.68 ms of the agent's time for a full connection against 0.61 to 0.66, and 2459 to
/// 2705 resumed connections a second against 2461 to 2620. So the smaller number.
const TICKETS: usize = 1;

/// A configuration that cannot be made.
#[derive(Debug)]
pub enum ConfigError {
    /// The provider lacks something that TLS 1.2 and 1.3 need.
    Versions(rustls::Error),
    /// An authority's certificate cannot be used.
    Authority(rustls::Error),
    /// No verifier can be built from the authorities.
    Verifier(rustls::client::VerifierBuilderError),
    /// The certificate or its key cannot be used.
    Certificate(rustls::Error),
    /// No keys for session tickets.
    Ticketer(rustls::Error),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Versions(error) => write!(f, "the crypto provider does not support TLS: {error}"),
            Self::Authority(error) => write!(f, "the CA certificate cannot be used: {error}"),
            Self::Verifier(error) => write!(f, "the CA certificates cannot be used: {error}"),
            Self::Certificate(error) => {
                write!(f, "the certificate and its key cannot be used: {error}")
            }
            Self::Ticketer(error) => write!(f, "no key for session tickets: {error}"),
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Versions(e) | Self::Authority(e) | Self::Certificate(e) | Self::Ticketer(e) => {
                Some(e)
            }
            Self::Verifier(e) => Some(e),
        }
    }
}
