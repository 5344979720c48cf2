//! `adit connect`.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use argh::FromArgs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::identity::{self, IdentityFlags};
use super::signals::Signals;
use super::{Exit, environment, start_logging};
use crate::client::{Client, Timeouts, split_address};
use crate::lifecycle::{self, Stop, clock, threads};
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

/// Runs `adit connect` until the destination has ended the stream.
pub fn run(command: ConnectCommand) -> Result<(), Exit> {
    start_logging(false, command.verbose)?;
    let usage = |error: &dyn std::fmt::Display| Exit::Usage(error.to_string());
    let (host, port) = split_address(&command.destination, None).map_err(|why| {
        Exit::Usage(format!("the destination {:?} is not usable: {why}", command.destination))
    })?;
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
    let stream = client.open(&host, port).map_err(|error| failed(&error))?;
    pipe(stream, command.no_reply).map_err(|error| failed(&error))
}

/// Copies standard input to the stream and the stream to standard output until both have ended.
///
/// When the destination ends first, standard output is closed and input is still carried, unless
/// it comes from a terminal: nobody at a terminal goes on typing into a closed session. A stream
/// that ends without a byte is a failure, unless `no_reply` says that none is to come and all input
/// was sent.
///
/// A signal ends the process: what was read is sent, the end of input is passed on, and the stream
/// does not look broken to the agent.
fn pipe(stream: TlsStream, no_reply: bool) -> Result<(), String> {
    let conn = stream.conn().clone();
    let (mut source, sink) = stream.split().map_err(|error| error.to_string())?;
    let over = Stop::new().map_err(|error| error.to_string())?;
    let sent_all = Stop::new().map_err(|error| error.to_string())?;
    let received_all = Stop::new().map_err(|error| error.to_string())?;
    let all_read = Arc::new(AtomicBool::new(false));
    let input = {
        let (over, conn, all_read) = (over.clone(), conn.clone(), all_read.clone());
        let sent_all = sent_all.clone();
        threads::spawn("stdin", move || {
            let sent = carry_input(sink, &conn, &over, &all_read);
            sent_all.raise();
            sent
        })
        .map_err(|error| format!("no thread for standard input: {error}"))?
    };
    let ends = [sent_all, received_all.clone()];
    let interrupted = over.clone();
    let signals = Signals::install(move || {
        interrupted.raise();
        // The agent's end comes when it has ours. Without it, our leaving would look like a break.
        ends.iter().for_each(|end| _ = end.wait(GOODBYE));
        // Nothing else ends a thread that waits for the reader of our output.
        lifecycle::end_process(Exit::AtOnce.code());
    })
    .map_err(|exit| exit.to_string())?;
    let received = carry_output(&mut source);
    received_all.raise();
    if signals.stop.is_raised() {
        // How it ended says nothing any more: whoever handles the signal ends the process.
        input.join().ok();
        lifecycle::end_process(Exit::AtOnce.code());
    }
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
        (Ok(0), Err(_)) => Err(NO_BYTE.to_owned()),
        // A service that only takes is possible, and so is one that was never reached.
        (Ok(0), Ok(_)) if !no_reply => Err(format!("{NO_BYTE}; --no-reply if it has none")),
        (Ok(_), Err(error)) => {
            Err(format!("not all input was delivered: {}", tls::explain(&error)))
        }
        (Ok(_), Ok(_)) => Ok(()),
    }
}

/// How long each direction may take to end in order after a signal.
const GOODBYE: Duration = Duration::from_millis(500);

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
                write_all(&mut output, data).map_err(Output::Stdout)?;
                bytes += data.len() as u64;
            }
            Event::End => return Ok(bytes),
            Event::Idle => {}
        }
    }
}

/// Writes all of `data`, also to an output that someone else has made non-blocking: the flag is
/// shared with everybody who has the same pipe or terminal.
fn write_all(output: &mut std::fs::File, data: &[u8]) -> io::Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(size) => rest = rest.get(size..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
            return sink.finish().map(|()| bytes);
        }
        if gone && !readable {
            return Ok(bytes);
        }
        let size = match input.read(&mut buffer) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                continue;
            }
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
