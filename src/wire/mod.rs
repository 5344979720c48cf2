//! Floor 1: pure codecs. They take slices and return values; they touch no socket, clock,
//! environment or log.

pub mod dtls;
pub mod header;
