//! Why a request is refused before anyone looks at what it asks for.

use std::error::Error;
use std::fmt;

/// A request that does not deserve an answer of its own. The connection closes after its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A line feed without a carriage return before it, in the head.
    BareLineFeed,
    /// A carriage return without a line feed after it, in the head.
    BareCarriageReturn,
    /// The request line or a header field breaks the grammar (folded lines and a space before
    /// the colon included).
    Syntax(httparse::Error),
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// The target has none of the four forms of RFC 9112, section 3.2.
    Target,
    /// HTTP/1.1 without a `Host`.
    HostMissing,
    /// More than one `Host`.
    HostRepeated,
    /// A `Host` with bytes that no host has.
    HostInvalid,
    /// A `Content-Length` that is not a number.
    LengthInvalid,
    /// More than one `Content-Length`, equal or not.
    LengthRepeated,
    /// `Content-Length` beside `Transfer-Encoding`.
    LengthAndEncoding,
    /// A transfer coding other than `chunked`, once.
    EncodingUnknown,
    /// `Transfer-Encoding` in HTTP/1.0, which has none.
    EncodingInHttp10,
    /// An `Expect` other than `100-continue`.
    ExpectUnknown,
    /// The head is longer than the limit.
    HeadTooLarge,
    /// More header fields than [`super::HEADERS_MAX`].
    TooManyHeaders,
    /// The head did not arrive within its limit.
    HeadTooSlow,
    /// The body is longer than the limit.
    BodyTooLarge,
    /// The body did not arrive within its limit.
    BodyTooSlow,
    /// The framing of a chunked body breaks the grammar.
    ChunkSyntax,
}

impl Refusal {
    /// The status code that tells the client (RFC 9110, section 15).
    pub fn status(self) -> u16 {
        match self {
            Self::HeadTooSlow | Self::BodyTooSlow => 408,
            Self::BodyTooLarge => 413,
            Self::ExpectUnknown => 417,
            Self::HeadTooLarge | Self::TooManyHeaders => 431,
            Self::EncodingUnknown => 501,
            Self::Version => 505,
            _ => 400,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BareLineFeed => "line feed without carriage return in the request head",
            Self::BareCarriageReturn => "carriage return without line feed in the request head",
            Self::Syntax(error) => return write!(f, "malformed request head: {error}"),
            Self::Version => "only HTTP/1.0 and HTTP/1.1 are spoken here",
            Self::Target => "malformed request target",
            Self::HostMissing => "Host is missing",
            Self::HostRepeated => "Host is given more than once",
            Self::HostInvalid => "Host is not a host",
            Self::LengthInvalid => "Content-Length is not a number",
            Self::LengthRepeated => "Content-Length is given more than once",
            Self::LengthAndEncoding => "Content-Length and Transfer-Encoding exclude each other",
            Self::EncodingUnknown => "the only transfer coding known here is chunked",
            Self::EncodingInHttp10 => "HTTP/1.0 has no Transfer-Encoding",
            Self::ExpectUnknown => "the only expectation known here is 100-continue",
            Self::HeadTooLarge => "the request head is too long",
            Self::TooManyHeaders => "too many header fields",
            Self::HeadTooSlow => "the request head took too long",
            Self::BodyTooLarge => "the request body is too long",
            Self::BodyTooSlow => "the request body took too long",
            Self::ChunkSyntax => "malformed chunked body",
        })
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Syntax(error) => Some(error),
            _ => None,
        }
    }
}
