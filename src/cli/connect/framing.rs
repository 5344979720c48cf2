//! Datagrams in a stream of bytes: where each begins and ends on standard input and output.

use std::fmt;
use std::str::FromStr;

use crate::client::UdpStream;

/// How datagrams are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framing {
    /// Each is a line. The newline is not part of it.
    #[default]
    Lines,
    /// Each has its length in front, two bytes, big-endian, as DNS over TCP has it (RFC 1035,
    /// section 4.2.2).
    Length,
}

impl FromStr for Framing {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "lines" => Ok(Self::Lines),
            "length" => Ok(Self::Length),
            _ => Err("there are two: lines and length".to_owned()),
        }
    }
}

impl Framing {
    /// Appends a datagram to `output`.
    pub(super) fn encode(self, datagram: &[u8], output: &mut Vec<u8>) {
        match self {
            Self::Lines => {
                output.extend_from_slice(datagram);
                output.push(b'\n');
            }
            Self::Length => {
                // No datagram is longer than a quarter of what two bytes can count.
                let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
                output.extend_from_slice(&length.to_be_bytes());
                output.extend_from_slice(datagram);
            }
        }
    }
}

/// Takes bytes as they come and gives datagrams.
#[derive(Debug)]
pub(super) struct Decoder {
    framing: Framing,
    /// Bytes of a datagram that is not complete, or of several that were not taken yet.
    bytes: Vec<u8>,
    /// How many of them were taken.
    taken: usize,
    /// How many of them were searched for a newline.
    searched: usize,
    /// Datagrams so far, empty ones too.
    count: u64,
}

impl Decoder {
    pub(super) fn new(framing: Framing) -> Self {
        Self { framing, bytes: Vec::new(), taken: 0, searched: 0, count: 0 }
    }

    /// Adds bytes of the input. Take what [`next`](Self::next) gives before adding more.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.searched = self.searched.saturating_sub(self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next datagram, empty ones too, `None` when more input is needed.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let number = self.count + 1;
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let (skip, size, end) = match self.framing {
            Framing::Lines => {
                let fresh = self.bytes.get(self.searched.max(self.taken)..).unwrap_or_default();
                let newline = fresh.iter().position(|byte| *byte == b'\n');
                let size = newline.map(|at| rest.len() - fresh.len() + at);
                self.searched = self.bytes.len();
                if size.unwrap_or(rest.len()) > UdpStream::MAX {
                    return Err(FrameError::LongLine { number });
                }
                let Some(size) = size else { return Ok(None) };
                (0, size, size + 1)
            }
            Framing::Length => {
                let Some(length) = rest.first_chunk() else { return Ok(None) };
                let size = usize::from(u16::from_be_bytes(*length));
                if size > UdpStream::MAX {
                    return Err(FrameError::LongFrame { number, size });
                }
                if rest.len() < length.len() + size {
                    return Ok(None);
                }
                (length.len(), size, length.len() + size)
            }
        };
        let from = self.taken + skip;
        self.count = number;
        self.taken += end;
        self.searched = self.taken;
        Ok(self.bytes.get(from..from + size))
    }

    /// The input has ended: what is left of it. The last line may do without its newline, a frame
    /// must be whole.
    pub(super) fn finish(self) -> Result<Option<Vec<u8>>, FrameError> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        match self.framing {
            Framing::Lines => Ok(Some(rest.to_vec())),
            Framing::Length => {
                let size = rest.first_chunk().map(|length| u16::from_be_bytes(*length).into());
                let number = self.count + 1;
                Err(FrameError::Cut { number, size, have: rest.len() })
            }
        }
    }
}

/// Input that holds no datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// A line that no datagram can hold.
    LongLine { number: u64 },
    /// A length that no datagram can have.
    LongFrame { number: u64, size: usize },
    /// The input ended within a frame, of whose datagram `size` is the length, if that much came.
    Cut { number: u64, size: Option<usize>, have: usize },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX: usize = UdpStream::MAX;
        match self {
            Self::LongLine { number } => write!(
                f,
                "line {number} of standard input is longer than {MAX} bytes, which is the most \
                 that a datagram can have"
            ),
            Self::LongFrame { number, size } => write!(
                f,
                "frame {number} of standard input says that it has {size} bytes, and a datagram \
                 can have {MAX} at the most (is that input in frames?)"
            ),
            Self::Cut { number, size: Some(size), have } => {
                let have = have - 2;
                write!(
                    f,
                    "standard input ended within frame {number}, after {have} of its {size} bytes"
                )
            }
            Self::Cut { number, size: None, .. } => {
                write!(f, "standard input ended within the length of frame {number}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = UdpStream::MAX;

    /// Decodes input that comes in pieces of `piece` bytes.
    fn decode(framing: Framing, input: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut decoder = Decoder::new(framing);
        let mut found = Vec::new();
        for bytes in input.chunks(piece) {
            decoder.push(bytes);
            while let Some(datagram) = decoder.next()? {
                found.push(datagram.to_vec());
            }
        }
        found.extend(decoder.finish()?);
        Ok(found)
    }

    #[test]
    fn a_line_is_a_datagram_without_its_newline() {
        let found = decode(Framing::Lines, b"one\ntwo\r\n\n\xffthree", 4).unwrap();
        assert_eq!(found, [&b"one"[..], b"two\r", b"", b"\xffthree"]);
        assert!(decode(Framing::Lines, b"", 1).unwrap().is_empty());
    }

    #[test]
    fn a_line_may_be_as_long_as_a_datagram_and_no_longer() {
        let line = |size: usize, end: &[u8]| [&vec![b'x'; size], end].concat();
        for end in [&b""[..], b"\n"] {
            let found = decode(Framing::Lines, &line(MAX, end), 1000).unwrap();
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [MAX]);
            let input = [b"short\n", &line(MAX + 1, end)[..]].concat();
            let error = FrameError::LongLine { number: 2 };
            assert_eq!(decode(Framing::Lines, &input, 1000), Err(error));
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_before_all_of_it_has_come() {
        let mut decoder = Decoder::new(Framing::Lines);
        decoder.push(&vec![b'x'; MAX + 1]);
        assert_eq!(decoder.next(), Err(FrameError::LongLine { number: 1 }));
    }

    #[test]
    fn a_length_counts_the_bytes_after_it() {
        let found = decode(Framing::Length, b"\0\x03one\0\0\0\x01\n", 1).unwrap();
        assert_eq!(found, [&b"one"[..], b"", b"\n"]);
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_by_its_length() {
        let error = FrameError::LongFrame { number: 2, size: MAX + 1 };
        assert_eq!(decode(Framing::Length, b"\0\x01x\x40\x01", 1), Err(error));
    }

    #[test]
    fn a_frame_cut_short_is_told_with_what_is_missing() {
        let cut = |input| decode(Framing::Length, input, 2).unwrap_err().to_string();
        let within = "standard input ended within ";
        assert_eq!(cut(b"\0\x05abc"), format!("{within}frame 1, after 3 of its 5 bytes"));
        assert_eq!(cut(b"\0\x01x\0"), format!("{within}the length of frame 2"));
    }

    #[test]
    fn a_framing_has_a_name() {
        assert_eq!("length".parse(), Ok(Framing::Length));
        assert!("Lines".parse::<Framing>().is_err());
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_however_it_is_cut(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..20),
            piece in 1_usize..2000,
        ) {
            let mut bytes = Vec::new();
            for datagram in &datagrams {
                Framing::Length.encode(datagram, &mut bytes);
            }
            prop_assert_eq!(&decode(Framing::Length, &bytes, piece).unwrap(), &datagrams);
            // Lines can carry whatever has no newline in it.
            let lines: Vec<Vec<u8>> = datagrams
                .into_iter()
                .map(|line| line.into_iter().filter(|byte| *byte != b'\n').collect())
                .collect();
            bytes.clear();
            for line in &lines {
                Framing::Lines.encode(line, &mut bytes);
            }
            prop_assert_eq!(decode(Framing::Lines, &bytes, piece).unwrap(), lines);
        }
    }
}
