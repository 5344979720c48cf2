//! Floor 4: the far end. Accepts on one port, and where ALPN says so, carries streams.
//!
//! ```text
//! acceptor ── lobby (silent connections: a descriptor each, no thread)
//!    │  first bytes
//!    ▼
//! agent-N        handshake, then by ALPN: HTTP API, or stream header → rules → dial
//!    │  hands over and ends, its deep stack with it
//!    ▼
//! agent-N-up, agent-N-down      the relay
//! ```

pub mod api;
mod connection;
pub mod health;
mod limits;
mod lobby;
pub mod policy;
mod running;
mod server;
mod sources;
mod udp;
mod wake;
mod words;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::net;
use health::Health;
use policy::Policy;

pub use connection::Services;
pub use limits::Limits;
pub use server::{Agent, Summary};

/// Health checks that reach no further than streams may.
pub fn health_checks(
    policy: &Arc<Policy>,
    provider: Arc<CryptoProvider>,
) -> Result<Health, rustls::Error> {
    let (for_dial, for_resolve) = (policy.clone(), policy.clone());
    Health::new(
        Box::new(move |host, port, family, deadline| {
            for_dial.check_name(host, port).map_err(std::io::Error::other)?;
            let permit = |address| family(address) && for_dial.permits(host, address);
            net::dial(host, port, &permit, deadline).map_err(std::io::Error::other)
        }),
        Box::new(move |host, port, family, deadline| {
            for_resolve.check_name(host, port).map_err(std::io::Error::other)?;
            let mut addresses =
                net::resolve::resolve(host, port, deadline).map_err(std::io::Error::other)?;
            addresses.retain(|address| family(*address) && for_resolve.permits(host, *address));
            if addresses.is_empty() {
                return Err(std::io::Error::other("no address of this host may be reached"));
            }
            Ok(addresses)
        }),
        provider,
    )
}
