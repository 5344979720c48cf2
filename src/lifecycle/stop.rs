//! A request to stop that threads can wait on, whether they wait for time or for a socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::clock;

/// A flag that is raised once and can be waited on in two ways: with a time limit
/// ([`Stop::wait`]), or together with sockets ([`Stop::as_fd`], readable once raised).
///
/// Clones share the flag.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    raised: Mutex<bool>,
    changed: Condvar,
    event: EventFd,
}

impl Stop {
    /// A flag that is not raised. Fails when no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            raised: Mutex::new(false),
            changed: Condvar::new(),
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })))
    }

    /// Raises the flag and wakes everyone who waits. Raising it again does nothing.
    pub fn raise(&self) {
        let mut raised = self.0.raised.lock().unwrap_or_else(PoisonError::into_inner);
        if !*raised {
            *raised = true;
            self.0.changed.notify_all();
            if let Err(error) = self.0.event.write(1) {
                log::error!("cannot signal a stop to waiting sockets: {error}");
            }
        }
    }

    /// Whether the flag is raised.
    pub fn is_raised(&self) -> bool {
        *self.0.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the flag is raised, `limit` at the most. Returns whether it is raised.
    pub fn wait(&self, limit: Duration) -> bool {
        let end = clock::now() + limit;
        let mut raised = self.0.raised.lock().unwrap_or_else(PoisonError::into_inner);
        while !*raised {
            let Some(left) = end.checked_duration_since(clock::now()).filter(|d| !d.is_zero())
            else {
                return false;
            };
            raised =
                self.0.changed.wait_timeout(raised, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl AsFd for Stop {
    /// Readable from the moment the flag is raised, and never read, so every poll sees it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn readable(stop: &Stop) -> bool {
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn raising_is_seen_by_flag_wait_and_descriptor() {
        let stop = Stop::new().unwrap();
        assert!(!stop.is_raised() && !readable(&stop));
        assert!(!stop.wait(Duration::ZERO));
        stop.clone().raise();
        stop.raise();
        assert!(stop.is_raised() && readable(&stop) && readable(&stop));
        assert!(stop.wait(Duration::from_secs(3600)));
    }
}
