//! What the demo's streams lead to: small services on loopback.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::dns;
use crate::http::{self, Connection, Request, Response};
use crate::lifecycle::threads::Group;
use crate::lifecycle::{Deadline, Stop};
use crate::net::{self, Conn, LARGE};

/// Bytes of a bulk transfer: long enough to be past every slow start, over in a second.
pub(super) const BULK: u64 = 256 * 1024 * 1024;

/// The page that the HTTP service has at `/`.
pub(super) const PAGE: &str = "<!doctype html>\n\
    <html lang=\"en\">\n\
    <title>adit demo</title>\n\
    <p>This page is served on the loopback interface by <code>adit demo</code>.\n\
    If you asked the agent for it, it came through one mutually authenticated port.\n\
    </html>\n";

/// The services, which run until they are shut down.
pub(super) struct Destinations {
    /// HTTP: [`PAGE`] at `/`.
    pub(super) page: SocketAddr,
    /// Sends back what comes.
    pub(super) echo: SocketAddr,
    /// Once the client has finished: how many bytes it sent and their CRC-32, as text.
    pub(super) digest: SocketAddr,
    /// Sends [`BULK`] bytes of [`Blocks`], and ends.
    pub(super) source: SocketAddr,
    /// Sends back each datagram.
    pub(super) udp_echo: SocketAddr,
    /// A name server, over UDP.
    pub(super) dns: SocketAddr,
    stop: Stop,
    threads: Group,
    open: Open,
}

/// Connections that may have to be cut.
type Open = Arc<Mutex<Vec<Weak<Conn>>>>;

/// What is answered to a datagram, `None` for nothing.
type Answer = fn(&[u8]) -> Option<Vec<u8>>;

/// What is done with one connection.
type Serve = fn(Arc<Conn>) -> io::Result<()>;

impl Destinations {
    /// Starts the services on ports that the kernel chooses.
    pub(super) fn start() -> io::Result<Self> {
        let (stop, threads, open) = (Stop::new()?, Group::new(), Open::default());
        let start = |name: &'static str, serve: Serve| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = listener.local_addr()?;
            listener.set_nonblocking(true)?;
            let (stop, group, open) = (stop.clone(), threads.clone(), open.clone());
            threads.spawn(name, move || accept(name, &listener, serve, &stop, &group, &open))?;
            io::Result::Ok(address)
        };
        let start_udp = |name: &'static str, reply: Answer| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = socket.local_addr()?;
            socket.set_nonblocking(true)?;
            let stop = stop.clone();
            threads.spawn(name, move || answer(name, &socket, reply, &stop))?;
            io::Result::Ok(address)
        };
        Ok(Self {
            page: start("demo-page", page)?,
            echo: start("demo-echo", echo)?,
            digest: start("demo-digest", digest)?,
            source: start("demo-source", source)?,
            udp_echo: start_udp("demo-udp-echo", |datagram| Some(datagram.to_vec()))?,
            dns: start_udp("demo-dns", dns::answer)?,
            stop,
            threads,
            open,
        })
    }

    /// Ends the services and whatever still uses them.
    pub(super) fn shut_down(&self) {
        self.stop.raise();
        for conn in lock(&self.open).iter().filter_map(Weak::upgrade) {
            conn.abort();
        }
        let left = self.threads.wait(REAP);
        if left > 0 {
            log::warn!("{left} connections to the demo's services did not end");
        }
    }
}

/// How long cut connections may take to end.
const REAP: Duration = Duration::from_secs(1);

fn lock(open: &Open) -> std::sync::MutexGuard<'_, Vec<Weak<Conn>>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives each connection a thread until `stop` is raised.
fn accept(
    name: &str,
    listener: &TcpListener,
    serve: Serve,
    stop: &Stop,
    threads: &Group,
    open: &Open,
) {
    while !stop.is_raised() {
        if let Err(error) = wait(listener.as_fd(), stop) {
            return log::error!("{name} cannot wait for connections: {error}");
        }
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => {
                log::warn!("{name} cannot accept: {error}");
                // Whatever is short comes back when connections end.
                stop.wait(PAUSE);
                continue;
            }
        };
        if let Err(error) = socket.set_nonblocking(false).and_then(|()| net::tune(&socket)) {
            log::debug!("{name}: {error}");
            continue;
        }
        let conn = Conn::new(socket);
        {
            let mut open = lock(open);
            open.retain(|conn| conn.strong_count() > 0);
            open.push(Arc::downgrade(&conn));
        }
        let started = threads.spawn(name, move || {
            if let Err(error) = serve(conn) {
                log::debug!("a client of the demo's services broke off: {error}");
            }
        });
        if let Err(error) = started {
            log::warn!("{name} has no thread for a connection: {error}");
        }
    }
}

/// Answers datagrams until `stop` is raised.
fn answer(name: &str, socket: &UdpSocket, reply: Answer, stop: &Stop) {
    let mut buffer = vec![0; LARGE];
    while !stop.is_raised() {
        if let Err(error) = wait(socket.as_fd(), stop) {
            return log::error!("{name} cannot wait for datagrams: {error}");
        }
        // A failure is another's, such as a client that is gone, or a datagram lost.
        let answered = socket.recv_from(&mut buffer).and_then(|(size, from)| {
            match reply(buffer.get(..size).unwrap_or_default()) {
                Some(reply) => socket.send_to(&reply, from).map(drop),
                None => Ok(()),
            }
        });
        if let Err(error) = answered {
            log::debug!("{name}: {error}");
        }
    }
}

/// Waits for a socket or for `stop`.
fn wait(socket: BorrowedFd<'_>, stop: &Stop) -> io::Result<()> {
    let mut fds = [stop.as_fd(), socket].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The wait after a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);

fn page(conn: Arc<Conn>) -> io::Result<()> {
    let answer = &mut |request: &Request| match (request.method(), request.path()) {
        ("GET" | "HEAD", "/") => {
            Response { content_type: "text/html; charset=utf-8", ..Response::text(200, PAGE) }
        }
        ("GET" | "HEAD", _) => Response::text(404, "there is only one page: /\n"),
        _ => Response::text(405, "this page only answers GET and HEAD\n")
            .with_header("Allow", "GET, HEAD"),
    };
    let mut plain = Plain { conn, deadline: None };
    http::serve(&mut plain, &http::Limits::default(), &|| false, answer)
        .map(drop)
        .map_err(io::Error::other)
}

fn echo(conn: Arc<Conn>) -> io::Result<()> {
    let mut buffer = vec![0; LARGE];
    loop {
        match conn.recv(&mut buffer)? {
            0 => return conn.finish(),
            size => conn.send_all(buffer.get(..size).unwrap_or_default())?,
        }
    }
}

fn digest(conn: Arc<Conn>) -> io::Result<()> {
    let mut buffer = vec![0; LARGE];
    let (mut bytes, mut crc) = (0, crc32fast::Hasher::new());
    loop {
        match conn.recv(&mut buffer)? {
            0 => break,
            size => {
                crc.update(buffer.get(..size).unwrap_or_default());
                bytes += size as u64;
            }
        }
    }
    conn.send_all(summary(bytes, crc.finalize()).as_bytes())?;
    conn.finish()
}

/// What the digest service says of `bytes` bytes with that CRC-32.
pub(super) fn summary(bytes: u64, crc: u32) -> String {
    format!("{bytes} bytes, CRC-32 {crc:08x}\n")
}

fn source(conn: Arc<Conn>) -> io::Result<()> {
    let mut blocks = Blocks::new();
    while let Some(block) = blocks.next() {
        conn.send_all(block)?;
    }
    conn.finish()
}

/// [`BULK`] bytes in blocks that all differ, so that one lost, doubled or out of its order shows in
/// the checksum.
pub(super) struct Blocks {
    block: Vec<u8>,
    number: u64,
}

impl Blocks {
    pub(super) fn new() -> Self {
        // xorshift64 (Marsaglia 2003): nothing that a compressing layer could shrink.
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Self { block: words.take(LARGE / 8).flatten().collect(), number: 0 }
    }

    /// The next block; its first bytes are its number.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        if self.number * LARGE as u64 >= BULK {
            return None;
        }
        for (to, from) in self.block.iter_mut().zip(self.number.to_be_bytes()) {
            *to = from;
        }
        self.number += 1;
        Some(&self.block)
    }
}

/// A plain TCP connection for HTTP.
struct Plain {
    conn: Arc<Conn>,
    deadline: Option<Deadline>,
}

impl Plain {
    fn left(&self) -> io::Result<Option<Duration>> {
        self.deadline.as_ref().map(Deadline::remaining).transpose()
    }

    /// What a time-out of the socket means here.
    fn named(&self, error: io::Error) -> io::Error {
        match &self.deadline {
            Some(deadline) if error.kind() == ErrorKind::WouldBlock => deadline.timed_out(),
            _ => error,
        }
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.conn.set_read_timeout(self.left()?)?;
        self.conn.recv(buffer).map_err(|error| self.named(error))
    }
}

impl Write for Plain {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &self.deadline {
            Some(deadline) => self.conn.send_all_by(data, deadline)?,
            None => self.conn.send_all(data)?,
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection for Plain {
    fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
        self.deadline = deadline;
        Ok(())
    }

    fn close_write(&mut self) -> io::Result<()> {
        self.conn.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbered_and_add_up() {
        let mut blocks = Blocks::new();
        let first = blocks.next().unwrap().to_vec();
        let second = blocks.next().unwrap().to_vec();
        assert_eq!((&first[..8], &second[..8]), (&[0; 8][..], &[0, 0, 0, 0, 0, 0, 0, 1][..]));
        assert_eq!(first[8..], second[8..]);
        let mut rest = 0;
        while let Some(block) = blocks.next() {
            rest += block.len() as u64;
        }
        assert_eq!(rest + 2 * LARGE as u64, BULK);
    }

    #[test]
    fn the_page_is_served_and_nothing_else() {
        let services = Destinations::start().unwrap();
        let get = |path| {
            let deadline = Deadline::after("test", Duration::from_secs(60));
            let conn = Conn::new(std::net::TcpStream::connect(services.page).unwrap());
            http::get(&mut Plain { conn, deadline: None }, "demo", path, 4096, deadline).unwrap()
        };
        assert_eq!(get("/"), http::Answer { status: 200, body: PAGE.as_bytes().to_vec() });
        assert_eq!(get("/other").status, 404);
        services.shut_down();
        assert_eq!(services.threads.running(), 0);
    }

    #[test]
    fn the_name_server_answers_queries_and_keeps_silent_to_the_rest() {
        let services = Destinations::start().unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.connect(services.dns).unwrap();
        socket.send(b"nonsense").unwrap();
        socket.send(&dns::query(9, dns::NAME)).unwrap();
        let mut buffer = [0; 512];
        let size = socket.recv(&mut buffer).unwrap();
        assert_eq!(dns::address(9, &buffer[..size]), Some(dns::ADDRESS));
        services.shut_down();
        assert_eq!(services.threads.running(), 0);
    }
}
