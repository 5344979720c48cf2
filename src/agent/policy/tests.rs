use super::*;
use proptest::prelude::*;

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    Policy::parse(&texts(allow), &texts(deny)).unwrap()
}

fn permits(policy: &Policy, host: &str, ip: &str, port: u16) -> bool {
    policy.permits(host, SocketAddr::new(ip.parse().unwrap(), port))
}

fn why(rule: &str) -> String {
    rule.parse::<Rule>().unwrap_err().to_string()
}

#[test]
fn without_rules_everything_is_allowed() {
    let policy = Policy::default();
    assert!(policy.check_name("anything.example", 1).is_ok());
    assert!(permits(&policy, "anything.example", "127.0.0.1", 65535));
}

#[test]
fn with_an_allow_rule_the_rest_is_refused() {
    let policy = policy(&["*.internal.example:22,80"], &[]);
    assert!(permits(&policy, "db.internal.example", "10.0.0.1", 22));
    assert!(policy.check_name("db.internal.example", 80).is_ok());
    assert!(matches!(policy.check_name("db.internal.example", 81), Err(Denied::NotAllowed)));
    assert!(matches!(policy.check_name("internal.example", 22), Err(Denied::NotAllowed)));
    assert!(matches!(policy.check_name("10.0.0.1", 22), Err(Denied::NotAllowed)));
    assert!(!permits(&policy, "10.0.0.1", "10.0.0.1", 22));
}

#[test]
fn deny_wins_over_allow_and_names_its_rule() {
    let policy = policy(&["*"], &["*.secret.example", "10.0.0.0/8:22-25"]);
    let denied = policy.check_name("a.secret.example", 443).unwrap_err();
    assert_eq!(denied.to_string(), "denied by rule *.secret.example");
    let address = "10.1.2.3:25".parse().unwrap();
    let denied = policy.check_address("mail.example", address).unwrap_err();
    assert_eq!(denied.to_string(), "denied by rule 10.0.0.0/8:22-25");
    assert!(permits(&policy, "mail.example", "10.1.2.3", 26));
    assert!(permits(&policy, "mail.example", "11.1.2.3", 25));
}

#[test]
fn names_match_whatever_their_case_and_final_dot() {
    let policy = policy(&[], &["LocalHost.", "Bücher.example"]);
    for host in ["localhost", "LOCALHOST", "localhost.", "bücher.EXAMPLE"] {
        assert!(policy.check_name(host, 1).is_err(), "{host}");
        assert!(!permits(&policy, host, "192.0.2.1", 1), "{host}");
    }
    assert!(policy.check_name("notlocalhost", 1).is_ok());
}

/// Resolvers undo the escapes of DNS master files.
#[test]
fn an_escape_cannot_hide_a_name() {
    let policy = policy(&[], &["db.internal"]);
    for host in [r"d\098.internal", r"\100b.internal", r"d\b.internal"] {
        assert_eq!(policy.check_name(host, 1).unwrap_err().to_string(), "a host has no backslash");
    }
    assert!(Policy::default().check_name(r"\108ocalhost", 1).is_err());
    assert!(!permits(&policy, r"d\098.internal", "192.0.2.1", 1));
}

#[test]
fn a_pattern_of_numbers_is_no_rule() {
    for rule in ["127.*", "10.0.?.*", "*.0.*:22", "1?"] {
        assert!(why(rule).contains("write a network"), "{rule}");
    }
    for rule in ["*", "db-1.*", "*.1a"] {
        assert!(rule.parse::<Rule>().is_ok(), "{rule}");
    }
}

#[test]
fn a_name_cannot_point_into_a_denied_network() {
    let policy = policy(&["*.example"], &["127.0.0.0/8", "[::1]"]);
    assert!(policy.check_name("rebind.example", 80).is_ok());
    assert!(!permits(&policy, "rebind.example", "127.0.0.1", 80));
    assert!(!permits(&policy, "rebind.example", "::1", 80));
    assert!(permits(&policy, "rebind.example", "192.0.2.1", 80));
}

#[test]
fn every_spelling_of_loopback_is_caught() {
    let policy = policy(&[], &["127.0.0.0/8"]);
    // What the text alone tells is refused before it is resolved.
    for host in ["127.0.0.1", "127.255.0.3", "::ffff:127.0.0.1", "[::ffff:7f00:1]", "::127.0.0.1"] {
        assert!(policy.check_name(host, 80).is_err(), "{host}");
    }
    for host in ["0.0.0.0", "::", "::ffff:0.0.0.0", "64:ff9b::7f00:1", "::ffff:127.0.0.1%eth0"] {
        assert!(policy.check_name(host, 80).is_err(), "{host}");
    }
    // These need the resolver's reading.
    for host in ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "localhost."] {
        assert!(policy.check_name(host, 80).is_ok(), "{host}");
        assert!(!permits(&policy, host, "127.0.0.1", 80), "{host}");
    }
    assert!(policy.check_name("128.0.0.1", 80).is_ok());
}

#[test]
fn denied_ipv6_loopback_includes_the_unspecified_address() {
    let policy = policy(&[], &["::1"]);
    for host in ["::1", "::", "0.0.0.0", "::1%lo", "0:0:0:0:0:0:0:1", "[::1]"] {
        assert!(policy.check_name(host, 80).is_err(), "{host}");
    }
    assert!(policy.check_name("127.0.0.1", 80).is_ok());
    assert!(policy.check_name("::2", 80).is_ok());
}

#[test]
fn a_zone_does_not_matter() {
    let policy = policy(&["fe80::/10"], &["[fe80::bad]:22"]);
    assert!(policy.check_name("fe80::1%eth0", 22).is_ok());
    assert!(policy.check_name("fe80::bad%eth0", 22).is_err());
    let zoned = "[fe80::bad%3]:22".parse().unwrap();
    assert!(!policy.permits("fe80::bad%eth0", zoned));
}

#[test]
fn an_allowed_network_lets_names_through_to_be_resolved() {
    let policy = policy(&["10.0.0.0/8:22"], &[]);
    assert!(policy.check_name("db.example", 22).is_ok());
    assert!(matches!(policy.check_name("db.example", 23), Err(Denied::NotAllowed)));
    assert!(permits(&policy, "db.example", "10.9.9.9", 22));
    assert!(permits(&policy, "db.example", "::ffff:10.9.9.9", 22));
    assert!(!permits(&policy, "db.example", "192.0.2.1", 22));
    // Another way to reach an allowed address is not itself allowed.
    assert!(!permits(&policy, "db.example", "64:ff9b::10.9.9.9", 22));
}

#[test]
fn a_mapped_rule_is_the_ipv4_rule_it_covers() {
    for rule in ["::ffff:10.0.0.0/104", "[::ffff:10.0.0.0/104]:22"] {
        let policy = policy(&[], &[rule]);
        assert!(policy.check_name("10.1.1.1", 22).is_err());
        assert!(policy.check_name("::ffff:10.1.1.1", 22).is_err());
    }
    assert!(policy(&[], &["::ffff:10.0.0.1"]).check_name("10.0.0.1", 22).is_err());
}

#[test]
fn a_star_denies_everything_of_a_port() {
    let policy = policy(&[], &["*:25", "*:6000-6063"]);
    for host in ["a.example", "10.0.0.1", "::1"] {
        assert!(policy.check_name(host, 25).is_err());
        assert!(policy.check_name(host, 6000).is_err() && policy.check_name(host, 6063).is_err());
        assert!(policy.check_name(host, 26).is_ok() && policy.check_name(host, 6064).is_ok());
    }
}

#[test]
fn every_documented_form_parses_and_shows_as_written() {
    for rule in [
        "*",
        "*:*",
        "db-?.example:22",
        "192.0.2.1",
        "10.0.0.0/8:22,80,8000-8100",
        "2001:db8::1",
        "fd00::/8",
        "[2001:db8::1]:443",
        "[fd00::/8]:*",
        "[::1]",
        "::",
    ] {
        assert_eq!(rule.parse::<Rule>().unwrap().to_string(), rule);
    }
}

#[test]
fn a_wrong_rule_says_what_is_wrong_with_it() {
    for (rule, what) in [
        ("", "the host is missing"),
        (":22", "the host is missing"),
        (".", "only dots"),
        ("a b", "no spaces"),
        ("a\n", "no spaces"),
        ("a:0", "1 to 65535"),
        ("a:65536", "1 to 65535"),
        ("a:", "1 to 65535"),
        ("a:22,", "1 to 65535"),
        ("a:+22", "1 to 65535"),
        ("a:ssh", "1 to 65535"),
        ("a:1-2-3", "1 to 65535"),
        ("a:9-8", "above the last"),
        ("10.0.0.0/33", "not a network"),
        ("host.example/8", "not a network"),
        ("[fe80::/10", "closing bracket"),
        ("[fe80::]/10", "inside"),
        ("[::1]22", "inside"),
        ("[localhost]:1", "only an IPv6 address"),
        ("[::g]", "not an IPv6 address"),
        ("fe80::/10:22", "in brackets"),
        ("1::2::3", "in brackets"),
        ("[fe80::1%eth0]", "no zone"),
        ("127.1", "all four numbers"),
        ("0x7f.1", "all four numbers"),
        ("2130706433", "all four numbers"),
        ("1", "all four numbers"),
        ("256.0.0.1", "all four numbers"),
        ("10.0.0.1.", "all four numbers"),
    ] {
        let text = why(rule);
        assert!(text.contains(what), "{rule:?} gave {text}");
    }
    assert_eq!(
        why("a\"\n:22"),
        "destination rule \"a\\\"\\n:22\": a host has no spaces or control characters"
    );
}

fn rules() -> impl Strategy<Value = Vec<String>> {
    let rule = prop_oneof![
        "[a-c*?.]{1,5}(:[1-3](-[2-4])?)?",
        "(10|127)\\.0\\.0\\.[0-3](/(8|31))?(:[1-3])?",
        "\\[(::[0-3]|fd00::/8)\\](:[1-3],4)?",
        ".{0,12}",
    ];
    proptest::collection::vec(rule, 0..4)
}

proptest! {
    #[test]
    fn deny_wins_and_more_rules_never_widen(
        allow in rules(),
        deny in rules(),
        host in "[a-c.]{1,5}|(10|127)\\.0\\.0\\.[0-3]|::[0-3]",
        ip in any::<[u8; 4]>().prop_map(|b| IpAddr::from([10, 0, 0, b[3] % 4])),
        port in 1u16..6,
    ) {
        let well_formed = |texts: Vec<String>| {
            texts.into_iter().filter(|t| t.parse::<Rule>().is_ok()).collect::<Vec<_>>()
        };
        let (allow, deny) = (well_formed(allow), well_formed(deny));
        let address = SocketAddr::new(literal(&host).unwrap_or(ip), port);
        let both = Policy::parse(&allow, &deny).unwrap();
        let only_deny = Policy::parse(&[], &deny).unwrap();
        let only_allow = Policy::parse(&allow, &[]).unwrap();
        prop_assert_eq!(
            both.permits(&host, address),
            only_deny.permits(&host, address) && only_allow.permits(&host, address)
        );
        // The early look refuses nothing that the late one would permit.
        if both.permits(&host, address) {
            prop_assert!(both.check_name(&host, port).is_ok());
        }
    }

    #[test]
    fn no_text_panics(rule in ".*", host in ".*", port: u16) {
        if let Ok(policy) = Policy::parse(&[], &[rule]) {
            policy.check_name(&host, port).ok();
        }
    }
}
