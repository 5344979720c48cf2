//! Services that streams and datagrams can be asked for.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use socket2::{Domain, SockRef, Socket, Type};

use super::PATIENCE;
use super::pattern::datagram;

/// Runs `serve` on a thread of its own for each connection to a new loopback port.
pub fn service(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(connection.unwrap()));
        }
    });
    address
}

/// Sends back what comes, and ends when the client does.
pub fn echo() -> SocketAddr {
    service(|mut stream| {
        let mut buffer = [0; 64 * 1024];
        while let Ok(size @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..size]).is_err() {
                return;
            }
        }
        drop(stream.shutdown(Shutdown::Write));
    })
}

/// Reads everything until the client has finished, and only then answers with how much it was.
pub fn count() -> SocketAddr {
    service(|mut stream| {
        let size = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        write!(stream, "{size}").unwrap();
    })
}

/// An address where nothing listens, nor will: its port is taken by a socket that never does.
pub fn refused() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

/// An address for a program that cannot tell which port it was given. Each call has an IP of its
/// own, on which nobody else binds.
pub fn unused() -> SocketAddr {
    TcpListener::bind((own_ip(), 0)).unwrap().local_addr().unwrap()
}

/// A loopback IP that no other call returns.
fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id().wrapping_mul(64) + NEXT.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = own.to_be_bytes();
    Ipv4Addr::new(127, 77, high, low)
}

/// Runs `serve` with each datagram that comes to a new loopback port, and whom it came from.
pub fn udp_service(serve: impl Fn(&UdpSocket, &[u8], SocketAddr) + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // An error is another's: a client that is gone.
            if let Ok((size, from)) = socket.recv_from(&mut buffer) {
                serve(&socket, &buffer[..size], from);
            }
        }
    });
    address
}

/// Sends each datagram back.
pub fn udp_echo() -> SocketAddr {
    udp_service(|socket, bytes, from| drop(socket.send_to(bytes, from)))
}

/// Answers each datagram with `count` of [`datagram`], as fast as it can.
pub fn udp_flood(count: u64, size: usize) -> SocketAddr {
    udp_service(move |socket, _, from| {
        for number in 0..count {
            drop(socket.send_to(&datagram(number, size), from));
        }
    })
}

/// An address that answers each datagram with an ICMP error: a port that the system gives nobody.
pub fn udp_refused() -> SocketAddr {
    (own_ip(), 9).into()
}

/// A destination that keeps what it gets, in order, and answers nothing.
#[derive(Clone)]
pub struct UdpCollector {
    pub address: SocketAddr,
    received: Arc<(Mutex<Vec<Vec<u8>>>, Condvar)>,
}

pub fn udp_collector() -> UdpCollector {
    let received = Arc::new((Mutex::new(vec![]), Condvar::new()));
    let shared = received.clone();
    let address = udp_service(move |_, bytes, _| {
        shared.0.lock().unwrap().push(bytes.to_vec());
        shared.1.notify_all();
    });
    UdpCollector { address, received }
}

impl UdpCollector {
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received.0.lock().unwrap().clone()
    }

    /// Waits until so many have come.
    pub fn wait_for(&self, count: usize) {
        let (received, changed) = &*self.received;
        let (all, _) = changed
            .wait_timeout_while(received.lock().unwrap(), PATIENCE, |all| all.len() < count)
            .unwrap();
        assert!(all.len() >= count, "{} have come, not {count}", all.len());
    }

    /// Waits until `last` has come, and returns all that came before it since the last time.
    pub fn until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let (received, changed) = &*self.received;
        let place = |all: &Vec<Vec<u8>>| all.iter().position(|bytes| bytes == last);
        let (mut all, _) = changed
            .wait_timeout_while(received.lock().unwrap(), PATIENCE, |all| place(all).is_none())
            .unwrap();
        let place = place(&all).expect("the last datagram never came");
        let mut before: Vec<_> = all.drain(..=place).collect();
        before.pop();
        before
    }
}
