//! What can be wrong with an identity, where, and how to mend it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use zip::result::ZipError;

use super::Purpose;
use super::certificate::{CertificateError, utc};
use super::pem::LIMIT;

/// Where a certificate or key was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(&'static str),
    /// A member of a zip file.
    Member(PathBuf, &'static str),
    /// Given by the program itself, described in words.
    Given(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => path.display().fmt(f),
            Place::Variable(name) | Place::Given(name) => f.write_str(name),
            Place::Member(path, member) => write!(f, "{}:{member}", path.display()),
        }
    }
}

impl Place {
    /// How to get a right one.
    fn remake(&self) -> &'static str {
        match self {
            Place::File(_) | Place::Given(_) => {
                "`adit pki init DIR` makes a whole set, `adit pki issue --dir DIR` another pair"
            }
            Place::Variable(_) => "`adit pki env DIR` prints a right value",
            Place::Member(..) => "`adit pki zip DIR --out FILE` makes a right one",
        }
    }
}

/// An identity that cannot be used: what is wrong, where, and how to mend it.
#[derive(Debug)]
pub struct IdentityError {
    /// Where the fault is.
    pub place: Place,
    /// What is wrong there.
    pub fault: Fault,
}

impl IdentityError {
    pub(super) fn new(place: &Place, fault: Fault) -> Self {
        Self { place: place.clone(), fault }
    }
}

/// What is wrong with a certificate, a key, or what holds them. Times are in seconds since 1970.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Reading failed.
    Read(io::Error),
    /// More than [`LIMIT`] bytes.
    TooLarge,
    /// DER where PEM is expected.
    Der,
    /// A PEM block is damaged.
    BadPem(String),
    /// No certificate block.
    NoCertificate,
    /// No private key block.
    NoKey,
    /// The private key is encrypted.
    EncryptedKey,
    /// More than one private key.
    SeveralKeys(usize),
    /// The private key cannot be parsed.
    BadKey(Box<dyn std::error::Error + Send + Sync>),
    /// A certificate that other ends will refuse, for this reason.
    Refused(Box<rustls::Error>),
    /// The key is of a kind that cannot be used; which kind.
    UnsupportedKey(String),
    /// A certificate cannot be parsed.
    BadCertificate(CertificateError),
    /// The key belongs to another certificate than the one in this place.
    OtherKey(Place),
    /// The certificate's validity has ended.
    Expired {
        /// When it ended.
        not_after: i64,
        /// The time it was compared with.
        now: i64,
    },
    /// The certificate's validity has not begun.
    NotYetValid {
        /// When it begins.
        not_before: i64,
        /// The time it was compared with.
        now: i64,
    },
    /// The extended key usage does not allow what the certificate is needed for.
    WrongUse {
        /// What it is needed for.
        needed: Purpose,
        /// What it may be used for.
        allowed: String,
    },
    /// The key usage does not allow signing a handshake.
    NoSignature,
    /// A CA's certificate where an agent's or a client's is expected.
    IsAuthority,
    /// Not a CA's certificate where one is expected.
    NotAuthority,
    /// An X.509 version below 3, which TLS libraries refuse.
    OldVersion,
    /// A server certificate without a DNS or IP name.
    NoName,
    /// The certificate was not issued by any authority in this place.
    NotIssuedBy(Place),
    /// A pair without its `;`, or with more than one.
    PairSeparator,
    /// A half of a pair (named) is not base64.
    PairBase64(&'static str, base64::DecodeError),
    /// The archive cannot be read.
    Zip(ZipError),
    /// The archive lacks this member.
    NoMember,
    /// The archive holds several members of one name.
    TwiceInZip,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.place;
        write!(f, "{place}: ")?;
        match &self.fault {
            Fault::Read(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "there is no such file; correct the path, or make one: {}", place.remake())
            }
            Fault::Read(error) if error.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "permission denied; give the file to the user that runs adit \
                 (`chown USER {place}`, `chmod 600 {place}`)"
            ),
            Fault::Read(error) => write!(f, "cannot be read: {error}; name a readable PEM file"),
            Fault::TooLarge => write!(
                f,
                "is larger than {} KiB, which no certificate or key is; name the right one",
                LIMIT / 1024
            ),
            Fault::Der => write!(
                f,
                "is DER, not PEM; convert it: `openssl x509 -inform DER -in {place} -out cert.pem` \
                 for a certificate, `openssl pkey -inform DER -in {place} -out key.pem` for a key"
            ),
            Fault::BadPem(why) => {
                write!(f, "is damaged PEM ({}); copy it again, or {}", why.escape_debug(), place.remake())
            }
            Fault::NoCertificate => write!(
                f,
                "holds no certificate (no -----BEGIN CERTIFICATE----- block); name the certificate's \
                 PEM file: {}",
                place.remake()
            ),
            Fault::NoKey => write!(
                f,
                "holds no private key (no -----BEGIN PRIVATE KEY----- block); name the key's PEM \
                 file: {}",
                place.remake()
            ),
            Fault::EncryptedKey => match place {
                Place::File(_) => write!(
                    f,
                    "holds an encrypted private key, and nobody is there to type its passphrase; \
                     decrypt it: `(umask 077; openssl pkey -in {place} -out plain-key.pem)`"
                ),
                _ => write!(
                    f,
                    "holds an encrypted private key, and nobody is there to type its passphrase; \
                     decrypt it with `openssl pkey`, then {}",
                    place.remake()
                ),
            },
            Fault::SeveralKeys(count) => write!(
                f,
                "holds {count} private keys; leave only the one that belongs to the certificate"
            ),
            Fault::BadKey(error) => write!(
                f,
                "the private key cannot be parsed ({error}); see what `openssl pkey -noout -in` says, \
                 or {}",
                place.remake()
            ),
            Fault::Refused(error) => write!(
                f,
                "the certificate would be refused by the other end ({error}); {}",
                place.remake()
            ),
            Fault::UnsupportedKey(kind) => write!(
                f,
                "a key of kind {kind} cannot be used; use ECDSA (P-256 or P-384), RSA or Ed25519: {}",
                place.remake()
            ),
            Fault::BadCertificate(error) => write!(
                f,
                "{error}; see what `openssl x509 -noout -text -in` says, or {}",
                place.remake()
            ),
            Fault::OtherKey(certificate) => write!(
                f,
                "the key does not belong to the certificate in {certificate}; name the two files \
                 that were made together (compare `openssl pkey -pubout -in` with \
                 `openssl x509 -noout -pubkey -in`), or {}",
                place.remake()
            ),
            Fault::Expired { not_after, now } => write!(
                f,
                "the certificate expired on {} (this machine's clock says {}); issue a new one: {}",
                utc(*not_after),
                utc(*now),
                place.remake()
            ),
            Fault::NotYetValid { not_before, now } => write!(
                f,
                "the certificate is not valid before {} and this machine's clock says {}; set the \
                 clock (`date -u`), or wait",
                utc(*not_before),
                utc(*now)
            ),
            Fault::WrongUse { needed, allowed } => {
                write!(f, "the certificate is for {allowed}, and ")?;
                match needed {
                    Purpose::Server => f.write_str(
                        "an agent needs one for servers: take server.pem and server-key.pem, or \
                         `adit pki issue --dir DIR --server godoxy.agent`",
                    ),
                    Purpose::Client => f.write_str(
                        "a client needs one for clients: take client.pem and client-key.pem, or \
                         `adit pki issue --dir DIR --client NAME`",
                    ),
                }
            }
            Fault::NoSignature => f.write_str(
                "the certificate's key usage lacks digitalSignature, without which it cannot be \
                 used for TLS 1.3; issue one with it: `adit pki issue --dir DIR`",
            ),
            Fault::IsAuthority => f.write_str(
                "this is a CA's certificate, which belongs in --ca; take server.pem for an agent \
                 and client.pem for a client",
            ),
            Fault::NotAuthority => f.write_str(
                "this is not a CA's certificate (basic constraints or key usage say so), so nothing \
                 it signs is accepted; take ca.pem, or `adit pki init DIR`",
            ),
            Fault::OldVersion => f.write_str(
                "the certificate is of X.509 version 1 or 2, which TLS libraries refuse; issue one \
                 of version 3: `adit pki issue --dir DIR`, or `openssl x509 -req` with -extfile",
            ),
            Fault::NoName => f.write_str(
                "the certificate has no DNS or IP name (subject alternative name), so no client \
                 can verify it; `adit pki issue --dir DIR --server godoxy.agent`",
            ),
            Fault::NotIssuedBy(authority) => write!(
                f,
                "the certificate was not issued by a CA in {authority}, so the other end would \
                 refuse it; use the CA that issued it, or append that CA (and what lies between) \
                 to the file, or issue a new one: {}",
                place.remake()
            ),
            Fault::PairSeparator => write!(
                f,
                "must be base64(certificate PEM);base64(key PEM) with exactly one `;`; {}",
                place.remake()
            ),
            Fault::PairBase64(half, error) => write!(
                f,
                "the {half} (the half {} the `;`) is not base64 ({error}): each half is \
                 `base64 -w0` of a PEM file; {}",
                if *half == "certificate" { "before" } else { "after" },
                place.remake()
            ),
            Fault::Zip(ZipError::CompressionMethodNotSupported(_)) => write!(
                f,
                "is compressed, and only stored members are read; pack it with `zip -0`, or {}",
                place.remake()
            ),
            Fault::Zip(error) => {
                write!(f, "is not a readable zip file ({error}); ")?;
                f.write_str("`adit pki zip DIR --out FILE` makes a right one")
            }
            Fault::NoMember => write!(
                f,
                "the zip file has no such member; it must hold ca.pem, cert.pem and key.pem: {}",
                place.remake()
            ),
            Fault::TwiceInZip => write!(
                f,
                "the zip file holds several members of one name, and readers disagree which \
                 counts; {}",
                place.remake()
            ),
        }
    }
}

impl std::error::Error for IdentityError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            Fault::Read(error) => Some(error),
            Fault::BadKey(error) => Some(error.as_ref()),
            Fault::BadCertificate(error) => Some(error),
            Fault::Refused(error) => Some(error.as_ref()),
            Fault::PairBase64(_, error) => Some(error),
            Fault::Zip(error) => Some(error),
            _ => None,
        }
    }
}
