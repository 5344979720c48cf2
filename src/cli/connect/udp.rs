//! Datagrams between the standard streams and a UDP stream.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::super::Exit;
use super::super::signals::Signals;
use super::GOODBYE;
use super::framing::{Decoder, FrameError, Framing};
use super::stdio::{self, Came, Input};
use crate::client::UdpStream;
use crate::lifecycle::{self, Stop, clock, threads};
use crate::net::LARGE;

/// How to carry datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) framing: Framing,
    /// How long nothing must pass after the end of the input for it to be over.
    pub(super) wait: Duration,
    /// The destination sends nothing back.
    pub(super) no_reply: bool,
}

/// How long to wait for another reply: longer than a round trip to anywhere and the usual pause of
/// a name server that asks others first, and short for who waits at a terminal.
pub(super) const WAIT: Duration = Duration::from_secs(2);

/// What both directions share.
struct Shared {
    stream: UdpStream,
    framing: Framing,
    /// Datagrams sent so far.
    sent: AtomicU64,
    /// When the last datagram passed.
    last: Mutex<Instant>,
    /// Held while a reply is written, which takes as long as its reader likes.
    writing: Mutex<()>,
    /// Standard input is of no use any more.
    over: Stop,
}

/// A direction has ended.
enum Ended {
    /// All of it was sent, or not.
    Input(Result<(), InputError>),
    /// So many datagrams were written.
    Output(Result<u64, OutputError>),
}

/// Sends each datagram of standard input, and writes each that comes back to standard output, until
/// the input has ended and nothing has passed for a while, or until the agent ends the session.
///
/// The protocol has no answer to a request, so an agent that refuses the destination looks like
/// one that ends the session: that is a failure unless datagrams have come and all input was
/// sent. So is silence, unless none were to come.
///
/// A signal ends the process; the agent is told.
pub(super) fn pipe(stream: UdpStream, settings: Settings) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let shared = Arc::new(Shared {
        stream,
        framing: settings.framing,
        sent: AtomicU64::new(0),
        last: Mutex::new(clock::now()),
        writing: Mutex::default(),
        over: Stop::new().map_err(text)?,
    });
    let written = Stop::new().map_err(text)?;
    let (tell, told) = bounded(2);
    let interrupted = (shared.clone(), written.clone());
    let signals = Signals::install(move || {
        let (shared, written) = &interrupted;
        shared.stream.close();
        // What has come is written to its end, if its reader takes it.
        written.wait(GOODBYE);
        lifecycle::end_process(Exit::AtOnce.code());
    })
    .map_err(|exit| exit.to_string())?;
    let input = {
        let (shared, tell) = (shared.clone(), tell.clone());
        threads::spawn("stdin", move || {
            // Fails when nobody waits for it any more.
            drop(tell.send(Ended::Input(shared.carry_input())));
        })
        .map_err(|error| format!("no thread for standard input: {error}"))?
    };
    let output = {
        let (shared, written) = (shared.clone(), written.clone());
        threads::spawn("stdout", move || {
            let received = shared.carry_output();
            written.raise();
            drop(tell.send(Ended::Output(received)));
        })
    };
    let output = output.map_err(|error| {
        shared.over.raise();
        format!("no thread for standard output: {error}")
    })?;
    let (mut input_end, mut closed) = (None, false);
    let received = loop {
        // Once the input has ended, nobody but the clock ends a silence.
        let ended = match &input_end {
            Some(_) if !closed => told.recv_timeout(shared.quiet_in(settings.wait)),
            _ => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match ended {
            Ok(Ended::Input(result)) => {
                // Nothing can come back, or nothing can come any more.
                closed = shared.sent() == 0 || matches!(result, Err(InputError::Send(_)));
                input_end = Some(result);
            }
            Ok(Ended::Output(result)) => break result,
            Err(RecvTimeoutError::Timeout) => {
                drop(lock(&shared.writing));
                closed = shared.quiet_in(settings.wait).is_zero();
            }
            Err(RecvTimeoutError::Disconnected) => {
                break Err(OutputError::Receive(io::Error::other("a bug ended it")));
            }
        }
        if closed {
            shared.stream.close();
        }
    };
    if signals.stop.is_raised() {
        // Whoever handles the signal ends the process.
        output.join().ok();
        lifecycle::end_process(Exit::AtOnce.code());
    }
    shared.over.raise();
    shared.stream.close();
    for thread in [input, output] {
        if thread.join().is_err() {
            return Err("a bug ended a thread".to_owned());
        }
    }
    if let Ok(received) = received {
        let who = if closed { "we" } else { "the agent" };
        log::debug!("{who} ended the session: sent={} received={received}", shared.sent());
    }
    verdict(received, input_end, shared.sent(), closed, settings)
}

/// What to tell of datagrams `received` and `sent`, when the input has ended so (`None`: it has
/// not). `closed`: we ended the session, not the agent.
fn verdict(
    received: Result<u64, OutputError>,
    input_end: Option<Result<(), InputError>>,
    sent: u64,
    closed: bool,
    Settings { wait, no_reply, .. }: Settings,
) -> Result<(), String> {
    let received = match received {
        // Whoever read our output has enough; that is how pipelines end.
        Err(OutputError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(error.to_string()),
        Ok(received) => received,
    };
    match input_end {
        Some(Err(error)) => Err(error.to_string()),
        _ if !closed && received == 0 => Err(ENDED.to_owned()),
        None => Err("the agent ended the session while there was input: nothing may have passed \
                     for too long, or the agent was stopped (its log says which)"
            .to_owned()),
        Some(Ok(())) if sent == 0 && !no_reply => {
            Err("nothing was sent: standard input held no datagram".to_owned())
        }
        Some(Ok(())) if received == 0 && !no_reply => Err(format!(
            "no datagram came back within {}; --wait waits longer, --no-reply if none is to come",
            humantime::format_duration(wait)
        )),
        Some(Ok(())) => Ok(()),
    }
}

/// What a destination that the agent refused looks like.
const ENDED: &str = "the agent ended the session and no datagram came back: the destination may be \
                     wrong or not allowed (the agent's log says which)";

impl Shared {
    /// Sends what standard input holds.
    fn carry_input(&self) -> Result<(), InputError> {
        let mut input = Input::open().map_err(InputError::Read)?;
        let mut decoder = Decoder::new(self.framing);
        let mut buffer = vec![0; LARGE];
        let mut told = false;
        let mut send = |datagram: &[u8]| {
            if datagram.is_empty() {
                if !told {
                    log::warn!("empty datagrams cannot travel: left out (this is told once)");
                }
                told = true;
                return Ok(());
            }
            self.stream.send(datagram).map_err(InputError::Send)?;
            self.touch();
            self.sent.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        loop {
            match input.read(&mut buffer, &self.over, None).map_err(InputError::Read)? {
                Came::Data(size) => decoder.push(buffer.get(..size).unwrap_or_default()),
                Came::End => break,
                Came::Over | Came::Gone => return Ok(()),
            }
            while let Some(datagram) = decoder.next().map_err(InputError::Frame)? {
                send(datagram)?;
            }
        }
        if let Some(last) = decoder.finish().map_err(InputError::Frame)? {
            send(&last)?;
        }
        Ok(())
    }

    /// Writes what comes back. Returns how many datagrams that were.
    fn carry_output(&self) -> Result<u64, OutputError> {
        let mut output = stdio::Output::open().map_err(OutputError::Write)?;
        let mut buffer = vec![0; UdpStream::MAX];
        let (mut framed, mut received) = (Vec::new(), 0);
        while let Some(size) = self.stream.recv(&mut buffer, None).map_err(OutputError::Receive)? {
            self.touch();
            framed.clear();
            self.framing.encode(buffer.get(..size).unwrap_or_default(), &mut framed);
            let writing = lock(&self.writing);
            output.write_all(&framed).map_err(OutputError::Write)?;
            self.touch();
            drop(writing);
            received += 1;
        }
        Ok(received)
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        *lock(&self.last) = clock::now();
    }

    /// When nothing will have passed for `wait`.
    fn quiet_in(&self, wait: Duration) -> Duration {
        wait.saturating_sub(clock::now().saturating_duration_since(*lock(&self.last)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why not all of the input was sent.
enum InputError {
    Read(io::Error),
    Frame(FrameError),
    Send(io::Error),
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "reading standard input: {error}"),
            Self::Frame(error) => error.fmt(f),
            Self::Send(error) => write!(f, "sending to the agent: {error}"),
        }
    }
}

/// Why not all that came back was written.
enum OutputError {
    Receive(io::Error),
    Write(io::Error),
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Receive(error) if error.kind() == ErrorKind::ConnectionRefused => {
                f.write_str("the agent is gone: nothing listens at its UDP port any more")
            }
            Self::Receive(error) => write!(f, "the session with the agent broke: {error}"),
            Self::Write(error) => write!(f, "writing standard output: {error}"),
        }
    }
}
