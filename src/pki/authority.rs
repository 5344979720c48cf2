//! A CA that issues certificates of the profile that GoDoxy's generator made usual.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use openssl::error::ErrorStack;
use rcgen::string::{BmpString, UniversalString};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, DnsName, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::x509::X509Name;

use super::certificate::{is_authority, parse, utc};
use super::error::{Fault, IdentityError, Place};
use super::identity::{Identity, Purpose, seconds, valid_at};
use super::key::{self, SigningPair, describe_key, key_belongs_to, signed_by};
use super::pem::{Blocks, certificate_pem, key_pem, pkcs8, read_bounded};

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second, since 1970.
    pub not_before: i64,
    /// The last second, since 1970.
    pub not_after: i64,
}

impl Validity {
    /// `days` from `now`, and from an hour before, because clocks of small boxes are often late.
    pub fn days(now: SystemTime, days: u32) -> Self {
        let now = seconds(now);
        let length = u64::from(days) * 24 * 60 * 60;
        Self {
            not_before: now.saturating_sub(60 * 60),
            not_after: now.saturating_add_unsigned(length),
        }
    }
}

/// What to issue.
#[derive(Clone, Debug)]
pub struct Request {
    /// For which end.
    pub purpose: Purpose,
    /// DNS names and IP addresses, at least one; the first is the common name too. A client's may
    /// also be an email address or any other text, which becomes the common name only.
    pub names: Vec<String>,
    /// For how long.
    pub validity: Validity,
}

/// A new certificate and its key.
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key, PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

impl Issued {
    /// The certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        certificate_pem(&self.certificate)
    }

    /// The key as PEM.
    pub fn key_pem(&self) -> String {
        key_pem(&self.key)
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("key", &"hidden").finish_non_exhaustive()
    }
}

/// A CA: its certificate, and the key that signs.
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    issuer: Issuer<'static, SigningPair>,
}

impl Authority {
    /// Makes a new self-signed CA: ECDSA P-256 with SHA-256, path length 0.
    ///
    /// # Errors
    /// A name that cannot be used, or a date outside the years 1970 to 9999.
    pub fn create(common_name: &str, validity: Validity) -> Result<Self, IssueError> {
        common_name_ok(common_name)?;
        let pair = SigningPair::generate().map_err(IssueError::Key)?;
        let mut params = params(validity, &pair)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = pkcs8(pair.key()).map_err(IssueError::Key)?;
        let certificate = params.self_signed(&pair).map_err(IssueError::Sign)?.into();
        Ok(Self { certificate, key, issuer: Issuer::new(params, pair) })
    }

    /// Loads a CA from its certificate's and its key's PEM file.
    ///
    /// # Errors
    /// A file that does not hold what it should, a key of another certificate, a certificate that
    /// may not sign others or is not valid at `now`, or a key of a kind that cannot sign here
    /// (RSA, ECDSA P-256 and P-384, and Ed25519 can).
    pub fn from_files(cert: &Path, key: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let cert_place = Place::File(cert.to_owned());
        let key_place = Place::File(key.to_owned());
        let fail = |fault| IdentityError::new(&cert_place, fault);
        let key_fail = |fault| IdentityError::new(&key_place, fault);
        let key_error =
            |error: ErrorStack| IdentityError::new(&key_place, Fault::BadKey(error.into()));

        let certificates = Blocks::certificates(&cert_place, &read_bounded(cert)?)?;
        let key = Blocks::key(&key_place, &read_bounded(key)?)?;
        let key = key::parse(&key).map_err(key_error)?;
        let certificate =
            certificates.into_iter().next().ok_or_else(|| fail(Fault::NoCertificate))?;
        let parsed = parse(&certificate).map_err(|error| fail(Fault::BadCertificate(error)))?;
        if !key_belongs_to(&key, &certificate).map_err(key_error)? {
            return Err(key_fail(Fault::OtherKey(cert_place)));
        }
        if !is_authority(&parsed) {
            return Err(fail(Fault::NotAuthority));
        }
        valid_at(seconds(now), &parsed).map_err(fail)?;

        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(parsed.subject());
        params.key_identifier_method =
            KeyIdMethod::PreSpecified(subject_key_identifier(&parsed).unwrap_or_default());
        let der = pkcs8(&key).map_err(key_error)?;
        let kind = describe_key(&key);
        let pair = SigningPair::new(key)
            .map_err(key_error)?
            .ok_or_else(|| key_fail(Fault::UnsupportedKey(kind)))?;
        drop(parsed);
        Ok(Self { certificate, key: der, issuer: Issuer::new(params, pair) })
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        certificate_pem(&self.certificate)
    }

    /// The CA's key as PEM. Whoever has it can make certificates that every end accepts.
    pub fn key_pem(&self) -> String {
        key_pem(&self.key)
    }

    /// The last second of the CA's validity, since 1970. Nothing it issues may outlive it.
    pub fn not_after(&self) -> i64 {
        parse(&self.certificate).map_or(0, |parsed| parsed.validity().not_after.timestamp())
    }

    /// Issues a certificate with a new ECDSA P-256 key.
    ///
    /// # Errors
    /// A name that cannot be used, a validity outside the CA's, or a CA whose own name cannot be
    /// written again byte for byte.
    pub fn issue(&self, request: &Request) -> Result<Issued, IssueError> {
        let end = self.not_after();
        if request.validity.not_after > end {
            return Err(IssueError::OutlivesAuthority { end });
        }
        let names = alternative_names(request)?;
        let pair = SigningPair::generate().map_err(IssueError::Key)?;
        let mut params = params(request.validity, &pair)?;
        // The unit tells a leaf's name from its CA's, should someone give both the same name:
        // a certificate whose subject is its issuer counts as self-signed.
        let (unit, usage) = match request.purpose {
            Purpose::Server => ("Server", ExtendedKeyUsagePurpose::ServerAuth),
            Purpose::Client => ("Client", ExtendedKeyUsagePurpose::ClientAuth),
        };
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        if let Some(first) = request.names.first().filter(|name| common_name_ok(name).is_ok()) {
            params.distinguished_name.push(DnType::CommonName, first.as_str());
        }
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension =
            parse(&self.certificate).is_ok_and(|parsed| subject_key_identifier(&parsed).is_some());

        let certificate: CertificateDer<'static> =
            params.signed_by(&pair, &self.issuer).map_err(IssueError::Sign)?.into();
        if !self.issued(&certificate) {
            return Err(IssueError::Subject);
        }
        Ok(Issued { certificate, key: pkcs8(pair.key()).map_err(IssueError::Key)? })
    }

    /// Issues a certificate and gives it with its key and this CA as an identity.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub fn identity(&self, request: &Request) -> Result<Identity, IssueError> {
        let issued = self.issue(request)?;
        let authorities = vec![self.certificate.clone()];
        Ok(Identity::from_parts(authorities, vec![issued.certificate], issued.key))
    }

    /// Whether a verifier would find this CA as the issuer: same name, byte for byte, and signature.
    fn issued(&self, certificate: &CertificateDer<'_>) -> bool {
        match (parse(certificate), parse(&self.certificate)) {
            (Ok(new), Ok(own)) => {
                new.issuer().as_raw() == own.subject().as_raw()
                    && signed_by(certificate, &self.certificate)
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("key", &"hidden").finish_non_exhaustive()
    }
}

/// Why nothing was issued.
#[derive(Debug)]
pub enum IssueError {
    /// A name that cannot be in the certificate, and why.
    Name {
        /// The name.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// No name at all.
    NoName,
    /// The validity begins before 1970 or ends after the year 9999.
    Range,
    /// The validity ends after the CA's.
    OutlivesAuthority {
        /// The CA's last second, since 1970.
        end: i64,
    },
    /// Making or encoding a key failed.
    Key(ErrorStack),
    /// Encoding or signing the certificate failed.
    Sign(rcgen::Error),
    /// The CA's name cannot be written again byte for byte, so nothing would verify.
    Subject,
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IssueError::Name { name, why } => write!(f, "\"{}\" {why}", name.escape_debug()),
            IssueError::NoName => f.write_str("give at least one name"),
            IssueError::Range => f.write_str(
                "the certificate would be valid beyond the year 9999; give fewer --days",
            ),
            IssueError::OutlivesAuthority { end } => write!(
                f,
                "the certificate would outlive its CA, which ends on {}; give fewer --days, or \
                 leave them out to end with the CA",
                utc(*end)
            ),
            IssueError::Key(error) => write!(f, "OpenSSL could not make a key: {error}"),
            IssueError::Sign(error) => write!(f, "the certificate could not be signed: {error}"),
            IssueError::Subject => f.write_str(
                "the CA's subject holds repeated or joined attributes, which cannot be written \
                 here byte for byte; issue with `openssl x509 -req -CA`, or make a CA with \
                 `adit pki init DIR`",
            ),
        }
    }
}

impl std::error::Error for IssueError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            IssueError::Key(error) => Some(error),
            IssueError::Sign(error) => Some(error),
            _ => None,
        }
    }
}

/// What every new certificate has.
fn params(validity: Validity, pair: &SigningPair) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    let date = |seconds: i64| {
        // Without its large-dates feature the crate refuses years after 9999, as X.509 does.
        OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .filter(|_| seconds >= 0)
            .ok_or(IssueError::Range)
    };
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    let mut serial = [0; SERIAL];
    openssl::rand::rand_bytes(&mut serial).map_err(IssueError::Key)?;
    params.serial_number = Some(serial.to_vec().into());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "adit");
    params.key_identifier_method = KeyIdMethod::PreSpecified(
        // RFC 7093, section 2, method 1: the left 160 bits of SHA-256 over the public key.
        openssl::sha::sha256(pair.der_bytes()).into_iter().take(20).collect(),
    );
    Ok(params)
}

/// Bytes of a serial number: 128 random bits, as GoDoxy's generator uses.
const SERIAL: usize = 16;

/// The most characters of a common name (RFC 5280, appendix A.1).
const COMMON_NAME: usize = 64;

fn common_name_ok(name: &str) -> Result<(), IssueError> {
    let why = if name.trim().is_empty() {
        "is no name: it is empty"
    } else if name.chars().any(char::is_control) {
        "is no name: it holds a control character"
    } else if name.chars().count() > COMMON_NAME {
        "is longer than the 64 characters of a certificate's common name"
    } else {
        return Ok(());
    };
    Err(IssueError::Name { name: name.to_owned(), why })
}

fn alternative_names(request: &Request) -> Result<Vec<SanType>, IssueError> {
    if request.names.is_empty() {
        return Err(IssueError::NoName);
    }
    let mut names = Vec::new();
    for name in &request.names {
        if let Ok(address) = name.parse::<IpAddr>() {
            names.push(SanType::IpAddress(address));
            continue;
        }
        let dns = DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok();
        let email = request.purpose == Purpose::Client && name.contains('@');
        let text = name.as_str().try_into();
        match text {
            Ok(text) if dns => names.push(SanType::DnsName(text)),
            Ok(text) if email && common_name_ok(name).is_ok() => {
                names.push(SanType::Rfc822Name(text));
            }
            _ if request.purpose == Purpose::Client => common_name_ok(name)?,
            _ => {
                let why = "is neither a DNS name (international ones in their xn-- form) nor an \
                           IP address, so no client could verify an agent by it";
                return Err(IssueError::Name { name: name.clone(), why });
            }
        }
    }
    Ok(names)
}

fn subject_key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
        _ => None,
    })
}

/// The name with the same attributes, string types and order, as far as rcgen can hold them.
/// [`Authority::issue`] compares the outcome.
fn distinguished_name(name: &X509Name<'_>) -> DistinguishedName {
    let mut built = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let Some(oid) = attribute.attr_type().iter() else { continue };
        let kind = DnType::from_oid(&oid.collect::<Vec<_>>());
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).unwrap_or_default();
        let value = match value.tag() {
            Tag::PrintableString => text.try_into().ok().map(DnValue::PrintableString),
            Tag::Ia5String => text.try_into().ok().map(DnValue::Ia5String),
            Tag::T61String => text.try_into().ok().map(DnValue::TeletexString),
            Tag::BmpString => {
                BmpString::from_utf16be(value.data.to_vec()).ok().map(DnValue::BmpString)
            }
            Tag::UniversalString => UniversalString::from_utf32be(value.data.to_vec())
                .ok()
                .map(DnValue::UniversalString),
            _ => Some(DnValue::Utf8String(text.to_owned())),
        };
        if let Some(value) = value {
            built.push(kind, value);
        }
    }
    built
}
