//! How a thread that ends tells the acceptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes the acceptor when a place it waits for is free.
pub(super) struct Wake {
    event: EventFd,
    wanted: AtomicBool,
}

impl Wake {
    /// Fails when no descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self { event: EventFd::from_flags(flags)?, wanted: AtomicBool::new(false) })
    }

    /// Whether to be woken.
    pub(super) fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Release);
    }

    /// A place is free.
    pub(super) fn wake(&self) {
        if self.wanted.swap(false, Ordering::AcqRel)
            && let Err(error) = self.event.write(1)
        {
            log::error!("cannot wake the acceptor: {error}");
        }
    }

    /// Takes back what woke it.
    pub(super) fn clear(&self) {
        // An error says that it was not signalled, which is just as well.
        _ = self.event.read();
    }
}

impl AsFd for Wake {
    /// Readable when a place is free.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}
