//! Each thing that can be wrong gets its own error, which names the place and the cure.

use openssl::rsa::Rsa;
use openssl::symm::Cipher;

use super::*;

/// The error of loading and checking an agent's files.
fn refused(ca: &Path, cert: &Path, key: &Path) -> IdentityError {
    refused_as(Purpose::Server, ca, cert, key)
}

fn refused_as(purpose: Purpose, ca: &Path, cert: &Path, key: &Path) -> IdentityError {
    Identity::from_files(ca, cert, key)
        .and_then(|identity| identity.check(purpose, now()))
        .unwrap_err()
}

/// The error of an agent whose key file holds `text`.
fn refused_key(text: impl AsRef<[u8]>) -> IdentityError {
    let dir = tempfile::tempdir().unwrap();
    let key = write(&dir, "the-key.pem", text);
    let error = refused(&fixture("ca.pem"), &fixture("server.pem"), &key);
    assert!(error.to_string().contains("the-key.pem: "), "{error}");
    error
}

/// The error of an agent whose certificate file holds `text`.
fn refused_cert(text: impl AsRef<[u8]>) -> IdentityError {
    let dir = tempfile::tempdir().unwrap();
    let cert = write(&dir, "the-cert.pem", text);
    let error = refused(&fixture("ca.pem"), &cert, &fixture("server-key.pem"));
    assert!(error.to_string().contains("the-cert.pem"), "{error}");
    error
}

fn text(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap()
}

fn tells(error: &IdentityError, cure: &str) {
    assert!(error.to_string().contains(cure), "{error}");
}

#[test]
fn a_missing_file() {
    let error = refused(&fixture("none.pem"), &fixture("server.pem"), &fixture("server-key.pem"));
    assert!(matches!(&error.fault, Fault::Read(_)));
    tells(&error, "none.pem: there is no such file");
    tells(&error, "adit pki init");
}

#[test]
fn a_directory_for_a_file_and_a_file_that_never_ends() {
    let error = refused(&fixture(""), &fixture("server.pem"), &fixture("server-key.pem"));
    assert!(matches!(error.fault, Fault::Read(_)), "{error}");
    let zero = Path::new("/dev/zero");
    let error = refused(zero, &fixture("server.pem"), &fixture("server-key.pem"));
    assert!(matches!(error.fault, Fault::TooLarge), "{error}");
    assert!(matches!(Identity::from_zip(zero).unwrap_err().fault, Fault::TooLarge));
}

#[test]
fn a_missing_block() {
    let error = refused_key(text("server.pem"));
    assert!(matches!(error.fault, Fault::NoKey));
    let error = refused_cert(text("server-key.pem"));
    assert!(matches!(error.fault, Fault::NoCertificate));
    assert!(matches!(refused_cert("").fault, Fault::NoCertificate));
}

#[test]
fn damaged_pem_and_damaged_contents() {
    let whole = text("server.pem");
    let error = refused_cert(&whole[..whole.len() / 2]);
    assert!(matches!(error.fault, Fault::BadPem(_)), "{error}");
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(refused_cert(empty).fault, Fault::BadCertificate(_)));
    let empty = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(matches!(refused_key(empty).fault, Fault::BadKey(_)));
}

#[test]
fn der_instead_of_pem() {
    let der = X509::from_pem(text("server.pem").as_bytes()).unwrap().to_der().unwrap();
    let error = refused_cert(der);
    assert!(matches!(error.fault, Fault::Der));
    tells(&error, "openssl x509 -inform DER");
}

#[test]
fn an_encrypted_key_of_either_kind() {
    let key = PKey::private_key_from_pem(text("server-key.pem").as_bytes()).unwrap();
    let cipher = Cipher::aes_128_cbc();
    let new = key.private_key_to_pem_pkcs8_passphrase(cipher, b"secret").unwrap();
    let old = key.ec_key().unwrap().private_key_to_pem_passphrase(cipher, b"secret").unwrap();
    for pem in [new, old] {
        let error = refused_key(pem);
        assert!(matches!(error.fault, Fault::EncryptedKey), "{error}");
        tells(&error, "openssl pkey -in ");
    }
}

#[test]
fn the_key_of_another_certificate() {
    let error = refused_key(text("client-key.pem"));
    assert!(matches!(error.fault, Fault::OtherKey(_)));
    tells(&error, "server.pem; name the two files that were made together");
}

#[test]
fn several_keys_in_one_file() {
    let error = refused_key(text("server-key.pem") + &text("client-key.pem"));
    assert!(matches!(error.fault, Fault::SeveralKeys(2)), "{error}");
}

#[test]
fn a_certificate_of_the_wrong_use() {
    let ca = fixture("ca.pem");
    let error = refused(&ca, &fixture("client.pem"), &fixture("client-key.pem"));
    assert!(matches!(error.fault, Fault::WrongUse { .. }));
    tells(&error, "client.pem: the certificate is for clients only");
    tells(&error, "adit pki issue --dir DIR --server godoxy.agent");
    let (cert, key) = (fixture("server.pem"), fixture("server-key.pem"));
    let error = refused_as(Purpose::Client, &ca, &cert, &key);
    tells(&error, "adit pki issue --dir DIR --client NAME");
    let error = refused(&ca, &ca, &fixture("ca-key.pem"));
    assert!(matches!(error.fault, Fault::IsAuthority));
}

#[test]
fn an_authority_file_without_an_authority() {
    let cert = fixture("server.pem");
    let error = refused(&cert, &cert, &fixture("server-key.pem"));
    assert!(matches!(error.fault, Fault::NotIssuedBy(_)), "{error}");
}

#[test]
fn an_expired_certificate_and_a_late_clock() {
    let authority = authority();
    let identity = authority.identity(&request(Purpose::Server, &["godoxy.agent"])).unwrap();
    let later = |days: u64| now() + std::time::Duration::from_secs(days * 24 * 60 * 60);
    identity.check(Purpose::Server, later(29)).unwrap();
    let error = identity.check(Purpose::Server, later(31)).unwrap_err();
    assert!(matches!(error.fault, Fault::Expired { .. }));
    tells(&error, "the certificate: the certificate expired on ");
    let earlier = now() - std::time::Duration::from_secs(2 * 60 * 60);
    let error = identity.check(Purpose::Server, earlier).unwrap_err();
    tells(&error, "set the clock");
}

/// What `check` says of a bare certificate of the fixture CA: no extensions, this X.509 version
/// (as encoded, from 0).
fn refused_bare(version: i32) -> IdentityError {
    let key = PKey::private_key_from_pem(text("server-key.pem").as_bytes()).unwrap();
    let ca = X509::from_pem(text("ca.pem").as_bytes()).unwrap();
    let ca_key = PKey::private_key_from_pem(text("ca-key.pem").as_bytes()).unwrap();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(version).unwrap();
    builder.set_subject_name(&name(&[("CN", "godoxy.agent")])).unwrap();
    builder.set_issuer_name(ca.subject_name()).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(9).unwrap()).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.sign(&ca_key, MessageDigest::sha256()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cert = write(&dir, "bare.pem", builder.build().to_pem().unwrap());
    refused(&fixture("ca.pem"), &cert, &fixture("server-key.pem"))
}

#[test]
fn a_server_certificate_without_a_name_or_of_an_old_version() {
    let error = refused_bare(2);
    assert!(matches!(error.fault, Fault::NoName), "{error}");
    let error = refused_bare(0);
    assert!(matches!(error.fault, Fault::OldVersion), "{error}");
}

#[test]
fn every_usual_encoding_of_a_key_loads() {
    let ca = fixture("ca.pem");
    let rsa = Rsa::generate(2048).unwrap();
    let rsa_key = PKey::from_rsa(rsa.clone()).unwrap();
    let ec = PKey::private_key_from_pem(text("server-key.pem").as_bytes()).unwrap();
    let ed = PKey::generate_ed25519().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let texts = [
        rsa.private_key_to_pem().unwrap(),
        rsa_key.private_key_to_pem_pkcs8().unwrap(),
        ec.private_key_to_pem_pkcs8().unwrap(),
        ed.private_key_to_pem_pkcs8().unwrap(),
        // As `openssl ecparam -genkey` writes it, with CRLF line ends.
        format!(
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{}",
            text("server-key.pem")
        )
        .replace('\n', "\r\n")
        .into(),
    ];
    for text in texts {
        let key = write(&dir, "key.pem", &text);
        Identity::from_files(&ca, &fixture("server.pem"), &key)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
    }
}

#[test]
fn a_pair_without_separator_or_with_bad_base64() {
    let (ca, own) = ("QUJD", "QUJD;QUJD");
    let error = Identity::from_pairs(ca, own).unwrap_err();
    assert!(matches!(error.fault, Fault::PairSeparator));
    tells(&error, "AGENT_CA_CERT: ");
    tells(&error, "adit pki env DIR");
    let error = Identity::from_pairs("QUJD;QUJD;QUJD", own).unwrap_err();
    assert!(matches!(error.fault, Fault::PairSeparator));
    let error = Identity::from_pairs("*;QUJD", own).unwrap_err();
    tells(&error, "the certificate (the half before the `;`) is not base64");
    let error = Identity::from_pairs(&encode_pair(&text("ca.pem"), ""), "QUJD;?").unwrap_err();
    tells(&error, "AGENT_SSL_CERT: the key (the half after the `;`) is not base64");
    let error = Identity::from_pairs("QUJD;", own).unwrap_err();
    tells(&error, "AGENT_CA_CERT: holds no certificate");
    let huge = "A".repeat(LIMIT + 1);
    assert!(matches!(Identity::from_pairs(&huge, own).unwrap_err().fault, Fault::TooLarge));
}

mod zip_files {
    use std::io::{Cursor, Write as _};

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn refused(bytes: &[u8]) -> IdentityError {
        let dir = tempfile::tempdir().unwrap();
        Identity::from_zip(&write(&dir, "the.zip", bytes)).unwrap_err()
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        let options =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for (name, contents) in members {
            archive.start_file(*name, options).unwrap();
            archive.write_all(contents).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    #[test]
    fn no_archive_at_all() {
        let error = refused(b"PK, but no zip");
        assert!(matches!(error.fault, Fault::Zip(_)));
        tells(&error, "the.zip: is not a readable zip file");
    }

    #[test]
    fn a_missing_member_is_named() {
        let error = refused(&archive(&[("ca.pem", b""), ("cert.pem", b"")]));
        assert!(matches!(error.fault, Fault::NoMember));
        tells(&error, "the.zip:key.pem: ");
        tells(&error, "adit pki zip DIR --out FILE");
    }

    #[test]
    fn a_compressed_member_is_told_apart_from_damage() {
        let mut bytes = archive(&[("ca.pem", b"x"), ("cert.pem", b""), ("key.pem", b"")]);
        // The method of the first entry in the central directory becomes 8, deflate.
        let central = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        bytes[central + 10] = 8;
        let error = refused(&bytes);
        tells(&error, "the.zip:ca.pem: is compressed");
    }

    #[test]
    fn a_member_that_claims_to_be_huge_costs_nothing() {
        let mut bytes = archive(&[("ca.pem", b"x"), ("cert.pem", b""), ("key.pem", b"")]);
        let central = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        bytes[central + 20..central + 28].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f].repeat(2));
        refused(&bytes);
        let large = vec![b'x'; LIMIT + 1];
        let error = refused(&archive(&[("ca.pem", &large)]));
        assert!(matches!(error.fault, Fault::TooLarge), "{error}");
    }
}
