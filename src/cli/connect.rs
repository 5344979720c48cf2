//! `adit connect`.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use argh::FromArgs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::identity::{self, IdentityFlags};
use super::{Exit, start_logging};
use crate::client::{Client, Timeouts, split_address};
use crate::lifecycle::{Stop, clock, threads};
use crate::net::{Conn, Event, LARGE, Sink, Source};
use crate::pki::Purpose;
use crate::tls::{self, TlsStream};

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

    /// log what happens; given twice, everything
    #[argh(switch, short = 'v')]
    verbose: u8,

    /// the destination as the agent reaches it, HOST:PORT
    #[argh(positional, arg_name = "desthost:port")]
    destination: String,
}

/// Runs `adit connect` until the destination has ended the stream.
pub fn run(command: ConnectCommand) -> Result<(), Exit> {
    start_logging(false, command.verbose)?;
    let usage = |error: &dyn std::fmt::Display| Exit::Usage(error.to_string());
    let (host, port) = split_address(&command.destination, None).map_err(|why| {
        Exit::Usage(format!("the destination {:?} is not usable: {why}", command.destination))
    })?;
    let flags =
        IdentityFlags { ca: command.ca, cert: command.cert, key: command.key, zip: command.zip };
    let identity =
        identity::load(&flags, &|name| std::env::var(name).ok(), Purpose::Client, clock::wall())
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
    let stream = client.open(&host, port).map_err(|error| failed(&error))?;
    pipe(stream).map_err(|error| failed(&error))
}

/// Copies standard input to the stream and the stream to standard output until both have ended.
///
/// When the destination ends first, standard output is closed and input is still carried, unless
/// it comes from a terminal: nobody at a terminal goes on typing into a closed session.
fn pipe(stream: TlsStream) -> Result<(), String> {
    let conn = stream.conn().clone();
    let (mut source, sink) = stream.split().map_err(|error| error.to_string())?;
    let over = Stop::new().map_err(|error| error.to_string())?;
    let all_read = Arc::new(AtomicBool::new(false));
    let input = {
        let (over, conn, all_read) = (over.clone(), conn.clone(), all_read.clone());
        threads::spawn("stdin", move || carry_input(sink, &conn, &over, &all_read))
            .map_err(|error| format!("no thread for standard input: {error}"))?
    };
    let received = carry_output(&mut source);
    // Asked of the input, not of its thread: that one still runs when our end is on its way.
    let early = !all_read.load(Ordering::SeqCst);
    match &received {
        Ok(bytes) => {
            // Said at once: a program that runs us as its proxy may not let us live to the end.
            if *bytes == 0 && early {
                log::warn!("{NO_BYTE}");
            }
            if let Err(error) = close_stdout() {
                log::debug!("cannot close standard output: {error}");
            }
            if io::stdin().is_terminal() {
                over.raise();
            }
        }
        Err(_) => {
            over.raise();
            conn.abort();
        }
    }
    let sent = input.join().unwrap_or_else(|_| Err(io::Error::other("a bug ended the input")));
    match (received, sent) {
        (Err(Output::Stream(error)), _) => Err(tls::explain(&error)),
        // Whoever read our output has enough; that is how pipelines end.
        (Err(Output::Stdout(error)), _) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        (Err(Output::Stdout(error)), _) => Err(format!("writing standard output: {error}")),
        (Ok(0), _) if early => Err("no byte came back".to_owned()),
        (Ok(0), Ok(0) | Err(_)) => Err(NO_BYTE.to_owned()),
        (Ok(0), Ok(_)) => {
            // A service that only takes is possible, and so is one that was never reached.
            log::warn!("{NO_BYTE}");
            Ok(())
        }
        (Ok(_), Err(error)) => {
            Err(format!("not all input was delivered: {}", tls::explain(&error)))
        }
        (Ok(_), Ok(_)) => Ok(()),
    }
}

/// What a destination that the agent refused or could not reach looks like.
const NO_BYTE: &str = "the agent ended the stream without a byte: the destination may be wrong, down \
                       or not allowed (the agent's log says which)";

/// Lets the reader of our output see its end while we go on.
fn close_stdout() -> io::Result<()> {
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    Ok(nix::unistd::dup2_stdout(null)?)
}

enum Output {
    Stream(io::Error),
    Stdout(io::Error),
}

fn carry_output(source: &mut impl Source) -> Result<u64, Output> {
    // Not `Stdout`, whose line buffer would hold back half of a prompt.
    let mut output =
        std::fs::File::from(io::stdout().as_fd().try_clone_to_owned().map_err(Output::Stdout)?);
    let mut bytes = 0;
    loop {
        match source.next().map_err(Output::Stream)? {
            Event::Data(data) => {
                output.write_all(data).map_err(Output::Stdout)?;
                bytes += data.len() as u64;
            }
            Event::End => return Ok(bytes),
            Event::Idle => {}
        }
    }
}

/// Carries standard input until its end, `over`, or the connection's end. Returns the bytes.
/// `all_read` is set before the destination can learn of the input's end.
fn carry_input(
    mut sink: impl Sink,
    conn: &Conn,
    over: &Stop,
    all_read: &AtomicBool,
) -> io::Result<u64> {
    let mut bytes = 0;
    let mut input = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut buffer = vec![0; LARGE];
    loop {
        let mut fds = [
            PollFd::new(over.as_fd(), PollFlags::POLLIN),
            PollFd::new(input.as_fd(), PollFlags::POLLIN),
            // No event is asked for: a connection that is gone is reported all the same.
            PollFd::new(conn.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let [_, readable, gone] = fds.map(|fd| fd.revents().is_some_and(|e| !e.is_empty()));
        if over.is_raised() {
            return Ok(bytes);
        }
        if gone && !readable {
            return Ok(bytes);
        }
        let size = match input.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            size => size?,
        };
        if size == 0 {
            all_read.store(true, Ordering::SeqCst);
            return sink.finish().map(|()| bytes);
        }
        sink.write_all(buffer.get(..size).unwrap_or_default())?;
        bytes += size as u64;
    }
}
