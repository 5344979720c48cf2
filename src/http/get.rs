//! Fetching one small document.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Read};

use httparse::{EMPTY_HEADER, Status};

use super::{Connection, HEAD_MAX, HEADERS_MAX, SOFTWARE};
use crate::lifecycle::Deadline;

/// The answer to a [`get`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The document.
    pub body: Vec<u8>,
}

/// Gets `path` from `host` as the only request of a connection, with HTTP/1.0: the body is then
/// never chunked and ends with the connection (RFC 9112 §6.3), which every server has to support.
///
/// `most` bounds the body, in bytes.
pub fn get(
    conn: &mut dyn Connection,
    host: &str,
    path: &str,
    most: usize,
    deadline: Deadline,
) -> Result<Answer, GetError> {
    conn.set_deadline(Some(deadline)).map_err(GetError::Exchange)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: {SOFTWARE}\r\n\r\n");
    conn.write_all(request.as_bytes()).map_err(GetError::Exchange)?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(HEAD_MAX + most + 1).unwrap_or(u64::MAX);
    conn.take(limit).read_to_end(&mut bytes).map_err(GetError::Exchange)?;
    parse(&bytes, most)
}

fn parse(bytes: &[u8], most: usize) -> Result<Answer, GetError> {
    let mut fields = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let Status::Complete(head) = response.parse(bytes).map_err(GetError::Syntax)? else {
        return Err(GetError::Exchange(ErrorKind::UnexpectedEof.into()));
    };
    let body = bytes.get(head..).unwrap_or_default();
    let length = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.trim().parse::<usize>().ok());
    let body = match length {
        Some(length) => {
            body.get(..length).ok_or(GetError::Exchange(ErrorKind::UnexpectedEof.into()))?
        }
        None => body,
    };
    if body.len() > most {
        return Err(GetError::TooLarge(most));
    }
    Ok(Answer { status: response.code.unwrap_or_default(), body: body.to_vec() })
}

/// A document that could not be fetched.
#[derive(Debug)]
pub enum GetError {
    /// The request could not be sent or the answer not be read to its end.
    Exchange(io::Error),
    /// The answer is not HTTP/1.
    Syntax(httparse::Error),
    /// The body is longer than this many bytes.
    TooLarge(usize),
}

impl fmt::Display for GetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(e) if e.kind() == ErrorKind::UnexpectedEof => {
                f.write_str("the answer was cut short")
            }
            Self::Exchange(e) => e.fmt(f),
            Self::Syntax(e) => write!(f, "the answer is not HTTP/1: {e}"),
            Self::TooLarge(most) => write!(f, "the answer is longer than {most} bytes"),
        }
    }
}

impl Error for GetError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Exchange(e) => Some(e),
            Self::Syntax(e) => Some(e),
            Self::TooLarge(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_what_the_length_says_or_all_there_is() {
        let body = |text: &str| parse(text.as_bytes(), 8).map(|a| (a.status, a.body));
        assert_eq!(
            body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc").unwrap(),
            (200, b"ab".to_vec())
        );
        assert_eq!(body("HTTP/1.0 404 No\r\n\r\nabc").unwrap(), (404, b"abc".to_vec()));
        assert!(matches!(
            body("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc"),
            Err(GetError::Exchange(_))
        ));
        assert!(matches!(body("HTTP/1.1 200 OK\r\n"), Err(GetError::Exchange(_))));
        assert!(matches!(body("HTTP/1.1 200 OK\r\n\r\n123456789"), Err(GetError::TooLarge(8))));
        assert!(matches!(body("SSH-2.0-x\r\n\r\n"), Err(GetError::Syntax(_))));
    }
}
