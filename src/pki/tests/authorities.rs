//! What an authority issues, and which authorities can.

use openssl::ec::{EcGroup, EcKey};
use openssl::nid::Nid;

use super::*;

fn load(dir: &tempfile::TempDir, cert: &X509, key: &PKey<Private>) -> Authority {
    let cert = write(dir, "ca.pem", cert.to_pem().unwrap());
    let key = write(dir, "ca-key.pem", key.private_key_to_pem_pkcs8().unwrap());
    Authority::from_files(&cert, &key, now()).unwrap()
}

fn ec(curve: Nid) -> PKey<Private> {
    let group = EcGroup::from_curve_name(curve).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

#[cfg(feature = "aws-lc-rs")]
#[test]
fn a_new_set_verifies_for_its_use_and_name_and_no_other() {
    let authority = authority();
    let server = authority.identity(&request(Purpose::Server, &["godoxy.agent", "192.0.2.1"]));
    let client = authority.identity(&request(Purpose::Client, &["alice"]));
    let (server, client) = (server.unwrap(), client.unwrap());
    judge::accepts(&server, Purpose::Server, "godoxy.agent").unwrap();
    judge::accepts(&server, Purpose::Server, "192.0.2.1").unwrap();
    judge::accepts(&client, Purpose::Client, "").unwrap();
    assert!(judge::accepts(&server, Purpose::Server, "other.example").is_err());
    assert!(judge::accepts(&server, Purpose::Client, "").is_err());
    assert!(judge::accepts(&client, Purpose::Server, "godoxy.agent").is_err());
    let stranger = [super::authority().certificate().clone()];
    assert!(judge::trusting(&stranger, &server, Purpose::Server, "godoxy.agent").is_err());
    assert!(judge::trusting(&stranger, &client, Purpose::Client, "").is_err());
}

#[test]
fn certificates_have_the_profile_of_the_protocol() {
    let authority = authority();
    let ca = Description::of(authority.certificate()).unwrap();
    assert_eq!((ca.key.as_str(), ca.subject.as_str()), ("ECDSA P-256", "O=adit, CN=test CA"));
    assert_eq!(ca.uses, ["authority"]);
    let names = ["godoxy.agent", "2001:db8::1"];
    let server = authority.issue(&request(Purpose::Server, &names)).unwrap();
    let server = Description::of(&server.certificate).unwrap();
    assert_eq!(server.subject, "O=adit, OU=Server, CN=godoxy.agent");
    assert_eq!(server.issuer, ca.subject);
    assert_eq!(server.uses, ["server"]);
    assert_eq!(server.names, ["IP 2001:db8::1", "DNS godoxy.agent"]);
    let names = ["alice smith", "alice@example.org"];
    let client = authority.issue(&request(Purpose::Client, &names)).unwrap();
    let client = Description::of(&client.certificate).unwrap();
    assert_eq!(client.uses, ["client"]);
    assert_eq!(client.names, ["email alice@example.org"]);
    assert_ne!(client.serial, server.serial);
    // Not two equal bytes in the place of random ones, and nothing longer than 128 bits.
    assert!(client.serial.split(':').count() <= 17);
}

#[test]
fn a_certificate_names_its_issuers_key() {
    let authority = authority();
    let issued = authority.issue(&request(Purpose::Server, &["godoxy.agent"])).unwrap();
    let x509 = |der| X509::from_der(der).unwrap();
    let (ca, leaf) = (x509(authority.certificate()), x509(&issued.certificate));
    assert_eq!(
        leaf.authority_key_id().unwrap().as_slice(),
        ca.subject_key_id().unwrap().as_slice()
    );
    assert_eq!(ca.pathlen(), Some(0));
    assert_eq!(ca.issued(&leaf), openssl::x509::X509VerifyResult::OK);
}

#[cfg(feature = "aws-lc-rs")]
#[test]
fn authorities_of_any_usual_key_and_name_issue() {
    let keys = [
        ec(Nid::X9_62_PRIME256V1),
        ec(Nid::SECP384R1),
        PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap(),
        PKey::generate_ed25519().unwrap(),
    ];
    let names = [
        name(&[("C", "DE"), ("O", "Grün & Söhne"), ("CN", "root")]),
        name(&[("CN", "only")]),
        name(&[("DC", "example"), ("OU", "a"), ("emailAddress", "a@example.org"), ("CN", "z")]),
    ];
    for (key, name) in keys.iter().zip(names.iter().cycle()) {
        let dir = tempfile::tempdir().unwrap();
        let authority = load(&dir, &foreign_ca(key, name, None), key);
        let identity = authority.identity(&request(Purpose::Server, &["godoxy.agent"])).unwrap();
        identity.check(Purpose::Server, now()).unwrap();
        judge::accepts(&identity, Purpose::Server, "godoxy.agent")
            .unwrap_or_else(|error| panic!("{}: {error}", describe_key(key)));
    }
}

#[test]
fn an_authority_whose_name_cannot_be_repeated_issues_nothing() {
    let key = ec(Nid::X9_62_PRIME256V1);
    let dir = tempfile::tempdir().unwrap();
    let repeated = name(&[("DC", "example"), ("DC", "com"), ("CN", "root")]);
    let authority = load(&dir, &foreign_ca(&key, &repeated, None), &key);
    let error = authority.issue(&request(Purpose::Server, &["godoxy.agent"])).unwrap_err();
    assert!(matches!(error, IssueError::Subject), "{error}");
}

#[test]
fn an_intermediate_in_the_chain_leads_to_the_root_and_its_absence_is_told() {
    let root_key = ec(Nid::X9_62_PRIME256V1);
    let root = foreign_ca(&root_key, &name(&[("CN", "root")]), None);
    let key = ec(Nid::SECP384R1);
    let between = foreign_ca(&key, &name(&[("CN", "between")]), Some((&root, &root_key)));
    let dir = tempfile::tempdir().unwrap();
    let authority = load(&dir, &between, &key);
    let issued = authority.issue(&request(Purpose::Client, &["alice"])).unwrap();
    let root_file = write(&dir, "root.pem", root.to_pem().unwrap());
    let key_file = write(&dir, "key.pem", issued.key_pem());
    let short = write(&dir, "short.pem", issued.certificate_pem());
    let chain = issued.certificate_pem() + &authority.certificate_pem();
    let chain = write(&dir, "chain.pem", chain);

    let identity = Identity::from_files(&root_file, &chain, &key_file).unwrap();
    identity.check(Purpose::Client, now()).unwrap();
    #[cfg(feature = "aws-lc-rs")]
    judge::accepts(&identity, Purpose::Client, "").unwrap();

    let identity = Identity::from_files(&root_file, &short, &key_file).unwrap();
    let error = identity.check(Purpose::Client, now()).unwrap_err();
    assert!(matches!(error.fault, Fault::NotIssuedBy(_)), "{error}");
}

#[test]
fn nothing_outlives_its_authority() {
    let authority = Authority::create("short", Validity::days(now(), 10)).unwrap();
    let error = authority.issue(&request(Purpose::Client, &["alice"])).unwrap_err();
    assert!(matches!(error, IssueError::OutlivesAuthority { .. }), "{error}");
}

#[test]
fn names_that_cannot_work_are_refused() {
    let authority = authority();
    for bad in ["", "not a host", "grün.example", "a..b", "a\nb"] {
        let error = authority.issue(&request(Purpose::Server, &[bad])).unwrap_err();
        assert!(matches!(error, IssueError::Name { .. }), "{bad:?}: {error}");
    }
    let long = "x".repeat(65);
    for bad in ["", "a\nb", &long] {
        let error = authority.issue(&request(Purpose::Client, &[bad])).unwrap_err();
        // A long label is no DNS name either, so it would have been the common name.
        assert!(matches!(error, IssueError::Name { .. }), "{bad:?}: {error}");
    }
    assert!(matches!(
        authority.issue(&request(Purpose::Client, &[])).unwrap_err(),
        IssueError::NoName
    ));
    authority.issue(&request(Purpose::Server, &["*.example.com"])).unwrap();
}

#[test]
fn a_validity_beyond_the_year_9999_is_refused_and_a_thousand_years_are_not() {
    let error = Authority::create("CA", Validity::days(now(), u32::MAX)).unwrap_err();
    assert!(matches!(error, IssueError::Range), "{error}");
    let authority = Authority::create("CA", Validity::days(now(), 365_243)).unwrap();
    assert!(utc(authority.not_after()).starts_with("30"));
}

#[test]
fn a_leafs_pair_is_no_authority() {
    let error = Authority::from_files(&fixture("server.pem"), &fixture("server-key.pem"), now());
    assert!(matches!(error.unwrap_err().fault, Fault::NotAuthority));
    let error = Authority::from_files(&fixture("ca.pem"), &fixture("server-key.pem"), now());
    assert!(matches!(error.unwrap_err().fault, Fault::OtherKey(_)));
}
