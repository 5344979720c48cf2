//! As much of DNS as a question and its answer need (RFC 1035, section 4).
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | number of the query, the same in the answer |
//! | 2 | 2 | flags |
//! | 4 | 8 | how many questions, answers, authorities and additions |
//! | 12 | | the question: the name's labels, each after its length, a zero, type, class |
//! | | | the answer: a pointer to that name, type, class, time to live, length, address |

use std::net::Ipv4Addr;

/// The name that the demo's server knows.
pub(super) const NAME: &str = "box.demo";

/// Its address, of a block for documentation (RFC 5737).
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

const HEADER: usize = 12;
/// A recursive answer is wished for.
const ASKED: u16 = 0x0100;
/// An answer with authority, to such a question.
const ANSWERED: u16 = 0x8580;
const NO_SUCH_NAME: u16 = 3;
/// Of type and class: an IPv4 address, the Internet.
const A_IN: [u8; 4] = [0, 1, 0, 1];

/// The query number `id` for the address of `name`.
pub(super) fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = header(id, ASKED, 0);
    bytes.extend(encode(name));
    bytes.extend(A_IN);
    bytes
}

/// What the demo's server answers, `None` to what is no query.
pub(super) fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let (header_bytes, rest) = query.split_at_checked(HEADER)?;
    let [high, low, flags, _, 0, 1, ..] = header_bytes else { return None };
    if flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let name = encode(NAME);
    let end = rest.iter().position(|byte| *byte == 0)? + 1;
    let question = rest.get(..end + A_IN.len())?;
    let known = question.get(..end).is_some_and(|asked| asked.eq_ignore_ascii_case(&name))
        && question.ends_with(&A_IN);
    let mut bytes = match known {
        true => header(id, ANSWERED, 1),
        false => header(id, ANSWERED | NO_SUCH_NAME, 0),
    };
    bytes.extend(question);
    if known {
        // The name is that of the question; the answer holds for no time at all.
        bytes.extend([0xc0, HEADER as u8]);
        bytes.extend(A_IN);
        bytes.extend([0, 0, 0, 0, 0, 4]);
        bytes.extend(ADDRESS.octets());
    }
    Some(bytes)
}

/// The address in an answer to query number `id`, `None` when there is none.
pub(super) fn address(id: u16, answer: &[u8]) -> Option<Ipv4Addr> {
    let (start, address) = answer.split_at_checked(answer.len().checked_sub(4)?)?;
    let good = start.starts_with(&header(id, ANSWERED, 1));
    let octets = <[u8; 4]>::try_from(address).ok()?;
    good.then(|| octets.into())
}

fn header(id: u16, flags: u16, answers: u16) -> Vec<u8> {
    [id, flags, 1, answers, 0, 0].iter().flat_map(|field| field.to_be_bytes()).collect()
}

fn encode(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let length = u8::try_from(label.len()).unwrap_or(63);
        std::iter::once(length).chain(label.bytes().take(length.into()))
    });
    labels.chain([0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_the_bytes_of_the_standard() {
        let bytes = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x03box\x04demo\0\0\x01\0\x01";
        assert_eq!(query(0x1234, NAME), bytes);
    }

    #[test]
    fn an_answer_has_the_number_and_the_question_of_its_query() {
        let query = query(7, "BOX.demo");
        let answered = answer(&query).unwrap();
        assert_eq!(answered.get(HEADER..query.len()), query.get(HEADER..));
        assert_eq!((address(7, &answered), address(8, &answered)), (Some(ADDRESS), None));
    }

    #[test]
    fn an_unknown_name_has_no_address() {
        let answered = answer(&query(7, "other.demo")).unwrap();
        assert_eq!(answered.get(3), Some(&0x83));
        assert_eq!(address(7, &answered), None);
    }

    #[test]
    fn what_is_no_query_is_not_answered() {
        let query = query(7, NAME);
        for size in 0..query.len() {
            assert_eq!(answer(&query[..size]), None, "{size}");
        }
        assert_eq!(answer(&answer(&query).unwrap()), None);
    }
}
