//! What a certificate says, for people and for machines.

use std::fmt;

use openssl::hash::MessageDigest;
use openssl::x509::X509;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use super::key::describe_key;
use super::names::Names;

/// Bytes that are not an X.509 certificate.
#[derive(Debug)]
pub struct CertificateError(String);

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate cannot be parsed ({})", self.0.escape_debug())
    }
}

impl std::error::Error for CertificateError {}

/// Everything `adit pki show` tells about a certificate.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// The subject's distinguished name.
    pub subject: String,
    /// Subject alternative names, each with its kind: `DNS godoxy.agent`, `IP 192.0.2.1`.
    pub names: Vec<String>,
    /// What the certificate may be used for: `authority`, `server`, `client`, or the usage's name
    /// or object identifier. Empty when it is not restricted.
    pub uses: Vec<String>,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// The serial number, colon-separated lower hex.
    pub serial: String,
    /// The kind of the key: `ECDSA P-256`.
    pub key: String,
    /// Begin of the validity, seconds since 1970.
    pub not_before: i64,
    /// End of the validity, seconds since 1970.
    pub not_after: i64,
    /// SHA-256 over the certificate, colon-separated upper hex.
    pub sha256: String,
}

impl Description {
    /// Describes a certificate.
    ///
    /// # Errors
    /// It cannot be parsed.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parsed = parse(certificate)?;
        let names = Names::of(certificate)?;
        let key = X509::from_der(certificate)
            .and_then(|certificate| certificate.public_key())
            .map_or_else(|_| "of an unknown kind".to_owned(), |key| describe_key(&key));
        let tagged = [("DNS", &names.dns), ("email", &names.emails), ("URI", &names.uris)];
        let mut all: Vec<String> = names.ips.iter().map(|ip| format!("IP {ip}")).collect();
        for (kind, names) in tagged {
            all.extend(names.iter().map(|name| format!("{kind} {name}")));
        }
        Ok(Self {
            subject: parsed.subject().to_string(),
            names: all,
            uses: uses(&parsed),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial_as_string(),
            key,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            sha256: fingerprint(certificate),
        })
    }
}

/// SHA-256 over the certificate, colon-separated upper hex, as `openssl x509 -fingerprint` shows it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    // SHA-256 is in every provider of OpenSSL; without it nothing else here could work either.
    let digest = openssl::hash::hash(MessageDigest::sha256(), certificate);
    let hex = digest.iter().flat_map(|digest| digest.iter()).map(|byte| format!("{byte:02X}"));
    hex.collect::<Vec<_>>().join(":")
}

/// A time in seconds since 1970 as `2026-11-21 01:29:07 UTC`.
pub fn utc(seconds: i64) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(form).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// Parses a certificate that fills `certificate` wholly.
pub(super) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CertificateError> {
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| CertificateError(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CertificateError("bytes follow it".to_owned()));
    }
    Ok(parsed)
}

/// Whether certificates signed with this one's key are accepted. Version 1 had no way to say.
pub(super) fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let may_sign = match certificate.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    may_sign && (certificate.is_ca() || certificate.version() != X509Version::V3)
}

fn uses(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut uses = Vec::new();
    if certificate.is_ca() {
        uses.push("authority".to_owned());
    }
    if let Ok(Some(extended)) = certificate.extended_key_usage() {
        let usage = extended.value;
        let known = [
            (usage.any, "any"),
            (usage.server_auth, "server"),
            (usage.client_auth, "client"),
            (usage.code_signing, "code signing"),
            (usage.email_protection, "email protection"),
            (usage.time_stamping, "time stamping"),
            (usage.ocsp_signing, "OCSP signing"),
        ];
        uses.extend(known.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned()));
        uses.extend(usage.other.iter().map(|oid| oid.to_id_string()));
    }
    uses
}
