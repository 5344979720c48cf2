//! Stream request headers. The input is one, or, when it is too short, the start of one; both as it
//! is and with the version and checksum put right, since no fuzzer guesses a CRC-32.
#![no_main]

use adit::wire::header::{self, Generation, Header, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match header::decode_datagram(data) {
        Some(decoded) if data.len() == header::LEN => {
            assert_eq!(decoded, header::decode(data.try_into().unwrap()));
        }
        Some(decoded) => assert_eq!(decoded, header::decode_legacy(data.try_into().unwrap())),
        None => assert!(data.len() != header::LEN && data.len() != header::LEGACY_LEN),
    }

    let mut bytes = [0; header::LEN];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
    check(&bytes, data.len());

    bytes[..8].copy_from_slice(b"0.1.0\0\0\0");
    sign(&mut bytes, 271);
    check(&bytes, data.len());

    if data.len() % 2 == 0 {
        bytes[..8].copy_from_slice(b"0.1.0.0\0");
    }
    sign(&mut bytes, 270);
    check(&bytes, data.len());
});

fn sign(bytes: &mut [u8; header::LEN], at: usize) {
    let checksum = crc32fast::hash(&bytes[..at]).to_be_bytes();
    bytes[at..at + 4].copy_from_slice(&checksum);
}

/// Both decoders on `bytes`, and the reader on the first `len` of them.
fn check(bytes: &[u8; header::LEN], len: usize) {
    let legacy = header::decode_legacy(bytes.first_chunk().unwrap());
    let current = header::decode(bytes);
    for decoded in [&legacy, &current].into_iter().flatten() {
        again(decoded);
    }

    let mut reader = &bytes[..len.min(header::LEN)];
    let before = reader.len();
    match header::read(&mut reader) {
        Ok(got) if got.generation == Generation::Legacy => {
            assert_eq!((Ok(got), before - reader.len()), (legacy, header::LEGACY_LEN));
        }
        Ok(got) => {
            assert!(legacy.is_err());
            assert_eq!((Ok(got), before - reader.len()), (current, header::LEN));
        }
        Err(header::ReadError::Cut { got }) => assert_eq!((got, reader.len()), (before, 0)),
        Err(error) => {
            assert!(!error.to_string().chars().any(char::is_control));
            assert!(legacy.is_err());
        }
    }
}

/// What was decoded encodes to something that decodes to the same.
fn again(decoded: &Header) {
    match decoded.request() {
        Ok(Request::Probe) => {
            let probe = header::decode(&header::encode_probe()).unwrap();
            assert_eq!(probe.request(), Ok(Request::Probe));
        }
        Ok(Request::Stream(to)) => match header::encode_stream(&to.host, to.port) {
            Ok(bytes) => {
                assert_eq!(header::decode(&bytes).unwrap().request(), Ok(Request::Stream(to)));
            }
            Err(error) => assert_eq!(error, header::EncodeError::Ambiguous),
        },
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
    let (Ok(host), Ok(port)) = (str::from_utf8(&decoded.host), str::from_utf8(&decoded.port))
    else {
        return;
    };
    if let Ok(bytes) = header::encode(host, port, decoded.flags) {
        let expected = Header { generation: Generation::Current, ..decoded.clone() };
        assert_eq!(header::decode(&bytes), Ok(expected));
    }
}
