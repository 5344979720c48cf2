//! The plain services behind every server: a sink that counts, a source that never ends, an echo.
//! Each is as cheap as it can be, so that the server in the middle is what gets measured.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::Result;

/// Addresses of the running services, and what the sink has seen.
pub(crate) struct Services {
    pub(crate) sink: SocketAddr,
    pub(crate) source: SocketAddr,
    pub(crate) echo: SocketAddr,
    /// Bytes that have arrived at the sink since it started.
    pub(crate) sunk: Arc<AtomicU64>,
}

/// Starts all three on loopback. Their threads live as long as the process.
pub(crate) fn start() -> Result<Services> {
    let sunk = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sunk);
    let sink = serve("sink", move |stream| drain(&stream, &counter))?;
    let source = serve("source", pour)?;
    let echo = start_echo()?;
    Ok(Services { sink, source, echo, sunk })
}

fn listen() -> Result<(TcpListener, SocketAddr)> {
    // Room for a thousand connections opened in one go.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn serve(name: &str, handle: impl Fn(TcpStream) + Clone + Send + 'static) -> Result<SocketAddr> {
    let (listener, address) = listen()?;
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            thread::spawn(move || handle(stream));
        }
    })?;
    Ok(address)
}

/// Reads until the end. `MSG_TRUNC` lets the kernel drop the bytes without copying them out.
fn drain(stream: &TcpStream, counter: &AtomicU64) {
    let socket = socket2::SockRef::from(stream);
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 1 << 20];
    while let Ok(received) = socket.recv_with_flags(&mut buffer, nix::libc::MSG_TRUNC) {
        if received == 0 {
            return;
        }
        counter.fetch_add(received as u64, Ordering::Relaxed);
    }
}

fn pour(mut stream: TcpStream) {
    let block = vec![0x5a_u8; 256 << 10];
    while stream.write_all(&block).is_ok() {}
}

/// One thread for all connections: a thread for each would cost the machine more than the servers
/// differ in.
fn start_echo() -> Result<SocketAddr> {
    let (listener, address) = listen()?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
    thread::Builder::new().name("echo".to_owned()).spawn(move || {
        if let Err(error) = run_echo(&listener, &epoll) {
            eprintln!("compare: the echo service ended: {error}");
        }
    })?;
    Ok(address)
}

fn run_echo(listener: &TcpListener, epoll: &Epoll) -> Result<()> {
    let mut streams: HashMap<u64, TcpStream> = HashMap::new();
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = [0_u8; 4096];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        for event in events.iter().take(ready) {
            if event.data() == u64::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let key = u64::try_from(stream.as_raw_fd())?;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
                    streams.insert(key, stream);
                }
            } else if let Some(stream) = streams.get_mut(&event.data())
                && !echo_once(stream, &mut buffer)
            {
                // Closing the descriptor takes it out of the epoll set.
                streams.remove(&event.data());
            }
        }
    }
}

/// `false` when the connection is over. Messages are 64 bytes, so a short write is a lost peer.
fn echo_once(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(length) => buffer.get(..length).is_some_and(|bytes| stream.write_all(bytes).is_ok()),
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}
