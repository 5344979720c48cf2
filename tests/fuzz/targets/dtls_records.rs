//! What is read of a datagram before OpenSSL has it.
#![no_main]

use adit::wire::dtls::{
    RECORD_HEADER, Sealed, client_hello, cookie, hello_verify_request, is_plausible, whole_records,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let hello = client_hello(data);
    if let Some(random) = hello {
        assert_eq!(&data[27..59], random);
        assert!(data[0] == 22 && data[13] == 1);
    }
    // Whether it begins a handshake is decided by the beginning.
    assert_eq!(client_hello(&data[..data.len().min(59)]).is_some(), hello.is_some());

    if let Some(cookie) = cookie(data) {
        assert!(hello.is_some());
        assert!(cookie.len() <= 255);
        // Nobody gets more than they gave.
        assert!(hello_verify_request(data, &[0; 16]).len() < data.len());
    }

    let mut rest = data;
    while !rest.is_empty() {
        let size = whole_records(rest, 100);
        assert!((1..=rest.len()).contains(&size));
        rest = &rest[size..];
    }

    let (strict, lax) = (is_plausible(data, Sealed::NonceAndTag), is_plausible(data, Sealed::Tag));
    assert!(lax || !strict, "what is long enough for both is so for one");
    let mut sealed = [23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0];
    sealed[RECORD_HEADER - 1] = data.first().map_or(0, |byte| byte % 64);
    let alone = is_plausible(&sealed, Sealed::NonceAndTag);
    assert_eq!(alone, !(1..25).contains(&sealed[RECORD_HEADER - 1]));
});
