//! The one request we make ourselves: does that server answer?

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

use httparse::{EMPTY_HEADER, Status};

use super::{HEAD_MAX, HEADERS_MAX, SOFTWARE, target};

/// Why a `HEAD` request got no status.
#[derive(Debug)]
pub enum HeadError {
    /// The host has bytes that would end the header field.
    Host,
    /// The request could not be written.
    WriteRequest(io::Error),
    /// The answer could not be read, or ended too early.
    ReadAnswer(io::Error),
    /// The answer's head is longer than [`HEAD_MAX`].
    TooLarge,
    /// The answer is not HTTP/1.
    Syntax(httparse::Error),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host contains spaces or control characters"),
            Self::WriteRequest(e) => write!(f, "writing the HTTP request failed: {e}"),
            Self::ReadAnswer(e) if e.kind() == ErrorKind::UnexpectedEof => {
                f.write_str("the server closed the connection without an HTTP answer")
            }
            Self::ReadAnswer(e) => write!(f, "reading the HTTP answer failed: {e}"),
            Self::TooLarge => f.write_str("the head of the HTTP answer is over 16 KiB"),
            Self::Syntax(e) => write!(f, "the answer is not HTTP/1: {e}"),
        }
    }
}

impl Error for HeadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::WriteRequest(e) | Self::ReadAnswer(e) => Some(e),
            Self::Syntax(e) => Some(e),
            Self::Host | Self::TooLarge => None,
        }
    }
}

/// Sends `HEAD path` and returns the status code of the final answer.
///
/// `host` is what goes into `Host`; `path` is encoded where needed. The connection serves no
/// further request.
pub fn head<S: Read + Write>(stream: &mut S, host: &str, path: &str) -> Result<u16, HeadError> {
    if !host.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(HeadError::Host);
    }
    let request = format!(
        "HEAD {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {SOFTWARE}\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        target::encode_path(path)
    );
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.flush())
        .map_err(HeadError::WriteRequest)?;
    let mut unread = Vec::new();
    loop {
        match status(&unread).map_err(HeadError::Syntax)? {
            // Interim answers (RFC 9110, section 15.2); 101 is final, if absurd.
            Some((length, 100 | 102..=199)) => {
                unread.drain(..length);
            }
            Some((_, code)) => return Ok(code),
            None if unread.len() >= HEAD_MAX => return Err(HeadError::TooLarge),
            None => read(stream, &mut unread).map_err(HeadError::ReadAnswer)?,
        }
    }
}

/// Length and status of the head at the start of `bytes`, once it is whole.
fn status(bytes: &[u8]) -> Result<Option<(usize, u16)>, httparse::Error> {
    let mut fields = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(bytes)? {
        Status::Complete(length) => Ok(response.code.map(|code| (length, code))),
        Status::Partial => Ok(None),
    }
}

fn read(stream: &mut impl Read, unread: &mut Vec<u8>) -> io::Result<()> {
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                unread.extend_from_slice(bytes.get(..count).unwrap_or_default());
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// Answers with fixed bytes and keeps what was asked.
    struct Fixed(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Fixed {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let one = buf.len().min(1);
            self.0.read(&mut buf[..one])
        }
    }

    impl Write for Fixed {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.1.write(buf)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn asked(answer: &str) -> (Result<u16, HeadError>, String) {
        let mut stream = Fixed(Cursor::new(answer.as_bytes().to_vec()), Vec::new());
        let status = head(&mut stream, "h:80", "/a b");
        (status, String::from_utf8(stream.1).unwrap())
    }

    #[test]
    fn the_status_of_the_final_answer_counts() {
        let (status, request) =
            asked("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 204 \r\nA: b\r\n\r\n");
        assert_eq!(status.unwrap(), 204);
        assert!(request.starts_with("HEAD /a%20b HTTP/1.1\r\nHost: h:80\r\n"));
        assert!(request.ends_with("Connection: close\r\n\r\n"));
    }

    #[test]
    fn what_is_not_an_answer_is_an_error() {
        assert!(matches!(asked("SSH-2.0-x\r\n").0, Err(HeadError::Syntax(_))));
        assert!(matches!(asked("HTTP/1.1 200 OK\r\n").0, Err(HeadError::ReadAnswer(_))));
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX));
        assert!(matches!(asked(&long).0, Err(HeadError::TooLarge)));
        let mut unused = Cursor::new(Vec::new());
        assert!(matches!(head(&mut unused, "a\r\nX: y", "/"), Err(HeadError::Host)));
    }
}
