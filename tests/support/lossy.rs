//! A network between clients and one UDP server that loses, repeats, reorders and delays what a
//! test tells it to, and remembers everything it has seen.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::PATIENCE;

/// How long a held datagram waits for others to overtake it. A retransmission comes sooner.
pub const HOLD: Duration = Duration::from_secs(2);

/// Whose datagram it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a client to the server.
    Up,
    /// From the server to a client.
    Down,
}

pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    /// It arrives twice, one right after the other.
    Duplicate,
    /// It arrives after so many that came later in its direction, or after [`HOLD`].
    Hold(usize),
    /// It arrives so much later, without keeping back any other.
    Delay(Duration),
}

/// Decides about the datagram with this number: from 1, for each client and direction by itself.
pub type Rule = Box<dyn FnMut(Direction, usize, &[u8]) -> Action + Send>;

/// The rule under which nothing happens.
pub fn pass() -> Rule {
    Box::new(|_, _, _| Action::Pass)
}

/// Does it to one datagram.
pub fn only(direction: Direction, number: usize, action: Action) -> Rule {
    Box::new(move |d, n, _| if (d, n) == (direction, number) { action } else { Action::Pass })
}

/// Does it to so many of a hundred datagrams, in both directions. Which ones, follows from the seed
/// and their numbers and not from when they come.
pub fn chance(seed: u64, percent: u64, action: Action) -> Rule {
    Box::new(
        move |direction, number, _| {
            if roll(seed, direction, number) % 100 < percent { action } else { Action::Pass }
        },
    )
}

/// A number that looks random and is always the same for the same datagram.
pub fn roll(seed: u64, direction: Direction, number: usize) -> u64 {
    let direction = u64::from(direction == Direction::Down);
    let number = u64::try_from(number).unwrap();
    split_mix(split_mix(seed) ^ (number << 1 | direction))
}

/// One step of SplitMix64.
fn split_mix(state: u64) -> u64 {
    let word = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A datagram that came to the relay, and what became of it.
#[derive(Clone)]
pub struct Seen {
    /// The client's place in the order in which clients came, from 0.
    pub flow: usize,
    pub direction: Direction,
    pub number: usize,
    pub action: Action,
    pub bytes: Vec<u8>,
}

impl Seen {
    /// The DTLS records in it.
    pub fn records(&self) -> Vec<Record<'_>> {
        records(&self.bytes)
    }

    /// Whether an unencrypted handshake message of this type begins or goes on in it.
    pub fn has_handshake(&self, kind: u8) -> bool {
        self.records().iter().any(|record| record.handshakes().contains(&kind))
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flow, direction, number, action, bytes } = self;
        write!(f, "{flow} {direction:?} {number} {action:?}: {} bytes", bytes.len())?;
        self.records().iter().try_for_each(|record| write!(f, " {record:?}"))
    }
}

/// The content types and handshake messages that tests name.
pub mod dtls {
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const DATA: u8 = 23;

    pub const CLIENT_HELLO: u8 = 1;
    pub const SERVER_HELLO: u8 = 2;
    pub const HELLO_VERIFY_REQUEST: u8 = 3;
    pub const NEW_SESSION_TICKET: u8 = 4;
    pub const CERTIFICATE: u8 = 11;
    pub const SERVER_KEY_EXCHANGE: u8 = 12;
    pub const CERTIFICATE_REQUEST: u8 = 13;
    pub const SERVER_HELLO_DONE: u8 = 14;
    pub const CERTIFICATE_VERIFY: u8 = 15;
    pub const CLIENT_KEY_EXCHANGE: u8 = 16;
}

/// A DTLS record as it is seen without keys.
pub struct Record<'a> {
    pub kind: u8,
    pub epoch: u16,
    pub sequence: u64,
    pub body: &'a [u8],
}

/// A handshake message, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    pub kind: u8,
    pub sequence: u16,
    /// Of all of it, where this part begins, and how much this part is.
    pub length: u32,
    pub offset: u32,
    pub part: u32,
}

impl Record<'_> {
    /// The handshake messages in it, unless they are encrypted.
    pub fn messages(&self) -> Vec<Message> {
        let mut found = Vec::new();
        if self.kind != dtls::HANDSHAKE || self.epoch != 0 {
            return found;
        }
        let mut rest = self.body;
        while let Some((head, more)) = rest.split_first_chunk::<12>() {
            let [kind, l0, l1, l2, s0, s1, o0, o1, o2, p0, p1, p2] = *head;
            let [length, offset, part] = [[l0, l1, l2], [o0, o1, o2], [p0, p1, p2]]
                .map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]));
            let sequence = u16::from_be_bytes([s0, s1]);
            found.push(Message { kind, sequence, length, offset, part });
            rest = more.get(usize::try_from(part).unwrap()..).unwrap_or_default();
        }
        found
    }

    /// Their types.
    pub fn handshakes(&self) -> Vec<u8> {
        self.messages().iter().map(|message| message.kind).collect()
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, epoch, sequence, body } = self;
        write!(f, "[{kind} {epoch}.{sequence} {} bytes {:?}]", body.len(), self.handshakes())
    }
}

/// The DTLS records in a datagram, as far as it is made of them.
pub fn records(mut datagram: &[u8]) -> Vec<Record<'_>> {
    let mut found = Vec::new();
    while let Some((head, rest)) = datagram.split_first_chunk::<13>() {
        let [kind, _, _, e0, e1, s0, s1, s2, s3, s4, s5, l0, l1] = *head;
        let size = usize::from(u16::from_be_bytes([l0, l1]));
        let Some((body, rest)) = rest.split_at_checked(size) else { break };
        let (epoch, sequence) = (u16::from_be_bytes([e0, e1]), [0, 0, s0, s1, s2, s3, s4, s5]);
        found.push(Record { kind, epoch, sequence: u64::from_be_bytes(sequence), body });
        datagram = rest;
    }
    found
}

/// The relay. Ends when dropped.
pub struct Lossy {
    /// What clients take for the server.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    /// What clients send to.
    near: UdpSocket,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    rule: Rule,
    flows: Vec<Flow>,
    by_client: HashMap<SocketAddr, usize>,
    seen: Vec<Seen>,
    waiting: Vec<Waiting>,
    ending: bool,
}

/// One client, with a socket of its own towards the server.
struct Flow {
    client: SocketAddr,
    far: Arc<UdpSocket>,
    /// How many came, up and down.
    came: [usize; 2],
}

/// A datagram that was kept back.
struct Waiting {
    /// Its place in what was seen.
    index: usize,
    until: Instant,
    /// How many that came later must go first, if that is what it waits for.
    behind: Option<usize>,
}

impl Lossy {
    /// A relay to `server`. Without a rule of one's own: [`pass`].
    pub fn start(
        server: SocketAddr,
        rule: impl FnMut(Direction, usize, &[u8]) -> Action + Send + 'static,
    ) -> Self {
        let near = bind(server);
        let address = near.local_addr().unwrap();
        let state = State {
            rule: Box::new(rule),
            flows: vec![],
            by_client: HashMap::new(),
            seen: vec![],
            waiting: vec![],
            ending: false,
        };
        let shared =
            Arc::new(Shared { server, near, state: Mutex::new(state), changed: Condvar::new() });
        let (wake, woken) = UnixStream::pair().unwrap();
        let thread = thread::spawn({
            let shared = shared.clone();
            move || shared.run(&woken)
        });
        Self { address, shared, wake, thread: Some(thread) }
    }

    /// From now on another rule.
    pub fn set_rule(&self, rule: impl FnMut(Direction, usize, &[u8]) -> Action + Send + 'static) {
        self.shared.lock().rule = Box::new(rule);
    }

    /// Everything that came so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// How many datagrams came in this direction.
    pub fn count(&self, direction: Direction) -> usize {
        self.shared.lock().seen.iter().filter(|seen| seen.direction == direction).count()
    }

    /// Waits until a datagram of which this is true has come.
    pub fn wait_for(&self, what: impl Fn(&Seen) -> bool) -> Seen {
        let found = |state: &State| state.seen.iter().find(|seen| what(seen)).cloned();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), PATIENCE, |state| found(state).is_none())
            .unwrap();
        found(&state).unwrap_or_else(|| panic!("it never came: {:#?}", state.seen))
    }

    /// Waits until this is true of everything that has come.
    pub fn wait_until(&self, holds: impl Fn(&[Seen]) -> bool) {
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), PATIENCE, |state| !holds(&state.seen))
            .unwrap();
        assert!(holds(&state.seen), "it never came to that: {:#?}", state.seen);
    }

    /// Sends what came once more to where it was going.
    pub fn replay(&self, seen: &Seen) {
        self.inject(seen.flow, seen.direction, &seen.bytes);
    }

    /// Sends bytes as if they had come from the client, or for it.
    pub fn inject(&self, flow: usize, direction: Direction, bytes: &[u8]) {
        self.shared.lock().flows[flow].send(&self.shared.near, direction, bytes);
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        if let Ok(mut state) = self.shared.state.lock() {
            state.ending = true;
        }
        drop(self.wake.write_all(&[0]));
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the relay has panicked");
        }
    }
}

/// A socket that does not block, on loopback, with room for a burst.
fn bind(peer: SocketAddr) -> UdpSocket {
    let host = if peer.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(host).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
    socket
}

impl Flow {
    /// The network promises nothing, and no more does this.
    fn send(&self, near: &UdpSocket, direction: Direction, bytes: &[u8]) {
        drop(match direction {
            Direction::Up => self.far.send(bytes),
            Direction::Down => near.send_to(bytes, self.client),
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// One thread for all sockets, so that the order in which datagrams come is the one in which
    /// they are decided about.
    fn run(&self, woken: &UnixStream) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (fars, next) = {
                let state = self.lock();
                let fars: Vec<_> = state.flows.iter().map(|flow| flow.far.clone()).collect();
                (fars, state.waiting.iter().map(|waiting| waiting.until).min())
            };
            let sockets = [woken.as_fd(), self.near.as_fd()];
            let sockets = sockets.into_iter().chain(fars.iter().map(|far| far.as_fd()));
            let mut polled: Vec<_> =
                sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
            let timeout = next.map_or(PollTimeout::NONE, |next| {
                let left = next.saturating_duration_since(Instant::now());
                // Rounded up, or it would be too early and turn around at once.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap()
            });
            match poll(&mut polled, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => panic!("poll: {error}"),
            }
            let mut state = self.lock();
            if state.ending {
                return;
            }
            // An error is one that ICMP brought: the server is not there (any more).
            if let Ok((size, client)) = self.near.recv_from(&mut buffer) {
                let flow = state.flow_of(client, self.server);
                state.came(&self.near, flow, Direction::Up, &buffer[..size]);
            }
            for (flow, far) in fars.iter().enumerate() {
                if let Ok(size) = far.recv(&mut buffer) {
                    state.came(&self.near, flow, Direction::Down, &buffer[..size]);
                }
            }
            state.release(&self.near);
            self.changed.notify_all();
        }
    }
}

impl State {
    fn flow_of(&mut self, client: SocketAddr, server: SocketAddr) -> usize {
        *self.by_client.entry(client).or_insert_with(|| {
            let far = bind(server);
            far.connect(server).unwrap();
            self.flows.push(Flow { client, far: Arc::new(far), came: [0; 2] });
            self.flows.len() - 1
        })
    }

    fn came(&mut self, near: &UdpSocket, flow: usize, direction: Direction, bytes: &[u8]) {
        let came = &mut self.flows[flow].came[usize::from(direction == Direction::Down)];
        *came += 1;
        let number = *came;
        let action = (self.rule)(direction, number, bytes);
        let index = self.seen.len();
        self.seen.push(Seen { flow, direction, number, action, bytes: bytes.to_vec() });
        let now = Instant::now();
        match action {
            Action::Pass => self.send(near, index),
            Action::Drop => {}
            Action::Duplicate => {
                self.flows[flow].send(near, direction, bytes);
                self.send(near, index);
            }
            Action::Hold(behind) => {
                self.waiting.push(Waiting { index, until: now + HOLD, behind: Some(behind) });
            }
            Action::Delay(time) => {
                self.waiting.push(Waiting { index, until: now + time, behind: None });
            }
        }
    }

    /// Sends a datagram, and those that waited for it to overtake them.
    fn send(&mut self, near: &UdpSocket, index: usize) {
        let sent = &self.seen[index];
        self.flows[sent.flow].send(near, sent.direction, &sent.bytes);
        for waiting in &mut self.waiting {
            let held = &self.seen[waiting.index];
            let overtaken = (held.flow, held.direction) == (sent.flow, sent.direction)
                && held.number < sent.number;
            if let (true, Some(behind)) = (overtaken, &mut waiting.behind) {
                *behind = behind.saturating_sub(1);
            }
        }
        let freed = |waiting: &Waiting| waiting.behind == Some(0);
        while let Some(at) = self.waiting.iter().position(freed) {
            let freed = self.waiting.remove(at);
            self.send(near, freed.index);
        }
    }

    /// Sends what has waited long enough.
    fn release(&mut self, near: &UdpSocket) {
        let now = Instant::now();
        loop {
            let over = self.waiting.iter().enumerate().filter(|(_, waiting)| waiting.until <= now);
            let Some((at, _)) = over.min_by_key(|(_, waiting)| waiting.until) else { return };
            let freed = self.waiting.remove(at);
            self.send(near, freed.index);
        }
    }
}
