//! Answers and their bytes.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::macros::format_description;

use super::SOFTWARE;

/// An answer: a status, a body, and what describes the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code, 200 to 599.
    pub status: u16,
    /// The media type of `body`.
    pub content_type: &'static str,
    /// Header fields besides those every answer has (`Date`, `Server`, `Content-Type`,
    /// `Content-Length`, `Connection`, `X-Content-Type-Options`).
    pub headers: Vec<(&'static str, String)>,
    /// The body. Peer-controlled text in it is escaped by whoever puts it there.
    pub body: Vec<u8>,
}

/// What the connection, not the answer, decides about its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// The request was a `HEAD`: the same head, no body.
    pub head_only: bool,
    /// The connection closes after this answer.
    pub close: bool,
    /// The moment for `Date`.
    pub now: SystemTime,
}

impl Response {
    /// Plain text, exactly as given: older GoDoxy servers take the whole body as the value.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body: body.into().into_bytes(),
        }
    }

    /// JSON that is already written.
    pub fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, content_type: "application/json", headers: Vec::new(), body }
    }

    /// The same with one more header field.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The whole message. Control characters in header values become spaces, so that no value can
    /// start a header field of its own.
    pub fn to_bytes(&self, delivery: &Delivery) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let mut field = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.extend(value.chars().map(|c| if c.is_control() { ' ' } else { c }));
            head.push_str("\r\n");
        };
        if let Some(date) = date(delivery.now) {
            field("Date", &date);
        }
        field("Server", SOFTWARE);
        field("Content-Type", self.content_type);
        field("Content-Length", &self.body.len().to_string());
        // An answer may quote (escaped) what the client sent: nobody shall take it for a page.
        field("X-Content-Type-Options", "nosniff");
        // Said in both cases: an HTTP/1.0 client has to be told that the connection stays.
        field("Connection", if delivery.close { "close" } else { "keep-alive" });
        for (name, value) in &self.headers {
            field(name, value);
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !delivery.head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// The reason phrase of a status code; empty for one that is not used here.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// `now` as an IMF-fixdate (RFC 9110, section 5.6.7), or nothing when the clock was plainly never
/// set: a small box without a battery starts in 1970, and such a server must not send `Date`
/// (section 6.6.1).
fn date(now: SystemTime) -> Option<String> {
    let now = OffsetDateTime::from(now);
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    (now.year() >= 2025).then(|| now.format(format).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn written(response: &Response, head_only: bool, close: bool) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        String::from_utf8(response.to_bytes(&Delivery { head_only, close, now })).unwrap()
    }

    #[test]
    fn an_answer_is_written_with_its_date_and_length() {
        let expected = format!(
            "HTTP/1.1 404 Not Found\r\nDate: Fri, 02 Jan 2026 03:04:05 GMT\r\nServer: {SOFTWARE}\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 7\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: keep-alive\r\n\r\nnothing"
        );
        assert_eq!(written(&Response::text(404, "nothing"), false, false), expected);
    }

    #[test]
    fn a_head_answer_keeps_the_length_and_drops_the_body() {
        let text = written(&Response::json(200, b"{}".to_vec()), true, true);
        assert!(text.contains("Content-Length: 2\r\n") && text.ends_with("close\r\n\r\n"));
    }

    #[test]
    fn a_header_value_cannot_start_another_field() {
        let text =
            written(&Response::text(200, "").with_header("Allow", "GET\r\nX: y"), false, false);
        assert!(text.contains("Allow: GET  X: y\r\n"));
    }

    #[test]
    fn a_clock_that_was_never_set_sends_no_date() {
        assert_eq!(date(SystemTime::UNIX_EPOCH), None);
    }

    #[test]
    fn heads_fit_the_kibibyte_that_godoxy_reads_health_answers_with() {
        let response = Response::json(200, Vec::new());
        assert!(written(&response, true, true).len() < 1024);
    }
}
