//! The cookie of a first contact: proof that a client receives what is sent to its address.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;

/// Bytes of a cookie: half of HMAC-SHA-256, which leaves 2^128 to guess from and keeps our answer
/// shorter than any ClientHello, so that nobody can be flooded by way of us.
pub(super) const LEN: usize = 16;

/// How long a secret makes cookies; those that it made hold for as long again.
const LIFE: Duration = Duration::from_secs(60);

/// Makes and checks cookies. Holds nothing of any client.
pub(super) struct Cookies(Mutex<Secrets>);

struct Secrets {
    current: PKey<Private>,
    previous: PKey<Private>,
    since: Instant,
}

impl Cookies {
    pub(super) fn new(now: Instant) -> Result<Self, ErrorStack> {
        Ok(Self(Mutex::new(Secrets { current: secret()?, previous: secret()?, since: now })))
    }

    /// The cookie for a client at `peer`.
    pub(super) fn make(&self, peer: SocketAddr, now: Instant) -> Result<[u8; LEN], ErrorStack> {
        let mut secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.turn(now)?;
        sign(&secrets.current, peer)
    }

    /// Whether a cookie is one that was made for `peer` within the last minutes.
    pub(super) fn holds(
        &self,
        cookie: &[u8],
        peer: SocketAddr,
        now: Instant,
    ) -> Result<bool, ErrorStack> {
        if cookie.len() != LEN {
            return Ok(false);
        }
        let mut secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.turn(now)?;
        let fits = |secret| sign(secret, peer).map(|made| memcmp::eq(&made, cookie));
        Ok(fits(&secrets.current)? || fits(&secrets.previous)?)
    }
}

impl Secrets {
    /// Replaces what has served its time.
    fn turn(&mut self, now: Instant) -> Result<(), ErrorStack> {
        let age = now.saturating_duration_since(self.since);
        if age < LIFE {
            return Ok(());
        }
        let old = std::mem::replace(&mut self.current, secret()?);
        // Nobody came for so long that the old one has had its time too.
        self.previous = if age < 2 * LIFE { old } else { secret()? };
        self.since = now;
        Ok(())
    }
}

fn secret() -> Result<PKey<Private>, ErrorStack> {
    let mut bytes = [0; 32];
    openssl::rand::rand_bytes(&mut bytes)?;
    PKey::hmac(&bytes)
}

fn sign(secret: &PKey<Private>, peer: SocketAddr) -> Result<[u8; LEN], ErrorStack> {
    let octets = match peer.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let zone = match peer {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let mut signer = Signer::new(MessageDigest::sha256(), secret)?;
    signer.update(&octets)?;
    signer.update(&peer.port().to_be_bytes())?;
    signer.update(&zone.to_be_bytes())?;
    let mut whole = [0; 32];
    signer.sign(&mut whole)?;
    let mut cookie = [0; LEN];
    for (to, from) in cookie.iter_mut().zip(whole) {
        *to = from;
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock;

    #[test]
    fn a_cookie_holds_for_its_address_and_for_a_while() {
        let start = clock::now();
        let cookies = Cookies::new(start).unwrap();
        let peer: SocketAddr = "192.0.2.1:4711".parse().unwrap();
        let cookie = cookies.make(peer, start).unwrap();
        let holds = |cookie: &[u8], peer: &str, now| {
            cookies.holds(cookie, peer.parse().unwrap(), now).unwrap()
        };
        assert!(holds(&cookie, "192.0.2.1:4711", start));
        assert!(holds(&cookie, "[::ffff:192.0.2.1]:4711", start), "the same address, mapped");
        for other in ["192.0.2.1:4712", "192.0.2.2:4711", "[2001:db8::1]:4711"] {
            assert!(!holds(&cookie, other, start), "{other}");
        }
        assert!(!holds(&cookie[1..], "192.0.2.1:4711", start));
        assert!(!holds(&[], "192.0.2.1:4711", start));
        assert!(holds(&cookie, "192.0.2.1:4711", start + LIFE), "by the previous secret");
        assert!(!holds(&cookie, "192.0.2.1:4711", start + 2 * LIFE));
    }

    #[test]
    fn after_a_long_silence_no_old_secret_serves() {
        let start = clock::now();
        let cookies = Cookies::new(start).unwrap();
        let peer: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        let cookie = cookies.make(peer, start).unwrap();
        assert!(!cookies.holds(&cookie, peer, start + 10 * LIFE).unwrap());
    }
}
