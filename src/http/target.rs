//! The request target: its path and its query.

use std::error::Error;
use std::fmt;

/// Pairs in one query at most. The API knows five; the head's limit bounds their length.
pub const PAIRS_MAX: usize = 64;

/// Why a query cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadQuery {
    /// More than [`PAIRS_MAX`] pairs.
    TooMany,
    /// A `%` without two hexadecimal digits after it.
    Escape,
    /// The decoded bytes are not UTF-8.
    NotText,
}

impl fmt::Display for BadQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "the query has more than 64 parameters",
            Self::Escape => "the query has a % without two hexadecimal digits after it",
            Self::NotText => "the query is not UTF-8",
        })
    }
}

impl Error for BadQuery {}

/// Whether `target` has one of the forms of RFC 9112, section 3.2, for `method`.
pub(super) fn is_valid(method: &str, target: &str) -> bool {
    if !target.bytes().all(|b| b.is_ascii_graphic()) || target.contains('#') {
        return false;
    }
    match method {
        "CONNECT" => !target.contains(['/', '?']),
        "OPTIONS" if target == "*" => true,
        _ => target.starts_with('/') || after_scheme(target).is_some_and(|rest| !rest.is_empty()),
    }
}

/// The path of `target` as sent, percent escapes and all; empty for `CONNECT`'s authority.
pub(super) fn path(target: &str) -> &str {
    let target = target.split_once('?').map_or(target, |(before, _)| before);
    match after_scheme(target) {
        Some(rest) => match rest.find('/') {
            Some(at) => rest.get(at..).unwrap_or("/"),
            None => "/",
        },
        None if target.starts_with('/') || target == "*" => target,
        None => "",
    }
}

/// The decoded pairs of `target`'s query, in order; a name without `=` has an empty value.
pub(super) fn query(target: &str) -> Result<Vec<(String, String)>, BadQuery> {
    let Some((_, query)) = target.split_once('?') else { return Ok(Vec::new()) };
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == PAIRS_MAX {
            return Err(BadQuery::TooMany);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((decode(name)?, decode(value)?));
    }
    Ok(pairs)
}

/// `path` as the target of a request: what a target may not contain is percent-encoded, escapes
/// that are there already stay, and it starts with `/`.
pub(super) fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    let bytes = path.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        let stays = match byte {
            b'%' => matches!(bytes.get(at + 1..at + 3), Some([high, low])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()),
            _ => byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte),
        };
        if stays {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn after_scheme(target: &str) -> Option<&str> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| target.get(scheme.len()..)).flatten()
    })
}

fn decode(text: &str) -> Result<String, BadQuery> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    let byte = bytes.next().ok_or(BadQuery::Escape)?;
                    let digit = char::from(byte).to_digit(16).ok_or(BadQuery::Escape)?;
                    u8::try_from(digit).map_err(|_| BadQuery::Escape)
                };
                digit()? << 4 | digit()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).map_err(|_| BadQuery::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_found_in_every_form_of_target() {
        assert_eq!(path("/a/b?c=/d"), "/a/b");
        assert_eq!(path("HTTPS://godoxy.agent/a?b"), "/a");
        assert_eq!(path("http://godoxy.agent?b"), "/");
        assert_eq!(path("*"), "*");
        assert_eq!(path("host:1"), "");
    }

    #[test]
    fn a_target_fits_its_method() {
        assert!(is_valid("GET", "/") && is_valid("GET", "http://h/") && is_valid("OPTIONS", "*"));
        assert!(is_valid("CONNECT", "host:443"));
        for bad in ["*", "host:443", "a/b", "http://", "/#part", "/\u{e9}", ""] {
            assert!(!is_valid("GET", bad), "{bad:?}");
        }
        assert!(!is_valid("CONNECT", "/path"));
    }

    #[test]
    fn a_query_is_decoded_and_bounded() {
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(query("/p"), Ok(vec![]));
        assert_eq!(
            query("/p?host=%5B%3a%3A1%5D&&a+b=c%2Bd&flag&x=y=z"),
            Ok(vec![pair("host", "[::1]"), pair("a b", "c+d"), pair("flag", ""), pair("x", "y=z")])
        );
        for bad in ["/?a=%", "/?a=%4", "/?a=%zz", "/?%+1=2"] {
            assert_eq!(query(bad), Err(BadQuery::Escape), "{bad}");
        }
        assert_eq!(query("/?a=%ff"), Err(BadQuery::NotText));
        let many = |n| format!("/?{}", vec!["a=1"; n].join("&"));
        assert_eq!(query(&many(PAIRS_MAX)).unwrap().len(), PAIRS_MAX);
        assert_eq!(query(&many(PAIRS_MAX + 1)), Err(BadQuery::TooMany));
    }

    #[test]
    fn an_encoded_path_cannot_break_out_of_the_request_line() {
        assert_eq!(encode_path(""), "/");
        assert_eq!(encode_path("health"), "/health");
        assert_eq!(encode_path("/a b\r\nX: y?é%20%zz"), "/a%20b%0D%0AX:%20y%3F%C3%A9%20%25zz");
    }
}
