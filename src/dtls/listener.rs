//! One socket, many clients: datagrams find their session by the address they come from, and
//! strangers cost nothing until they have shown that they receive at theirs.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::context::ServerContext;
use super::first_contact::{FirstContact, UNUSABLE};
use super::session::{End, Session};
use crate::lifecycle::{Flood, Stop};
use crate::net::udp::UdpPort;
use crate::wire::dtls::{RECORD_MAX, WIRE_MAX, client_hello};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A bound socket whose sessions nobody serves yet.
#[derive(Debug)]
pub struct Listener {
    port: Arc<UdpPort>,
    context: ServerContext,
    sessions: Sessions,
}

/// The sessions of one socket. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<HashMap<SocketAddr, Arc<Session>>>>);

/// A session's place in the table, which it leaves when this is dropped.
#[derive(Debug)]
pub struct Registration {
    sessions: Sessions,
    session: Arc<Session>,
}

static BROKEN: Flood = Flood::new("UDP sockets that failed", 1, Duration::from_secs(10));

/// Kinds of log lines of this room, to be settled by whoever has a janitor.
pub static FLOODS: [&Flood; 2] = [&UNUSABLE, &BROKEN];

/// Datagrams taken from a socket before those that are to go on together do so, and the stop flag is
/// looked at again.
const BATCH: usize = 32;

/// How long to leave a socket alone that cannot be read.
const PAUSE: Duration = Duration::from_millis(100);

impl Listener {
    /// A listener on a bound socket.
    pub fn new(port: UdpPort, context: ServerContext) -> Self {
        Self { port: Arc::new(port), context, sessions: Sessions::default() }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.port.local_addr()
    }

    /// Its sessions, to be watched from elsewhere.
    pub fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    /// Receives until `stop` is raised, then ends all sessions. Each client that was shown to be
    /// where it says is given to `newcomer`, which must not wait: it starts a thread for the
    /// session, or drops the registration, and the client is as strange as before. Whether it takes
    /// the place of another, whose end is on its way, is said as well.
    pub fn run(self, stop: &Stop, newcomer: &mut dyn FnMut(Arc<Session>, Registration, bool)) {
        let mut strangers = FirstContact::new(self.port.clone(), self.context.clone());
        let mut wire = vec![0; WIRE_MAX];
        let mut plain = vec![0; RECORD_MAX];
        while !stop.is_raised() {
            if let Err(error) = self.wait(stop) {
                pause(stop, &error);
                continue;
            }
            let mut touched: Vec<Arc<Session>> = Vec::new();
            for _ in 0..BATCH {
                let (size, route) = match self.port.receive(&mut wire) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if crate::net::udp::is_icmp(&error) => continue,
                    Err(error) => {
                        pause(stop, &error);
                        break;
                    }
                };
                // OpenSSL would take an empty one for the end of everything.
                let Some(datagram @ [_, ..]) = wire.get(..size) else { continue };
                let known = self.sessions.of(&route.peer);
                let hello = client_hello(datagram);
                match (known, hello) {
                    // A repetition of what the session began with is its own affair while it
                    // begins, and nothing afterwards: OpenSSL passes over it.
                    (Some(session), Some(random)) if session.hello() == random => {
                        session.arrived(datagram, &mut plain);
                    }
                    (Some(session), None) => {
                        session.arrived(datagram, &mut plain);
                        if !touched.last().is_some_and(|last| Arc::ptr_eq(last, &session)) {
                            touched.push(session);
                        }
                    }
                    (known, Some(_)) => {
                        let Some(session) = strangers.meet(datagram, route) else { continue };
                        let replaces = known.is_some();
                        if let Some(old) = known {
                            old.finish(End::Replaced);
                        }
                        let session = Arc::new(session);
                        newcomer(session.clone(), self.sessions.enter(session), replaces);
                    }
                    // Neither known nor a beginning: nothing is owed to it.
                    (None, None) => {
                        log::trace!("not of a session peer={} size={size}", route.peer);
                    }
                }
            }
            touched.iter().for_each(|session| session.flush());
        }
        self.sessions.end_all(|| End::Stopped);
    }

    fn wait(&self, stop: &Stop) -> io::Result<()> {
        let mut fds =
            [stop.as_fd(), self.port.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn pause(stop: &Stop, error: &io::Error) {
    BROKEN.log(log::Level::Error, || format!("cannot receive on the UDP port: {error}"));
    stop.wait(PAUSE);
}

impl Sessions {
    fn of(&self, peer: &SocketAddr) -> Option<Arc<Session>> {
        self.lock().get(peer).cloned()
    }

    fn enter(&self, session: Arc<Session>) -> Registration {
        self.lock().insert(session.peer(), session.clone());
        Registration { sessions: self.clone(), session }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Ends those through which nothing has passed for `limit`, and has those give back memory
    /// through which nothing has passed for `pause`. Returns how many did.
    pub fn tidy(&self, now: Instant, limit: Duration, pause: Duration) -> usize {
        // Not under the lock, which everybody's datagrams need.
        let all: Vec<_> = self.lock().values().cloned().collect();
        let mut rested = 0;
        for session in all {
            if session.is_idle(now, limit) {
                session.finish(End::Idle(limit));
            } else if session.rest(now, pause) {
                rested += 1;
            }
        }
        rested
    }

    fn end_all(&self, why: impl Fn() -> End) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        for session in all {
            session.finish(why());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock();
        let peer = self.session.peer();
        // Another may have taken its place.
        if sessions.get(&peer).is_some_and(|there| Arc::ptr_eq(there, &self.session)) {
            sessions.remove(&peer);
        }
        if sessions.len() < sessions.capacity() / 8 {
            sessions.shrink_to_fit();
        }
    }
}
