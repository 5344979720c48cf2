//! `adit probe`.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde::Serialize;

use super::identity::{self, IdentityFlags};
use super::{Exit, duration, environment, print, printable, start_logging};
use crate::client::{Capabilities, Client, Info, Probe, Timeouts};
use crate::lifecycle::clock;
use crate::pki::Purpose;
use crate::tls;

/// Ask an agent what it is and whether it would carry streams for us.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "probe")]
pub struct ProbeCommand {
    /// PEM file of the agent's authority
    #[argh(option, arg_name = "file")]
    ca: Option<PathBuf>,

    /// PEM file of the client certificate
    #[argh(option, arg_name = "file")]
    cert: Option<PathBuf>,

    /// PEM file of the client key
    #[argh(option, arg_name = "file")]
    key: Option<PathBuf>,

    /// zip file with ca.pem, cert.pem and key.pem, instead of the three
    #[argh(option, arg_name = "file")]
    zip: Option<PathBuf>,

    /// the name in the agent's certificate (default: godoxy.agent)
    #[argh(option, default = "tls::SERVER_NAME.to_owned()", arg_name = "name")]
    server_name: String,

    /// limit for each phase: connecting, handshake, answer (default: 5s)
    #[argh(option, from_str_fn(duration), arg_name = "time")]
    timeout: Option<Duration>,

    /// UDP must work too
    #[argh(switch)]
    udp: bool,

    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,

    /// log what happens; given twice, everything
    #[argh(switch, short = 'v')]
    verbose: u8,

    /// the agent, HOST[:PORT] (default port: 8890)
    #[argh(positional, arg_name = "host:port")]
    agent: String,
}

/// What a probe found. Times are in nanoseconds.
#[derive(Debug, Serialize)]
struct Report {
    agent: String,
    /// Whether TCP streams work.
    healthy: bool,
    info: Option<Info>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info_error: Option<String>,
    tcp: Transport,
    udp: Transport,
}

#[derive(Debug, Serialize)]
struct Transport {
    works: bool,
    connect: Option<u64>,
    handshake: Option<u64>,
    answer: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Transport {
    fn of<E: fmt::Display>(probe: Result<Probe, E>) -> Self {
        match probe {
            Ok(Probe { connect, handshake, answer }) => Self {
                works: true,
                connect: Some(nanoseconds(connect)),
                handshake: Some(nanoseconds(handshake)),
                answer: Some(nanoseconds(answer)),
                error: None,
            },
            Err(error) => Self {
                works: false,
                connect: None,
                handshake: None,
                answer: None,
                error: Some(error.to_string()),
            },
        }
    }
}

/// Runs `adit probe`. Fails when TCP streams do not work, or UDP where it must.
pub fn run(command: ProbeCommand) -> Result<(), Exit> {
    start_logging(false, command.verbose)?;
    let usage = |error: &dyn std::fmt::Display| Exit::Usage(error.to_string());
    let flags =
        IdentityFlags { ca: command.ca, cert: command.cert, key: command.key, zip: command.zip };
    let identity = identity::load(&flags, &environment::variable, Purpose::Client, clock::wall())
        .map_err(|error| usage(&error))?;
    let timeout = command.timeout.unwrap_or(Timeouts::default().answer);
    let client = Client::new(
        &command.agent,
        &command.server_name,
        &identity,
        tls::provider::default(),
        Timeouts { dial: timeout, handshake: timeout, answer: timeout },
    )
    .map_err(|error| usage(&error))?;
    let report = examine(&client);
    print(&if command.json {
        serde_json::to_string(&report).map_err(|error| Exit::Failed(error.to_string()))?
    } else {
        text(&report)
    })?;
    let udp = report.udp.error.filter(|_| command.udp).map(|error| format!("UDP: {error}"));
    let errors: Vec<_> = [report.tcp.error, udp].into_iter().flatten().collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Exit::Failed(format!("{}: {}", report.agent, errors.join("; "))))
}

fn examine(client: &Client) -> Report {
    let Capabilities { info, tcp, udp } = client.capabilities();
    let tcp = Transport::of(tcp);
    let (info, info_error) = match info {
        Some(Ok(info)) => (Some(info), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, None),
    };
    let udp = match udp {
        Some(probe) => Transport::of(probe),
        None => Transport::of(Err(NOT_OFFERED)),
    };
    Report { agent: client.address(), healthy: tcp.works, info, info_error, tcp, udp }
}

/// What is wrong with UDP where the agent says that it carries none.
const NOT_OFFERED: &str = "not offered";

fn text(report: &Report) -> String {
    let mut text = format!("agent     {}\n", report.agent);
    let mut row = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        _ = writeln!(text, "{name:<9} {}", printable(value));
    };
    if let Some(info) = &report.info {
        row("name", &info.name);
        row("version", &info.version);
        if let Some(software) = &info.software {
            row("software", software);
        }
        if !info.runtime.is_empty() {
            row("runtime", &info.runtime);
        }
    }
    if let Some(error) = &report.info_error {
        row("API", error);
    }
    row("TCP", &verdict(&report.tcp, false));
    row("UDP", &verdict(&report.udp, true));
    text.truncate(text.trim_end().len());
    text
}

/// Whether it works and how fast; `why` it does not, where nothing else says it.
fn verdict(transport: &Transport, why: bool) -> String {
    let Transport { connect, handshake, answer, error, .. } = transport;
    match (connect, handshake, answer, error) {
        (Some(connect), Some(handshake), Some(answer), _) => {
            let [connect, handshake, answer] =
                [connect, handshake, answer].map(|n| milliseconds(*n));
            format!("works (connect {connect}, handshake {handshake}, answer {answer})")
        }
        (.., Some(error)) if error == NOT_OFFERED => NOT_OFFERED.to_owned(),
        (.., Some(error)) if why => format!("does not work: {error}"),
        _ => "does not work".to_owned(),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.1} ms", Duration::from_nanos(nanoseconds).as_secs_f64() * 1000.0)
}
