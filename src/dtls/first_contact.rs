//! Strangers: whoever sends the first datagram from an address, until a cookie comes back from it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::SslStream;

use super::context::ServerContext;
use super::ffi::{Listened, PeerSlot, listen};
use super::link::{Link, PeerRoute};
use super::session::Session;
use crate::lifecycle::Flood;
use crate::net::udp::{Route, UdpPort};
use crate::wire::dtls::client_hello;

/// Answers first contacts. They share one OpenSSL object until one of them has shown its cookie,
/// so a stranger costs nothing that is kept, and is sent less than it has sent.
pub struct FirstContact {
    port: Arc<UdpPort>,
    context: ServerContext,
    spare: Option<(SslStream<Link>, PeerRoute)>,
    slot: Option<PeerSlot>,
}

pub(super) static UNUSABLE: Flood =
    Flood::new("first contacts that failed", 1, Duration::from_secs(10));

impl FirstContact {
    /// Answers go out by `port`.
    pub fn new(port: Arc<UdpPort>, context: ServerContext) -> Self {
        Self { port, context, spare: None, slot: None }
    }

    /// Takes a stranger's datagram. A first ClientHello is answered with a cookie; of a client that
    /// brings the cookie of its address, returns the session to go on with; all else comes to
    /// nothing.
    pub fn meet(&mut self, datagram: &[u8], route: Route) -> Option<Session> {
        let random = client_hello(datagram)?;
        match self.try_meet(datagram, route) {
            Ok(met) => met.map(|stream| Session::new(stream, route.peer, *random)),
            Err(error) => {
                UNUSABLE.log(log::Level::Debug, || {
                    format!("first contact failed peer={} why={error}", route.peer)
                });
                None
            }
        }
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

impl fmt::Debug for FirstContact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FirstContact")
    }
}
