//! The names in a peer's certificate, and rules about them.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use wildmatch::WildMatch;
use x509_parser::extensions::GeneralName;

use super::certificate::{CertificateError, fingerprint, parse};

/// Who a certificate says its holder is. The names are the peer's words: escape them when shown,
/// or show [`Names::label`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The subject's common name; the first, should there be several.
    pub common_name: Option<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// Email addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
    /// End of the certificate's validity.
    pub not_after: SystemTime,
    /// SHA-256 over the certificate, as [`fingerprint`] writes it, of one that has no name to go
    /// by; it costs, and this is called for every connection.
    pub fingerprint: Option<String>,
}

impl Names {
    /// Reads the names of a certificate. Kinds of names that are not listed here are passed over.
    ///
    /// # Errors
    /// The certificate cannot be parsed.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parsed = parse(certificate)?;
        let common_name = parsed.subject().iter_common_name().next();
        let end = parsed.validity().not_after.timestamp();
        let mut names = Self {
            common_name: common_name.and_then(|name| name.as_str().ok()).map(str::to_owned),
            dns: Vec::new(),
            ips: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            not_after: u64::try_from(end)
                .ok()
                .and_then(|end| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end)))
                .unwrap_or(SystemTime::UNIX_EPOCH),
            fingerprint: None,
        };
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => names.emails.push((*name).to_owned()),
                GeneralName::URI(name) => names.uris.push((*name).to_owned()),
                GeneralName::IPAddress(octets) => names.ips.extend(address(octets)),
                _ => {}
            }
        }
        if names.all().all(|name| name.is_empty()) {
            names.fingerprint = Some(fingerprint(certificate));
        }
        Ok(names)
    }

    /// One short name for a log line, escaped and at most 64 characters: the common name,
    /// else the first alternative name, else the beginning of the fingerprint.
    pub fn label(&self) -> String {
        match self.all().find(|name| !name.is_empty()) {
            Some(name) => {
                let mut label: String = name.chars().take(LABEL).collect();
                if label.len() < name.len() {
                    label.pop();
                    label.push('…');
                }
                let escaped = label.escape_debug().to_string();
                escaped.chars().take(LABEL).collect()
            }
            None => {
                let start = self.fingerprint.iter().flat_map(|text| text.chars());
                let start: String = start.take(FINGERPRINT_START).collect();
                format!("SHA-256 {start}")
            }
        }
    }

    /// Every name as text: the common name, then DNS names, addresses, emails, URIs.
    pub fn all(&self) -> impl Iterator<Item = String> + '_ {
        self.common_name
            .iter()
            .chain(&self.dns)
            .cloned()
            .chain(self.ips.iter().map(IpAddr::to_string))
            .chain(self.emails.iter().chain(&self.uris).cloned())
    }
}

/// The most characters of [`Names::label`]: the bound of a common name (RFC 5280, appendix A.1).
const LABEL: usize = 64;

/// Eight bytes of the fingerprint: enough to tell certificates apart.
const FINGERPRINT_START: usize = 8 * 3 - 1;

fn address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// Which certificates may connect, by name. Without patterns, all that the CA issued.
#[derive(Clone, Debug, Default)]
pub struct NameRules(Vec<WildMatch>);

impl NameRules {
    /// Rules of globs (`*` any characters, dots too; `?` one), compared without regard to case
    /// with the common name and every alternative name.
    ///
    /// # Errors
    /// An empty pattern: it would match only a certificate with an empty name.
    pub fn new(patterns: &[String]) -> Result<Self, NameRuleError> {
        if patterns.iter().any(|pattern| pattern.trim().is_empty()) {
            return Err(NameRuleError);
        }
        let rule = |pattern: &String| WildMatch::new_case_insensitive(pattern.trim());
        Ok(Self(patterns.iter().map(rule).collect()))
    }

    /// Whether there is no rule, so that every certificate is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a certificate with these names may connect.
    pub fn allows(&self, names: &Names) -> bool {
        self.0.is_empty() || names.all().any(|name| self.0.iter().any(|rule| rule.matches(&name)))
    }
}

/// An empty name pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameRuleError;

impl fmt::Display for NameRuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a client name pattern is empty; give a name or a glob such as `*.example.com`, or \
             leave the option out to allow every client of the CA",
        )
    }
}

impl std::error::Error for NameRuleError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            common_name: Some("alice".to_owned()),
            dns: vec!["laptop.Example.com".to_owned()],
            ips: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            emails: vec!["alice@example.org".to_owned()],
            uris: vec!["spiffe://example/alice".to_owned()],
            not_after: SystemTime::UNIX_EPOCH,
            fingerprint: Some("00:11:22:33:44:55:66:77:88:99".to_owned()),
        }
    }

    fn allows(patterns: &[&str]) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        NameRules::new(&patterns).unwrap().allows(&names())
    }

    #[test]
    fn any_name_may_match_any_rule_without_regard_to_case() {
        for pattern in
            ["ALICE", "*.example.COM", "192.0.2.*", "2001:db8::?", "*@example.org", "spiffe://*"]
        {
            assert!(allows(&["bob", pattern]), "{pattern}");
        }
        for pattern in ["bob", "alic", "example.com", "*.example.net", "192.0.2.70"] {
            assert!(!allows(&[pattern]), "{pattern}");
        }
    }

    #[test]
    fn no_rules_allow_everyone_and_an_empty_rule_is_refused() {
        assert!(allows(&[]));
        assert_eq!(NameRules::new(&[" ".to_owned()]).unwrap_err(), NameRuleError);
    }

    #[test]
    fn a_label_is_short_and_cannot_break_a_log_line() {
        let mut names = names();
        assert_eq!(names.label(), "alice");
        names.common_name = Some("evil\nname\u{1b}[31m".to_owned());
        assert_eq!(names.label(), "evil\\nname\\u{1b}[31m");
        names.common_name = Some("ä".repeat(1000));
        assert_eq!(names.label().chars().count(), 64);
        names.common_name = Some("\n".repeat(1000));
        assert_eq!(names.label().chars().count(), 64);
        names.common_name = None;
        assert_eq!(names.label(), "laptop.Example.com");
        let nameless = Names {
            dns: Vec::new(),
            ips: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            ..names
        };
        assert_eq!(nameless.label(), "SHA-256 00:11:22:33:44:55:66:77");
    }
}
