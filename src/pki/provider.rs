//! Which library does the cryptography.
//!
//! The features `aws-lc-rs`, `ring` and `rustls-openssl` choose; the default features have `ring`
//! only. With several compiled in, the first of that order is used, so adding `aws-lc-rs` to the
//! default is enough to use it. Why `ring` is the default: `benches/tls.rs` measures, and the
//! README has the table.

use std::sync::Arc;

use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring", feature = "rustls-openssl")))]
compile_error!("adit needs a crypto provider: enable `aws-lc-rs`, `ring` or `rustls-openssl`");

/// The provider that is used.
pub fn default() -> Arc<CryptoProvider> {
    let mut all = all();
    Arc::new(all.swap_remove(0).1)
}

/// The name of the provider that is used, as its cargo feature spells it.
pub fn name() -> &'static str {
    all().first().map_or("none", |(name, _)| name)
}

/// Every compiled-in provider with its name, preferred first.
pub fn all() -> Vec<(&'static str, CryptoProvider)> {
    let mut all = vec![
        #[cfg(feature = "aws-lc-rs")]
        ("aws-lc-rs", rustls::crypto::aws_lc_rs::default_provider()),
        #[cfg(feature = "ring")]
        ("ring", rustls::crypto::ring::default_provider()),
        #[cfg(feature = "rustls-openssl")]
        ("rustls-openssl", rustls_openssl::default_provider()),
    ];
    let prefers_chacha = !has_aes_instructions();
    for (_, provider) in &mut all {
        provider.cipher_suites.sort_by_key(|suite| rank(suite.suite(), prefers_chacha));
    }
    all
}

/// Whether this processor encrypts AES in hardware. A Raspberry Pi up to the fourth does not, and
/// there ChaCha20 is several times faster.
pub fn has_aes_instructions() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    return false;
}

/// TLS 1.3 before 1.2; within each, AES-128 (the strength of the P-256 certificates) before
/// AES-256, and ChaCha20 first where AES has no hardware.
fn rank(suite: CipherSuite, prefers_chacha: bool) -> (bool, u8) {
    let name = suite.as_str().unwrap_or_default();
    let order = if name.contains("CHACHA20") {
        if prefers_chacha { 0 } else { 3 }
    } else if name.contains("AES_128") {
        1
    } else {
        2
    };
    (!name.starts_with("TLS13_"), order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_safe_suite_comes_first() {
        let first = if has_aes_instructions() { "AES_128_GCM" } else { "CHACHA20" };
        for (name, provider) in all() {
            let suites: Vec<_> =
                provider.cipher_suites.iter().filter_map(|s| s.suite().as_str()).collect();
            assert!(
                suites[0].starts_with("TLS13_") && suites[0].contains(first),
                "{name}: {suites:?}"
            );
            let last13 = suites.iter().rposition(|s| s.starts_with("TLS13_")).unwrap();
            assert!(suites[last13 + 1..].iter().all(|s| !s.starts_with("TLS13_")));
        }
    }
}
