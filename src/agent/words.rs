//! Clients, destinations and times as the log has them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use super::policy::{Denied, Policy};
use crate::lifecycle::clock;
use crate::net::{self, DialError};

/// A client whose certificate was verified.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    /// The certificate's name for the log, escaped; `-` without one.
    pub(super) name: String,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id={} peer={} cert={}", self.id, self.peer, self.name)
    }
}

/// Why a destination was not reached; of addresses that were denied, also by which rules.
pub(super) fn why_not(error: &DialError, host: &str, policy: &Policy) -> String {
    let mut why = error.to_string();
    if let DialError::Denied(addresses) = error {
        // Those that the error names.
        let denied = addresses.iter().take(net::dial::SHOWN);
        let mut rules: Vec<String> = Vec::new();
        for rule in denied.filter_map(|address| policy.check_address(host, *address).err()) {
            let rule = match rule {
                Denied::By(rule) => format!("rule {rule}"),
                other => other.to_string(),
            };
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        why = format!("{why}: {}", rules.join(", "));
    }
    why
}

/// How long ago something was, for the log.
pub(super) fn since(moment: Instant) -> String {
    format!("{:.3}s", clock::now().duration_since(moment).as_secs_f64())
}

/// An IPv6 literal in brackets, everything else as it is; escaped for the log.
pub(super) fn bracketed(host: &str) -> String {
    let escaped = word(host.escape_debug().to_string());
    if host.contains(':') { format!("[{escaped}]") } else { escaped }
}

/// Escaped text in quotes when it has spaces: a name must not look like further fields of its line.
pub(super) fn word(escaped: String) -> String {
    if escaped.contains(char::is_whitespace) { format!("\"{escaped}\"") } else { escaped }
}
