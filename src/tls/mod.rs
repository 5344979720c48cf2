//! Floor 3: rustls configurations, and one TLS connection as a reader half and a writer half.
//!
//! [`accept`] and [`connect`] do the handshake within a deadline and give a [`TlsStream`], which
//! one thread uses like any other stream and [`TlsStream::split`] turns into halves for two.

mod clients;
mod config;
mod duplex;
mod engine;
#[cfg(test)]
mod engine_tests;
mod error;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};

pub use crate::pki::provider;
pub use config::{ClientAuth, ConfigError, SERVER_NAME, client, server};
pub use duplex::{TlsSink, TlsSource};
pub use error::{HandshakeError, explain};
pub use stream::TlsStream;

use crate::lifecycle::Deadline;
use crate::net::Conn;
use engine::Engine;

/// The server's handshake. On failure the client has been sent the alert that says why, and was
/// given up to a second to take it.
pub fn accept(
    conn: Arc<Conn>,
    config: Arc<ServerConfig>,
    deadline: Deadline,
) -> Result<TlsStream, HandshakeError> {
    let connection = UnbufferedServerConnection::new(config).map_err(HandshakeError::Tls)?;
    handshake(conn, Engine::server(connection), deadline).map_err(|error| {
        match (clients::take_refused(), error) {
            (Some(label), HandshakeError::Tls(_)) => HandshakeError::NameNotAllowed(label),
            (_, error) => error,
        }
    })
}

/// The client's handshake. `name` is sent as SNI and must be in the server's certificate.
///
/// Under TLS 1.3 a server may refuse our certificate after this has succeeded; the refusal is the
/// error of the first read.
pub fn connect(
    conn: Arc<Conn>,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    deadline: Deadline,
) -> Result<TlsStream, HandshakeError> {
    let connection = UnbufferedClientConnection::new(config, name).map_err(HandshakeError::Tls)?;
    handshake(conn, Engine::client(connection), deadline)
}

fn handshake(
    conn: Arc<Conn>,
    engine: Engine,
    deadline: Deadline,
) -> Result<TlsStream, HandshakeError> {
    let mut stream = TlsStream::new(conn.clone(), engine);
    stream.set_deadline(Some(deadline)).map_err(HandshakeError::Io)?;
    match stream.handshake() {
        Ok(()) => Ok(stream),
        Err(duplex::Failure::Io(error)) => Err(HandshakeError::Io(error)),
        Err(duplex::Failure::Tls(error)) => {
            if conn.finish().is_ok() {
                stream::drain(&conn, ALERT_LINGER);
            }
            Err(HandshakeError::Tls(error))
        }
    }
}

/// How long a refused peer is given to take the alert before the socket is closed: one lost
/// segment and its retransmission (RFC 6298's initial 1 s).
const ALERT_LINGER: Duration = Duration::from_secs(1);
