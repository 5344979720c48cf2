use super::*;
use proptest::prelude::*;
use serde_json::Value;

const CURRENT: &str = include_str!("../../../tests/vectors/stream-header-275.json");
const LEGACY: &str = include_str!("../../../tests/vectors/stream-header-274.json");

struct Vector {
    name: String,
    host: String,
    port: String,
    flags: u8,
    bytes: Vec<u8>,
}

fn vectors(json: &str) -> Vec<Vector> {
    let list: Vec<Value> = serde_json::from_str(json).unwrap();
    let text = |v: &Value, key: &str| v[key].as_str().unwrap().to_owned();
    list.iter()
        .map(|v| Vector {
            name: text(v, "name"),
            host: text(v, "host"),
            port: text(v, "port"),
            flags: v.get("flag").map_or(0, |flag| flag.as_u64().unwrap() as u8),
            bytes: text(v, "hex")
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect(),
        })
        .collect()
}

/// Puts the right checksum behind changed bytes.
fn signed(mut header: [u8; LEN]) -> [u8; LEN] {
    let checksum = crc32fast::hash(&header[..271]).to_be_bytes();
    header[271..].copy_from_slice(&checksum);
    header
}

fn request(host: &[u8], port: &[u8]) -> Result<Request, DecodeError> {
    decode(&layout(host, port, 0)).unwrap().request()
}

#[test]
fn the_vectors_of_the_go_implementation_encode_and_decode() {
    let vectors = vectors(CURRENT);
    assert_eq!(vectors.len(), 9);
    for v in vectors {
        assert_eq!(encode(&v.host, &v.port, v.flags).unwrap().to_vec(), v.bytes, "{}", v.name);
        let header = decode(&v.bytes[..].try_into().unwrap()).unwrap();
        assert_eq!(
            header,
            Header {
                host: v.host.into_bytes(),
                port: v.port.into_bytes(),
                flags: v.flags,
                generation: Generation::Current
            }
        );
        assert_eq!(read(&mut &v.bytes[..]).unwrap(), header);
    }
}

#[test]
fn the_vectors_of_the_older_generation_decode() {
    let vectors = vectors(LEGACY);
    assert_eq!(vectors.len(), 6);
    for v in vectors {
        let header = decode_legacy(&v.bytes[..].try_into().unwrap()).unwrap();
        assert_eq!(header.generation, Generation::Legacy);
        assert_eq!(
            header.request().unwrap(),
            Request::Stream(StreamRequest { host: v.host, port: v.port.parse().unwrap() })
        );
        assert_eq!(read(&mut &v.bytes[..]).unwrap(), header, "{}", v.name);
    }
}

#[test]
fn what_follows_a_header_stays_in_the_reader() {
    for v in vectors(CURRENT).into_iter().chain(vectors(LEGACY)) {
        let stream = [&v.bytes[..], b"SSH-2.0-"].concat();
        let mut reader = &stream[..];
        read(&mut reader).unwrap();
        assert_eq!(reader, b"SSH-2.0-", "{}", v.name);
    }
}

#[test]
fn a_header_may_come_byte_by_byte_with_interruptions() {
    struct Drip<'a>(&'a [u8], bool);
    impl io::Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = buf.len().min(1);
            io::Read::read(&mut self.0, &mut buf[..n])
        }
    }
    let header = encode_stream("::1", 22).unwrap();
    assert_eq!(read(&mut Drip(&header, false)).unwrap(), decode(&header).unwrap());
}

#[test]
fn a_header_cut_short_says_how_much_came() {
    let header = encode_stream("localhost", 22).unwrap();
    for end in 0..LEN {
        match read(&mut &header[..end]) {
            Err(ReadError::Cut { got }) => assert_eq!(got, end),
            other => panic!("{end} bytes gave {other:?}"),
        }
    }
    assert_eq!(
        ReadError::Cut { got: 3 }.to_string(),
        "peer closed after 3 of 275 bytes of its stream header"
    );
}

#[test]
fn a_readers_error_is_kept() {
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::TimedOut, "header timed out after 10s"))
        }
    }
    let error = read(&mut Broken).unwrap_err();
    assert!(
        matches!(&error, ReadError::Io { got: 0, source } if source.kind() == io::ErrorKind::TimedOut)
    );
    assert!(error.source().is_some());
}

#[test]
fn another_protocol_is_refused_without_waiting_for_the_last_byte() {
    let mut text = b"GET / HTTP/1.1\r\n".to_vec();
    text.resize(LEGACY_LEN, b' ');
    let error = read(&mut &text[..]).unwrap_err();
    assert!(matches!(&error, ReadError::Invalid(DecodeError::Version(v)) if v == b"GET / HT"));
    assert_eq!(
        error.to_string(),
        "unknown stream protocol version \"GET / HT\" (this side speaks 0.1.0)"
    );
}

#[test]
fn the_four_part_version_belongs_to_the_older_generation_only() {
    let mut header = encode_stream("localhost", 22).unwrap();
    header[..8].copy_from_slice(b"0.1.0.0\0");
    assert_eq!(decode(&signed(header)), Err(DecodeError::Version(*b"0.1.0.0\0")));
}

#[test]
fn a_port_length_over_five_has_its_own_error() {
    let mut header = encode_stream("localhost", 22).unwrap();
    for len in 6..=255 {
        header[264] = len;
        assert_eq!(decode(&signed(header)), Err(DecodeError::PortLength(len)));
    }
}

#[test]
fn padding_and_reserved_flags_are_ignored_when_their_checksum_is_right() {
    let plain = encode_stream("localhost", 22).unwrap();
    let mut odd = plain;
    odd[9 + 9] = b'x';
    odd[263] = 0xff;
    odd[269] = b'9';
    odd[270] = 0b1111_1110;
    let odd = decode(&signed(odd)).unwrap();
    assert_eq!(odd.flags, 0b1111_1110);
    assert_eq!(odd.request(), decode(&plain).unwrap().request());
}

#[test]
fn a_probe_is_a_probe_whatever_its_host_and_port_say() {
    assert_eq!(decode(&encode_probe()).unwrap().request(), Ok(Request::Probe));
    assert_eq!(encode("", "", FLAG_PROBE), Ok(encode_probe()));
    let odd = layout(b"\xff\0", b"x", FLAG_PROBE | 0x80);
    assert_eq!(decode(&odd).unwrap().request(), Ok(Request::Probe));
}

#[test]
fn each_senseless_destination_has_its_own_error() {
    assert_eq!(request(b"", b"22"), Err(DecodeError::HostEmpty));
    assert_eq!(request(b"\xc3", b"22"), Err(DecodeError::HostNotUtf8(vec![0xc3])));
    for host in ["a\0b", "a\nb", "\u{7f}", "a\u{85}"] {
        assert_eq!(request(host.as_bytes(), b"22"), Err(DecodeError::HostControl(host.into())));
    }
    for port in
        ["", "0", "00000", "65536", "99999", "-1", "+22", " 22", "22 ", "0x16", "https", "2\0"]
    {
        assert_eq!(
            request(b"h", port.as_bytes()),
            Err(DecodeError::Port(port.into())),
            "port {port:?}"
        );
    }
    assert_eq!(
        request("bücher.example".as_bytes(), b"00443"),
        Ok(Request::Stream(StreamRequest { host: "bücher.example".into(), port: 443 }))
    );
}

#[test]
fn encoding_refuses_what_cannot_travel() {
    assert_eq!(encode(&"a".repeat(256), "22", 0), Err(EncodeError::HostTooLong(256)));
    assert_eq!(encode("a", "655350", 0), Err(EncodeError::PortTooLong(6)));
    assert_eq!(encode_stream("", 22), Err(EncodeError::HostEmpty));
    assert_eq!(encode_stream("a", 0), Err(EncodeError::PortZero));
    assert_eq!(encode_stream("a\0", 22), Err(EncodeError::HostControl("a\0".into())));
}

/// Found by solving for the checksum: of 2^24 candidates two are such, and this host hits the second.
#[test]
fn a_header_that_checks_in_both_layouts_is_never_sent() {
    let host = "bbccbcccbbbcbcbbcbbbbbbbcbbccbcbbbbbbbbb.example";
    let both = layout(host.as_bytes(), b"443", 0);
    assert!(decode(&both).is_ok() && decode_legacy(both.first_chunk().unwrap()).is_ok());
    // The older layout wins and the last byte would become the stream's first.
    let mut reader = &both[..];
    assert_eq!(read(&mut reader).unwrap().generation, Generation::Legacy);
    assert_eq!(reader.len(), 1);

    assert_eq!(encode_stream(host, 443), Err(EncodeError::Ambiguous));
    assert!(encode_stream(&format!("{host}."), 443).is_ok());
}

fn hosts() -> impl Strategy<Value = String> {
    "\\PC{1,63}".prop_filter("fits", |host| host.len() <= HOST_MAX)
}

proptest! {
    #[test]
    fn every_destination_survives_the_journey(host in hosts(), port in 1u16..) {
        let bytes = encode_stream(&host, port).unwrap();
        prop_assert_eq!(
            read(&mut &bytes[..]).unwrap().request().unwrap(),
            Request::Stream(StreamRequest { host, port })
        );
    }

    #[test]
    fn random_bytes_never_panic_and_never_pass(bytes in proptest::collection::vec(any::<u8>(), LEN)) {
        prop_assert!(read(&mut &bytes[..]).is_err());
    }

    #[test]
    fn random_fields_with_a_right_checksum_never_panic(
        fields in proptest::collection::vec(any::<u8>(), LEN)
    ) {
        let mut bytes: [u8; LEN] = fields.try_into().unwrap();
        bytes[..8].copy_from_slice(&VERSION);
        let bytes = signed(bytes);
        match decode(&bytes) {
            Ok(header) => {
                if let Ok(Request::Stream(to)) = header.request() {
                    prop_assert!(encode_stream(&to.host, to.port).is_ok());
                }
            }
            Err(error) => prop_assert_eq!(error, DecodeError::PortLength(bytes[264])),
        }
    }
}

proptest! {
    // Each case is 2,200 headers.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn every_flipped_bit_is_noticed(host in hosts(), port in 1u16..) {
        let good = encode_stream(&host, port).unwrap();
        for bit in 0..LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(read(&mut &bad[..]), Err(ReadError::Invalid(_))), "bit {}", bit);
        }
    }
}
