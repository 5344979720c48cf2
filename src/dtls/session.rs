//! The server's end of a session: its datagrams wait for its own thread until it is open, and are
//! handled where they arrive from then on.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use openssl::ssl::SslStream;
use rustls_pki_types::CertificateDer;

use super::channel::{Channel, Read};
use super::error::HandshakeError;
use super::link::Link;
use crate::lifecycle::{Deadline, clock};
use crate::wire::dtls::{RECORD_MAX, Random};

/// How often a handshake looks whether it must send its last flight again: a fraction of the
/// shortest wait before that.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// Datagrams that may wait for a session's thread. A handshake has at most a dozen under way; the
/// rest are repetitions.
const WAITING: usize = 64;

/// Bytes of them, of the largest kind four.
const WAITING_BYTES: usize = 64 * 1024;

/// How much more may wait once the client has shown its certificate: a burst that follows its
/// header should not be lost while the destination is being looked up.
const AGREED: usize = 4;

/// Who takes the datagrams of an open session. Called on the thread that receives for many
/// sessions, so neither may wait.
pub trait Consumer: Send + Sync {
    /// The client has sent this datagram. It may be held back, to go on with others.
    fn datagram(&self, datagram: &[u8]);

    /// Nothing more has come for now: what is held back should go on.
    fn flush(&self);

    /// The session has ended: whoever waits for something to send should look.
    fn ended(&self);
}

/// A session with a client whose address was verified.
pub struct Session {
    channel: Channel,
    peer: SocketAddr,
    hello: Random,
    began: Instant,
    /// When the last datagram passed, in milliseconds since it began.
    last: AtomicU64,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    consumer: OnceLock<Arc<dyn Consumer>>,
    /// Whether the handshake is complete.
    agreed: AtomicBool,
    /// Whether datagrams are handled where they arrive. Turns true once, under the inbox's lock.
    open: AtomicBool,
    /// Whether it holds nothing for the next datagram, as far as the janitor knows.
    rests: AtomicBool,
    end: OnceLock<End>,
    /// Datagrams for which there was no room to wait.
    overflowed: AtomicU64,
}

#[derive(Debug, Default)]
struct Inbox {
    waiting: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Inbox {
    fn take(&mut self) -> Option<Box<[u8]>> {
        let datagram = self.waiting.pop_front()?;
        self.bytes -= datagram.len();
        Some(datagram)
    }
}

/// Why a session ended.
#[derive(Debug)]
pub enum End {
    /// The client said goodbye.
    Client,
    /// Nothing passed for this long.
    Idle(Duration),
    /// The client began anew from the same address.
    Replaced,
    /// The server is stopping.
    Stopped,
    /// Its own side has no use for it any more.
    Finished,
    /// It broke.
    Broken(io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("the client ended it"),
            Self::Idle(limit) => {
                write!(f, "nothing passed for {}", humantime::format_duration(*limit))
            }
            Self::Replaced => f.write_str("the client began anew from the same address"),
            Self::Stopped => f.write_str("the agent is stopping"),
            Self::Finished => f.write_str("done"),
            Self::Broken(error) => error.fmt(f),
        }
    }
}

impl Session {
    pub(super) fn new(stream: SslStream<Link>, peer: SocketAddr, hello: Random) -> Self {
        Self {
            channel: Channel::new(stream),
            peer,
            hello,
            began: clock::now(),
            last: AtomicU64::new(0),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            consumer: OnceLock::new(),
            agreed: AtomicBool::new(false),
            open: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            end: OnceLock::new(),
            overflowed: AtomicU64::new(0),
        }
    }

    /// The client's address, which it was shown to receive at.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// When its client was verified to be there.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The random of the handshake that it began with.
    pub(super) fn hello(&self) -> &Random {
        &self.hello
    }

    /// The client's certificate, DER.
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.channel.peer_certificate()
    }

    /// The cipher suite, as OpenSSL names it.
    pub fn cipher(&self) -> &'static str {
        self.channel.cipher()
    }

    /// Datagrams that were lost here: there was no room for them to wait, or the system did not
    /// take them to send.
    pub fn lost(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed) + self.channel.unsent()
    }

    /// Agrees with the client. To be called once, first, on the session's own thread.
    pub fn handshake(&self, deadline: &Deadline) -> Result<(), HandshakeError> {
        let mut datagram = None;
        loop {
            if self.channel.handshake(datagram.take())? {
                self.agreed.store(true, Ordering::Relaxed);
                self.touch();
                if self.end().is_some() {
                    // It may have ended a moment ago, when there was no telling the client yet.
                    self.channel.close();
                    return Err(HandshakeError::Closed);
                }
                return Ok(());
            }
            if self.end().is_some() {
                return Err(HandshakeError::Closed);
            }
            let left = deadline.remaining().map_err(HandshakeError::Io)?;
            datagram = self.wait(clock::now() + left.min(TICK));
        }
    }

    /// Waits for the next datagram, on the session's own thread before it is open. `None` when the
    /// session has ended.
    pub fn recv(&self, buffer: &mut [u8], deadline: &Deadline) -> io::Result<Option<usize>> {
        loop {
            match self.channel.read(buffer)? {
                Read::Datagram(size) => return Ok(Some(size)),
                Read::End => {
                    self.finish(End::Client);
                    return Ok(None);
                }
                Read::Nothing => {}
            }
            if self.end().is_some() {
                return Ok(None);
            }
            deadline.remaining()?;
            if let Some(datagram) = self.wait(deadline.at()) {
                self.channel.push(datagram);
            }
        }
    }

    /// From now on datagrams go to `consumer`, in the order in which they came; those that have
    /// come already, first.
    pub fn open(&self, consumer: Arc<dyn Consumer>) {
        if self.consumer.set(consumer.clone()).is_err() {
            return;
        }
        let mut buffer = vec![0; RECORD_MAX];
        // What came in one datagram with the last that was read.
        self.decrypt(None, &mut buffer);
        loop {
            let datagram = {
                let mut inbox = self.inbox();
                let Some(datagram) = inbox.take() else {
                    *inbox = Inbox::default();
                    self.open.store(true, Ordering::Release);
                    break;
                };
                datagram
            };
            self.decrypt(Some(datagram), &mut buffer);
        }
        consumer.flush();
        // It may have ended before there was anyone to tell.
        if self.end().is_some() {
            consumer.ended();
        }
    }

    /// Sends one datagram to the client: 1 to 16384 bytes.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.channel.write(datagram)?;
        self.touch();
        Ok(())
    }

    /// The same, held back to leave together with those that follow, until [`release`](Self::release).
    pub fn hold(&self, datagram: &[u8]) -> io::Result<()> {
        self.channel.hold(datagram)?;
        self.touch();
        Ok(())
    }

    /// Sends what was held back.
    pub fn release(&self) {
        self.channel.release();
    }

    /// Ends the session, for the first reason that is given: the client is told, and so is the
    /// consumer.
    pub fn finish(&self, why: End) {
        if self.end.set(why).is_err() {
            return;
        }
        self.channel.close();
        // The lock makes sure that nobody is between looking and waiting.
        drop(self.inbox());
        self.arrived.notify_all();
        if let Some(consumer) = self.consumer.get() {
            consumer.ended();
        }
    }

    /// Why it ended, once it has.
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Gives back what it holds for the next datagram, if none has passed for `limit` and it has not
    /// done so since. Returns whether it did.
    pub(super) fn rest(&self, now: Instant, limit: Duration) -> bool {
        let idle = self.is_idle(now, limit);
        let rested = self.rests.swap(idle, Ordering::Relaxed);
        if idle && !rested {
            self.channel.rest();
        }
        idle && !rested
    }

    /// Whether nothing has passed for `limit`. Never of one that is not open: its phases have
    /// limits of their own.
    pub(super) fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        let last = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.open.load(Ordering::Acquire) && now.saturating_duration_since(last) >= limit
    }

    /// Has the consumer pass on what it has held back of what arrived.
    pub(super) fn flush(&self) {
        if let Some(consumer) = self.consumer.get() {
            consumer.flush();
        }
    }

    /// A datagram of the network for this session. `buffer` has room for one of the stream.
    pub fn arrived(&self, datagram: &[u8], buffer: &mut [u8]) {
        if !self.open.load(Ordering::Acquire) {
            let mut inbox = self.inbox();
            // Again, now that it cannot change any more.
            if !self.open.load(Ordering::Acquire) {
                let times = if self.agreed.load(Ordering::Relaxed) { AGREED } else { 1 };
                if inbox.waiting.len() < WAITING * times
                    && inbox.bytes + datagram.len() <= WAITING_BYTES * times
                {
                    inbox.bytes += datagram.len();
                    inbox.waiting.push_back(datagram.into());
                    self.arrived.notify_one();
                } else {
                    self.overflowed.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        }
        self.decrypt(Some(datagram.into()), buffer);
    }

    fn decrypt(&self, datagram: Option<Box<[u8]>>, buffer: &mut [u8]) {
        let Some(consumer) = self.consumer.get() else { return };
        if self.end().is_some() {
            return;
        }
        let mut passed = false;
        let fed = self.channel.feed(datagram, buffer, |datagram| {
            passed = true;
            consumer.datagram(datagram);
        });
        if passed {
            self.touch();
        }
        match fed {
            Ok(false) => {}
            Ok(true) => self.finish(End::Client),
            Err(error) => self.finish(End::Broken(error)),
        }
    }

    /// The next datagram of the network, waiting for it until `until` or the session's end.
    fn wait(&self, until: Instant) -> Option<Box<[u8]>> {
        let mut inbox = self.inbox();
        loop {
            if let Some(datagram) = inbox.take() {
                return Some(datagram);
            }
            let left = until.checked_duration_since(clock::now()).filter(|left| !left.is_zero())?;
            if self.end().is_some() {
                return None;
            }
            inbox =
                self.arrived.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn touch(&self) {
        let since = clock::now().saturating_duration_since(self.began).as_millis();
        self.last.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::dtls::{ClientContext, FirstContact, ServerContext, connect};
    use crate::net::udp::{Route, UdpPort};
    use crate::pki::{Authority, NameRules, Purpose, Request, Validity};
    use crate::wire::dtls::WIRE_MAX;

    fn soon() -> Deadline {
        Deadline::after("the test", Duration::from_secs(60))
    }

    fn receive(port: &UdpPort) -> (Vec<u8>, Route) {
        let mut buffer = vec![0; WIRE_MAX];
        loop {
            match port.receive(&mut buffer) {
                Ok((size, route)) => return (buffer[..size].to_vec(), route),
                Err(_) => thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_client_is_told_of_an_end_that_came_with_its_last_word_of_the_handshake() {
        let validity = Validity::days(clock::wall(), 1);
        let authority = Authority::create("test CA", validity).unwrap();
        let identity = |purpose| {
            let request = Request { purpose, names: vec!["test".to_owned()], validity };
            authority.identity(&request).unwrap()
        };
        let server = ServerContext::new(&identity(Purpose::Server), NameRules::default()).unwrap();
        let client = ClientContext::new(&identity(Purpose::Client), "test").unwrap();
        let port = UdpPort::bind(&"127.0.0.1:0".parse().unwrap(), 1).unwrap().pop().unwrap();
        let port = Arc::new(port);
        let address = port.local_addr().unwrap();
        thread::scope(|scope| {
            let told = scope.spawn(move || {
                let session = connect(address, &client, &soon()).unwrap();
                session.recv(&mut [0; 16], Some(&soon())).unwrap()
            });
            let mut strangers = FirstContact::new(port.clone(), server);
            let session = loop {
                let (datagram, route) = receive(&port);
                if let Some(session) = strangers.meet(&datagram, route) {
                    break session;
                }
            };
            // The client's last flight is there, and has not been looked at.
            assert!(!session.channel.handshake(None).unwrap());
            let is_finished = |datagram: &[u8]| {
                let mut rest = datagram;
                let mut sealed = false;
                while let [_, _, _, epoch @ ..] = rest
                    && let [e1, e0, _, _, _, _, _, _, l1, l0, ..] = *epoch
                {
                    sealed |= [e1, e0] != [0, 0];
                    rest =
                        rest.get(13 + usize::from(u16::from_be_bytes([l1, l0]))..).unwrap_or(&[]);
                }
                sealed
            };
            loop {
                let (datagram, _) = receive(&port);
                let last = is_finished(&datagram);
                session.channel.push(datagram.into());
                if last {
                    break;
                }
            }
            session.finish(End::Stopped);
            let agreed = session.handshake(&soon());
            assert!(matches!(agreed, Err(HandshakeError::Closed)), "{agreed:?}");
            assert_eq!(told.join().unwrap(), None);
        });
    }

    #[test]
    fn what_was_taken_makes_room_for_more() {
        let mut inbox = Inbox::default();
        for size in [1, 100, WAITING_BYTES] {
            inbox.bytes += size;
            inbox.waiting.push_back(vec![0; size].into());
        }
        while inbox.take().is_some() {}
        assert_eq!(inbox.bytes, 0);
    }
}
