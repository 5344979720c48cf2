//! A stream header in whatever pieces it arrives: the first byte says how large they are. What is
//! read, and how many bytes are taken for it, do not depend on them.
#![no_main]

use std::io::{self, Read};

use adit::wire::header;
use libfuzzer_sys::fuzz_target;

struct Pieces<'a> {
    left: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, u8>>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let size = usize::from(*self.sizes.next().unwrap_or(&1)).max(1);
        if size == 255 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let size = size.min(to.len());
        self.left.read(&mut to[..size])
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((sizes, bytes)) = data.split_at_checked(4) else { return };
    if sizes.iter().all(|size| *size == 255) {
        return;
    }
    let mut whole = bytes;
    let mut pieces = Pieces { left: bytes, sizes: sizes.iter().cycle() };
    let (one, other) = (header::read(&mut whole), header::read(&mut pieces));
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
    assert_eq!(whole.len(), pieces.left.len());
});
