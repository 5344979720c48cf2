//! One direction of a connection, whatever carries it.

use std::io;

/// What a [`Source`] has to say.
#[derive(Debug)]
pub enum Event<'a> {
    /// The next bytes, never empty. They stay valid until the next call.
    Data(&'a [u8]),
    /// The peer has finished sending, cleanly (FIN, or `close_notify` under TLS). Final.
    End,
    /// Nothing came for a while after a busy time; the source has given its large buffers back
    /// and the sink may do the same. Not an end.
    Idle,
}

/// The receiving half of a connection, used by one thread.
pub trait Source: Send {
    /// Waits for the next event. An error is final: the peer vanished, reset the connection,
    /// sent something wrong, or ended without saying so (a TLS stream cut short).
    fn next(&mut self) -> io::Result<Event<'_>>;
}

/// The sending half of a connection, used by one thread.
pub trait Sink: Send {
    /// Sends all of `data`, waiting while the peer does not read.
    fn write_all(&mut self, data: &[u8]) -> io::Result<()>;
    /// Says that no more will be sent (half-close) and leaves the other direction alone.
    fn finish(&mut self) -> io::Result<()>;
    /// Ends the stream so that the peer sees it is broken and not finished: what was sent is
    /// still delivered where the transport can, but no clean end follows. Returns whether it can:
    /// then closing the connection with unread bytes would destroy what is under way.
    fn abandon(&mut self) -> bool;
    /// Gives large buffers back.
    fn shrink(&mut self) {}
}

/// A buffer that starts small, doubles while it is filled in one go, and shrinks when idle.
///
/// All of it is initialised, so growing costs a `memset` once and reading costs none.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

/// Bytes of a buffer at rest: the memory of an idle stream is mostly these.
pub const SMALL: usize = 4 * 1024;

/// Bytes of a buffer under load, a power of two times [`SMALL`].
///
/// Measured through the agent in alternating runs: receiving TLS cost 754–781 ms of processor time
/// per gigabyte at 64 KiB, 464–801 at 128 KiB and 510–607 at 256 KiB, because the other end is
/// woken less often; sending cost the same at all three. The middle one, because a busy stream has
/// four such buffers and boxes are small.
pub const LARGE: usize = 128 * 1024;

impl Buffer {
    /// No memory at all.
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// A buffer of [`SMALL`] bytes.
    pub fn small() -> Self {
        Self(vec![0; SMALL])
    }

    /// Makes it at least `size` bytes long; what is in it stays.
    pub fn reserve(&mut self, size: usize) {
        if self.0.len() < size {
            self.0.resize(size, 0);
        }
    }

    /// Doubles it, to [`LARGE`] at the most. Returns whether it grew.
    pub fn grow(&mut self) -> bool {
        let size = (self.0.len() * 2).clamp(SMALL, LARGE);
        let grows = size > self.0.len();
        self.reserve(size);
        grows
    }

    /// Gives back all but [`SMALL`] bytes.
    pub fn shrink(&mut self) {
        self.0.truncate(SMALL);
        self.0.shrink_to(SMALL);
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_doubles_to_its_limit_and_shrinks_to_rest() {
        let mut buffer = Buffer::small();
        let mut sizes = vec![buffer.len()];
        while buffer.grow() {
            sizes.push(buffer.len());
        }
        assert_eq!(sizes, [4096, 8192, 16384, 32768, 65536, LARGE]);
        buffer.shrink();
        assert_eq!((buffer.len(), buffer.0.capacity()), (SMALL, SMALL));
    }
}
