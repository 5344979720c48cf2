//! Where accepted connections wait until their first bytes arrive and a handshake slot is free.
//!
//! A connection that never speaks costs a descriptor here and nothing else: no thread, no stack,
//! no TLS state. When the lobby is full, the source with the most waiting connections loses its
//! oldest one, so noise from one address never shuts out another.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::sources::network;

/// A connection that waits.
#[derive(Debug)]
pub(super) struct Waiting<S = TcpStream> {
    pub(super) socket: S,
    pub(super) peer: SocketAddr,
    pub(super) since: Instant,
    /// Whether its first bytes have arrived.
    pub(super) ready: bool,
}

/// The waiting connections, oldest first.
#[derive(Debug)]
pub(super) struct Lobby<S = TcpStream> {
    waiting: VecDeque<Waiting<S>>,
    per_source: HashMap<IpAddr, usize>,
    limit: usize,
    patience: Duration,
}

impl<S> Lobby<S> {
    /// Room for `limit` connections, each for `patience` at the most.
    pub(super) fn new(limit: usize, patience: Duration) -> Self {
        Self { waiting: VecDeque::new(), per_source: HashMap::new(), limit, patience }
    }

    /// Lets a connection in. Returns the one that must leave for it, if any.
    pub(super) fn enter(
        &mut self,
        socket: S,
        peer: SocketAddr,
        now: Instant,
    ) -> Option<Waiting<S>> {
        let leaves = if self.waiting.len() >= self.limit { self.evict() } else { None };
        *self.per_source.entry(network(peer.ip())).or_default() += 1;
        self.waiting.push_back(Waiting { socket, peer, since: now, ready: false });
        leaves
    }

    /// Connections whose first bytes have not arrived.
    pub(super) fn silent(&self) -> impl Iterator<Item = &Waiting<S>> {
        self.waiting.iter().filter(|w| !w.ready)
    }

    /// Marks those of the silent ones (in the order of [`Lobby::silent`]) as ready whose flag is
    /// set.
    pub(super) fn mark_ready(&mut self, flags: impl Iterator<Item = bool>) {
        for (waiting, flag) in self.waiting.iter_mut().filter(|w| !w.ready).zip(flags) {
            waiting.ready = flag;
        }
    }

    /// Takes out, oldest first, every ready connection that `admit` has a place for.
    ///
    /// `admit` answers `Ok` with the place, `Err(true)` when this source has no place now, and
    /// `Err(false)` when nobody has.
    pub(super) fn admit<P>(
        &mut self,
        mut admit: impl FnMut(IpAddr) -> Result<P, bool>,
    ) -> Vec<(Waiting<S>, P)> {
        let mut admitted = Vec::new();
        let mut index = 0;
        while let Some(waiting) = self.waiting.get(index) {
            if !waiting.ready {
                index += 1;
                continue;
            }
            match admit(waiting.peer.ip()) {
                Ok(place) => match self.remove(index) {
                    Some(waiting) => admitted.push((waiting, place)),
                    None => break,
                },
                Err(true) => index += 1,
                Err(false) => break,
            }
        }
        admitted
    }

    /// Takes out those that have waited too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Waiting<S>> {
        let mut expired = Vec::new();
        while self.waiting.front().is_some_and(|w| now.duration_since(w.since) >= self.patience) {
            expired.extend(self.remove(0));
        }
        expired
    }

    /// When the next one will have waited too long.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.waiting.front().map(|w| w.since + self.patience)
    }

    /// Whether someone who has spoken waits for a place.
    pub(super) fn has_ready(&self) -> bool {
        self.waiting.iter().any(|w| w.ready)
    }

    fn evict(&mut self) -> Option<Waiting<S>> {
        let busiest = *self.per_source.iter().max_by_key(|(_, count)| **count)?.0;
        let oldest = self.waiting.iter().position(|w| network(w.peer.ip()) == busiest)?;
        self.remove(oldest)
    }

    fn remove(&mut self, index: usize) -> Option<Waiting<S>> {
        let waiting = self.waiting.remove(index)?;
        let source = network(waiting.peer.ip());
        if let Some(count) = self.per_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&source);
            }
        }
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn peer(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn noise_from_one_source_never_shuts_out_another() {
        let mut lobby = Lobby::new(3, PATIENCE);
        let now = clock::now();
        assert!(lobby.enter(1, peer("192.0.2.9:1"), now).is_none());
        for id in 2..100 {
            let left = lobby.enter(id, peer("192.0.2.1:1"), now);
            assert!(left.is_none_or(|w| w.peer.ip().to_string() == "192.0.2.1"));
        }
        let here: Vec<_> = lobby.silent().map(|w| w.socket).collect();
        assert_eq!(here, [1, 98, 99]);
    }

    #[test]
    fn ready_connections_leave_in_order_as_far_as_there_are_places() {
        let mut lobby = Lobby::new(10, PATIENCE);
        let now = clock::now();
        for (id, source) in
            [(1, "192.0.2.1:1"), (2, "192.0.2.1:2"), (3, "192.0.2.2:1"), (4, "192.0.2.3:1")]
        {
            lobby.enter(id, peer(source), now);
        }
        lobby.mark_ready([true, true, true, false].into_iter());
        assert!(lobby.has_ready());
        let mut taken = Vec::new();
        let admitted = lobby.admit(|ip| {
            if taken.contains(&ip) {
                return Err(true);
            }
            taken.push(ip);
            Ok(())
        });
        let ids: Vec<_> = admitted.iter().map(|(w, ())| w.socket).collect();
        assert_eq!(ids, [1, 3], "2 waits for its source's share, 4 has not spoken");
        assert!(lobby.admit(|_| Err::<(), _>(false)).is_empty());
        assert_eq!(lobby.silent().map(|w| w.socket).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn nobody_waits_longer_than_the_patience() {
        let mut lobby = Lobby::new(10, PATIENCE);
        let start = clock::now();
        let second = Duration::from_secs(1);
        lobby.enter(1, peer("192.0.2.1:1"), start);
        lobby.enter(2, peer("192.0.2.1:1"), start + second);
        assert_eq!(lobby.next_expiry(), Some(start + PATIENCE));
        assert!(lobby.expire(start + PATIENCE - second).is_empty());
        let expired = lobby.expire(start + PATIENCE);
        assert_eq!(expired.iter().map(|w| w.socket).collect::<Vec<_>>(), [1]);
        assert_eq!(lobby.next_expiry(), Some(start + PATIENCE + second));
    }
}
