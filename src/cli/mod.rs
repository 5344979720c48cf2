//! Floor 5: the only place that sees flags, environment, signals, the service manager and the
//! logger. Each command parses into a valid configuration, runs it, and maps the result to an exit
//! code once.

pub mod agent;
pub mod connect;
pub mod demo;
pub mod environment;
pub mod identity;
pub mod logging;
pub mod pki;
pub mod probe;
pub mod signals;
pub mod unit;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use argh::{EarlyExit, FromArgs};

/// Reach any TCP or UDP service of a small box through one mutually authenticated port.
#[derive(FromArgs, Debug)]
struct Adit {
    /// print the version and exit
    #[argh(switch)]
    version: bool,

    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Agent(Box<agent::AgentCommand>),
    Connect(connect::ConnectCommand),
    Demo(demo::DemoCommand),
    Pki(pki::PkiCommand),
    Probe(probe::ProbeCommand),
    Unit(unit::Unit),
}

/// Runs the program with its arguments (without its own name) and the process's environment.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words = Vec::new();
    for argument in arguments {
        match argument.into_string() {
            Ok(word) => words.push(word),
            Err(word) => return report(&Exit::Usage(format!("{word:?} is not UTF-8"))),
        }
    }
    let words: Vec<&str> = words.iter().flat_map(|word| spread(word)).collect();
    let result = match Adit::from_args(&["adit"], &words) {
        Ok(arguments) => run(arguments),
        Err(EarlyExit { output, status: Ok(()) }) => print(output.trim_end()),
        Err(EarlyExit { output, status: Err(()) }) => Err(Exit::Usage(one_line(&output))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => report(&exit),
    }
}

/// `-vv` and `--flag=value`, which everybody tries, as the `-v -v` and `--flag value` that they
/// mean.
fn spread(word: &str) -> Vec<&str> {
    let is_flag = |name: &str| name.bytes().all(|byte| byte == b'-' || byte.is_ascii_lowercase());
    match word.split_once('=') {
        _ if word == "-vv" => vec!["-v", "-v"],
        Some((flag, value)) if flag.starts_with("--") && is_flag(flag) => vec![flag, value],
        _ => vec![word],
    }
}

/// Lines as one, apart by semicolons; an indented line continues the one before.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines().filter(|part| !part.trim().is_empty()) {
        if !line.is_empty() {
            line += if part.starts_with(char::is_whitespace) { " " } else { "; " };
        }
        line += part.trim();
    }
    line
}

fn run(arguments: Adit) -> Result<(), Exit> {
    if arguments.version {
        return print(concat!("adit ", env!("CARGO_PKG_VERSION")));
    }
    match arguments.command {
        Some(Command::Agent(command)) => agent::run(*command),
        Some(Command::Connect(command)) => connect::run(command),
        Some(Command::Demo(command)) => demo::run(command),
        Some(Command::Pki(command)) => pki::run(&command, &mut Unhurt(io::stdout().lock()))
            .map_err(|error| Exit::of(&error, error.is_usage())),
        Some(Command::Probe(command)) => probe::run(command),
        Some(Command::Unit(command)) => {
            let write = |error: &unit::UnitError| matches!(error, unit::UnitError::Write(_));
            command.run().map_err(|error| Exit::of(&error, !write(&error)))
        }
        None => Err(Exit::Usage("a command is needed: adit --help lists them".to_owned())),
    }
}

/// Why a command does not end with exit code 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 1: it could not do what it was asked.
    Failed(String),
    /// 2: flags, environment or files are wrong; trying again will not help.
    Usage(String),
    /// 3: a signal ended it before what ran was over (an agent's: the second signal).
    AtOnce,
}

impl Exit {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::AtOnce => 3,
        }
    }

    fn of(error: &dyn fmt::Display, usage: bool) -> Self {
        if usage { Self::Usage(error.to_string()) } else { Self::Failed(error.to_string()) }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) | Self::Usage(text) => f.write_str(text),
            Self::AtOnce => f.write_str("ended at once by a second signal"),
        }
    }
}

fn report(exit: &Exit) -> ExitCode {
    // Nothing is left to tell it to when standard error is gone.
    drop(writeln!(io::stderr(), "adit: {exit}"));
    ExitCode::from(exit.code())
}

/// Prints a result. A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> Result<(), Exit> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Exit::Failed(format!("cannot write the result: {error}")))
        }
        _ => Ok(()),
    }
}

/// A writer to which a reader that has gone away is no failure.
struct Unhurt<W>(W);

impl<W: Write> Write for Unhurt<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.0.write(data) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(data.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

fn start_logging(quiet: bool, verbose: u8) -> Result<(), Exit> {
    let filter =
        logging::filter(quiet, verbose, &|name| std::env::var(name).ok()).map_err(Exit::Usage)?;
    logging::init(&filter).map_err(|error| Exit::Failed(format!("cannot log: {error}")))
}

/// A duration on the command line: `10s`, `1m 30s`, `500ms`; not zero.
fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_none(text)? {
        Duration::ZERO => Err("must be longer than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// The same, or 0.
fn duration_or_none(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration > LONGEST => Err("must not be longer than a year".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error} (durations are written 10s, 1m 30s, 500ms)")),
    }
}

/// Longer ones overflow the kernel's timers on some systems, and mean nothing.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// A positive number on the command line.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("must be a whole number".to_owned()),
    }
}

/// Text that strangers may have had a hand in, for standard output: nothing in it may steer a
/// terminal. Quotes and backslashes stay as they are.
fn printable(text: &str) -> String {
    let keep = |c: char| {
        if c == '"' || c == '\'' || c == '\\' {
            c.to_string()
        } else {
            c.escape_debug().to_string()
        }
    };
    text.chars().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parser_says_becomes_one_line() {
        let required = "Positional arguments missing:\n    host\nOptions missing:\n    --agent\n";
        assert_eq!(
            one_line(required),
            "Positional arguments missing: host; Options missing: --agent"
        );
        let unknown = "Unrecognized argument: -x\n\nRun adit --help for more information.\n";
        let line = "Unrecognized argument: -x; Run adit --help for more information.";
        assert_eq!(one_line(unknown), line);
    }

    #[test]
    fn two_letters_v_are_two_switches() {
        assert_eq!(spread("-vv"), ["-v", "-v"]);
        assert_eq!(spread("-v"), ["-v"]);
        assert_eq!(spread("host-vv"), ["host-vv"]);
    }

    #[test]
    fn a_flag_may_have_its_value_behind_an_equals_sign() {
        assert_eq!(spread("--zip=edge.zip"), ["--zip", "edge.zip"]);
        assert_eq!(spread("--name=a=b"), ["--name", "a=b"]);
        assert_eq!(spread("--name="), ["--name", ""]);
        assert_eq!(spread("base64=="), ["base64=="]);
    }
}
