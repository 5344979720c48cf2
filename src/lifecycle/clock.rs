//! The one place that reads the clock, and deadlines made from it.

use std::io;
use std::time::{Duration, Instant, SystemTime};

/// The monotonic clock: for deadlines, ages and durations.
#[expect(clippy::disallowed_methods, reason = "this is the room that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// The calendar clock: for certificate validity and for times that people read (log lines, HTTP's
/// `Date`), never for limits.
#[expect(clippy::disallowed_methods, reason = "this is the room that reads the clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// The moment at which one phase of an operation must be over, and the name of that phase.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    phase: &'static str,
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// A deadline `limit` from now. `phase` is how its time-out names itself ("TLS handshake").
    pub fn after(phase: &'static str, limit: Duration) -> Self {
        Self::from(phase, now(), limit)
    }

    /// A deadline `limit` after `start`.
    pub fn from(phase: &'static str, start: Instant, limit: Duration) -> Self {
        Self { phase, at: start + limit, limit }
    }

    /// The phase this deadline bounds.
    pub fn phase(&self) -> &'static str {
        self.phase
    }

    /// The moment itself.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Time left, or the time-out error of this phase when there is none.
    ///
    /// Never returns zero, so the answer can be given to `set_read_timeout`, which refuses zero.
    pub fn remaining(&self) -> io::Result<Duration> {
        match self.at.checked_duration_since(now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(self.timed_out()),
        }
    }

    /// The error of a phase that took too long: `TLS handshake timed out after 10s`.
    pub fn timed_out(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{} timed out after {}", self.phase, humantime::format_duration(self.limit)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_names_its_phase_and_limit() {
        let passed = Deadline::from("header", now(), Duration::ZERO);
        let error = passed.remaining().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "header timed out after 0s");
        let open = Deadline::after("dial", Duration::from_secs(3600));
        assert!(open.remaining().unwrap() > Duration::from_secs(3000));
    }
}
