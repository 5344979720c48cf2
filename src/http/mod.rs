//! Floor 3: blocking HTTP/1.1 requests and answers over any connection.
//!
//! Reading and writing messages ([`Request`], [`Response`], the body's framing) is pure and works
//! on slices; [`serve`] is the loop around it and [`head`] the one request we make ourselves.

mod body;
mod client;
mod get;
mod refusal;
mod request;
mod response;
mod server;
mod target;

use std::io::{self, Read, Write};

use crate::lifecycle::Deadline;

pub use client::{HeadError, head};
pub use get::{Answer, GetError, get};
pub use refusal::Refusal;
pub use request::{Framing, HeadScanner, Request, Version};
pub use response::{Delivery, Response};
pub use server::{End, IDLE_PHASE, Limits, ServeError, Served, serve};
pub use target::{BadQuery, PAIRS_MAX};

/// Bytes of a message head (request or status line, headers, empty line) at most: the limit of the
/// stream protocol's HTTP API. It is also more than any client of that API sends.
pub const HEAD_MAX: usize = 16 * 1024;

/// Header fields in one head at most. Browsers send about twenty.
pub const HEADERS_MAX: usize = 100;

/// What names this program in `Server` and `User-Agent`.
pub const SOFTWARE: &str = concat!("adit/", env!("CARGO_PKG_VERSION"));

/// A connection whose blocking calls can be bounded in time.
pub trait Connection: Read + Write {
    /// Bounds all later reads and writes: one that is not done by then fails with
    /// [`io::ErrorKind::TimedOut`] and names the phase ([`Deadline::timed_out`]). `None` lifts the
    /// bound.
    fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()>;

    /// Tells the other side that nothing more will be written (close_notify, FIN), while reading
    /// stays possible.
    fn close_write(&mut self) -> io::Result<()>;
}
