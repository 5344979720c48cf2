//! Bytes between the standard streams and a TCP stream.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::Exit;
use super::super::signals::Signals;
use super::GOODBYE;
use super::stdio::{self, Came, Input};
use crate::lifecycle::{self, Stop, threads};
use crate::net::{Conn, Event, LARGE, Sink, Source};
use crate::tls::{self, TlsStream};

/// Copies standard input to the stream and the stream to standard output until both have ended.
///
/// When the destination ends first, standard output is closed and input is still carried, unless
/// it comes from a terminal: nobody at a terminal goes on typing into a closed session. A stream
/// that ends without a byte is a failure, unless `no_reply` says that none is to come and all input
/// was sent.
///
/// A signal ends the process: what was read is sent, the end of input is passed on, and the stream
/// does not look broken to the agent.
pub(super) fn pipe(stream: TlsStream, no_reply: bool) -> Result<(), String> {
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
    let mut output = stdio::Output::open().map_err(Output::Stdout)?;
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
    let mut input = Input::open()?;
    let mut buffer = vec![0; LARGE];
    loop {
        match input.read(&mut buffer, over, Some(conn.as_fd()))? {
            Came::Data(size) => {
                sink.write_all(buffer.get(..size).unwrap_or_default())?;
                bytes += size as u64;
            }
            Came::End => {
                all_read.store(true, Ordering::SeqCst);
                return sink.finish().map(|()| bytes);
            }
            Came::Over => return sink.finish().map(|()| bytes),
            Came::Gone => return Ok(bytes),
        }
    }
}
