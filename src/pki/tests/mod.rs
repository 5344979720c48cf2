//! Tests of the whole room. Its own certificates are judged by rustls, which did not make them.

mod authorities;
mod faults;
mod fixtures;
mod store;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Builder, X509Name};

use super::*;
use crate::lifecycle::clock;

const YEARS_10: u32 = 3650;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/godoxy-pki")).join(name)
}

fn now() -> SystemTime {
    clock::wall()
}

fn write(dir: &tempfile::TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn request(purpose: Purpose, names: &[&str]) -> Request {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Request { purpose, names, validity: Validity::days(now(), 30) }
}

fn authority() -> Authority {
    Authority::create("test CA", Validity::days(now(), YEARS_10)).unwrap()
}

/// A CA as other tools make them, with any key and name; self-signed, or signed by `issuer`.
fn foreign_ca(
    key: &PKey<Private>,
    name: &X509Name,
    issuer: Option<(&X509, &PKey<Private>)>,
) -> X509 {
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let serial = Asn1Integer::from_bn(&BigNum::from_u32(7).unwrap()).unwrap();
    builder.set_serial_number(&serial).unwrap();
    builder.set_subject_name(name).unwrap();
    builder.set_issuer_name(issuer.map_or(name.as_ref(), |(cert, _)| cert.subject_name())).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(365).unwrap()).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None));
    builder.append_extension(identifier.unwrap()).unwrap();
    let signer = issuer.map_or(key, |(_, key)| key);
    let digest = match signer.id() {
        Id::ED25519 => MessageDigest::null(),
        _ => MessageDigest::sha256(),
    };
    builder.sign(signer, digest).unwrap();
    builder.build()
}

fn name(entries: &[(&str, &str)]) -> X509Name {
    let mut name = X509Name::builder().unwrap();
    for (kind, text) in entries {
        name.append_entry_by_text(kind, text).unwrap();
    }
    name.build()
}

#[cfg(feature = "aws-lc-rs")]
mod judge {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::server::WebPkiClientVerifier;
    use rustls::{Error, RootCertStore};
    use rustls_pki_types::{ServerName, UnixTime};

    use super::super::*;
    use super::now;

    /// What the other end's rustls says of `identity`, trusting its authorities.
    pub(super) fn accepts(
        identity: &Identity,
        purpose: Purpose,
        server_name: &'static str,
    ) -> Result<(), Error> {
        trusting(&identity.authorities, identity, purpose, server_name)
    }

    pub(super) fn trusting(
        authorities: &[rustls_pki_types::CertificateDer<'static>],
        identity: &Identity,
        purpose: Purpose,
        server_name: &'static str,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.clone())?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        provider.key_provider.load_private_key(identity.key.clone_key())?;
        let since = now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let now = UnixTime::since_unix_epoch(since);
        let (leaf, between) = identity.chain.split_first().unwrap();
        match purpose {
            Purpose::Server => {
                let name = ServerName::try_from(server_name).unwrap();
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider);
                let verifier = verifier.build().unwrap();
                verifier.verify_server_cert(leaf, between, &name, &[], now).map(drop)
            }
            Purpose::Client => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                verifier.build().unwrap().verify_client_cert(leaf, between, now).map(drop)
            }
        }
    }
}
