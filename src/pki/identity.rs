//! What one end of a connection needs to prove itself and to judge the other.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::x509::X509Version;

use super::bundle::{MEMBERS, decode_pair, read_zip};
use super::certificate::{is_authority, parse};
use super::error::{Fault, IdentityError, Place};
use super::pem::{Blocks, read_bounded};
use super::provider;

/// Which end of a connection a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An agent.
    Server,
    /// Whoever connects to one.
    Client,
}

/// The authorities whose certificates one end accepts, its own certificate chain and its key.
pub struct Identity {
    /// CA certificates; at least one when loaded.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Its own certificate first, then intermediates; at least one when loaded.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate. PKCS#8, SEC1 or PKCS#1, as it was loaded.
    pub key: PrivateKeyDer<'static>,
    places: Places,
}

/// Where the parts came from, for the errors of [`Identity::check`].
#[derive(Clone)]
struct Places {
    ca: Place,
    certificate: Place,
    key: Place,
}

impl Identity {
    /// An identity made by the program itself. Nothing is checked.
    pub fn from_parts(
        authorities: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Self {
        let places = Places {
            ca: Place::Given("the CA"),
            certificate: Place::Given("the certificate"),
            key: Place::Given("the key"),
        };
        Self { authorities, chain, key, places }
    }

    /// Loads PEM files: CA certificates, a certificate with its intermediates, a PKCS#8, SEC1 or
    /// PKCS#1 key. `cert` and `key` may be the same file.
    ///
    /// # Errors
    /// A file that cannot be read, is above 1 MiB, or does not hold what it should. Whether the
    /// parts fit together is [`check`](Self::check)ed apart.
    pub fn from_files(ca: &Path, cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let place = |path: &Path| Place::File(path.to_owned());
        Self::from_texts(
            Places { ca: place(ca), certificate: place(cert), key: place(key) },
            [&read_bounded(ca)?, &read_bounded(cert)?, &read_bounded(key)?],
        )
    }

    /// Loads a zip file with `ca.pem`, `cert.pem` and `key.pem`, stored.
    ///
    /// # Errors
    /// As [`from_files`](Self::from_files), and an archive that cannot be read.
    pub fn from_zip(path: &Path) -> Result<Self, IdentityError> {
        let [ca, certificate, key] = read_zip(path, &read_bounded(path)?)?;
        let [ca_place, certificate_place, key_place] =
            MEMBERS.map(|member| Place::Member(path.to_owned(), member));
        Self::from_texts(
            Places { ca: ca_place, certificate: certificate_place, key: key_place },
            [&ca, &certificate, &key],
        )
    }

    /// Loads the values of `AGENT_CA_CERT` and `AGENT_SSL_CERT`, each
    /// `base64(certificate PEM);base64(key PEM)`. The CA's key is not needed and not looked at.
    ///
    /// # Errors
    /// A value that is not such a pair, or does not hold what it should.
    pub fn from_pairs(ca_pair: &str, cert_pair: &str) -> Result<Self, IdentityError> {
        let own = Place::Variable("AGENT_SSL_CERT");
        let places =
            Places { ca: Place::Variable("AGENT_CA_CERT"), certificate: own.clone(), key: own };
        let (ca, _) = decode_pair(&places.ca, ca_pair)?;
        let (certificate, key) = decode_pair(&places.certificate, cert_pair)?;
        Self::from_texts(places, [&ca, &certificate, &key])
    }

    fn from_texts(places: Places, texts: [&[u8]; 3]) -> Result<Self, IdentityError> {
        let [ca, certificate, key] = texts;
        let authorities = Blocks::certificates(&places.ca, ca)?;
        let chain = Blocks::certificates(&places.certificate, certificate)?;
        let key = Blocks::key(&places.key, key)?;
        Ok(Self { authorities, chain, key, places })
    }

    /// Whether the parts fit together and are good for `purpose` at `now`: the key belongs to the
    /// certificate, every certificate is within its validity, the uses allow it, an agent's
    /// certificate has a name to be verified by, and the chain leads to one of the authorities.
    ///
    /// The other end decides with its own library; this finds early what any of them would refuse.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, purpose: Purpose, now: SystemTime) -> Result<(), IdentityError> {
        let at = &self.places.certificate;
        let fail = |fault| IdentityError::new(at, fault);
        let bad = |error| IdentityError::new(at, Fault::BadCertificate(error));
        let leaf = self.chain.first().ok_or_else(|| fail(Fault::NoCertificate))?;
        let parsed = parse(leaf).map_err(bad)?;

        let key_fail = |fault| IdentityError::new(&self.places.key, fault);
        let provider = provider::default();
        let signer = provider
            .key_provider
            .load_private_key(self.key.clone_key())
            .map_err(|error| key_fail(Fault::BadKey(error.into())))?;
        if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) =
            CertifiedKey::new(self.chain.clone(), signer).keys_match()
        {
            return Err(key_fail(Fault::OtherKey(at.clone())));
        }

        let now = seconds(now);
        for certificate in &self.chain {
            valid_at(now, &parse(certificate).map_err(bad)?).map_err(fail)?;
        }
        fits(&parsed, purpose).map_err(fail)?;

        let issuer = self.issuing_authority(&parsed)?;
        let ca_fail = |fault| IdentityError::new(&self.places.ca, fault);
        let issuer = parse(issuer).map_err(|error| ca_fail(Fault::BadCertificate(error)))?;
        if !is_authority(&issuer) {
            return Err(ca_fail(Fault::NotAuthority));
        }
        valid_at(now, &issuer).map_err(ca_fail)?;
        self.verify(leaf, now, &provider)
    }

    /// Verifies the signatures as the other end will. Names, times and uses were looked at before,
    /// with words of their own.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        now: i64,
        provider: &CryptoProvider,
    ) -> Result<(), IdentityError> {
        let at = &self.places.certificate;
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            roots.add(authority.clone()).map_err(|error| {
                IdentityError::new(&self.places.ca, Fault::Refused(error.into()))
            })?;
        }
        let now = Duration::from_secs(u64::try_from(now).unwrap_or_default());
        let verified = ParsedCertificate::try_from(leaf).and_then(|leaf| {
            verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &roots,
                self.chain.get(1..).unwrap_or_default(),
                UnixTime::since_unix_epoch(now),
                provider.signature_verification_algorithms.all,
            )
        });
        match verified {
            // The verifier is the one for servers; a client's certificate gets as far as its use,
            // which is the last thing that is looked at.
            Ok(())
            | Err(rustls::Error::InvalidCertificate(
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
            )) => Ok(()),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Err(IdentityError::new(at, Fault::NotIssuedBy(self.places.ca.clone()))),
            Err(error) => Err(IdentityError::new(at, Fault::Refused(error.into()))),
        }
    }

    /// The authority at the end of the chain, by name.
    fn issuing_authority(
        &self,
        leaf: &X509Certificate<'_>,
    ) -> Result<&CertificateDer<'static>, IdentityError> {
        let issued = |subject: &X509Certificate<'_>, by: &CertificateDer<'_>| {
            parse(by).is_ok_and(|by| by.subject().as_raw() == subject.issuer().as_raw())
        };
        let from_authority =
            |subject: &X509Certificate<'_>| self.authorities.iter().find(|by| issued(subject, by));
        if let Some(authority) = from_authority(leaf) {
            return Ok(authority);
        }
        // Each intermediate is taken once, so the walk ends whatever the file holds.
        let mut left: Vec<&CertificateDer<'static>> = self.chain.iter().skip(1).collect();
        let mut next = left.iter().position(|by| issued(leaf, by));
        while let Some(index) = next {
            let current = left.swap_remove(index);
            let Ok(parsed) = parse(current) else { break };
            if let Some(authority) = from_authority(&parsed) {
                return Ok(authority);
            }
            next = left.iter().position(|by| issued(&parsed, by));
        }
        let fault = Fault::NotIssuedBy(self.places.ca.clone());
        Err(IdentityError::new(&self.places.certificate, fault))
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            authorities: self.authorities.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            places: self.places.clone(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("authorities", &self.places.ca)
            .field("chain", &self.places.certificate)
            .field("key", &"hidden")
            .finish_non_exhaustive()
    }
}

/// Whole seconds since 1970, negative before.
pub(super) fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
    }
}

pub(super) fn valid_at(now: i64, certificate: &X509Certificate<'_>) -> Result<(), Fault> {
    let not_before = certificate.validity().not_before.timestamp();
    let not_after = certificate.validity().not_after.timestamp();
    if now < not_before {
        return Err(Fault::NotYetValid { not_before, now });
    }
    if now > not_after {
        return Err(Fault::Expired { not_after, now });
    }
    Ok(())
}

/// Whether one end may show this certificate for `purpose`.
fn fits(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), Fault> {
    if certificate.version() != X509Version::V3 {
        return Err(Fault::OldVersion);
    }
    if certificate.is_ca() {
        return Err(Fault::IsAuthority);
    }
    // rustls and OpenSSL do not take anyExtendedKeyUsage for either use, so neither does this.
    if let Ok(Some(usage)) = certificate.extended_key_usage() {
        let (server, client) = (usage.value.server_auth, usage.value.client_auth);
        let good = match purpose {
            Purpose::Server => server,
            Purpose::Client => client,
        };
        if !good {
            let allowed = match (server, client) {
                (true, _) => "servers only",
                (_, true) => "clients only",
                _ => "neither servers nor clients",
            };
            return Err(Fault::WrongUse { needed: purpose, allowed: allowed.to_owned() });
        }
    }
    if let Ok(Some(usage)) = certificate.key_usage()
        && !usage.value.digital_signature()
    {
        return Err(Fault::NoSignature);
    }
    if purpose == Purpose::Server {
        use x509_parser::extensions::GeneralName::{DNSName, IPAddress};
        let names = certificate.subject_alternative_name().ok().flatten();
        let verifiable = names.is_some_and(|names| {
            names.value.general_names.iter().any(|name| matches!(name, DNSName(_) | IPAddress(_)))
        });
        if !verifiable {
            return Err(Fault::NoName);
        }
    }
    Ok(())
}
