//! `adit pki`: making, showing and packing certificates.

mod show;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use argh::FromArgs;

use crate::lifecycle::clock;
use crate::pki::{
    Authority, Identity, IdentityError, IssueError, NewFile, Purpose, Request, StoreError,
    Validity, certificate_pem, encode_pair, key_pem, layout, write_new, write_zip,
};

pub use show::ShowCommand;

/// Make, show and pack the certificates that agents and clients prove themselves with.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "pki")]
pub struct PkiCommand {
    /// what to do
    #[argh(subcommand)]
    pub action: PkiAction,
}

/// What `adit pki` can do.
#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub enum PkiAction {
    /// A whole new set.
    Init(InitCommand),
    /// One more certificate.
    Issue(IssueCommand),
    /// What a file, variable or zip holds.
    Show(ShowCommand),
    /// The environment of an agent.
    Env(EnvCommand),
    /// The zip of a server.
    Zip(ZipCommand),
}

/// Make a CA, a server certificate for an agent and a client certificate, each with its key.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "init")]
pub struct InitCommand {
    /// directory for ca.pem, server.pem, client.pem and their -key.pem files; made if missing
    #[argh(positional, arg_name = "dir")]
    pub dir: PathBuf,
    /// DNS name or IP address of the agent, repeatable (default: godoxy.agent, which clients look for unless told otherwise)
    #[argh(option, arg_name = "name")]
    pub name: Vec<String>,
    /// how many days the certificates are valid (default: 3650)
    #[argh(option, default = "DAYS", from_str_fn(days), arg_name = "days")]
    pub days: u32,
    /// common name of the CA (default: adit CA)
    #[argh(option, default = "String::from(\"adit CA\")", arg_name = "name")]
    pub ca_name: String,
    /// name of the client, for --allow-name and the log (default: adit-client)
    #[argh(option, default = "String::from(\"adit-client\")", arg_name = "name")]
    pub client_name: String,
}

/// Issue one more certificate with a new key, from the CA of a set.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "issue")]
pub struct IssueCommand {
    /// names in the certificate: DNS names and IP addresses; the first is the common name too; a client's may also be an email address or plain text (default with --server: godoxy.agent)
    #[argh(positional, arg_name = "name")]
    pub names: Vec<String>,
    /// directory that holds ca.pem and ca-key.pem
    #[argh(option, arg_name = "dir")]
    pub dir: PathBuf,
    /// issue a certificate for an agent
    #[argh(switch)]
    pub server: bool,
    /// issue a certificate for a client
    #[argh(switch)]
    pub client: bool,
    /// how many days the certificate is valid (default: 3650, or as long as the CA if that is less)
    #[argh(option, from_str_fn(days), arg_name = "days")]
    pub days: Option<u32>,
    /// write PREFIX.pem and PREFIX-key.pem (default: the first name, in --dir)
    #[argh(option, arg_name = "prefix")]
    pub out: Option<PathBuf>,
}

/// Print the AGENT_CA_CERT= and AGENT_SSL_CERT= lines of an agent's environment.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "env")]
pub struct EnvCommand {
    /// directory of the set
    #[argh(positional, arg_name = "dir")]
    pub dir: PathBuf,
    /// use PREFIX.pem and PREFIX-key.pem as the agent's pair (default: server, in the directory)
    #[argh(option, arg_name = "prefix")]
    pub pair: Option<PathBuf>,
    /// leave the CA's key out: enough for adit agent, but agents of GoDoxy will not start
    #[argh(switch)]
    pub no_ca_key: bool,
}

/// Pack ca.pem and a client's pair (as cert.pem and key.pem) into a zip file, stored.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "zip")]
pub struct ZipCommand {
    /// directory of the set
    #[argh(positional, arg_name = "dir")]
    pub dir: PathBuf,
    /// the zip file to make
    #[argh(option, arg_name = "file")]
    pub out: PathBuf,
    /// pack PREFIX.pem and PREFIX-key.pem (default: client, in the directory)
    #[argh(option, arg_name = "prefix")]
    pub pair: Option<PathBuf>,
}

/// Ten years: long enough for a box in a cupboard, short enough that its end is met in a lifetime.
const DAYS: u32 = 3650;

/// The name that clients look for in an agent's certificate (stream protocol, "Certificates").
const AGENT_NAME: &str = "godoxy.agent";

/// Does what `command` says. Only results go to `out`.
///
/// # Errors
/// What is wrong with the command line, the files named, or the system.
pub fn run(command: &PkiCommand, out: &mut dyn Write) -> Result<(), PkiCommandError> {
    let now = clock::wall();
    match &command.action {
        PkiAction::Init(init) => init.run(now, out),
        PkiAction::Issue(issue) => issue.run(now, out),
        PkiAction::Show(show) => show.run(now, out),
        PkiAction::Env(env) => env.run(now, out),
        PkiAction::Zip(zip) => zip.run(now, out),
    }
}

impl InitCommand {
    fn run(&self, now: SystemTime, out: &mut dyn Write) -> Result<(), PkiCommandError> {
        let validity = Validity::days(now, self.days);
        let authority = Authority::create(&self.ca_name, validity)?;
        let names = match self.name.as_slice() {
            [] => vec![AGENT_NAME.to_owned()],
            names => names.to_vec(),
        };
        let server = authority.issue(&Request { purpose: Purpose::Server, names, validity })?;
        let names = vec![self.client_name.clone()];
        let client = authority.issue(&Request { purpose: Purpose::Client, names, validity })?;

        let [server_cert, server_key] = pair_of(&self.dir.join(layout::SERVER));
        let [client_cert, client_key] = pair_of(&self.dir.join(layout::CLIENT));
        let files = [
            NewFile::public(self.dir.join(layout::CA), authority.certificate_pem()),
            NewFile::secret(self.dir.join(layout::CA_KEY), authority.key_pem()),
            NewFile::public(server_cert, server.certificate_pem()),
            NewFile::secret(server_key, server.key_pem()),
            NewFile::public(client_cert, client.certificate_pem()),
            NewFile::secret(client_key, client.key_pem()),
        ];
        write_new(Some(&self.dir), &files)?;
        list(&files, out)
    }
}

impl IssueCommand {
    fn run(&self, now: SystemTime, out: &mut dyn Write) -> Result<(), PkiCommandError> {
        let purpose = match (self.server, self.client) {
            (true, false) => Purpose::Server,
            (false, true) => Purpose::Client,
            _ => return Err(usage("give either --server or --client")),
        };
        let names = match (self.names.as_slice(), purpose) {
            ([], Purpose::Server) => vec![AGENT_NAME.to_owned()],
            ([], Purpose::Client) => {
                return Err(usage("give the client's name: `adit pki issue --client NAME`"));
            }
            (names, _) => names.to_vec(),
        };
        let authority =
            Authority::from_files(&self.dir.join(layout::CA), &self.dir.join(layout::CA_KEY), now)?;
        let mut validity = Validity::days(now, self.days.unwrap_or(DAYS));
        if self.days.is_none() {
            validity.not_after = validity.not_after.min(authority.not_after());
        }
        let prefix = match &self.out {
            Some(prefix) => prefix.clone(),
            None => self.dir.join(file_name(names.first().map_or("", String::as_str))),
        };
        let issued = authority.issue(&Request { purpose, names, validity })?;
        let [cert, key] = pair_of(&prefix);
        let files = [
            NewFile::public(cert, issued.certificate_pem()),
            NewFile::secret(key, issued.key_pem()),
        ];
        write_new(None, &files)?;
        list(&files, out)
    }
}

impl EnvCommand {
    fn run(&self, now: SystemTime, out: &mut dyn Write) -> Result<(), PkiCommandError> {
        let (ca, identity) =
            set(&self.dir, self.pair.as_deref(), layout::SERVER, Purpose::Server, now)?;
        let ca_pair = if self.no_ca_key {
            encode_pair(&chain_pem(&identity.authorities), "")
        } else {
            let key = self.dir.join(layout::CA_KEY);
            let authority =
                Authority::from_files(&ca, &key, now).map_err(PkiCommandError::CaKey)?;
            encode_pair(&authority.certificate_pem(), &authority.key_pem())
        };
        let own_pair = encode_pair(&chain_pem(&identity.chain), &key_pem(&identity.key));
        writeln!(out, "AGENT_CA_CERT={ca_pair}\nAGENT_SSL_CERT={own_pair}")?;
        Ok(())
    }
}

impl ZipCommand {
    fn run(&self, now: SystemTime, out: &mut dyn Write) -> Result<(), PkiCommandError> {
        let (_, identity) =
            set(&self.dir, self.pair.as_deref(), layout::CLIENT, Purpose::Client, now)?;
        let archive = write_zip([
            &chain_pem(&identity.authorities),
            &chain_pem(&identity.chain),
            &key_pem(&identity.key),
        ])?;
        let files = [NewFile::secret(self.out.clone(), archive)];
        write_new(None, &files)?;
        list(&files, out)
    }
}

/// The CA's file of the set in `dir`, and the checked identity of that CA with a pair.
fn set(
    dir: &Path,
    pair: Option<&Path>,
    default: &str,
    purpose: Purpose,
    now: SystemTime,
) -> Result<(PathBuf, Identity), PkiCommandError> {
    let ca = dir.join(layout::CA);
    let [cert, key] = pair_of(&pair.map_or_else(|| dir.join(default), Path::to_owned));
    let identity = Identity::from_files(&ca, &cert, &key)?;
    identity.check(purpose, now)?;
    Ok((ca, identity))
}

/// `PREFIX.pem` and `PREFIX-key.pem`.
fn pair_of(prefix: &Path) -> [PathBuf; 2] {
    [".pem", "-key.pem"].map(|end| {
        let mut path = prefix.as_os_str().to_owned();
        path.push(end);
        path.into()
    })
}

/// A name as the beginning of a file name: no separators, no hidden file, no option.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "._-@".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).collect();
    match name.strip_prefix(['.', '-']) {
        Some(rest) => format!("_{rest}"),
        None => name,
    }
}

fn chain_pem(chain: &[rustls_pki_types::CertificateDer<'static>]) -> String {
    chain.iter().map(|certificate| certificate_pem(certificate)).collect()
}

fn list(files: &[NewFile], out: &mut dyn Write) -> Result<(), PkiCommandError> {
    for file in files {
        writeln!(out, "{}", file.path.display())?;
    }
    Ok(())
}

fn days(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(days) if days > 0 => Ok(days),
        _ => Err("give a whole number of days, 1 or more".to_owned()),
    }
}

fn usage(text: &str) -> PkiCommandError {
    PkiCommandError::Usage(text.to_owned())
}

/// Why a command of `adit pki` failed.
#[derive(Debug)]
pub enum PkiCommandError {
    /// The command line makes no sense.
    Usage(String),
    /// A certificate or key cannot be used.
    Identity(IdentityError),
    /// The CA's key, which the environment of a GoDoxy agent needs, cannot be used.
    CaKey(IdentityError),
    /// Nothing was issued.
    Issue(IssueError),
    /// Nothing was written.
    Store(StoreError),
    /// There is nothing to show in this place.
    Nothing(String),
    /// Results could not be written.
    Output(io::Error),
}

impl PkiCommandError {
    /// Whether the command line is at fault (exit code 2) and not what it names (1).
    pub fn is_usage(&self) -> bool {
        use IssueError::{Name, NoName, OutlivesAuthority, Range};
        matches!(
            self,
            PkiCommandError::Usage(_)
                | PkiCommandError::Issue(Name { .. } | NoName | Range | OutlivesAuthority { .. })
        )
    }
}

impl fmt::Display for PkiCommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PkiCommandError::Usage(text) => f.write_str(text),
            PkiCommandError::Identity(error) => error.fmt(f),
            PkiCommandError::CaKey(error) => write!(
                f,
                "{error}. Agents of GoDoxy need the CA's key in AGENT_CA_CERT; for `adit agent` \
                 leave it out with --no-ca-key"
            ),
            PkiCommandError::Issue(error) => error.fmt(f),
            PkiCommandError::Store(error) => error.fmt(f),
            PkiCommandError::Nothing(place) => write!(
                f,
                "{place}: holds neither PEM, nor AGENT_…= lines, nor a pair, nor a zip; name a file \
                 that `adit pki` made, or a certificate's PEM file"
            ),
            PkiCommandError::Output(error) => write!(f, "cannot write the results: {error}"),
        }
    }
}

impl std::error::Error for PkiCommandError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PkiCommandError::Usage(_) | PkiCommandError::Nothing(_) => None,
            PkiCommandError::Identity(error) | PkiCommandError::CaKey(error) => error.source(),
            PkiCommandError::Issue(error) => error.source(),
            PkiCommandError::Store(error) => error.source(),
            PkiCommandError::Output(error) => Some(error),
        }
    }
}

impl From<IdentityError> for PkiCommandError {
    fn from(error: IdentityError) -> Self {
        PkiCommandError::Identity(error)
    }
}

impl From<IssueError> for PkiCommandError {
    fn from(error: IssueError) -> Self {
        PkiCommandError::Issue(error)
    }
}

impl From<StoreError> for PkiCommandError {
    fn from(error: StoreError) -> Self {
        PkiCommandError::Store(error)
    }
}

impl From<io::Error> for PkiCommandError {
    fn from(error: io::Error) -> Self {
        PkiCommandError::Output(error)
    }
}
