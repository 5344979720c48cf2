//! Floor 3: two-way copy between two connections, with half-close.
//!
//! One thread per direction. A clean end stays clean: the peer's FIN (or `close_notify`) is passed
//! on and the other direction goes on. A broken one stays broken: the other peer sees a reset or a
//! TLS stream cut short, never a clean end. A destination that stops listening while it still
//! answers (an HTTP server that refuses an upload) gets its answer delivered.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::lifecycle::clock;
use crate::lifecycle::threads::Group;
use crate::net::{Conn, Event, Sink, Source};

/// One connection of the two.
pub struct End {
    /// Its receiving half.
    pub source: Box<dyn Source>,
    /// Its sending half.
    pub sink: Box<dyn Sink>,
    /// Its socket, for ending it from another thread.
    pub conn: Arc<Conn>,
}

impl End {
    /// A plain TCP connection.
    pub fn tcp(conn: Arc<Conn>) -> Self {
        let (source, sink) = conn.halves();
        Self { source: Box::new(source), sink: Box::new(sink), conn }
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").field("conn", &self.conn).finish_non_exhaustive()
    }
}

/// What happened on a relay, once it is over.
#[derive(Debug)]
pub struct Report {
    /// Bytes delivered from the near to the far end.
    pub up: u64,
    /// Bytes delivered from the far to the near end.
    pub down: u64,
    /// Why it ended.
    pub why: Ended,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum Ended {
    /// Both peers finished.
    Finished,
    /// One peer finished and nothing was carried the other way for the half-close limit.
    HalfOpen {
        /// The peer it waited for.
        silent: Side,
        /// Whether that peer sent nothing or took nothing.
        act: Act,
        /// The limit.
        limit: Duration,
    },
    /// A connection broke.
    Broken {
        /// The connection that broke.
        side: Side,
        /// Whether it broke while we read from it or wrote to it.
        act: Act,
        /// How.
        error: io::Error,
    },
    /// Our side ended it, at shutdown.
    Cut,
    /// No thread could be started for the second direction.
    NoThread(io::Error),
}

/// One of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that asked for the stream.
    Near,
    /// The one it was asked for.
    Far,
}

/// What was being done to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Receiving.
    Read,
    /// Sending.
    Write,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("finished"),
            Self::HalfOpen { silent, act, limit } => {
                let act = if *act == Act::Read { "from" } else { "taken by" };
                let limit = humantime::format_duration(*limit);
                write!(f, "half-close limit: nothing {act} the {silent} for {limit}")
            }
            Self::Broken { side, act, error } => {
                let act = if *act == Act::Read { "reading from" } else { "writing to" };
                write!(f, "{act} the {side}: {error}")
            }
            Self::Cut => f.write_str("cut at shutdown"),
            Self::NoThread(error) => write!(f, "no thread for it: {error}"),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Near => "client",
            Self::Far => "destination",
        })
    }
}

/// How long a direction whose sink broke may go on once the other one is over (as nginx's
/// `lingering_timeout`, shorter). Its peer may be sending into the void after it has got the whole
/// answer, or its thread may still be stuck writing to the connection that broke. Begins anew, up
/// to the half-close limit, while that peer has not taken the whole answer.
const LINGER: Duration = Duration::from_secs(2);

/// A relay that runs or is about to; clones name the same one. For whoever may cut it.
#[derive(Clone, Debug)]
pub struct Relay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    bytes: [AtomicU64; 2],
    /// Whether a write is under way, up and down.
    writing: [AtomicBool; 2],
    conns: [Arc<Conn>; 2],
    half_close: Duration,
    linger: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// Near → far.
    up: Direction,
    /// Far → near.
    down: Direction,
    why: Option<Ended>,
}

impl State {
    fn direction(&mut self, from: Side) -> &mut Direction {
        match from {
            Side::Near => &mut self.up,
            Side::Far => &mut self.down,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Direction {
    #[default]
    Open,
    /// Its connection to send to broke; what its source still sends is read and dropped.
    Dropping,
    Over,
}

impl Relay {
    /// A relay between two connections. `half_close` is how long the second direction may be
    /// silent once the first has ended; every byte starts it anew.
    pub fn new(near: &Arc<Conn>, far: &Arc<Conn>, half_close: Duration) -> Self {
        Self::with(near, far, half_close, LINGER)
    }

    fn with(near: &Arc<Conn>, far: &Arc<Conn>, half_close: Duration, linger: Duration) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            changed: Condvar::new(),
            bytes: Default::default(),
            writing: Default::default(),
            conns: [near.clone(), far.clone()],
            half_close,
            linger,
        }))
    }

    /// Copies both ways until both directions are over. Uses the calling thread for near → far and
    /// one of `threads`, called `down_name`, for far → near.
    pub fn run(&self, near: End, far: End, threads: &Group, down_name: &str) -> Report {
        let relay = self.clone();
        let (source, sink) = (far.source, near.sink);
        match threads.spawn(down_name, move || relay.carry(Side::Far, source, sink)) {
            // Returns when the other direction is over as well.
            Ok(()) => self.carry(Side::Near, near.source, far.sink),
            Err(error) => self.end(Ended::NoThread(error)),
        }
        let [up, down] = &self.0.bytes;
        Report {
            up: up.load(Ordering::Relaxed),
            down: down.load(Ordering::Relaxed),
            why: self.lock().why.take().unwrap_or(Ended::Finished),
        }
    }

    /// Ends it from outside: both connections are reset and both threads return.
    pub fn cut(&self) {
        self.end(Ended::Cut);
    }

    /// Bytes delivered so far, up and down.
    pub fn bytes(&self) -> (u64, u64) {
        let [up, down] = &self.0.bytes;
        (up.load(Ordering::Relaxed), down.load(Ordering::Relaxed))
    }

    /// One direction: copies until its source ends, then sees to it that the other one ends too.
    fn carry(&self, from: Side, source: Box<dyn Source>, sink: Box<dyn Sink>) {
        // Also when this thread panics, the other one must not wait for ever.
        let guard = Over { relay: self, from };
        self.copy(from, source, sink);
        drop(guard);
        self.see_out(from.other());
    }

    /// Source and sink are dropped with their buffers when this returns.
    fn copy(&self, from: Side, mut source: Box<dyn Source>, mut sink: Box<dyn Sink>) {
        let (bytes, writing) = self.progress(from);
        let mut dropping = false;
        loop {
            match source.next() {
                Ok(Event::Data(_)) if dropping => {}
                Ok(Event::Data(data)) => {
                    writing.store(true, Ordering::Relaxed);
                    let written = sink.write_all(data);
                    writing.store(false, Ordering::Relaxed);
                    match written {
                        Ok(()) => {
                            bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                        }
                        Err(error) => {
                            self.broke(from.other(), Act::Write, error);
                            self.drops(from);
                            dropping = true;
                        }
                    }
                }
                Ok(Event::Idle) => sink.shrink(),
                Ok(Event::End) if dropping => return,
                Ok(Event::End) => {
                    if let Err(error) = sink.finish() {
                        self.broke(from.other(), Act::Write, error);
                    }
                    return;
                }
                Err(error) => {
                    self.broke(from, Act::Read, error);
                    // Nothing can be delivered to the broken connection any more.
                    self.drops(from.other());
                    if sink.abandon() {
                        // What still comes is read and dropped meanwhile.
                        self.conn(from).abort();
                    } else {
                        self.conn(from.other()).stop_reading();
                    }
                    return;
                }
            }
        }
    }

    /// Waits until the direction from `other` is over; ends it when it is silent for too long.
    fn see_out(&self, other: Side) {
        let (bytes, writing) = self.progress(other);
        let start = clock::now();
        let mut silence = Silence::new(self.0.half_close, bytes.load(Ordering::Relaxed), start);
        let mut state = self.lock();
        loop {
            let limit = match *state.direction(other) {
                Direction::Over => return,
                Direction::Dropping => self.0.linger,
                Direction::Open => silence.next_look(),
            };
            let (next, wait) =
                self.0.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if !wait.timed_out() {
                continue;
            }
            let now = clock::now();
            match *state.direction(other) {
                Direction::Over => return,
                // Its peer has yet to take the end of the other direction. A reset would destroy it.
                Direction::Dropping
                    if self.conn(other).owes_end()
                        && now.duration_since(start) < self.0.half_close => {}
                Direction::Dropping => {
                    self.conn(other).stop_reading();
                    // Wakes a writer that waits for a peer which takes nothing.
                    self.conn(other.other()).abort();
                }
                Direction::Open if silence.is_over(bytes.load(Ordering::Relaxed), now) => {
                    drop(state);
                    let (silent, act) = if writing.load(Ordering::Relaxed) {
                        (other.other(), Act::Write)
                    } else {
                        (other, Act::Read)
                    };
                    self.end(Ended::HalfOpen { silent, act, limit: self.0.half_close });
                    state = self.lock();
                }
                Direction::Open => {}
            }
        }
    }

    /// Ends both directions for `why`, unless something else ended them first.
    fn end(&self, why: Ended) {
        self.lock().why.get_or_insert(why);
        for conn in &self.0.conns {
            conn.abort();
        }
    }

    /// What comes from `from` has nowhere to go any more.
    fn drops(&self, from: Side) {
        let mut state = self.lock();
        let direction = state.direction(from);
        if *direction == Direction::Open {
            *direction = Direction::Dropping;
            self.0.changed.notify_all();
        }
    }

    /// Notes the first thing that broke.
    fn broke(&self, side: Side, act: Act, error: io::Error) {
        self.lock().why.get_or_insert(Ended::Broken { side, act, error });
    }

    /// How far the direction from `from` has come, and whether it is writing.
    fn progress(&self, from: Side) -> (&AtomicU64, &AtomicBool) {
        let ([up, down], [up_writes, down_writes]) = (&self.0.bytes, &self.0.writing);
        if from == Side::Near { (up, up_writes) } else { (down, down_writes) }
    }

    fn conn(&self, side: Side) -> &Conn {
        let [near, far] = &self.0.conns;
        if side == Side::Near { near } else { far }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

/// How long a count has stood still, by looks at it now and then.
struct Silence {
    limit: Duration,
    seen: u64,
    since: Instant,
}

impl Silence {
    fn new(limit: Duration, seen: u64, now: Instant) -> Self {
        Self { limit, seen, since: now }
    }

    /// When to look again. Often enough that the limit is not overdrawn by more than this.
    fn next_look(&self) -> Duration {
        self.limit / 4
    }

    /// Takes a look: whether the count has stood still for the limit.
    fn is_over(&mut self, count: u64, now: Instant) -> bool {
        if count != self.seen {
            (self.seen, self.since) = (count, now);
            return false;
        }
        now.duration_since(self.since) >= self.limit
    }
}

/// Marks a direction as over when its copying ends, however it ends.
struct Over<'a> {
    relay: &'a Relay,
    from: Side,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.relay.end(Ended::Broken {
                side: self.from,
                act: Act::Read,
                error: io::Error::other("a bug ended the thread that carried it"),
            });
        }
        *self.relay.lock().direction(self.from) = Direction::Over;
        self.relay.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
