//! Requests: finding the end of a head, parsing it strictly, writing it again.

use httparse::{EMPTY_HEADER, Error as Syntax};

use super::target::{self, BadQuery};
use super::{HEADERS_MAX, Refusal};

/// The protocol versions that are spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: closes after each answer unless asked not to.
    Http10,
    /// HTTP/1.1: stays open unless asked not to.
    Http11,
}

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// That many bytes; 0 when the head announces no body.
    Length(u64),
    /// Chunks, each with its size before it.
    Chunked,
}

/// The head of a request that passed every check of [`Request::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    method: String,
    target: String,
    version: Version,
    headers: Vec<(String, Vec<u8>)>,
    framing: Framing,
}

impl Request {
    /// Parses a whole head, its empty line included (see [`HeadScanner`]).
    ///
    /// Stricter than the grammar asks of a recipient, because whatever two recipients can read in
    /// two ways lets one request hide in another (RFC 9112, section 11.2): no folded lines, no bare
    /// CR or LF, no space before a colon, one `Host`, one `Content-Length` or one `chunked` but not
    /// both.
    pub fn parse(head: &[u8]) -> Result<Self, Refusal> {
        if HeadScanner::default().scan(head)? != Some(head.len()) {
            return Err(Refusal::Syntax(Syntax::NewLine));
        }
        let mut fields = [EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut fields);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Refusal::Syntax(Syntax::NewLine)),
            Err(Syntax::TooManyHeaders) => return Err(Refusal::TooManyHeaders),
            Err(Syntax::Version) if names_other_version(head) => return Err(Refusal::Version),
            Err(error) => return Err(Refusal::Syntax(error)),
        }
        let (Some(method), Some(target), Some(version)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(Refusal::Syntax(Syntax::Token));
        };
        if !target::is_valid(method, target) {
            return Err(Refusal::Target);
        }
        let mut request = Self {
            method: method.to_owned(),
            target: target.to_owned(),
            version: if version == 0 { Version::Http10 } else { Version::Http11 },
            headers: parsed.headers.iter().map(|h| (h.name.to_owned(), h.value.to_vec())).collect(),
            framing: Framing::Length(0),
        };
        request.check_host()?;
        request.framing = request.find_framing()?;
        Ok(request)
    }

    /// The method as sent; methods are case-sensitive.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The target as sent: printable ASCII, and peer-controlled.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The target's path as sent, percent escapes and all; empty for `CONNECT`.
    pub fn path(&self) -> &str {
        target::path(&self.target)
    }

    /// The decoded pairs of the query, in order.
    pub fn query(&self) -> Result<Vec<(String, String)>, BadQuery> {
        target::query(&self.target)
    }

    /// Names and values of all header fields, in order, without the space around values.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The values of every header field called `name`, whatever its case.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let named = move |(n, _): &&(String, Vec<u8>)| n.eq_ignore_ascii_case(name);
        self.headers.iter().filter(named).map(|(_, value)| value.as_slice())
    }

    /// How the body is delimited.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the client wants the connection to stay open (RFC 9112, section 9.3).
    pub fn keeps_alive(&self) -> bool {
        match self.version {
            _ if self.has_connection_option("close") => false,
            Version::Http11 => true,
            Version::Http10 => self.has_connection_option("keep-alive"),
        }
    }

    /// Whether the client waits for `100 Continue` before it sends the body. HTTP/1.0 cannot.
    pub fn expects_continue(&self) -> Result<bool, Refusal> {
        let mut expected = false;
        for value in self.header("Expect").filter(|_| self.version == Version::Http11) {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::ExpectUnknown);
            }
            expected = true;
        }
        Ok(expected)
    }

    /// The head as bytes that parse into an equal request.
    pub fn to_bytes(&self) -> Vec<u8> {
        let version = match self.version {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        };
        let mut out = format!("{} {} {version}\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    fn has_connection_option(&self, option: &str) -> bool {
        self.header("Connection")
            .flat_map(|value| value.split(|&b| b == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    }

    fn check_host(&self) -> Result<(), Refusal> {
        let mut hosts = self.header("Host");
        match (hosts.next(), hosts.next()) {
            (_, Some(_)) => Err(Refusal::HostRepeated),
            (None, _) if self.version == Version::Http11 => Err(Refusal::HostMissing),
            // The characters of RFC 3986, section 3.2.2 and a port.
            (Some(host), _)
                if !host
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(b)) =>
            {
                Err(Refusal::HostInvalid)
            }
            _ => Ok(()),
        }
    }

    fn find_framing(&self) -> Result<Framing, Refusal> {
        let mut lengths = self.header("Content-Length");
        let mut codings = self.header("Transfer-Encoding");
        match (lengths.next(), codings.next()) {
            (None, None) => Ok(Framing::Length(0)),
            (Some(_), Some(_)) => Err(Refusal::LengthAndEncoding),
            (Some(_), None) if lengths.next().is_some() => Err(Refusal::LengthRepeated),
            (Some(length), None) => {
                // Digits only: `parse` alone would also take a sign.
                std::str::from_utf8(length)
                    .ok()
                    .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
                    .and_then(|text| text.parse().ok())
                    .map(Framing::Length)
                    .ok_or(Refusal::LengthInvalid)
            }
            (None, Some(_)) if self.version == Version::Http10 => Err(Refusal::EncodingInHttp10),
            (None, Some(coding)) => {
                if codings.next().is_none() && coding.eq_ignore_ascii_case(b"chunked") {
                    Ok(Framing::Chunked)
                } else {
                    Err(Refusal::EncodingUnknown)
                }
            }
        }
    }
}

/// Finds the end of a head in bytes that arrive little by little, each looked at once.
#[derive(Clone, Debug, Default)]
pub struct HeadScanner {
    at: usize,
    line: usize,
    in_head: bool,
}

impl HeadScanner {
    /// Looks at what follows the bytes seen before; `bytes` starts where it started the last time.
    /// `Some` tells the length of the head, its empty line and any empty lines before it included
    /// (RFC 9112, section 2.2 lets a server skip those).
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'\r' => match bytes.get(self.at + 1) {
                    Some(b'\n') => {}
                    Some(_) => return Err(Refusal::BareCarriageReturn),
                    None => return Ok(None),
                },
                b'\n' => {
                    let length = self.at - self.line;
                    let after_return =
                        self.at.checked_sub(1).and_then(|before| bytes.get(before)) == Some(&b'\r');
                    if length == 0 || !after_return {
                        return Err(Refusal::BareLineFeed);
                    }
                    self.line = self.at + 1;
                    if length > 1 {
                        self.in_head = true;
                    } else if self.in_head {
                        return Ok(Some(self.line));
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        Ok(None)
    }
}

/// Whether the request line is one but for its protocol version, which is well-formed and not ours.
fn names_other_version(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|&b| b == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|&b| b == b' ').skip(2);
    matches!((parts.next(), parts.next()),
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(head: &str) -> Refusal {
        Request::parse(head.as_bytes()).expect_err(head)
    }

    #[test]
    fn an_accepted_head_is_read_as_sent() {
        let head = b"\r\nPOST /p?q=1 HTTP/1.1\r\nHost: [::1]:8890\r\nX-A:  b\xe9\t \r\n\
            connection: x, Keep-Alive\r\ncontent-length: 007\r\nEXPECT: 100-Continue\r\n\r\n";
        let request = Request::parse(head).unwrap();
        assert_eq!((request.method(), request.path()), ("POST", "/p"));
        assert_eq!(request.header("x-a").collect::<Vec<_>>(), [b"b\xe9"]);
        assert_eq!(request.framing(), Framing::Length(7));
        assert_eq!(request.expects_continue(), Ok(true));
        assert!(request.keeps_alive());
    }

    #[test]
    fn what_two_recipients_could_read_differently_is_refused() {
        use Refusal::*;
        let with = |fields: &str| refusal(&format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
        assert_eq!(with("Content-Length: 1\r\nContent-Length: 1\r\n"), LengthRepeated);
        assert_eq!(with("Content-Length: 1\r\nContent-Length: 2\r\n"), LengthRepeated);
        for bad in ["1, 1", "+1", "-1", "0x1", "1 1", "", "18446744073709551616"] {
            assert_eq!(with(&format!("Content-Length: {bad}\r\n")), LengthInvalid, "{bad}");
        }
        assert_eq!(with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), LengthAndEncoding);
        for bad in ["gzip", "gzip, chunked", "chunked, chunked", "xchunked", ""] {
            assert_eq!(with(&format!("Transfer-Encoding: {bad}\r\n")), EncodingUnknown, "{bad}");
        }
        assert_eq!(
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            EncodingUnknown
        );
        assert_eq!(with("Host: h\r\n"), HostRepeated);
        assert!(matches!(with("X: a\r\n folded\r\n"), Syntax(_)));
        assert!(matches!(with("X : a\r\n"), Syntax(_)));
        assert!(matches!(with(" X: a\r\n"), Syntax(_)));
        assert!(matches!(with("X: a\0b\r\n"), Syntax(_)));
        assert_eq!(with("X: a\nY: b\r\n"), BareLineFeed);
        assert_eq!(with("X: a\rY: b\r\n"), BareCarriageReturn);
        assert_eq!(refusal("GET / HTTP/1.1\r\n\r\n"), HostMissing);
        assert_eq!(refusal("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), HostInvalid);
        assert_eq!(refusal("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), HostInvalid);
        assert_eq!(
            refusal("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            EncodingInHttp10
        );
    }

    #[test]
    fn a_request_line_of_another_kind_is_refused() {
        assert_eq!(refusal("PRI * HTTP/2.0\r\n\r\n"), Refusal::Version);
        assert_eq!(refusal("GET no-slash HTTP/1.0\r\n\r\n"), Refusal::Target);
        for bad in [
            "GET /\r\n\r\n",
            "GET / HTTP/1\r\n\r\n",
            "GET / x HTTP/1.1\r\n\r\n",
            "G@T / HTTP/1.1\r\n\r\n",
        ] {
            assert!(matches!(refusal(bad), Refusal::Syntax(_)), "{bad:?}");
        }
        let many = "X: y\r\n".repeat(HEADERS_MAX + 1);
        assert_eq!(refusal(&format!("GET / HTTP/1.0\r\n{many}\r\n")), Refusal::TooManyHeaders);
        assert!(Request::parse(b"GET / HTTP/1.0\r\n").is_err());
        assert!(Request::parse(b"GET / HTTP/1.0\r\n\r\nmore").is_err());
    }

    #[test]
    fn the_version_decides_whether_the_connection_stays() {
        let keeps = |version: &str, fields: &str| {
            let head = format!("GET / HTTP/{version}\r\nHost: h\r\n{fields}\r\n");
            Request::parse(head.as_bytes()).unwrap().keeps_alive()
        };
        assert!(keeps("1.1", "") && keeps("1.0", "Connection: keep-alive\r\n"));
        assert!(!keeps("1.0", "") && !keeps("1.1", "Connection: x,\tCLOSE\r\n"));
        assert!(!keeps("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
    }

    proptest! {
        #[test]
        fn a_head_is_found_wherever_its_bytes_are_split(
            text in "(\r\n){0,2}[a-c\r\n]{0,12}(\r\n){0,2}", cut in 0usize..20,
        ) {
            let bytes = text.as_bytes();
            let whole = HeadScanner::default().scan(bytes);
            let mut scanner = HeadScanner::default();
            let first = scanner.scan(&bytes[..cut.min(bytes.len())]);
            let split = if first == Ok(None) { scanner.scan(bytes) } else { first };
            prop_assert_eq!(whole, split);
        }

        #[test]
        fn an_accepted_head_survives_being_written_again(
            fields in prop::collection::vec(("[A-Za-z-]{1,8}", "[ -~\t]{0,12}"), 0..6),
            target in "/[!-~]{0,12}", old: bool,
        ) {
            let version = if old { "1.0" } else { "1.1" };
            let mut head = format!("GET {target} HTTP/{version}\r\nHost: h\r\n");
            for (name, value) in fields {
                head.push_str(&format!("{name}:{value}\r\n"));
            }
            head.push_str("\r\n");
            if let Ok(request) = Request::parse(head.as_bytes()) {
                prop_assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
            }
        }
    }
}
