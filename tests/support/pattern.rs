//! Bytes in which a loss, a repetition or an exchange shows, at the price of a `memcmp`.

use std::sync::LazyLock;

use adit::net::{Event, Sink, Source};

pub const MIB: usize = 1024 * 1024;

/// Not a multiple of any buffer's or record's size, so nothing that is lost or repeated fits.
const PERIOD: usize = 1_000_003;

/// Pseudo-random (SplitMix64), so that it does not compress and no two places look alike.
static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(PERIOD).collect()
});

/// A place in an endless stream of known bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pattern {
    pub at: usize,
}

impl Pattern {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes, at least one and `most` at the most.
    pub fn take(&mut self, most: usize) -> &'static [u8] {
        let start = self.at % PERIOD;
        let part = &BLOCK[start..(start + most).min(PERIOD)];
        self.at += part.len();
        part
    }

    /// The first `size` bytes.
    pub fn bytes(size: usize) -> Vec<u8> {
        BLOCK.iter().copied().cycle().take(size).collect()
    }

    /// Fails unless `data` is what comes next.
    pub fn check(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let at = self.at;
            let expected = self.take(data.len());
            let (now, later) = data.split_at(expected.len());
            assert!(now == expected, "the bytes from {at} on are not what was sent");
            data = later;
        }
    }
}

/// A datagram with a number, in which any change shows. At least 12 bytes.
pub fn datagram(number: u64, size: usize) -> Vec<u8> {
    let mut datagram = number.to_be_bytes().to_vec();
    datagram.extend(u32::try_from(size).unwrap().to_be_bytes());
    let mut pattern = Pattern { at: usize::try_from(number * 7919).unwrap() };
    while datagram.len() < size {
        datagram.extend_from_slice(pattern.take(size - datagram.len()));
    }
    datagram
}

/// The number of such a datagram. Fails unless every byte is as it was made.
pub fn datagram_number(bytes: &[u8]) -> u64 {
    let number = u64::from_be_bytes(*bytes.first_chunk().unwrap());
    assert!(bytes == datagram(number, bytes.len()), "datagram {number} is not what was sent");
    number
}

/// Sends the first `size` bytes of a pattern in pieces of `piece`.
pub fn send(sink: &mut impl Sink, size: usize, piece: usize) {
    let mut pattern = Pattern::new();
    while pattern.at < size {
        let most = piece.min(size - pattern.at);
        sink.write_all(pattern.take(most)).unwrap();
    }
}

/// Reads and checks a pattern until its clean end. Returns its length.
pub fn receive(source: &mut impl Source) -> usize {
    receive_from(source, Pattern::new())
}

/// Goes on where `pattern` is.
pub fn receive_from(source: &mut impl Source, mut pattern: Pattern) -> usize {
    loop {
        match source.next().unwrap() {
            Event::Data(data) => pattern.check(data),
            Event::Idle => {}
            Event::End => return pattern.at,
        }
    }
}
