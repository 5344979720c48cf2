//! Identities that GoDoxy's generator made.

use std::time::Duration;

use super::*;

fn from_files(pair: &str) -> Identity {
    Identity::from_files(
        &fixture("ca.pem"),
        &fixture(&format!("{pair}.pem")),
        &fixture(&format!("{pair}-key.pem")),
    )
    .unwrap()
}

fn variable(name: &str) -> String {
    let text = std::fs::read_to_string(fixture("agent.env")).unwrap();
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned()
}

#[test]
fn a_thousand_year_certificate_is_good_now_and_in_3000_and_not_in_3027() {
    let year = |year: u64| SystemTime::UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_556_952);
    for (pair, purpose) in [("server", Purpose::Server), ("client", Purpose::Client)] {
        let identity = from_files(pair);
        identity.check(purpose, now()).unwrap();
        identity.check(purpose, year(3000)).unwrap();
        let error = identity.check(purpose, year(3027)).unwrap_err();
        assert!(matches!(error.fault, Fault::Expired { .. }), "{error}");
        let error = identity.check(purpose, year(2020)).unwrap_err();
        assert!(matches!(error.fault, Fault::NotYetValid { .. }), "{error}");
    }
}

#[test]
fn files_variables_and_zip_give_the_same_identity() {
    let files = from_files("server");
    let variables =
        Identity::from_pairs(&variable("AGENT_CA_CERT"), &variable("AGENT_SSL_CERT")).unwrap();
    let text = |name: &str| std::fs::read_to_string(fixture(name)).unwrap();
    let zip = write_zip([&text("ca.pem"), &text("server.pem"), &text("server-key.pem")]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let zip = Identity::from_zip(&write(&dir, "agent.zip", zip)).unwrap();
    for other in [variables, zip] {
        other.check(Purpose::Server, now()).unwrap();
        assert_eq!(other.authorities, files.authorities);
        assert_eq!(other.chain, files.chain);
        assert_eq!(other.key, files.key);
    }
}

#[test]
fn a_value_of_the_go_implementation_is_written_again_byte_for_byte() {
    let value = variable("AGENT_SSL_CERT");
    let (certificate, key) = decode_pair(&Place::Variable("AGENT_SSL_CERT"), &value).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert_eq!(encode_pair(&text(certificate), &text(key)), value);
}

#[test]
fn wrapped_or_unpadded_values_still_load() {
    let wrap = |value: &str| value.replace('=', "").replace("LS", "L\n S");
    let identity = Identity::from_pairs(
        &wrap(&variable("AGENT_CA_CERT")),
        &format!(" {}\n", wrap(&variable("AGENT_SSL_CERT"))),
    );
    identity.unwrap().check(Purpose::Server, now()).unwrap();
}

#[test]
fn the_ca_key_is_not_needed_to_be_an_agent() {
    let value = variable("AGENT_CA_CERT");
    let (certificate, _) = value.split_once(';').unwrap();
    let identity = Identity::from_pairs(&format!("{certificate};"), &variable("AGENT_SSL_CERT"));
    identity.unwrap().check(Purpose::Server, now()).unwrap();
}

#[test]
fn names_of_a_fixture_are_read() {
    let names = Names::of(from_files("client").chain.first().unwrap()).unwrap();
    assert_eq!(names.common_name.as_deref(), Some("godoxy.agent"));
    assert_eq!(names.dns, ["godoxy.agent"]);
    assert_eq!(names.label(), "godoxy.agent");
    let description = Description::of(from_files("ca").chain.first().unwrap()).unwrap();
    assert_eq!(description.uses, ["authority"]);
    assert_eq!(utc(description.not_after), "3026-11-21 01:29:07 UTC");
    // As `openssl x509 -noout -serial -fingerprint -sha256` showed them.
    assert_eq!(description.serial, "00:a4:95:39:a3:17:23:9b:c4:c4:78:c9:85:0c:b4:48:e5");
    assert_eq!(description.sha256, CA_FINGERPRINT);
}

const CA_FINGERPRINT: &str = "45:16:FC:25:D4:A7:AF:23:E8:83:A1:A9:AF:A7:9B:DA:22:51:FE:CE:EA:84:92:CD:0B:27:3F:FC:0D:F7:D3:C4";

#[test]
fn a_debug_print_hides_the_key() {
    let identity = from_files("server");
    let printed = format!("{identity:?}").to_lowercase();
    assert!(printed.contains("hidden"), "{printed}");
    let secret = identity.key.secret_der();
    assert!(!printed.contains(&format!("{:?}", &secret[40..48]).replace(['[', ']'], "")));
}

#[cfg(feature = "aws-lc-rs")]
#[test]
fn the_ca_of_a_go_deployment_issues_certificates_that_verify() {
    let authority =
        Authority::from_files(&fixture("ca.pem"), &fixture("ca-key.pem"), now()).unwrap();
    for purpose in [Purpose::Server, Purpose::Client] {
        let identity = authority.identity(&request(purpose, &["godoxy.agent"])).unwrap();
        identity.check(purpose, now()).unwrap();
        judge::accepts(&identity, purpose, "godoxy.agent").unwrap();
    }
}

#[test]
fn a_ca_of_the_same_name_but_another_key_is_not_the_issuer() {
    let identity = Identity::from_files(
        &fixture("other-ca.pem"),
        &fixture("server.pem"),
        &fixture("server-key.pem"),
    );
    let error = identity.unwrap().check(Purpose::Server, now()).unwrap_err();
    assert!(matches!(error.fault, Fault::NotIssuedBy(_)), "{error}");
    assert!(error.to_string().contains("other-ca.pem"), "{error}");
}
