//! Strangers: whoever sends the first datagram from an address, until a cookie comes back from it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::ssl::SslStream;

use super::context::ServerContext;
use super::ffi::{Listened, PeerSlot, listen};
use super::link::{Link, PeerRoute};
use super::session::Session;
use crate::lifecycle::{Flood, clock};
use crate::net::udp::{Route, UdpPort};
use crate::wire::dtls::{client_hello, cookie, hello_verify_request};

/// Answers first contacts. A stranger costs nothing that is kept, and is sent less than it has sent.
/// OpenSSL sees only those who bring their cookie.
pub struct FirstContact {
    port: Arc<UdpPort>,
    context: ServerContext,
    spare: Option<(SslStream<Link>, PeerRoute)>,
    slot: Option<PeerSlot>,
    budget: Budget,
}

pub(super) static UNUSABLE: Flood =
    Flood::new("first contacts that failed", 1, Duration::from_secs(10));

impl FirstContact {
    /// Answers go out by `port`.
    pub fn new(port: Arc<UdpPort>, context: ServerContext) -> Self {
        Self { port, context, spare: None, slot: None, budget: Budget::default() }
    }

    /// Takes a stranger's datagram. A first ClientHello is answered with a cookie; of a client that
    /// brings the cookie of its address, returns the session to go on with; all else comes to
    /// nothing.
    pub fn meet(&mut self, datagram: &[u8], route: Route) -> Option<Session> {
        let (random, cookie) = (client_hello(datagram)?, cookie(datagram)?);
        let now = clock::now();
        let met = if cookie.is_empty() {
            self.greet(datagram, &route, now)
        } else {
            match self.context.cookies().holds(cookie, route.peer, now) {
                Ok(true) => self.try_meet(datagram, route),
                // Another's, or one whose secret has gone: as good as none.
                Ok(false) => self.greet(datagram, &route, now),
                Err(error) => Err(error),
            }
        };
        match met {
            Ok(met) => met.map(|stream| Session::new(stream, route.peer, *random)),
            Err(error) => {
                UNUSABLE.log(log::Level::Debug, || {
                    format!("first contact failed peer={} why={error}", route.peer)
                });
                None
            }
        }
    }

    /// Sends a cookie to where the datagram came from.
    fn greet(
        &mut self,
        hello: &[u8],
        route: &Route,
        now: Instant,
    ) -> Result<Option<SslStream<Link>>, ErrorStack> {
        if self.budget.spend(now) {
            let cookie = self.context.cookies().make(route.peer, now)?;
            let answer = hello_verify_request(hello, &cookie);
            log::trace!("first contact peer={}", route.peer);
            if let Err(error) = self.port.send(&answer, route) {
                log::trace!("a cookie was not sent: {error}");
            }
        }
        Ok(None)
    }

    fn try_meet(
        &mut self,
        datagram: &[u8],
        route: Route,
    ) -> Result<Option<SslStream<Link>>, ErrorStack> {
        drop(ErrorStack::get());
        let slot = match &mut self.slot {
            Some(slot) => slot,
            none => none.insert(PeerSlot::new()?),
        };
        let (mut stream, place) = match self.spare.take() {
            Some(spare) => spare,
            None => {
                let place = PeerRoute::default();
                let link = Link::shared(self.port.clone(), place.clone());
                (SslStream::new(self.context.session(place.clone())?, link)?, place)
            }
        };
        place.set(route);
        stream.get_mut().push(datagram.into());
        let listened = listen(&mut stream, slot);
        if matches!(listened, Ok(Listened::Verified)) {
            return Ok(Some(stream));
        }
        stream.get_mut().clear();
        self.spare = Some((stream, place));
        listened.map(|_| None)
    }
}

/// How many strangers are answered. In a flood of them, those whose sessions are open come first:
/// their datagrams wait in the same queue of the kernel. A client that is not answered asks again.
#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    spent: u32,
}

impl Budget {
    /// Answers in each [`Budget::WINDOW`]: 5,000 a second, which takes a tenth of a processor at
    /// about 20 us each, most of it the kernel's.
    const MOST: u32 = 50;
    /// Short, so that a burst of strangers holds up a session for a millisecond.
    const WINDOW: Duration = Duration::from_millis(10);

    fn spend(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Self::WINDOW) {
            *self = Self { since: Some(now), spent: 0 };
        }
        self.spent += 1;
        self.spent <= Self::MOST
    }
}

impl fmt::Debug for FirstContact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FirstContact")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_strangers_is_answered_in_part() {
        let mut budget = Budget::default();
        let start = clock::now();
        let mut spend = |at| (0..1000).filter(|_| budget.spend(at)).count();
        assert_eq!(spend(start), 50);
        assert_eq!(spend(start + Budget::WINDOW / 2), 0);
        assert_eq!(spend(start + Budget::WINDOW), 50);
    }
}
