//! The stream request header: fixed size, sent once by the client, first thing after the
//! handshake.
//!
//! | offset | bytes | field | value |
//! |---|---|---|---|
//! | 0 | 8 | version | `0.1.0`, NUL padded |
//! | 8 | 1 | host length | 0–255 |
//! | 9 | 255 | host | NUL padded |
//! | 264 | 1 | port length | 0–5 |
//! | 265 | 5 | port | decimal text, NUL padded |
//! | 270 | 1 | flags | bit 0: health probe |
//! | 271 | 4 | checksum | CRC-32 (IEEE), big-endian, over bytes 0–270 |
//!
//! The older generation lacks the flags: its checksum is at offset 270 over bytes 0–269, and its
//! version may also read `0.1.0.0`.
//!
//! Bytes of the host and port fields behind their length are padding. They are sent as NUL, covered
//! by the checksum and otherwise ignored, as existing peers do; so are the reserved flag bits.

use std::error::Error;
use std::fmt;
use std::io;

/// Bytes of a header.
pub const LEN: usize = 275;
/// Bytes of a header of the older generation, which has no flags.
pub const LEGACY_LEN: usize = 274;
/// The ALPN protocol whose connections start with this header.
pub const ALPN: &[u8] = b"godoxy-agent-stream/1";
/// Flag bit 0, `CLOSE_IMMEDIATELY`: a health probe, after which the agent closes without dialling.
pub const FLAG_PROBE: u8 = 1;
/// The longest host, in bytes: what its one length byte can say.
pub const HOST_MAX: usize = 255;
/// The longest port, in bytes: `65535`.
pub const PORT_MAX: usize = 5;

const VERSION: [u8; 8] = *b"0.1.0\0\0\0";
const LEGACY_VERSION: [u8; 8] = *b"0.1.0.0\0";

const HOST_AT: usize = 8;
const PORT_AT: usize = 264;
const FLAGS_AT: usize = 270;

/// What a client asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// Only whether the agent answers: it closes without dialling.
    Probe,
    /// A stream to a destination.
    Stream(StreamRequest),
}

/// A destination that can be dialled: `host` is neither empty nor longer than 255 bytes and has no
/// control characters, `port` is not 0.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StreamRequest {
    /// A name or an IP literal without brackets, perhaps with a zone (`fe80::1%eth0`). Chosen by
    /// the peer: escape it when it is shown.
    pub host: String,
    /// 1–65535.
    pub port: u16,
}

/// Which layout a header came in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Generation {
    /// 274 bytes, without flags.
    Legacy,
    /// 275 bytes.
    Current,
}

/// The fields of a header that passed version, lengths and checksum; what they mean is checked by
/// [`Header::request`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// 0–255 bytes, whatever the peer sent.
    pub host: Vec<u8>,
    /// 0–5 bytes, whatever the peer sent.
    pub port: Vec<u8>,
    /// All eight bits, reserved ones too. 0 for the older generation.
    pub flags: u8,
    /// The layout it came in.
    pub generation: Generation,
}

impl Header {
    /// What the header asks for.
    ///
    /// A probe asks for nothing else, so its host and port are not looked at. For a stream, each of
    /// these has its own error: an empty host, a host that is not UTF-8 or has control characters
    /// (NUL included), and a port that is not 1–65535 in plain digits (no sign, no service name).
    pub fn request(&self) -> Result<Request, DecodeError> {
        if self.flags & FLAG_PROBE != 0 {
            return Ok(Request::Probe);
        }
        let host =
            str::from_utf8(&self.host).map_err(|_| DecodeError::HostNotUtf8(self.host.clone()))?;
        if host.is_empty() {
            return Err(DecodeError::HostEmpty);
        }
        if host.chars().any(char::is_control) {
            return Err(DecodeError::HostControl(host.to_owned()));
        }
        let port = parse_port(&self.port).ok_or_else(|| DecodeError::Port(self.port.clone()))?;
        Ok(Request::Stream(StreamRequest { host: host.to_owned(), port }))
    }
}

/// Digits only, 1–65535. Leading zeros are still plain digits and say the same number.
fn parse_port(text: &[u8]) -> Option<u16> {
    if text.len() > PORT_MAX || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok().filter(|port| *port != 0)
}

/// The header that asks for a stream to `host` and `port`. Refuses what [`Header::request`] would
/// refuse on the other side.
pub fn encode_stream(host: &str, port: u16) -> Result<[u8; LEN], EncodeError> {
    if host.is_empty() {
        return Err(EncodeError::HostEmpty);
    }
    if host.chars().any(char::is_control) {
        return Err(EncodeError::HostControl(host.to_owned()));
    }
    if port == 0 {
        return Err(EncodeError::PortZero);
    }
    encode(host, &port.to_string(), 0)
}

/// The header of a health probe.
pub fn encode_probe() -> [u8; LEN] {
    layout(&[], &[], FLAG_PROBE)
}

/// A header of any text that fits, whether or not it makes sense as a destination.
///
/// Refuses the about one header in four thousand million whose first 274 bytes also check as the
/// older generation: an agent would take its last byte for the first one of the stream.
pub fn encode(host: &str, port: &str, flags: u8) -> Result<[u8; LEN], EncodeError> {
    if host.len() > HOST_MAX {
        return Err(EncodeError::HostTooLong(host.len()));
    }
    if port.len() > PORT_MAX {
        return Err(EncodeError::PortTooLong(port.len()));
    }
    let header = layout(host.as_bytes(), port.as_bytes(), flags);
    if header.first_chunk().is_some_and(|start| decode_legacy(start).is_ok()) {
        return Err(EncodeError::Ambiguous);
    }
    Ok(header)
}

/// `host` and `port` fit: the callers have looked.
fn layout(host: &[u8], port: &[u8], flags: u8) -> [u8; LEN] {
    let mut header = [0; LEN];
    let (checked, checksum) = header.split_at_mut(FLAGS_AT + 1);
    let fields: [(usize, &[u8]); 6] = [
        (0, &VERSION),
        (HOST_AT, &[host.len() as u8]),
        (HOST_AT + 1, host),
        (PORT_AT, &[port.len() as u8]),
        (PORT_AT + 1, port),
        (FLAGS_AT, &[flags]),
    ];
    for (at, bytes) in fields {
        for (to, from) in checked.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    checksum.copy_from_slice(&crc32fast::hash(checked).to_be_bytes());
    header
}

/// Decodes the older generation's layout.
pub fn decode_legacy(bytes: &[u8; LEGACY_LEN]) -> Result<Header, DecodeError> {
    decode_fields(bytes, &[VERSION, LEGACY_VERSION], Generation::Legacy)
}

/// Decodes the current layout.
pub fn decode(bytes: &[u8; LEN]) -> Result<Header, DecodeError> {
    decode_fields(bytes, &[VERSION], Generation::Current)
}

/// The header that is all of a datagram, told by its length; `None` for any other datagram.
pub fn decode_datagram(datagram: &[u8]) -> Option<Result<Header, DecodeError>> {
    if let Ok(current) = datagram.try_into() {
        return Some(decode(current));
    }
    datagram.try_into().ok().map(decode_legacy)
}

fn decode_fields(
    bytes: &[u8],
    versions: &[[u8; 8]],
    generation: Generation,
) -> Result<Header, DecodeError> {
    let truncated = || DecodeError::Length(bytes.len());
    let (checked, checksum) = bytes.split_last_chunk::<4>().ok_or_else(truncated)?;
    let (version, rest) = checked.split_first_chunk::<8>().ok_or_else(truncated)?;
    let (host_field, rest) = rest.split_first_chunk::<{ HOST_MAX + 1 }>().ok_or_else(truncated)?;
    let (port_field, flags) = rest.split_first_chunk::<{ PORT_MAX + 1 }>().ok_or_else(truncated)?;

    if !versions.contains(version) {
        return Err(DecodeError::Version(*version));
    }
    let host = prefixed(host_field).ok_or_else(truncated)?;
    let port = prefixed(port_field).ok_or(DecodeError::PortLength(port_field[0]))?;
    let (sent, computed) = (u32::from_be_bytes(*checksum), crc32fast::hash(checked));
    if sent != computed {
        return Err(DecodeError::Checksum { sent, computed });
    }
    Ok(Header {
        host: host.to_vec(),
        port: port.to_vec(),
        flags: flags.first().copied().unwrap_or(0),
        generation,
    })
}

/// What a field's first byte says is used of the rest of it.
fn prefixed(field: &[u8]) -> Option<&[u8]> {
    let (len, text) = field.split_first()?;
    text.get(..usize::from(*len))
}

/// A version's text without its NUL padding.
fn unpadded(version: &[u8; 8]) -> &[u8] {
    let end = version.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    version.get(..end).unwrap_or_default()
}

/// Reads a header of either generation, and not one byte behind it.
///
/// Takes 274 bytes; if they check as the older layout, that is the header, else takes one byte more
/// and checks the current one. That byte is not waited for when the version alone already decides.
/// Time limits are the reader's business: its error comes back as [`ReadError::Io`].
pub fn read(reader: &mut impl io::Read) -> Result<Header, ReadError> {
    let mut bytes = [0; LEN];
    let (start, last) = bytes.split_at_mut(LEGACY_LEN);
    fill(reader, start, 0)?;
    let legacy = match start.first_chunk().map(decode_legacy) {
        Some(Ok(header)) => return Ok(header),
        Some(Err(error)) => error,
        None => DecodeError::Length(start.len()),
    };
    if !start.starts_with(&VERSION) {
        return Err(ReadError::Invalid(legacy));
    }
    fill(reader, last, LEGACY_LEN)?;
    decode(&bytes).map_err(ReadError::Invalid)
}

/// Fills `part`; `before` bytes of the header came already.
fn fill(reader: &mut impl io::Read, part: &mut [u8], before: usize) -> Result<(), ReadError> {
    let mut got = 0;
    while let Some(rest) = part.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => return Err(ReadError::Cut { got: before + got }),
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A TLS connection that ends without close_notify.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ReadError::Cut { got: before + got });
            }
            Err(source) => return Err(ReadError::Io { got: before + got, source }),
        }
    }
    Ok(())
}

/// Why a header could not be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EncodeError {
    /// The host has this many bytes, more than 255.
    HostTooLong(usize),
    /// The port has this many bytes, more than 5.
    PortTooLong(usize),
    /// A stream needs a host.
    HostEmpty,
    /// The host has control characters.
    HostControl(String),
    /// A stream needs a port other than 0.
    PortZero,
    /// The header would also check as one of the older generation.
    Ambiguous,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostTooLong(len) => {
                write!(f, "destination host has {len} bytes; at most {HOST_MAX} fit")
            }
            Self::PortTooLong(len) => {
                write!(f, "destination port has {len} characters; at most {PORT_MAX} fit")
            }
            Self::HostEmpty => f.write_str("destination host is empty"),
            Self::HostControl(host) => {
                write!(f, "destination host \"{}\" has control characters", host.escape_debug())
            }
            Self::PortZero => f.write_str("destination port is 0; use 1-65535"),
            Self::Ambiguous => f.write_str(
                "this destination's header cannot be told from one of the older protocol \
                 generation; spell the host differently, for example with a final dot or in \
                 capitals",
            ),
        }
    }
}

impl Error for EncodeError {}

/// Why bytes are not a header, or a header is not a request. Texts are chosen by the peer and are
/// escaped when shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DecodeError {
    /// This many bytes are neither layout. Fixed-size arguments rule it out.
    Length(usize),
    /// Another version, or not this protocol at all.
    Version([u8; 8]),
    /// The port's length byte says more than 5.
    PortLength(u8),
    /// The bytes were changed on their way, or made by something else.
    Checksum {
        /// The checksum in the header.
        sent: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// A stream without a host.
    HostEmpty,
    /// The host is not UTF-8.
    HostNotUtf8(Vec<u8>),
    /// The host has control characters.
    HostControl(String),
    /// The port is not 1–65535 in plain digits.
    Port(Vec<u8>),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(len) => {
                write!(f, "{len} bytes are no stream header ({LEGACY_LEN} or {LEN} are)")
            }
            Self::Version(version) => write!(
                f,
                "unknown stream protocol version \"{}\" (this side speaks 0.1.0)",
                unpadded(version).escape_ascii()
            ),
            Self::PortLength(len) => {
                write!(f, "port length {len} in stream header is more than {PORT_MAX}")
            }
            Self::Checksum { sent, computed } => write!(
                f,
                "stream header checksum {sent:08x} does not match its bytes ({computed:08x})"
            ),
            Self::HostEmpty => f.write_str("stream header names no destination host"),
            Self::HostNotUtf8(host) => {
                write!(f, "destination host \"{}\" is not UTF-8", host.escape_ascii())
            }
            Self::HostControl(host) => {
                write!(f, "destination host \"{}\" has control characters", host.escape_debug())
            }
            Self::Port(port) => {
                write!(f, "destination port \"{}\" is not 1-65535", port.escape_ascii())
            }
        }
    }
}

impl Error for DecodeError {}

/// Why no header could be read.
#[derive(Debug)]
pub enum ReadError {
    /// The peer closed before its header was complete.
    Cut {
        /// Bytes that came, 0–274.
        got: usize,
    },
    /// Reading failed or took too long.
    Io {
        /// Bytes that came before.
        got: usize,
        /// What the reader said.
        source: io::Error,
    },
    /// What came is not a header.
    Invalid(DecodeError),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut { got: 0 } => f.write_str("peer closed without sending a stream header"),
            Self::Cut { got } => {
                write!(f, "peer closed after {got} of {LEN} bytes of its stream header")
            }
            Self::Io { got, source } => {
                write!(f, "reading the stream header, {got} of {LEN} bytes came: {source}")
            }
            Self::Invalid(error) => error.fmt(f),
        }
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Cut { .. } => None,
            Self::Io { source, .. } => Some(source),
            // Its text is already this error's own.
            Self::Invalid(error) => error.source(),
        }
    }
}

#[cfg(test)]
mod tests;
