//! `adit unit`: prints a hardened systemd unit.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use argh::FromArgs;

const TEMPLATE: &str = include_str!("unit/agent.service");

/// Where a package would put the binary, for a unit printed by one that the unit could not see.
const INSTALLED: &str = "/usr/local/bin/adit";

/// What the unit hides from its program (`ProtectHome=`, `PrivateTmp=`).
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Print a hardened systemd unit, for example: adit unit agent > /etc/systemd/system/adit-agent.service
#[derive(Clone, Debug, PartialEq, Eq, FromArgs)]
#[argh(subcommand, name = "unit")]
pub struct Unit {
    /// what the unit runs: agent
    #[argh(positional)]
    pub what: String,

    /// path of the adit binary (default: the one that prints the unit, or /usr/local/bin/adit if
    /// that lies where the unit cannot see it)
    #[argh(option, arg_name = "path")]
    pub bin: Option<PathBuf>,

    /// existing user to run as (default: a user that exists only while the unit runs)
    #[argh(option, arg_name = "name")]
    pub user: Option<String>,

    /// file with AGENT_ variables, which may be missing (default: /etc/adit/agent.env)
    #[argh(option, arg_name = "path", default = "PathBuf::from(\"/etc/adit/agent.env\")")]
    pub env_file: PathBuf,

    /// folder with ca.pem, cert.pem and key.pem, which systemd reads as root and passes on
    /// (default: the identity comes from the environment file)
    #[argh(option, arg_name = "dir")]
    pub credentials: Option<PathBuf>,
}

/// Why no unit is printed. All but the last are usage errors.
#[derive(Debug)]
pub enum UnitError {
    /// There is no unit for that.
    Unknown(String),
    /// A path that a unit cannot name: not absolute, or with characters that systemd interprets.
    Path {
        /// The flag that gave it.
        flag: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The binary lies where the unit's sandbox hides it.
    HiddenBinary(PathBuf),
    /// A user name that systemd refuses.
    User(String),
    /// Standard output could not be written.
    Write(io::Error),
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(what) => {
                write!(f, "there is no unit for {what:?}: try `adit unit agent`")
            }
            Self::Path { flag, path } => write!(
                f,
                "{flag} {path:?} cannot stand in a unit: give an absolute path without `..`, of \
                 letters, digits and the characters /._+:@=,-"
            ),
            Self::HiddenBinary(path) => write!(
                f,
                "--bin {path:?} is hidden from the unit, which sees no homes and has its own /tmp: \
                 install it elsewhere, such as {INSTALLED}"
            ),
            Self::User(user) => write!(
                f,
                "--user {user:?} is no user name: up to 31 letters, digits, - and _, not starting \
                 with a digit or -"
            ),
            Self::Write(error) => write!(f, "cannot write the unit to standard output: {error}"),
        }
    }
}

impl Error for UnitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Write(error) => Some(error),
            _ => None,
        }
    }
}

impl Unit {
    /// Prints the unit on standard output.
    pub fn run(&self) -> Result<(), UnitError> {
        let running = std::env::current_exe().ok();
        let text = self.text(running.as_deref())?;
        if self.bin.is_none() && running.is_none_or(|path| is_hidden(&path)) {
            // Nothing is left to tell it to when standard error is gone.
            drop(writeln!(
                io::stderr(),
                "adit: the unit cannot see where this binary lies and runs {INSTALLED}: install it \
                 there, or name another place with --bin"
            ));
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(UnitError::Write)
    }

    /// The unit as text; `running` is the binary that prints it.
    fn text(&self, running: Option<&Path>) -> Result<String, UnitError> {
        if self.what != "agent" {
            return Err(UnitError::Unknown(self.what.clone()));
        }
        let bin = match &self.bin {
            Some(bin) if is_hidden(bin) => return Err(UnitError::HiddenBinary(bin.clone())),
            Some(bin) => bin.as_path(),
            None => running.filter(|path| !is_hidden(path)).unwrap_or(Path::new(INSTALLED)),
        };
        let mut exec = format!("{} agent", plain("--bin", bin)?);
        let mut identity = match &self.user {
            None => "DynamicUser=yes\nUser=adit".to_owned(),
            Some(user) if is_user(user) => format!("User={user}"),
            Some(user) => return Err(UnitError::User(user.clone())),
        };
        if let Some(folder) = &self.credentials {
            let folder = plain("--credentials", folder)?;
            for name in ["ca", "cert", "key"] {
                identity.push_str(&format!("\nLoadCredential={name}.pem:{folder}/{name}.pem"));
                exec.push_str(&format!(" --{name} ${{CREDENTIALS_DIRECTORY}}/{name}.pem"));
            }
        }
        Ok(TEMPLATE
            .replace("@IDENTITY@", &identity)
            .replace("@ENV_FILE@", &plain("--env-file", &self.env_file)?)
            .replace("@EXEC@", &exec))
    }
}

/// `path` as it stands in a unit, without a need for quotes or escapes.
fn plain(flag: &'static str, path: &Path) -> Result<String, UnitError> {
    let stands = |c: char| c.is_ascii_alphanumeric() || "/._+:@=,-".contains(c);
    // As systemd wants them: its own reader of credentials takes no `//`, `/./` or final slash.
    let clean: PathBuf = path.components().collect();
    let climbs = path.components().any(|part| part == Component::ParentDir);
    let text = clean.to_str().filter(|_| !climbs);
    text.filter(|text| text.starts_with('/') && text.chars().all(stands))
        .map(str::to_owned)
        .ok_or_else(|| UnitError::Path { flag, path: path.to_owned() })
}

fn is_hidden(path: &Path) -> bool {
    HIDDEN.iter().any(|hidden| path.starts_with(hidden))
}

fn is_user(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    starts && name.len() <= 31 && name.chars().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(flags: &[&str]) -> Unit {
        Unit::from_args(&["adit", "unit"], &[&["agent"], flags].concat()).unwrap()
    }

    fn text(flags: &[&str]) -> String {
        unit(flags).text(Some(Path::new("/opt/adit/adit"))).unwrap()
    }

    #[test]
    fn the_unit_runs_the_binary_that_prints_it() {
        let text = text(&[]);
        assert!(text.contains("\nExecStart=/opt/adit/adit agent\n"));
        assert!(text.contains("\nEnvironmentFile=-/etc/adit/agent.env\n"));
        assert!(text.contains("\nDynamicUser=yes\nUser=adit\n"));
        for placeholder in ["@IDENTITY@", "@ENV_FILE@", "@EXEC@"] {
            assert!(TEMPLATE.contains(placeholder) && !text.contains(placeholder));
        }
    }

    #[test]
    fn a_binary_that_the_unit_cannot_see_is_not_named() {
        for hidden in ["/home/x/adit", "/tmp/target/adit", "/root/adit"] {
            let text = unit(&[]).text(Some(Path::new(hidden))).unwrap();
            assert!(text.contains("\nExecStart=/usr/local/bin/adit agent\n"), "{hidden}");
            let asked = unit(&["--bin", hidden]).text(None);
            assert!(matches!(asked, Err(UnitError::HiddenBinary(_))), "{hidden}");
        }
        assert!(unit(&[]).text(None).unwrap().contains("=/usr/local/bin/adit agent\n"));
        assert!(text(&["--bin", "/homestead/adit"]).contains("=/homestead/adit agent\n"));
    }

    #[test]
    fn paths_stand_as_systemd_reads_them() {
        for folder in ["/etc/adit/", "/etc//adit", "/etc/./adit/."] {
            let text = text(&["--credentials", folder]);
            assert!(
                text.contains("\nLoadCredential=ca.pem:/etc/adit/ca.pem\n"),
                "{folder}: {text}"
            );
        }
        assert!(unit(&["--credentials", "/etc/../adit"]).text(None).is_err());
    }

    #[test]
    fn credentials_reach_the_agent_as_files() {
        let text = text(&["--credentials", "/etc/adit", "--user", "relay", "--env-file", "/e"]);
        assert!(text.contains("\nUser=relay\nLoadCredential=ca.pem:/etc/adit/ca.pem\n"));
        assert!(text.contains("\nLoadCredential=key.pem:/etc/adit/key.pem\nEnvironmentFile=-/e\n"));
        assert!(text.contains(
            "agent --ca ${CREDENTIALS_DIRECTORY}/ca.pem --cert ${CREDENTIALS_DIRECTORY}/cert.pem \
             --key ${CREDENTIALS_DIRECTORY}/key.pem\n"
        ));
        assert!(!text.contains("DynamicUser"));
    }

    #[test]
    fn what_systemd_would_interpret_is_refused() {
        for bad in ["adit", "", "/a b", "/a\nUser=root", "/a%n", "/a$B", "/a\"", "/a\\", "/a;b"] {
            for flag in ["--bin", "--env-file", "--credentials"] {
                let refused = unit(&[flag, bad]).text(None);
                assert!(matches!(refused, Err(UnitError::Path { .. })), "{flag} {bad:?}");
            }
        }
        for bad in ["", "0", "a b", "a\nb", "-a", "a%", &"a".repeat(32)] {
            assert!(
                matches!(unit(&["--user", bad]).text(None), Err(UnitError::User(_))),
                "{bad:?}"
            );
        }
        let other = Unit::from_args(&["unit"], &["route"]).unwrap().text(None).unwrap_err();
        assert_eq!(other.to_string(), "there is no unit for \"route\": try `adit unit agent`");
    }

    /// What systemd itself says of the unit, for each kind of identity.
    #[cfg(feature = "peers")]
    #[test]
    fn systemd_finds_no_fault_and_little_exposure() {
        use std::process::Command;

        let run = |arguments: &[&str], file: &Path| {
            let output =
                Command::new("systemd-analyze").args(arguments).arg(file).output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(said).unwrap())
        };
        let folder = tempfile::tempdir().unwrap();
        for flags in [vec![], vec!["--user", "daemon"], vec!["--credentials", "/etc/adit"]] {
            let file = folder.path().join("adit-agent.service");
            let flags = [flags, vec!["--bin", "/bin/true"]].concat();
            std::fs::write(&file, text(&flags)).unwrap();
            assert_eq!(run(&["verify", "--man=no"], &file), (true, String::new()), "{flags:?}");
            // In tenths of a point, of 10. What is left is the network itself, and `@resources`,
            // without which the C library cannot ask for its own limits.
            let (good, said) = run(&["security", "--offline=true", "--threshold=13"], &file);
            assert!(good, "{said}");
        }
    }
}
