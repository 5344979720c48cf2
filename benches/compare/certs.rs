//! Throwaway certificates: a CA, a server and a client, ECDSA P-256 with SHA-256, as PEM files
//! that all servers and the load generator share.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use crate::Result;

/// The name in the server's certificate and in SNI.
pub(crate) const SERVER_NAME: &str = "godoxy.agent";

/// Where the PEM files lie.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) server_cert: PathBuf,
    pub(crate) server_key: PathBuf,
    /// Server certificate and key in one file, as HAProxy reads them.
    pub(crate) server_pair: PathBuf,
    pub(crate) client_cert: PathBuf,
    pub(crate) client_key: PathBuf,
}

/// Makes all certificates and writes them into `dir`.
pub(crate) fn create(dir: &Path) -> Result<Certificates> {
    let ca_key = new_key()?;
    let mut ca = start("compare CA", &ca_key)?;
    let ca_name = name("compare CA")?;
    ca.set_issuer_name(&ca_name)?;
    ca.append_extension(BasicConstraints::new().critical().ca().pathlen(0).build()?)?;
    ca.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    let identifier = SubjectKeyIdentifier::new().build(&ca.x509v3_context(None, None))?;
    ca.append_extension(identifier)?;
    ca.sign(&ca_key, MessageDigest::sha256())?;
    let ca = ca.build();

    let (server, server_key) =
        leaf(&ca, &ca_key, "compare server", ExtendedKeyUsage::new().server_auth())?;
    let (client, client_key) =
        leaf(&ca, &ca_key, "compare client", ExtendedKeyUsage::new().client_auth())?;

    let files = Certificates {
        ca: dir.join("ca.pem"),
        server_cert: dir.join("server.pem"),
        server_key: dir.join("server.key"),
        server_pair: dir.join("server-pair.pem"),
        client_cert: dir.join("client.pem"),
        client_key: dir.join("client.key"),
    };
    std::fs::write(&files.ca, ca.to_pem()?)?;
    std::fs::write(&files.server_cert, server.to_pem()?)?;
    std::fs::write(&files.server_key, server_key.private_key_to_pem_pkcs8()?)?;
    let pair = [server.to_pem()?, server_key.private_key_to_pem_pkcs8()?].concat();
    std::fs::write(&files.server_pair, pair)?;
    std::fs::write(&files.client_cert, client.to_pem()?)?;
    std::fs::write(&files.client_key, client_key.private_key_to_pem_pkcs8()?)?;
    for key in [&files.server_key, &files.server_pair, &files.client_key] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(files)
}

fn leaf(
    ca: &X509,
    ca_key: &PKey<Private>,
    common_name: &str,
    usage: &mut ExtendedKeyUsage,
) -> Result<(X509, PKey<Private>)> {
    let key = new_key()?;
    let mut cert = start(common_name, &key)?;
    cert.set_issuer_name(ca.subject_name())?;
    cert.append_extension(BasicConstraints::new().critical().build()?)?;
    cert.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
    cert.append_extension(usage.build()?)?;
    let context = cert.x509v3_context(Some(ca), None);
    let alternative = SubjectAlternativeName::new().dns(SERVER_NAME).build(&context)?;
    let authority = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
    cert.append_extension(alternative)?;
    cert.append_extension(authority)?;
    cert.sign(ca_key, MessageDigest::sha256())?;
    Ok((cert.build(), key))
}

fn start(common_name: &str, key: &PKey<Private>) -> Result<X509Builder> {
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let mut cert = X509::builder()?;
    cert.set_version(2)?;
    cert.set_serial_number(&*serial.to_asn1_integer()?)?;
    cert.set_subject_name(&*name(common_name)?)?;
    cert.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    cert.set_not_after(&*Asn1Time::days_from_now(2)?)?;
    cert.set_pubkey(key)?;
    Ok(cert)
}

fn name(common_name: &str) -> Result<openssl::x509::X509Name> {
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    Ok(name.build())
}

fn new_key() -> Result<PKey<Private>> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    Ok(PKey::from_ec_key(EcKey::generate(&group)?)?)
}
