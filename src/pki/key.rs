//! Private keys: parsing, naming, matching with certificates, and signing certificates.

use openssl::ec::{EcGroup, EcKey, PointConversionForm};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, Id, PKey, PKeyRef, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use openssl::x509::X509;
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Parses a key in the encoding its type says.
///
/// # Errors
/// It is no such key.
pub fn parse(key: &PrivateKeyDer<'_>) -> Result<PKey<Private>, ErrorStack> {
    match key {
        PrivateKeyDer::Sec1(der) => {
            PKey::from_ec_key(EcKey::private_key_from_der(der.secret_sec1_der())?)
        }
        PrivateKeyDer::Pkcs1(der) => {
            PKey::from_rsa(Rsa::private_key_from_der(der.secret_pkcs1_der())?)
        }
        other => PKey::private_key_from_pkcs8(other.secret_der()),
    }
}

/// The kind of a key as people call it: `ECDSA P-256`, `RSA 2048`, `Ed25519`.
pub fn describe_key<T: HasPublic>(key: &PKeyRef<T>) -> String {
    match key.id() {
        Id::EC => match key.ec_key().ok().and_then(|key| key.group().curve_name()) {
            Some(Nid::X9_62_PRIME256V1) => "ECDSA P-256".to_owned(),
            Some(Nid::SECP384R1) => "ECDSA P-384".to_owned(),
            Some(Nid::SECP521R1) => "ECDSA P-521".to_owned(),
            Some(curve) => format!("ECDSA {}", curve.short_name().unwrap_or("on an unknown curve")),
            None => "ECDSA on an unnamed curve".to_owned(),
        },
        Id::RSA => format!("RSA {}", key.bits()),
        Id::RSA_PSS => format!("RSA-PSS {}", key.bits()),
        Id::ED25519 => "Ed25519".to_owned(),
        Id::ED448 => "Ed448".to_owned(),
        Id::DSA => "DSA".to_owned(),
        other => Nid::from_raw(other.as_raw()).short_name().unwrap_or("unknown").to_owned(),
    }
}

/// Whether `key` is the private half of the key in `certificate`.
///
/// # Errors
/// The certificate, or the key in it, cannot be parsed.
pub fn key_belongs_to(
    key: &PKeyRef<Private>,
    certificate: &CertificateDer<'_>,
) -> Result<bool, ErrorStack> {
    Ok(X509::from_der(certificate)?.public_key()?.public_eq(key))
}

/// Whether `certificate` was signed with the key in `issuer`. Nonsense was not.
pub(super) fn signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let check =
        || X509::from_der(certificate)?.verify(X509::from_der(issuer)?.public_key()?.as_ref());
    check().unwrap_or(false)
}

/// A private key that signs certificates for rcgen.
pub(super) struct SigningPair {
    key: PKey<Private>,
    /// Content of the subjectPublicKey bit string.
    public: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
    digest: Option<MessageDigest>,
}

impl SigningPair {
    /// A new ECDSA P-256 key.
    pub(super) fn generate() -> Result<Self, ErrorStack> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
        let public = point(&key)?;
        let digest = Some(MessageDigest::sha256());
        Ok(Self { key, public, algorithm: &rcgen::PKCS_ECDSA_P256_SHA256, digest })
    }

    /// An existing key, or `None` when it is of a kind that rcgen cannot name.
    pub(super) fn new(key: PKey<Private>) -> Result<Option<Self>, ErrorStack> {
        let curve = match key.id() {
            Id::EC => key.ec_key()?.group().curve_name(),
            _ => None,
        };
        let (public, algorithm, digest) = match (key.id(), curve) {
            (Id::EC, Some(Nid::X9_62_PRIME256V1)) => {
                (point(&key)?, &rcgen::PKCS_ECDSA_P256_SHA256, Some(MessageDigest::sha256()))
            }
            (Id::EC, Some(Nid::SECP384R1)) => {
                (point(&key)?, &rcgen::PKCS_ECDSA_P384_SHA384, Some(MessageDigest::sha384()))
            }
            (Id::RSA, _) => (
                key.rsa()?.public_key_to_der_pkcs1()?,
                &rcgen::PKCS_RSA_SHA256,
                Some(MessageDigest::sha256()),
            ),
            (Id::ED25519, _) => (key.raw_public_key()?, &rcgen::PKCS_ED25519, None),
            _ => return Ok(None),
        };
        Ok(Some(Self { key, public, algorithm, digest }))
    }

    pub(super) fn key(&self) -> &PKey<Private> {
        &self.key
    }
}

impl PublicKeyData for SigningPair {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for SigningPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let sign = || {
            let mut signer = match self.digest {
                Some(digest) => Signer::new(digest, &self.key)?,
                None => Signer::new_without_digest(&self.key)?,
            };
            signer.sign_oneshot_to_vec(message)
        };
        // rcgen has one error for keys outside it, without a place for the cause.
        sign().map_err(|_: ErrorStack| rcgen::Error::RemoteKeyError)
    }
}

fn point(key: &PKey<Private>) -> Result<Vec<u8>, ErrorStack> {
    let key = key.ec_key()?;
    let mut context = openssl::bn::BigNumContext::new()?;
    key.public_key().to_bytes(key.group(), PointConversionForm::UNCOMPRESSED, &mut context)
}
