//! Standard input and output without the library's buffers, in the middle of which a wait may end.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::lifecycle::Stop;

/// Standard input.
pub(super) struct Input(File);

/// What waiting for input gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// This many bytes, at least one.
    Data(usize),
    /// Its end.
    End,
    /// Nobody wants it any more.
    Over,
    /// Where it would go is gone.
    Gone,
}

impl Input {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(File::from(io::stdin().as_fd().try_clone_to_owned()?)))
    }

    /// Waits for input, until `over` or until `conn` breaks; input that is there comes before the
    /// latter.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        over: &Stop,
        conn: Option<BorrowedFd<'_>>,
    ) -> io::Result<Came> {
        loop {
            let mut fds = vec![
                PollFd::new(over.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
            ];
            // No event is asked for: a connection that is gone is reported all the same.
            fds.extend(conn.map(|conn| PollFd::new(conn, PollFlags::empty())));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let told = |fd: Option<&PollFd<'_>>| {
                fd.and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
            };
            let (readable, gone) = (told(fds.get(1)), told(fds.get(2)));
            if over.is_raised() {
                return Ok(Came::Over);
            }
            if gone && !readable {
                return Ok(Came::Gone);
            }
            match self.0.read(buffer) {
                Ok(0) => return Ok(Came::End),
                Ok(size) => return Ok(Came::Data(size)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Standard output. Not `Stdout`, whose line buffer would hold back half of a prompt.
pub(super) struct Output(File);

impl Output {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    /// Writes all of `data`, also to an output that someone else has made non-blocking: the flag
    /// is shared with everybody who has the same pipe or terminal.
    pub(super) fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            match self.0.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(size) => rest = rest.get(size..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
