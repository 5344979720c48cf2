//! What an agent says about itself.

use std::fmt;
use std::io::ErrorKind::UnexpectedEof;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::OpenError;
use crate::http::{self, Answer, GetError};
use crate::lifecycle::Deadline;
use crate::tls::{self, SERVER_NAME, TlsStream};

/// The answer of `GET /godoxy/agent/info`. Fields of newer agents that we do not know are ignored.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Info {
    /// The GoDoxy release whose agent it matches, such as `v0.31.0`.
    pub version: String,
    /// What its owner calls it.
    pub name: String,
    /// `docker` or `podman`.
    #[serde(default)]
    pub runtime: String,
    /// Program and version, from agents that are not GoDoxy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software: Option<String>,
    /// Whether it carries TCP streams, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supports_tcp_stream: Option<bool>,
    /// Whether it carries UDP streams, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supports_udp_stream: Option<bool>,
}

/// Asks for `/info`, and of an agent too old to have it, `/version`, `/name` and `/runtime`. Each
/// request has a connection of its own, which `open` makes, and then `limit` for its answer.
pub(super) fn fetch(
    open: impl Fn() -> Result<TlsStream, OpenError>,
    limit: Duration,
) -> Result<Info, InfoError> {
    let get = |path: &str| {
        let mut stream = open().map_err(InfoError::Open)?;
        let path = format!("/godoxy/agent/{path}");
        let deadline = Deadline::after("API request", limit);
        let answer = http::get(&mut stream, SERVER_NAME, &path, MOST, deadline);
        stream.close(Duration::ZERO);
        answer.map_err(InfoError::Http)
    };
    let text = |path: &str| match get(path)? {
        Answer { status: 200, body } => Ok(String::from_utf8_lossy(&body).trim().to_owned()),
        Answer { status, .. } => Err(InfoError::Status(status)),
    };
    match get("info")? {
        Answer { status: 200, body } => serde_json::from_slice(&body).map_err(InfoError::Json),
        Answer { status: 404, .. } => Ok(Info {
            version: text("version")?,
            name: text("name")?,
            runtime: text("runtime").unwrap_or_default(),
            software: None,
            supports_tcp_stream: None,
            supports_udp_stream: None,
        }),
        Answer { status, .. } => Err(InfoError::Status(status)),
    }
}

/// The longest answer that is read, in bytes; the Go agents' are about 100.
const MOST: usize = 64 * 1024;

/// An agent that did not say what it is.
#[derive(Debug)]
pub enum InfoError {
    /// No connection to its API.
    Open(OpenError),
    /// The exchange broke.
    Http(GetError),
    /// It answered with this status.
    Status(u16),
    /// It answered with something else than the JSON we know.
    Json(serde_json::Error),
}

impl fmt::Display for InfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            // How it broke is TLS's to say; what a cut answer looks like is HTTP's.
            Self::Http(GetError::Exchange(error)) if error.kind() != UnexpectedEof => {
                write!(f, "the agent's API: {}", tls::explain(error))
            }
            Self::Http(error) => write!(f, "the agent's API: {error}"),
            Self::Status(status) => write!(f, "the agent's API answered with status {status}"),
            Self::Json(error) => write!(f, "the agent's API answered with unknown JSON: {error}"),
        }
    }
}

impl std::error::Error for InfoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(error) => Some(error),
            Self::Http(error) => Some(error),
            Self::Json(error) => Some(error),
            Self::Status(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_refusal_at_the_tls_level_is_told_in_words() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::AccessDenied);
        let refused = InfoError::Http(GetError::Exchange(io::Error::other(alert.clone())));
        let words = tls::explain(&io::Error::other(alert));
        assert_eq!(refused.to_string(), format!("the agent's API: {words}"));
        let cut = InfoError::Http(GetError::Exchange(UnexpectedEof.into()));
        assert_eq!(cut.to_string(), "the agent's API: the answer was cut short");
    }
}
