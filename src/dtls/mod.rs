//! Floor 3: DTLS 1.2 sessions with OpenSSL, many on one UDP socket.
//!
//! ```text
//!              ┌─ session of that peer, open ──────── decrypt here, give to its consumer
//! socket ──────┼─ session of that peer, not yet open ─ wait for the session's own thread
//! (one thread) └─ nobody's: a ClientHello ──────────── cookie; with the right one, a new session
//! ```
//!
//! A session's own thread agrees with the client and reads what it asks for; from then on it only
//! carries what goes to the client. The lock of a session covers OpenSSL's work and no waiting.

mod channel;
mod client;
mod context;
mod cookie;
mod error;
mod ffi;
mod first_contact;
mod link;
mod listener;
mod session;

pub use client::{ClientSession, connect};
pub use context::{ClientContext, ContextError, ServerContext};
pub use error::HandshakeError;
pub use first_contact::FirstContact;
pub use listener::{FLOODS, Listener, Registration, Sessions};
pub use session::{Consumer, End, Session};
