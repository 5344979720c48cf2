//! Destination rules. The input's lines are: allow rules starting with `+`, deny rules with `-`, and
//! hosts to judge; an address and a port come from each host's bytes.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use adit::agent::policy::{Denied, Policy, Rule};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (mut allow, mut deny, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.split('\n') {
        let rules = match line.as_bytes().first() {
            Some(b'+') => &mut allow,
            Some(b'-') => &mut deny,
            _ => {
                hosts.push(line);
                continue;
            }
        };
        match line[1..].parse::<Rule>() {
            Ok(rule) => {
                assert_eq!(rule.to_string(), line[1..]);
                rules.push(line[1..].to_owned());
            }
            Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
        }
    }
    let both = Policy::parse(&allow, &deny).unwrap();
    let only_deny = Policy::parse(&[], &deny).unwrap();
    let only_allow = Policy::parse(&allow, &[]).unwrap();

    for host in hosts {
        for address in addresses(host) {
            let decided = both.check_address(host, address);
            let denied = only_deny.check_address(host, address);
            // Deny wins, and a rule more never widens what is allowed.
            assert_eq!(!matches!(decided, Ok(()) | Err(Denied::NotAllowed)), denied.is_err());
            assert_eq!(decided.is_ok(), denied.is_ok() && only_allow.permits(host, address));
            // The early look refuses nothing that the late one would permit.
            if decided.is_ok() {
                both.check_name(host, address.port()).unwrap();
            }
            // The mapped form of an address is judged no more kindly than the address.
            if let IpAddr::V4(v4) = address.ip() {
                let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), address.port());
                assert!(decided.is_ok() || !both.permits(host, mapped));
            }
        }
    }
});

/// What the host stands for if it is a literal; else two addresses that a name server might give.
fn addresses(host: &str) -> Vec<SocketAddr> {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(host.bytes()) {
        *to = from;
    }
    let [high, low, a, b, c, d, ..] = bytes;
    let port = u16::from_be_bytes([high, low]).max(1);
    let bare = host.trim_matches(['[', ']', '.']);
    let bare = bare.split('%').next().unwrap_or(bare);
    match bare.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => vec![
            SocketAddr::new(IpAddr::from([a, b, c, d]), port),
            SocketAddr::new(IpAddr::from(bytes), port),
        ],
    }
}
