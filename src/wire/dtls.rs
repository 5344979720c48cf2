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

/// The cookie in a ClientHello, empty in a first one. `None` when it is not all there: a ClientHello
/// is one message in one record, and whoever sends it in pieces would have to be remembered.
pub fn cookie(datagram: &[u8]) -> Option<&[u8]> {
    client_hello(datagram)?;
    let number = |at: usize, bytes: usize| {
        let part = datagram.get(at..at + bytes)?;
        Some(part.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let (record, whole, fragment) = (number(11, 2)?, number(14, 3)?, number(22, 3)?);
    if whole != fragment || record != whole + MESSAGE_HEADER {
        return None;
    }
    let message = datagram.get(RECORD_HEADER..RECORD_HEADER + record)?;
    let behind_random = message.get(RANDOM_AT - RECORD_HEADER + size_of::<Random>()..)?;
    let (session, rest) = behind_random.split_first()?;
    let (length, rest) = rest.get(usize::from(*session)..)?.split_first()?;
    rest.get(..usize::from(*length))
}

/// Bytes of the header of a handshake's message.
const MESSAGE_HEADER: usize = 12;

/// Bytes of a HelloVerifyRequest with a cookie of `N`, less `N`: headers, a version and a length.
const VERIFY_REQUEST: usize = RECORD_HEADER + MESSAGE_HEADER + 3;

/// The answer to a first ClientHello (RFC 6347, section 4.2.1), which asks for the same with this
/// cookie, of at most 32 bytes. `hello` is the datagram of the ClientHello.
pub fn hello_verify_request(hello: &[u8], cookie: &[u8]) -> Vec<u8> {
    /// DTLS 1.0, whatever is spoken later: the RFC asks for it.
    const VERSION: [u8; 2] = [MAJOR, 255];
    const TYPE: u8 = 3;
    let length = u8::try_from(3 + cookie.len()).unwrap_or(u8::MAX);
    let mut bytes = Vec::with_capacity(VERIFY_REQUEST + cookie.len());
    bytes.push(HANDSHAKE);
    bytes.extend(VERSION);
    // Epoch 0, and the number of the record that is answered: none is counted for a stranger.
    bytes.extend([0; 2]);
    bytes.extend(hello.get(5..11).unwrap_or(&[0; 6]));
    bytes.extend([0, length + 12]);
    bytes.extend([TYPE, 0, 0, length, 0, 0, 0, 0, 0, 0, 0, length]);
    bytes.extend(VERSION);
    bytes.push(length - 3);
    bytes.extend(cookie);
    bytes
}

/// How many of these bytes are whole records with at most `limit` bytes together; of a first one
/// that is longer, its own. What is no record counts as one.
pub fn whole_records(bytes: &[u8], limit: usize) -> usize {
    let mut end = 0;
    while let Some((header, _)) = bytes.get(end..).and_then(|rest| rest.split_first_chunk()) {
        let [.., l1, l0]: [u8; RECORD_HEADER] = *header;
        let next = end + RECORD_HEADER + usize::from(u16::from_be_bytes([l1, l0]));
        if next > bytes.len() || (end > 0 && next > limit) {
            break;
        }
        end = next;
    }
    if end == 0 { bytes.len() } else { end }
}

/// Bytes that a cipher suite adds to a record, and one that it protects: nothing genuine that is
/// encrypted has fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// A tag of 16 bytes (ChaCha20-Poly1305, RFC 7905, section 2), or a suite that is not known
    /// yet.
    Tag = 16 + 1,
    /// A nonce of 8 bytes as well (AES-GCM, RFC 5288, section 3).
    NonceAndTag = 8 + 16 + 1,
}

/// Whether none of a datagram's encrypted records is too short to be genuine.
///
/// To be asked before OpenSSL sees it: from 3.2 on (3.6.3 still), a forged record of 1 to 23 bytes
/// makes it end the session with an internal error, where RFC 6347, section 4.1.2.7, has it
/// dropped. An empty one it drops.
pub fn is_plausible(datagram: &[u8], sealed: Sealed) -> bool {
    encrypted(datagram).all(|length| length >= sealed as usize)
}

/// The lengths of a datagram's encrypted records that are not empty, as their headers have them.
pub fn encrypted(datagram: &[u8]) -> impl Iterator<Item = usize> {
    let mut rest = datagram;
    let records = std::iter::from_fn(move || {
        let (header, behind) = rest.split_first_chunk::<RECORD_HEADER>()?;
        let [_, _, _, e1, e0, .., l1, l0] = *header;
        let length = usize::from(u16::from_be_bytes([l1, l0]));
        rest = behind.get(length..).unwrap_or_default();
        Some(([e1, e0] != [0, 0], length))
    });
    records.filter_map(|(encrypted, length)| (encrypted && length > 0).then_some(length))
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

    fn record(epoch: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![23, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 0, 1, 0, length];
        bytes.resize(RECORD_HEADER + usize::from(length), 0x55);
        bytes
    }

    /// The same whole, with a session's id and a cookie.
    fn whole_hello(session: &[u8], cookie: &[u8]) -> Vec<u8> {
        let mut bytes = hello()[..59].to_vec();
        bytes.push(session.len() as u8);
        bytes.extend(session);
        bytes.push(cookie.len() as u8);
        bytes.extend(cookie);
        bytes.extend([0, 2, 0xc0, 0x2b, 1, 0]);
        for (at, less) in [(11, 13), (15, 25), (23, 25)] {
            let length = (bytes.len() - less) as u16;
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn a_cookie_is_found_behind_any_session_id() {
        for session in [&[][..], &[7; 32]] {
            for sent in [&[][..], b"a cookie"] {
                let bytes = whole_hello(session, sent);
                assert_eq!(cookie(&bytes), Some(sent));
                // What follows the record is another's affair.
                assert_eq!(cookie(&[&bytes[..], &[1, 2, 3]].concat()), Some(sent));
                for length in 0..bytes.len() {
                    assert_eq!(cookie(&bytes[..length]), None, "{length} bytes");
                }
            }
        }
        let mut beyond = whole_hello(&[], b"x");
        beyond[60] = 200;
        assert_eq!(cookie(&beyond), None, "longer than the message");
        let mut fragment = whole_hello(&[], b"x");
        fragment[24] -= 1;
        assert_eq!(cookie(&fragment), None, "a part of the message");
    }

    #[test]
    fn the_answer_to_a_first_hello_is_what_openssl_would_send() {
        let mut first = whole_hello(&[], &[]);
        first[10] = 5;
        let expected = [
            &[22, 254, 255, 0, 0, 0, 0, 0, 0, 0, 5, 0, 19, 3, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 7][..],
            &[254, 255, 4, 1, 2, 3, 4],
        ];
        assert_eq!(hello_verify_request(&first, &[1, 2, 3, 4]), expected.concat());
    }

    #[test]
    fn records_are_packed_whole_up_to_the_limit() {
        let bytes = [record(0, 10), record(0, 20), record(1, 200), record(1, 5)].concat();
        // 23, 33, 213 and 18 bytes.
        for (limit, packed) in [(1, 23), (55, 23), (56, 56), (268, 56), (269, 269), (999, 287)] {
            assert_eq!(whole_records(&bytes, limit), packed, "{limit}");
        }
        assert_eq!(whole_records(&bytes[56..], 100), 213, "one that is longer goes alone");
        assert_eq!(whole_records(&bytes[..50], 100), 23, "and the rest after it");
        assert_eq!(whole_records(&bytes[..20], 100), 20, "what is cut is not ours to judge");
        assert_eq!(whole_records(&[], 100), 0);
    }

    #[test]
    fn only_what_is_encrypted_can_be_too_short() {
        for (sealed, least) in [(Sealed::Tag, 17), (Sealed::NonceAndTag, 25)] {
            for length in 1..60 {
                let is = |datagram: &[u8]| is_plausible(datagram, sealed);
                let fits = length >= least;
                assert!(is(&record(0, length)));
                assert_eq!(is(&record(1, length)), fits, "{length}");
                // Wherever it stands, and also when it is cut.
                assert_eq!(is(&[record(1, 40), record(1, length)].concat()), fits, "{length}");
                assert_eq!(is(&record(1, length)[..RECORD_HEADER]), fits, "{length}");
            }
            assert!(is_plausible(&record(1, 0), sealed));
            assert!(is_plausible(&[], sealed) && is_plausible(&[0x55; 12], sealed));
        }
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
