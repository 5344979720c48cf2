//! The connections that run, for stopping them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::lifecycle::Stop;
use crate::net::Conn;
use crate::relay::Relay;

/// The numbers by which the log tells connections and sessions apart. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ids(Arc<AtomicU64>);

impl Ids {
    /// The next one, from 1.
    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Every connection that has left the lobby. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Running(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Raised when stopping and nothing runs any more.
    empty: Stop,
}

#[derive(Debug, Default)]
struct State {
    connections: HashMap<u64, Connection>,
    stopping: bool,
    streams: u64,
}

#[derive(Debug)]
struct Connection {
    conn: Arc<Conn>,
    stream: Option<(Relay, String)>,
}

impl Running {
    pub(super) fn new(empty: Stop) -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), empty }))
    }

    /// Notes a connection. The entry takes it out again when it is dropped.
    pub(super) fn enter(&self, id: u64, conn: Arc<Conn>) -> Entry {
        let mut state = self.lock();
        if state.stopping {
            conn.stop_reading();
        }
        state.connections.insert(id, Connection { conn, stream: None });
        Entry { running: self.clone(), id }
    }

    /// From now on: connections that carry no stream end at once, those that do go on. Returns how
    /// many do.
    pub(super) fn drain(&self) -> usize {
        let mut state = self.lock();
        state.stopping = true;
        let mut streams = 0;
        for connection in state.connections.values() {
            match connection.stream {
                Some(_) => streams += 1,
                None => connection.conn.stop_reading(),
            }
        }
        if state.connections.is_empty() {
            self.0.empty.raise();
        }
        streams
    }

    /// Whether [`Running::drain`] was called.
    pub(super) fn is_draining(&self) -> bool {
        self.lock().stopping
    }

    /// Ends every connection. Returns what streams were cut.
    pub(super) fn cut(&self) -> Vec<String> {
        let mut cut = Vec::new();
        for connection in self.lock().connections.values() {
            match &connection.stream {
                Some((relay, label)) => {
                    let (up, down) = relay.bytes();
                    cut.push(format!("{label} up={up} down={down}"));
                    relay.cut();
                }
                None => connection.conn.abort(),
            }
        }
        cut
    }

    /// Streams carried since the start.
    pub(super) fn streams(&self) -> u64 {
        self.lock().streams
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the table.
#[derive(Debug)]
pub(super) struct Entry {
    running: Running,
    id: u64,
}

impl Entry {
    /// The connection now carries a stream. False when it may not, because we are stopping.
    pub(super) fn carries(&self, relay: Relay, label: String) -> bool {
        let mut state = self.running.lock();
        if state.stopping {
            return false;
        }
        state.streams += 1;
        if let Some(connection) = state.connections.get_mut(&self.id) {
            connection.stream = Some((relay, label));
        }
        true
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.running.lock();
        let State { connections, .. } = &mut *state;
        connections.remove(&self.id);
        if connections.len() < connections.capacity() / 8 {
            connections.shrink_to_fit();
        }
        if state.connections.is_empty() && state.stopping {
            self.running.0.empty.raise();
        }
    }
}
