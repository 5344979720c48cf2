//! The flags and variables that name an identity, the same for every command.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::pki::{Identity, IdentityError, Purpose};

/// `--ca FILE --cert FILE --key FILE`, or `--zip FILE`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityFlags {
    /// PEM file of the CA certificates.
    pub ca: Option<PathBuf>,
    /// PEM file of the certificate chain.
    pub cert: Option<PathBuf>,
    /// PEM file of the private key.
    pub key: Option<PathBuf>,
    /// Zip file with `ca.pem`, `cert.pem` and `key.pem`.
    pub zip: Option<PathBuf>,
}

/// Loads the identity that the flags name, else the one in the environment (`AGENT_CA_CERT`,
/// `AGENT_SSL_CERT`), and checks that it is good for `purpose` at `now`.
///
/// # Errors
/// Flags or variables that are given half, both ways or not at all, and whatever is wrong with
/// the identity itself.
pub fn load(
    flags: &IdentityFlags,
    env: &dyn Fn(&str) -> Option<String>,
    purpose: Purpose,
    now: SystemTime,
) -> Result<Identity, IdentityFlagsError> {
    let identity = match flags {
        IdentityFlags { ca: None, cert: None, key: None, zip: None } => {
            from_environment(env, purpose)?
        }
        IdentityFlags { ca: None, cert: None, key: None, zip: Some(zip) } => {
            Identity::from_zip(zip)?
        }
        IdentityFlags { ca: Some(ca), cert: Some(cert), key: Some(key), zip: None } => {
            Identity::from_files(ca, cert, key)?
        }
        IdentityFlags { zip: Some(_), .. } => return Err(IdentityFlagsError::Both),
        IdentityFlags { ca, cert, key, zip: None } => {
            let flags = [("--ca", ca), ("--cert", cert), ("--key", key)];
            let missing = flags.iter().filter(|(_, path)| path.is_none()).map(|(flag, _)| *flag);
            return Err(IdentityFlagsError::Half { missing: missing.collect() });
        }
    };
    identity.check(purpose, now)?;
    Ok(identity)
}

fn from_environment(
    env: &dyn Fn(&str) -> Option<String>,
    purpose: Purpose,
) -> Result<Identity, IdentityFlagsError> {
    let value = |name| env(name).filter(|value| !value.trim().is_empty());
    let half = |missing| Err(IdentityFlagsError::HalfEnvironment { missing });
    match (value(CA_VARIABLE), value(PAIR_VARIABLE)) {
        (Some(ca), Some(pair)) => Ok(Identity::from_pairs(&ca, &pair)?),
        (Some(_), None) => half(PAIR_VARIABLE),
        (None, Some(_)) => half(CA_VARIABLE),
        (None, None) => Err(IdentityFlagsError::Missing(purpose)),
    }
}

const CA_VARIABLE: &str = "AGENT_CA_CERT";
const PAIR_VARIABLE: &str = "AGENT_SSL_CERT";

/// Why there is no identity.
#[derive(Debug)]
pub enum IdentityFlagsError {
    /// Neither flags nor variables.
    Missing(Purpose),
    /// Some of `--ca`, `--cert` and `--key` are missing.
    Half {
        /// Which.
        missing: Vec<&'static str>,
    },
    /// One of the two variables is missing.
    HalfEnvironment {
        /// Which.
        missing: &'static str,
    },
    /// Files and a zip at the same time.
    Both,
    /// What was named cannot be used.
    Identity(IdentityError),
}

impl IdentityFlagsError {
    /// Whether the command line is at fault (a usage error) and not what it names.
    pub fn is_usage(&self) -> bool {
        !matches!(self, IdentityFlagsError::Identity(_))
    }
}

impl fmt::Display for IdentityFlagsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityFlagsError::Missing(purpose) => {
                let pair = match purpose {
                    Purpose::Server => "server",
                    Purpose::Client => "client",
                };
                write!(
                    f,
                    "no certificate is given; `adit pki init ./pki` makes a set, then add \
                     `--ca pki/ca.pem --cert pki/{pair}.pem --key pki/{pair}-key.pem`, or \
                     `--zip FILE`, or set {CA_VARIABLE} and {PAIR_VARIABLE}"
                )
            }
            IdentityFlagsError::Half { missing } => write!(
                f,
                "--ca, --cert and --key belong together: add {} (or use `--zip FILE` instead)",
                missing.join(" and ")
            ),
            IdentityFlagsError::HalfEnvironment { missing } => write!(
                f,
                "{CA_VARIABLE} and {PAIR_VARIABLE} belong together: set {missing} too (`adit pki \
                 env ./pki` prints both), or use the flags --ca, --cert and --key"
            ),
            IdentityFlagsError::Both => f.write_str(
                "--zip holds everything that --ca, --cert and --key name: give either the one or \
                 the three",
            ),
            IdentityFlagsError::Identity(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for IdentityFlagsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            IdentityFlagsError::Identity(error) => error.source(),
            _ => None,
        }
    }
}

impl From<IdentityError> for IdentityFlagsError {
    fn from(error: IdentityError) -> Self {
        IdentityFlagsError::Identity(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock;

    fn fixture(name: &str) -> Option<PathBuf> {
        Some(
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/godoxy-pki"))
                .join(name),
        )
    }

    fn files() -> IdentityFlags {
        IdentityFlags {
            ca: fixture("ca.pem"),
            cert: fixture("server.pem"),
            key: fixture("server-key.pem"),
            zip: None,
        }
    }

    fn environment(name: &str) -> Option<String> {
        let text = std::fs::read_to_string(fixture("agent.env")?).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    }

    fn refused(flags: &IdentityFlags, env: &dyn Fn(&str) -> Option<String>) -> IdentityFlagsError {
        load(flags, env, Purpose::Server, clock::wall()).unwrap_err()
    }

    #[test]
    fn the_environment_serves_when_no_flag_is_given() {
        let flags = IdentityFlags::default();
        let from_env = load(&flags, &environment, Purpose::Server, clock::wall()).unwrap();
        let from_files = load(&files(), &|_| None, Purpose::Server, clock::wall()).unwrap();
        assert_eq!(from_env.chain, from_files.chain);
        assert_eq!(from_env.authorities, from_files.authorities);
        assert_eq!(from_env.key, from_files.key);
    }

    #[test]
    fn flags_win_over_the_environment() {
        let broken = |_: &str| Some("nonsense".to_owned());
        assert!(load(&files(), &broken, Purpose::Server, clock::wall()).is_ok());
        let error = refused(&IdentityFlags::default(), &broken);
        assert!(matches!(error, IdentityFlagsError::Identity(_)) && !error.is_usage());
    }

    #[test]
    fn half_given_flags_name_what_is_missing() {
        let flags = IdentityFlags { ca: None, key: None, ..files() };
        let error = refused(&flags, &environment);
        assert!(error.is_usage());
        assert!(error.to_string().contains("add --ca and --key "), "{error}");
    }

    #[test]
    fn a_zip_beside_files_is_refused() {
        let flags = IdentityFlags { zip: fixture("none.zip"), ..files() };
        assert!(matches!(refused(&flags, &|_| None), IdentityFlagsError::Both));
        let flags = IdentityFlags { zip: fixture("none.zip"), ..IdentityFlags::default() };
        assert!(matches!(refused(&flags, &|_| None), IdentityFlagsError::Identity(_)));
    }

    #[test]
    fn half_an_environment_names_the_other_half() {
        let only = |wanted: &'static str| {
            move |name: &str| (name == wanted).then(|| environment(name)).flatten()
        };
        for (given, missing) in
            [("AGENT_CA_CERT", "AGENT_SSL_CERT"), ("AGENT_SSL_CERT", "AGENT_CA_CERT")]
        {
            let error = refused(&IdentityFlags::default(), &only(given)).to_string();
            assert!(error.contains(&format!("set {missing} too")), "{error}");
        }
    }

    #[test]
    fn nothing_given_tells_the_way_to_a_certificate() {
        let empty = |_: &str| Some(String::new());
        let error = refused(&IdentityFlags::default(), &empty);
        assert!(error.to_string().contains("adit pki init ./pki"), "{error}");
    }
}
