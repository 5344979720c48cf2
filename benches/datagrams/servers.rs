//! The ways to the echo, and how each rival is set up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::certs::Certificates;
use crate::program::{self, Program, find, free_port, show};
use crate::{Result, process};

/// What is compared, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Adit,
    /// Straight to the echo, without encryption: what the machine can do.
    Direct,
    Socat,
    Pion,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Adit, Self::Direct, Self::Socat, Self::Pion];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Adit => "adit",
            Self::Direct => "direct",
            Self::Socat => "socat",
            Self::Pion => "pion",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// Whether it asks for a destination, as agents do.
    pub(crate) fn wants_header(self) -> bool {
        matches!(self, Self::Adit | Self::Pion)
    }

    /// Why it cannot take part here.
    pub(crate) fn unavailable(self) -> Option<String> {
        let program = match self {
            Self::Adit | Self::Direct => return None,
            Self::Socat => socat(),
            Self::Pion => pion(),
        };
        program.err().map(|error| error.to_string())
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    /// Where clients send their datagrams.
    pub(crate) address: SocketAddr,
    /// None for the direct way.
    pub(crate) program: Option<Program>,
}

impl Server {
    /// Starts the program; it may not listen yet.
    pub(crate) fn start(
        kind: Kind,
        dir: &Path,
        certificates: &Certificates,
        echo: SocketAddr,
    ) -> Result<Self> {
        if kind == Kind::Direct {
            return Ok(Self { kind, address: echo, program: None });
        }
        let address = free_port()?;
        let (program, arguments) = match kind {
            Kind::Adit => (program::adit()?, adit_arguments(address, certificates)),
            Kind::Socat => (socat()?, socat_arguments(address, certificates, echo)),
            _ => (pion()?, pion_arguments(address, certificates)),
        };
        let program = Program::start(kind.name(), &program, arguments, dir)?;
        Ok(Self { kind, address, program: Some(program) })
    }

    pub(crate) fn check_alive(&mut self) -> Result<()> {
        self.program.as_mut().map_or(Ok(()), Program::check_alive)
    }

    /// Its processor time; none for the direct way.
    pub(crate) fn cpu_ms(&self) -> Result<Option<f64>> {
        self.program.as_ref().map(Program::cpu_ms).transpose()
    }
}

/// Threads of a program and all its children.
pub(crate) fn threads(program: &Program) -> Result<u64> {
    let mut sum = 0;
    for pid in process::family(program.child.id())? {
        // A child may have ended since it was listed.
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        sum += tasks.count() as u64;
    }
    Ok(sum)
}

fn adit_arguments(listen: SocketAddr, certificates: &Certificates) -> Vec<String> {
    let mut arguments = vec!["agent".to_owned(), "--listen".to_owned(), listen.to_string()];
    for (flag, value) in [
        ("--ca", show(&certificates.ca)),
        ("--cert", show(&certificates.server_cert)),
        ("--key", show(&certificates.server_key)),
    ] {
        arguments.push(flag.to_owned());
        arguments.push(value);
    }
    arguments
}

fn socat() -> Result<PathBuf> {
    find("socat", &["socat"], "socat")
}

/// A process for each session is socat's only model. It has no stateless cookie: a first datagram
/// is enough for a process.
fn socat_arguments(
    listen: SocketAddr,
    certificates: &Certificates,
    echo: SocketAddr,
) -> Vec<String> {
    vec![
        format!(
            "OPENSSL-DTLS-SERVER:{},bind={},reuseaddr,fork,cert={},cafile={},verify=1,\
             cipher=ECDHE-ECDSA-AES128-GCM-SHA256",
            listen.port(),
            listen.ip(),
            show(&certificates.server_pair),
            show(&certificates.ca),
        ),
        format!("UDP:{echo}"),
    ]
}

/// An agent as GoDoxy's, on Debian's pion: built here, without the network.
fn pion() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    Ok(BUILT.get_or_init(|| build_pion().map_err(|error| error.to_string())).clone()?)
}

fn build_pion() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/go-dtls");
    if !source.is_dir() {
        return Err(format!("there is no {}", source.display()).into());
    }
    let packages = "golang-go golang-github-pion-dtls.v2-dev";
    let go = find("Go", &["go"], packages)?;
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pion-agent");
    let output = Command::new(go)
        .current_dir(source)
        .args(["build", "-o"])
        .arg(&program)
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache"))
        .output()?;
    if output.status.success() {
        return Ok(program);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("it does not build ({packages} installed?): {words}").into())
}

fn pion_arguments(listen: SocketAddr, certificates: &Certificates) -> Vec<String> {
    vec![
        "agent".to_owned(),
        format!("-address={listen}"),
        format!("-ca={}", show(&certificates.ca)),
        format!("-cert={}", show(&certificates.server_cert)),
        format!("-key={}", show(&certificates.server_key)),
    ]
}
