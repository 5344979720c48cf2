//! `adit connect`.

mod framing;
mod stdio;
mod tcp;
mod udp;

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;

use super::identity::{self, IdentityFlags};
use super::{Exit, duration_or_none, environment, start_logging};
use crate::client::{Client, Timeouts, split_address};
use crate::lifecycle::clock;
use crate::pki::Purpose;
use crate::tls;
use framing::Framing;

/// Pipe standard input and output to a destination through an agent.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "connect")]
pub struct ConnectCommand {
    /// the agent, HOST[:PORT] (default port: 8890)
    #[argh(option, arg_name = "host:port")]
    agent: String,

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

    /// datagrams to a UDP destination instead of a TCP stream
    #[argh(switch)]
    udp: bool,

    /// with --udp: how datagrams are told apart, lines (one each) or length (two bytes, big-endian,
    /// in front of each) (default: lines)
    #[argh(option, arg_name = "how")]
    framing: Option<Framing>,

    /// with --udp: how long to wait for another datagram after the end of input (default: 2s)
    #[argh(option, from_str_fn(duration_or_none), arg_name = "time")]
    wait: Option<Duration>,

    /// the destination sends nothing back: do not take that for a failure
    #[argh(switch)]
    no_reply: bool,

    /// log what happens; given twice, everything
    #[argh(switch, short = 'v')]
    verbose: u8,

    /// the destination as the agent reaches it, HOST:PORT
    #[argh(positional, arg_name = "desthost:port")]
    destination: String,
}

/// Runs `adit connect` until the destination has ended the stream; over UDP, until standard input
/// has ended and nothing more comes.
pub fn run(command: ConnectCommand) -> Result<(), Exit> {
    start_logging(false, command.verbose)?;
    let usage = |error: &dyn std::fmt::Display| Exit::Usage(error.to_string());
    let (host, port) = split_address(&command.destination, None).map_err(|why| {
        Exit::Usage(format!("the destination {:?} is not usable: {why}", command.destination))
    })?;
    if !command.udp && (command.framing.is_some() || command.wait.is_some()) {
        return Err(Exit::Usage("--framing and --wait are for datagrams: add --udp".to_owned()));
    }
    let flags =
        IdentityFlags { ca: command.ca, cert: command.cert, key: command.key, zip: command.zip };
    let identity = identity::load(&flags, &environment::variable, Purpose::Client, clock::wall())
        .map_err(|error| usage(&error))?;
    let client = Client::new(
        &command.agent,
        &command.server_name,
        &identity,
        tls::provider::default(),
        Timeouts::default(),
    )
    .map_err(|error| usage(&error))?;
    let failed = |error: &dyn std::fmt::Display| {
        Exit::Failed(format!("{} via {}: {error}", command.destination, client.address()))
    };
    if command.udp {
        let settings = udp::Settings {
            framing: command.framing.unwrap_or_default(),
            wait: command.wait.unwrap_or(udp::WAIT),
            no_reply: command.no_reply,
        };
        let stream = client.udp(&host, port).map_err(|error| failed(&error))?;
        return udp::pipe(stream, settings).map_err(|error| failed(&error));
    }
    let stream = client.open(&host, port).map_err(|error| failed(&error))?;
    tcp::pipe(stream, command.no_reply).map_err(|error| failed(&error))
}

/// How long each direction may take to end in order after a signal.
const GOODBYE: Duration = Duration::from_millis(500);
