//! Request bodies, read only to get past them.

use super::{Framing, Refusal};

/// Follows the framing of one body through slices of any size and keeps nothing of it.
#[derive(Debug)]
pub(super) struct Discard {
    state: State,
    /// Bytes that may still come, chunk framing included.
    budget: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Fixed(u64),
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data(u64),
    DataReturn,
    DataEnd,
    TrailerStart,
    Trailer,
    TrailerEnd,
    LastEnd,
    Done,
}

impl Discard {
    /// A body of at most `limit` bytes as sent, chunk framing and trailers included.
    pub(super) fn new(framing: Framing, limit: u64) -> Result<Self, Refusal> {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) if length > limit => return Err(Refusal::BodyTooLarge),
            Framing::Length(length) => State::Fixed(length),
            Framing::Chunked => State::Size { digits: 0, size: 0 },
        };
        Ok(Self { state, budget: limit })
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes what belongs to the body and tells how many bytes that was.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let step = match &mut self.state {
                State::Done => break,
                State::Fixed(left) | State::Data(left) => {
                    let step = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= step as u64;
                    step
                }
                _ => 1,
            };
            self.budget = self.budget.checked_sub(step as u64).ok_or(Refusal::BodyTooLarge)?;
            self.state = match (self.state, rest.first().copied().unwrap_or_default()) {
                (State::Fixed(0), _) => State::Done,
                (State::Data(0), _) => State::DataReturn,
                (state @ (State::Fixed(_) | State::Data(_)), _) => state,
                (state, byte) => self.framed(state, byte)?,
            };
            taken += step;
        }
        Ok(taken)
    }

    /// The state after one byte of chunk framing (RFC 9112, section 7.1).
    fn framed(&self, state: State, byte: u8) -> Result<State, Refusal> {
        Ok(match (state, byte) {
            (State::Size { digits: 1.., size }, b'\r') => State::SizeEnd { size },
            (State::Size { digits: 1.., size }, b';') => State::Extension { size },
            // Sixteen digits fill a u64.
            (State::Size { digits: digits @ ..16, size }, byte) => {
                let digit = char::from(byte).to_digit(16).ok_or(Refusal::ChunkSyntax)?;
                State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
            }
            (State::Extension { size }, b'\r') => State::SizeEnd { size },
            (State::Extension { size }, byte) if is_text(byte) => State::Extension { size },
            (State::SizeEnd { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeEnd { size }, b'\n') if size > self.budget => {
                return Err(Refusal::BodyTooLarge);
            }
            (State::SizeEnd { size }, b'\n') => State::Data(size),
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Size { digits: 0, size: 0 },
            (State::TrailerStart, b'\r') => State::LastEnd,
            (State::Trailer, b'\r') => State::TrailerEnd,
            (State::TrailerStart | State::Trailer, byte) if is_text(byte) => State::Trailer,
            (State::TrailerEnd, b'\n') => State::TrailerStart,
            (State::LastEnd, b'\n') => State::Done,
            _ => return Err(Refusal::ChunkSyntax),
        })
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 1000;

    fn chunked(bytes: &[u8]) -> Result<(usize, bool), Refusal> {
        let mut body = Discard::new(Framing::Chunked, LIMIT)?;
        Ok((body.feed(bytes)?, body.is_done()))
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let mut body = Discard::new(Framing::Length(5), LIMIT).unwrap();
        assert_eq!((body.feed(b"abc"), body.is_done()), (Ok(3), false));
        assert_eq!((body.feed(b"deNEXT"), body.is_done()), (Ok(2), true));
        assert!(Discard::new(Framing::Length(0), 0).unwrap().is_done());
        let all = b"3;a=\"b\"\r\nabc\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nNEXT";
        assert_eq!(chunked(all), Ok((all.len() - 4, true)));
        assert_eq!(chunked(b"0\r\n\r\n"), Ok((5, true)));
    }

    #[test]
    fn loose_chunk_framing_is_refused() {
        for bad in [
            "\r\n",
            ";a\r\n",
            "g\r\n",
            "0x1\r\n",
            "+1\r\n",
            " 1\r\n",
            "1 \r\n",
            "1\n",
            "1\r\r",
            "1\r\nab",
            "1\r\na\n",
            "1;a\nb",
            "0\r\nT: x\n",
            "0\r\n\n",
            "00000000000000001\r\n",
        ] {
            assert_eq!(chunked(bad.as_bytes()), Err(Refusal::ChunkSyntax), "{bad:?}");
        }
    }

    #[test]
    fn a_body_over_its_limit_is_refused_before_it_is_read() {
        assert_eq!(
            Discard::new(Framing::Length(LIMIT + 1), LIMIT).err(),
            Some(Refusal::BodyTooLarge)
        );
        assert_eq!(chunked(b"ffffffffffffffff\r\n"), Err(Refusal::BodyTooLarge));
        let endless = [b"1;".as_slice(), &vec![b'a'; 2000]].concat();
        assert_eq!(chunked(&endless), Err(Refusal::BodyTooLarge));
        assert_eq!(chunked(&b"1\r\na\r\n".repeat(200)), Err(Refusal::BodyTooLarge));
    }

    proptest! {
        #[test]
        fn chunks_of_any_size_are_followed_wherever_they_are_split(
            sizes in prop::collection::vec(1usize..40, 0..8), cut in 0usize..600,
        ) {
            let mut bytes = Vec::new();
            for size in sizes {
                bytes.extend(format!("{size:x}\r\n{}\r\n", "\n".repeat(size)).bytes());
            }
            bytes.extend(b"0\r\n\r\n");
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut body = Discard::new(Framing::Chunked, LIMIT).unwrap();
            prop_assert_eq!(body.feed(first), Ok(first.len()));
            prop_assert_eq!(body.feed(second), Ok(second.len()));
            prop_assert!(body.is_done());
            prop_assert_eq!(body.feed(b"x"), Ok(0));
        }
    }
}
