//! Addresses as people write them: a destination or agent, and where to listen.
#![no_main]

use adit::client::split_address;
use adit::net::ListenAddr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let strict = split_address(text, None);
    let lenient = split_address(text, Some(8890));
    if let Ok((host, port)) = &strict {
        assert!(!host.is_empty() && *port != 0);
        assert_eq!(lenient.as_ref(), Ok(&(host.clone(), *port)));
    }
    if let Ok((host, port)) = lenient
        && !host.contains(['[', ']'])
    {
        let again =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        assert_eq!(split_address(&again, None), Ok((host, port)));
    }
    match text.parse::<ListenAddr>() {
        Ok(at) => assert!(at.port() > 0 || text.contains('0')),
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
});
