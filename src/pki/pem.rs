//! PEM text in and out, and bounded reading of what may hold it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use openssl::pkey::{PKey, Private};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::error::{Fault, IdentityError, Place};

/// The most bytes that are read from a file, a zip member or a variable: far above any chain,
/// far below what would hurt a small box.
pub const LIMIT: usize = 1024 * 1024;

/// The certificates and keys of one PEM text, in their order.
#[derive(Debug)]
pub struct Blocks {
    /// Every `CERTIFICATE` block.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Every unencrypted private key block, as it is.
    pub keys: Vec<PrivateKeyDer<'static>>,
    /// Whether there is an encrypted private key.
    pub encrypted_key: bool,
}

impl Blocks {
    /// Reads every block of `text`. Blocks of other kinds and text between blocks are passed over.
    ///
    /// # Errors
    /// A damaged block, or DER instead of PEM.
    pub fn parse(place: &Place, text: &[u8]) -> Result<Self, IdentityError> {
        let fault = |fault| IdentityError::new(place, fault);
        if text.starts_with(&DER_SEQUENCE) {
            return Err(fault(Fault::Der));
        }
        let mut blocks = Self {
            certificates: Vec::new(),
            keys: Vec::new(),
            encrypted_key: holds(text, b"-----BEGIN ENCRYPTED PRIVATE KEY-----"),
        };
        if holds(text, b"Proc-Type: 4,ENCRYPTED") {
            // Its headers are no base64, so the reader below would call the block damaged.
            return Err(fault(Fault::EncryptedKey));
        }
        for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            let (kind, der) = block.map_err(|error| fault(Fault::BadPem(error.to_string())))?;
            let key = match kind {
                SectionKind::Certificate => {
                    blocks.certificates.push(der.into());
                    continue;
                }
                SectionKind::PrivateKey => PrivateKeyDer::Pkcs8(der.into()),
                SectionKind::EcPrivateKey => PrivateKeyDer::Sec1(der.into()),
                SectionKind::RsaPrivateKey => PrivateKeyDer::Pkcs1(der.into()),
                _ => continue,
            };
            blocks.keys.push(key);
        }
        Ok(blocks)
    }

    /// The certificates of `text`, at least one.
    pub(super) fn certificates(
        place: &Place,
        text: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let certificates = Self::parse(place, text)?.certificates;
        if certificates.is_empty() {
            return Err(IdentityError::new(place, Fault::NoCertificate));
        }
        Ok(certificates)
    }

    /// The one private key of `text`.
    pub(super) fn key(place: &Place, text: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
        let mut blocks = Self::parse(place, text)?;
        let fault = match (blocks.keys.pop(), blocks.keys.len()) {
            (Some(key), 0) => return Ok(key),
            (Some(_), more) => Fault::SeveralKeys(more + 1),
            (None, _) if blocks.encrypted_key => Fault::EncryptedKey,
            (None, _) => Fault::NoKey,
        };
        Err(IdentityError::new(place, fault))
    }
}

/// Reads a file of at most [`LIMIT`] bytes.
///
/// # Errors
/// The file cannot be read, or is larger.
pub fn read_bounded(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let fault = |fault| IdentityError::new(&Place::File(path.to_owned()), fault);
    let file = File::open(path).map_err(|error| fault(Fault::Read(error)))?;
    read_at_most(file)
        .map_err(|error| fault(Fault::Read(error)))?
        .ok_or_else(|| fault(Fault::TooLarge))
}

/// All of `source`, or `None` when it holds more than [`LIMIT`] bytes.
pub(super) fn read_at_most(source: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    source.take(LIMIT as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= LIMIT).then_some(bytes))
}

/// A `CERTIFICATE` block.
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    block("CERTIFICATE", certificate)
}

/// A private key block of the key's own encoding.
pub fn key_pem(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    block(label, key.secret_der())
}

/// The PKCS#8 form of a key, which every TLS library reads.
pub(super) fn pkcs8(
    key: &PKey<Private>,
) -> Result<PrivateKeyDer<'static>, openssl::error::ErrorStack> {
    Ok(PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8()?).into())
}

fn block(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while let Some((line, more)) = rest.split_at_checked(LINE) {
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    if !rest.is_empty() {
        pem.push_str(rest);
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn holds(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

/// Characters of base64 in a line (RFC 7468, section 2).
const LINE: usize = 64;

/// How every certificate or key above 255 bytes begins in DER: a SEQUENCE with a two-byte length.
const DER_SEQUENCE: [u8; 2] = [0x30, 0x82];
