//! Why a handshake failed, in words that tell an operator what to mend.

use std::fmt;
use std::io;

use rustls::{
    AlertDescription, CertificateError, Error, InvalidMessage, OtherError, PeerIncompatible,
};

/// A handshake that failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The connection broke, or the deadline passed.
    Io(io::Error),
    /// The peers could not agree, or one refused the other.
    Tls(Error),
    /// The client's certificate is our authority's and its name is not allowed: the name, as
    /// [`Names::label`](crate::pki::Names::label) gives it. Whether the client has the key was not
    /// asked any more.
    NameNotAllowed(String),
}

impl HandshakeError {
    /// Whether the peer did not speak TLS at all: a scanner or a misdirected client.
    pub fn is_not_tls(&self) -> bool {
        matches!(
            self,
            Self::Tls(Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                    | InvalidMessage::UnknownProtocolVersion
                    | InvalidMessage::InvalidEmptyPayload
                    | InvalidMessage::MessageTooLarge
            ))
        )
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the peer closed the connection during the TLS handshake")
            }
            Self::Io(error) => fmt::Display::fmt(error, f),
            Self::Tls(_) if self.is_not_tls() => f.write_str("the peer does not speak TLS"),
            Self::Tls(error) => in_words(error, f),
            Self::NameNotAllowed(_) => {
                f.write_str("the client's name is not allowed (--allow-name)")
            }
        }
    }
}

impl std::error::Error for HandshakeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Tls(error) => Some(error),
            Self::NameNotAllowed(_) => None,
        }
    }
}

/// The words for an error of a TLS stream: for one that the peer or we caused at the TLS level, the
/// operator's words for it.
pub fn explain(error: &io::Error) -> String {
    struct Words<'a>(&'a Error);
    impl fmt::Display for Words<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            in_words(self.0, f)
        }
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => Words(inner).to_string(),
        None => error.to_string(),
    }
}

/// The commonest failures in an operator's words; rustls's own for the rest.
fn in_words(error: &Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(match error {
        Error::NoCertificatesPresented => "the client showed no certificate",
        Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon)
        | Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            "no cipher suite or signature scheme in common"
        }
        // A client that is older sends no signature algorithms, and rustls looks for them first.
        Error::PeerIncompatible(
            PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ) => "the peer speaks neither TLS 1.2 nor 1.3",
        Error::NoApplicationProtocol => "no protocol in common (ALPN)",
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer => {
                "the peer's certificate is not from our certificate authority"
            }
            // The authority's name was found and its key did not fit.
            CertificateError::BadSignature => {
                "the peer's certificate is not from our certificate authority but from another one of the same name (was the authority made anew?)"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the peer's certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the peer's certificate is not valid yet (is a clock wrong?)"
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "the peer's certificate is for another use (a server certificate shown by a client, or the reverse)"
            }
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. } => {
                "the agent's certificate is for another name (see --server-name)"
            }
            CertificateError::Other(other) if is_authority(other) => {
                "the peer's certificate is an authority's own (self-signed?), not one that our certificate authority issued"
            }
            _ => return fmt::Display::fmt(error, f),
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA => {
                "refused: the peer does not know the authority of our certificate (alert unknown_ca)"
            }
            AlertDescription::DecryptError => {
                "refused: the peer knows another authority of the same name as that of our certificate (alert decrypt_error)"
            }
            AlertDescription::CertificateExpired => {
                "refused: our certificate has expired (alert certificate_expired)"
            }
            AlertDescription::CertificateRequired => {
                "refused: a client certificate is required (alert certificate_required)"
            }
            AlertDescription::NoApplicationProtocol => {
                "refused: the peer does not offer this protocol (alert no_application_protocol)"
            }
            AlertDescription::ProtocolVersion => {
                "refused: the peer speaks neither TLS 1.2 nor 1.3 (alert protocol_version)"
            }
            AlertDescription::BadCertificate => {
                "refused: the peer will not take our certificate: its authority, name or dates may not be what the peer expects (alert bad_certificate)"
            }
            AlertDescription::AccessDenied => {
                "refused: our certificate's name is not allowed here (alert access_denied)"
            }
            other => return write!(f, "refused: the peer sent the alert {other:?}"),
        },
        other => return fmt::Display::fmt(other, f),
    })
}

/// Whether the verifier refused a certificate because it is an authority's. rustls has no variant
/// for this, and its verifier's own error is not among its exports.
fn is_authority(error: &OtherError) -> bool {
    error.0.to_string() == "CaUsedAsEndEntity"
}
