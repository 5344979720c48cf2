//! Any bytes may arrive as a request head: reading them never panics, what is accepted survives
//! being written again, and where the bytes were split makes no difference.

#![no_main]

use adit::http::{HeadScanner, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = HeadScanner::default().scan(bytes);
    let mut scanner = HeadScanner::default();
    let split = bytes.get(..bytes.len() / 2).map_or(Ok(None), |half| scanner.scan(half));
    let split = if split == Ok(None) { scanner.scan(bytes) } else { split };
    assert_eq!(whole, split);

    let head = match whole {
        Ok(Some(length)) => &bytes[..length],
        _ => bytes,
    };
    if let Ok(request) = Request::parse(head) {
        let _ = (request.path().len(), request.query(), request.keeps_alive());
        let _ = request.expects_continue();
        assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
    }
});
