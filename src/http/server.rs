//! The server's side of one connection: request after request until one side has enough.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use super::body::Discard;
use super::{Connection, Delivery, Framing, HEAD_MAX, HeadScanner, Refusal, Request, Response};
use crate::lifecycle::{Deadline, clock};

/// The phase of the deadline that holds while no request is under way. A [`Connection`] may end
/// such a wait early, with an end of file or any error, to make [`serve`] look at `stopping`.
pub const IDLE_PHASE: &str = "HTTP keep-alive";

/// Bytes asked of the connection at once.
const READ_SIZE: usize = 4096;

/// How long, and for how many bytes, a refused client is listened to after its answer. Closing
/// while its bytes still arrive would reset the connection and destroy the answer on its way
/// (RFC 9112, section 9.6).
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// What one connection may take of our memory and time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one request head.
    pub head_bytes: usize,
    /// Time from the first byte of a head to its end; for the first head, from the start.
    pub head_time: Duration,
    /// Bytes of one request body, chunk framing included. Bodies are read and thrown away.
    pub body_bytes: u64,
    /// Time for one body.
    pub body_time: Duration,
    /// Time to write one answer.
    pub write_time: Duration,
    /// Time between an answer and the first byte of the next request.
    pub idle_time: Duration,
}

impl Default for Limits {
    /// 16 KiB and 10 s for a head, as the stream protocol's HTTP API says.
    ///
    /// 64 KiB and 10 s for a body: no request of that API has one, so this is only patience with
    /// clients that send one anyway. 75 s idle: who asks once a minute keeps the connection, and a
    /// forgotten one does not hold its slot for long; it is also nginx's `keepalive_timeout`, so
    /// clients are used to it.
    fn default() -> Self {
        let short = Duration::from_secs(10);
        Self {
            head_bytes: HEAD_MAX,
            head_time: short,
            body_bytes: 64 * 1024,
            body_time: short,
            write_time: short,
            idle_time: Duration::from_secs(75),
        }
    }
}

/// A connection that came to its end in an orderly way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Requests that were answered, refused ones not counted.
    pub requests: u64,
    /// Why there will be no more.
    pub end: End,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed it between two requests.
    ClientClosed,
    /// The client asked that the last answer be the last.
    ClientAsked,
    /// No request came within the idle limit.
    Idle,
    /// We are stopping.
    Stopped,
    /// A request was refused.
    Refused(Refusal),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientClosed => f.write_str("closed by the client"),
            Self::ClientAsked => f.write_str("closed as the client asked"),
            Self::Idle => f.write_str("idle for too long"),
            Self::Stopped => f.write_str("stopping"),
            Self::Refused(refusal) => write!(f, "request refused: {refusal}"),
        }
    }
}

/// A connection that broke. The source is the connection's own error.
#[derive(Debug)]
pub enum ServeError {
    /// A deadline could not be set.
    SetDeadline(io::Error),
    /// Reading a request failed, or it ended in the middle.
    ReadRequest(io::Error),
    /// An answer could not be written.
    WriteAnswer(io::Error),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetDeadline(e) => write!(f, "cannot set a deadline on an HTTP connection: {e}"),
            Self::ReadRequest(e) => write!(f, "reading an HTTP request failed: {e}"),
            Self::WriteAnswer(e) => write!(f, "writing an HTTP answer failed: {e}"),
        }
    }
}

impl Error for ServeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::SetDeadline(e) | Self::ReadRequest(e) | Self::WriteAnswer(e) => Some(e),
        }
    }
}

/// Serves requests until the client has enough, a limit ends the connection or `stopping` says so.
///
/// `answer` sees each request once its body has arrived; pipelined requests are answered in order.
/// `stopping` is asked before each wait for a request and before each answer, which then is the
/// last. The caller closes the connection.
pub fn serve(
    conn: &mut dyn Connection,
    limits: &Limits,
    stopping: &dyn Fn() -> bool,
    answer: &mut dyn FnMut(&Request) -> Response,
) -> Result<Served, ServeError> {
    let mut server = Server { conn, limits, unread: Vec::new() };
    let mut requests = 0;
    let end = loop {
        let request = match server.next_request(requests == 0, stopping) {
            Ok(request) => request,
            Err(Stop::End(end)) => break end,
            Err(Stop::Refused(refusal)) => break server.refuse(refusal, false)?,
            Err(Stop::Broken(error)) => return Err(error),
        };
        let head_only = request.method() == "HEAD";
        match server.skip_body(&request) {
            Ok(()) => {}
            Err(Stop::End(end)) => break end,
            Err(Stop::Refused(refusal)) => break server.refuse(refusal, head_only)?,
            Err(Stop::Broken(error)) => return Err(error),
        }
        let response = answer(&request);
        requests += 1;
        let stopped = stopping();
        let close = stopped || !request.keeps_alive();
        server.write(&response, head_only, close)?;
        if close {
            break if stopped { End::Stopped } else { End::ClientAsked };
        }
    };
    Ok(Served { requests, end })
}

struct Server<'a> {
    conn: &'a mut dyn Connection,
    limits: &'a Limits,
    /// Bytes that arrived and are not consumed yet.
    unread: Vec<u8>,
}

/// Why there is no request to answer.
enum Stop {
    End(End),
    Refused(Refusal),
    Broken(ServeError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ServeError> for Stop {
    fn from(error: ServeError) -> Self {
        Self::Broken(error)
    }
}

impl Server<'_> {
    fn next_request(&mut self, first: bool, stopping: &dyn Fn() -> bool) -> Result<Request, Stop> {
        if self.unread.is_empty() {
            // An idle connection holds no buffer.
            self.unread = Vec::new();
            if stopping() {
                return Err(Stop::End(End::Stopped));
            }
            let limit = if first { self.limits.head_time } else { self.limits.idle_time };
            self.set_deadline(IDLE_PHASE, limit)?;
            match self.read() {
                Ok(0) if stopping() => return Err(Stop::End(End::Stopped)),
                Ok(0) => return Err(Stop::End(End::ClientClosed)),
                Ok(_) => {}
                Err(_) if stopping() => return Err(Stop::End(End::Stopped)),
                Err(e) if e.kind() == ErrorKind::TimedOut => return Err(Stop::End(End::Idle)),
                Err(e) => return Err(ServeError::ReadRequest(e).into()),
            }
        }
        self.set_deadline("HTTP request head", self.limits.head_time)?;
        let mut scanner = HeadScanner::default();
        loop {
            // No byte beyond the limit is looked at: the verdict must not depend on how many
            // happened to arrive together.
            let seen = self.unread.get(..self.limits.head_bytes).unwrap_or(&self.unread);
            if let Some(length) = scanner.scan(seen)? {
                let request = Request::parse(self.unread.get(..length).unwrap_or_default())?;
                self.unread.drain(..length);
                return Ok(request);
            }
            if self.unread.len() >= self.limits.head_bytes {
                return Err(Refusal::HeadTooLarge.into());
            }
            self.read_more(Refusal::HeadTooSlow)?;
        }
    }

    fn skip_body(&mut self, request: &Request) -> Result<(), Stop> {
        let expected = request.expects_continue()?;
        if request.framing() == Framing::Length(0) {
            return Ok(());
        }
        let mut body = Discard::new(request.framing(), self.limits.body_bytes)?;
        // Who already sends does not wait for leave.
        if expected && self.unread.is_empty() {
            self.write_bytes(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        self.set_deadline("HTTP request body", self.limits.body_time)?;
        loop {
            let taken = body.feed(&self.unread)?;
            self.unread.drain(..taken);
            if body.is_done() {
                return Ok(());
            }
            self.read_more(Refusal::BodyTooSlow)?;
        }
    }

    /// Answers a refused request, then lets the answer arrive.
    fn refuse(&mut self, refusal: Refusal, head_only: bool) -> Result<End, ServeError> {
        let response = Response::text(refusal.status(), refusal.to_string());
        self.write(&response, head_only, true)?;
        if let Err(error) = self.linger() {
            log::debug!("a client refused over HTTP did not close: {error}");
        }
        Ok(End::Refused(refusal))
    }

    fn linger(&mut self) -> io::Result<()> {
        let (time, bytes) = LINGER;
        self.conn.set_deadline(Some(Deadline::after("HTTP close", time)))?;
        self.conn.close_write()?;
        let mut left = bytes;
        while left > 0 {
            self.unread.clear();
            match self.read()? {
                0 => return Ok(()),
                count => left = left.saturating_sub(count),
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        response: &Response,
        head_only: bool,
        close: bool,
    ) -> Result<(), ServeError> {
        let delivery = Delivery { head_only, close, now: clock::wall() };
        self.write_bytes(&response.to_bytes(&delivery))
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), ServeError> {
        self.set_deadline("HTTP answer", self.limits.write_time)?;
        self.conn.write_all(bytes).and_then(|()| self.conn.flush()).map_err(ServeError::WriteAnswer)
    }

    fn set_deadline(&mut self, phase: &'static str, limit: Duration) -> Result<(), ServeError> {
        let deadline = Deadline::after(phase, limit);
        self.conn.set_deadline(Some(deadline)).map_err(ServeError::SetDeadline)
    }

    /// Reads on in the middle of a request; `slow` is what a time-out means there.
    fn read_more(&mut self, slow: Refusal) -> Result<(), Stop> {
        match self.read() {
            Ok(0) => Err(ServeError::ReadRequest(ErrorKind::UnexpectedEof.into()).into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::TimedOut => Err(slow.into()),
            Err(error) => Err(ServeError::ReadRequest(error).into()),
        }
    }

    /// Appends what has arrived to `unread`.
    fn read(&mut self) -> io::Result<usize> {
        let mut bytes = [0; READ_SIZE];
        loop {
            match self.conn.read(&mut bytes) {
                Ok(count) => {
                    self.unread.extend_from_slice(bytes.get(..count).unwrap_or_default());
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
