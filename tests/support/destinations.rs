//! Services that streams can be asked for.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

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

/// An address where nothing listens.
pub fn refused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
