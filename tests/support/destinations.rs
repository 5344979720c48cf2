//! Services that streams can be asked for.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use socket2::{Domain, Socket, Type};

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
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id().wrapping_mul(64) + NEXT.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = own.to_be_bytes();
    TcpListener::bind((Ipv4Addr::new(127, 77, high, low), 0)).unwrap().local_addr().unwrap()
}
