//! What a datagram shows before anything is decrypted: enough to tell a client that begins from
//! one that goes on (RFC 6347, sections 4.1 and 4.2.2; RFC 5246, section 7.4.1.2).
//!
//! | offset | bytes | field | of a first ClientHello |
//! |---|---|---|---|
//! | 0 | 1 | content type | 22, handshake |
//! | 1 | 2 | version | 254, any |
//! | 3 | 2 | epoch | 0: nothing is encrypted yet |
//! | 5 | 6 | sequence number | |
//! | 11 | 2 | length of the record | |
//! | 13 | 1 | handshake type | 1, ClientHello |
//! | 14 | 3 | its length | |
//! | 17 | 2 | message number | 0, or 1 with a cookie |
//! | 19 | 3 | fragment offset | 0 |
//! | 22 | 3 | fragment length | |
//! | 25 | 2 | client version | |
//! | 27 | 32 | random | new for each handshake |

/// Bytes of a record's header.
pub const RECORD_HEADER: usize = 13;

/// The most bytes of one record's content before it is encrypted (RFC 5246, section 6.2.1):
/// nothing larger can travel.
pub const RECORD_MAX: usize = 16_384;

/// The most bytes of a record on the wire: its content, what encryption may add (RFC 5246, section
/// 6.2.3) and the header.
pub const WIRE_MAX: usize = RECORD_HEADER + RECORD_MAX + 2048;

/// The random of a client's first words, by which a repetition is told from a new beginning.
pub type Random = [u8; 32];

const HANDSHAKE: u8 = 22;
const MAJOR: u8 = 254;
const CLIENT_HELLO: u8 = 1;
const TYPE_AT: usize = 13;
const FRAGMENT_AT: usize = 19;
const RANDOM_AT: usize = 27;

/// The random of the ClientHello that a datagram begins with, `None` when it begins with something
/// else or with a later fragment of one.
pub fn client_hello(datagram: &[u8]) -> Option<&Random> {
    let [HANDSHAKE, MAJOR, _, 0, 0, ..] = datagram else { return None };
    if *datagram.get(TYPE_AT)? != CLIENT_HELLO {
        return None;
    }
    if datagram.get(FRAGMENT_AT..FRAGMENT_AT + 3)? != [0; 3] {
        return None;
    }
    datagram.get(RANDOM_AT..)?.first_chunk()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header and the beginning of what `openssl s_client -dtls1_2` sends first.
    fn hello() -> Vec<u8> {
        let mut bytes = vec![22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xbe];
        bytes.extend([1, 0, 0, 0xb2, 0, 0, 0, 0, 0, 0, 0, 0xb2, 0xfe, 0xfd]);
        bytes.extend(1..=32);
        bytes.extend([0, 0]);
        bytes
    }

    #[test]
    fn a_client_hello_shows_its_random() {
        let random = std::array::from_fn(|at| at as u8 + 1);
        assert_eq!(client_hello(&hello()), Some(&random));
    }

    #[test]
    fn nothing_else_is_a_client_hello() {
        for (at, other) in [(0, 23), (0, 21), (1, 3), (3, 1), (4, 1), (13, 2), (13, 16), (21, 1)] {
            let mut bytes = hello();
            bytes[at] = other;
            assert_eq!(client_hello(&bytes), None, "byte {at} is {other}");
        }
        for length in 0..59 {
            assert_eq!(client_hello(&hello()[..length]), None, "{length} bytes");
        }
    }
}
