//! Why a handshake failed, in words that tell an operator what to mend.

use std::fmt;
use std::io;

use openssl::error::ErrorStack;
use openssl::ssl;
use openssl::x509::X509VerifyResult;

/// A handshake that failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The socket broke, or the deadline passed.
    Io(io::Error),
    /// The peers could not agree, or one refused the other.
    Dtls(ErrorStack),
    /// The peer showed no certificate.
    NoCertificate,
    /// The peer's certificate was refused.
    Certificate(X509VerifyResult),
    /// The client's certificate is our authority's and its name is not allowed: the name, as
    /// [`Names::label`](crate::pki::Names::label) gives it. Whether the client has the key was not
    /// asked any more.
    NameNotAllowed(String),
    /// The peer does without the extended master secret (RFC 7627).
    NoExtendedMasterSecret,
    /// The peer ended the session during the handshake.
    Closed,
}

/// What the library's errors mean to us; OpenSSL numbers them in its `sslerr.h`.
mod reason {
    use std::ffi::c_int;

    pub(super) const PEER_DID_NOT_RETURN_A_CERTIFICATE: c_int = 199;
    pub(super) const CERTIFICATE_VERIFY_FAILED: c_int = 134;
    /// Of ours, the one for ClientHellos refuses in one case.
    pub(super) const CALLBACK_FAILED: c_int = 234;
    /// Alerts that the peer sent: their number and this.
    pub(super) const ALERT: c_int = 1000;
}

impl HandshakeError {
    /// What a failed step of the handshake means. `verdict` is what became of the peer's
    /// certificate, `refused` whether it was for its name.
    pub(super) fn of(
        error: ssl::Error,
        verdict: X509VerifyResult,
        refused: Option<String>,
    ) -> Self {
        if let Some(name) = refused {
            return Self::NameNotAllowed(name);
        }
        if error.code() == ssl::ErrorCode::ZERO_RETURN {
            return Self::Closed;
        }
        match error.into_io_error() {
            Ok(error) => Self::Io(error),
            Err(error) => match error.ssl_error() {
                Some(stack) => match reason_of(stack) {
                    Some(reason::PEER_DID_NOT_RETURN_A_CERTIFICATE) => Self::NoCertificate,
                    Some(reason::CERTIFICATE_VERIFY_FAILED) => Self::Certificate(verdict),
                    Some(reason::CALLBACK_FAILED) => Self::NoExtendedMasterSecret,
                    _ => Self::Dtls(stack.clone()),
                },
                None => Self::Closed,
            },
        }
    }

    /// The alert by which the peer refused us, if it was that (RFC 5246, section 7.2).
    pub fn alert(&self) -> Option<u8> {
        match self {
            Self::Dtls(stack) => alert_of(stack),
            _ => None,
        }
    }
}

fn reason_of(stack: &ErrorStack) -> Option<i32> {
    stack.errors().first().map(openssl::error::Error::reason_code)
}

/// The number of the alert that the peer sent, if this is one.
pub(super) fn alert_of(stack: &ErrorStack) -> Option<u8> {
    let number = reason_of(stack)?.checked_sub(reason::ALERT)?;
    u8::try_from(number).ok()
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => fmt::Display::fmt(error, f),
            Self::Dtls(stack) => f.write_str(&explain(stack)),
            Self::NoCertificate => f.write_str("the client showed no certificate"),
            Self::Certificate(verdict) => certificate(*verdict, f),
            Self::NameNotAllowed(_) => {
                f.write_str("the client's name is not allowed (--allow-name)")
            }
            Self::NoExtendedMasterSecret => f.write_str(
                "the peer does without the extended master secret, which is required (RFC 7627)",
            ),
            Self::Closed => f.write_str("the peer ended the session during the handshake"),
        }
    }
}

impl std::error::Error for HandshakeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Dtls(stack) => Some(stack),
            _ => None,
        }
    }
}

/// The commonest verdicts in an operator's words; OpenSSL's own for the rest.
fn certificate(verdict: X509VerifyResult, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Numbers of OpenSSL's `x509_vfy.h`.
    f.write_str(match verdict.as_raw() {
        // No issuer, neither here nor in what the peer sent; or one of the right name whose
        // signature or key it is not.
        // 19 is a chain that ends in an authority which is not ours.
        2 | 7 | 19 | 20 | 21 | 30 => "the peer's certificate is not from our certificate authority",
        18 => "the peer's certificate is self-signed, not from our certificate authority",
        9 => "the peer's certificate is not valid yet (is a clock wrong?)",
        10 => "the peer's certificate has expired",
        26 => {
            "the peer's certificate is for another use (a server certificate shown by a client, the \
             reverse, or an authority's own)"
        }
        62..=64 => "the agent's certificate is for another name (see --server-name)",
        _ => return write!(f, "the peer's certificate is refused: {}", verdict.error_string()),
    })
}

/// OpenSSL's errors in an operator's words where we have some.
pub(super) fn explain(stack: &ErrorStack) -> String {
    if let Some(alert) = alert_of(stack) {
        return match alert {
            40 => "refused: nothing in common, such as a cipher suite (alert handshake_failure)",
            42 => {
                "refused: the peer will not take our certificate: its authority, name or dates may \
                 not be what the peer expects (alert bad_certificate)"
            }
            43 => "refused: our kind of certificate is not supported (alert unsupported_certificate)",
            45 => "refused: our certificate has expired (alert certificate_expired)",
            46 => "refused: our certificate is not accepted (alert certificate_unknown)",
            48 => {
                "refused: the peer does not know the authority of our certificate (alert unknown_ca)"
            }
            49 => "refused: our certificate's name is not allowed here (alert access_denied)",
            51 => {
                "refused: the peer knows another authority of the same name as that of our \
                 certificate (alert decrypt_error)"
            }
            70 => "refused: the peer does not speak DTLS 1.2 (alert protocol_version)",
            71 => "refused: our cipher suites are too weak (alert insufficient_security)",
            other => return format!("refused: the peer sent alert {other}"),
        }
        .to_owned();
    }
    let first = stack.errors().first().and_then(openssl::error::Error::reason);
    match first {
        Some("no shared cipher") => {
            "no cipher suite in common (or none for the kind of our certificate)".to_owned()
        }
        Some(
            "unsupported protocol"
            | "wrong version number"
            | "wrong ssl version"
            | "version too low",
        ) => "the peer does not speak DTLS 1.2".to_owned(),
        Some("read timeout expired") => "the peer fell silent during the handshake".to_owned(),
        Some(reason) => format!("DTLS: {reason}"),
        None => "DTLS failed without a reason".to_owned(),
    }
}
