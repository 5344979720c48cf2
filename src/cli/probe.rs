//! `adit probe`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde::Serialize;

use super::identity::{self, IdentityFlags};
use super::{Exit, duration, environment, print, printable, start_logging};
use crate::client::{Client, Info, Probe, Timeouts};
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

/// Runs `adit probe`. Fails when TCP streams do not work.
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
    match report.tcp.error {
        None => Ok(()),
        Some(error) => Err(Exit::Failed(format!("{}: {error}", report.agent))),
    }
}

fn examine(client: &Client) -> Report {
    let (tcp, reached) = match client.probe() {
        Ok(Probe { connect, handshake, answer }) => {
            let transport = Transport {
                works: true,
                connect: Some(nanoseconds(connect)),
                handshake: Some(nanoseconds(handshake)),
                answer: Some(nanoseconds(answer)),
                error: None,
            };
            (transport, true)
        }
        Err(error) => {
            let reached = error.reached_agent();
            let error = Some(error.to_string());
            let none = None;
            let transport =
                Transport { works: false, connect: none, handshake: none, answer: none, error };
            (transport, reached)
        }
    };
    // An agent that cannot be reached for one is not for the other: do not wait twice.
    let (info, info_error) = match reached.then(|| client.info()) {
        Some(Ok(info)) => (Some(info), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, None),
    };
    Report { agent: client.address(), healthy: tcp.works, info, info_error, tcp }
}

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
    match &report.tcp {
        Transport {
            connect: Some(connect),
            handshake: Some(handshake),
            answer: Some(answer),
            ..
        } => {
            let [connect, handshake, answer] =
                [connect, handshake, answer].map(|n| milliseconds(*n));
            row(
                "TCP",
                &format!("works (connect {connect}, handshake {handshake}, answer {answer})"),
            );
        }
        _ => row("TCP", "does not work"),
    }
    match report.info.as_ref().and_then(|info| info.supports_udp_stream) {
        Some(true) => row("UDP", "offered, not tried"),
        Some(false) => row("UDP", "not offered"),
        None => {}
    }
    text.truncate(text.trim_end().len());
    text
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.1} ms", Duration::from_nanos(nanoseconds).as_secs_f64() * 1000.0)
}
