//! The plain service behind every server: a UDP echo of one thread, as cheap as it can be, so that
//! what stands before it is what gets measured.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use crate::Result;

/// Room for what arrives while a thread waits for its turn: a loss must not be the echo's.
const QUEUE: usize = 4 << 20;

/// Starts the echo on loopback. Its thread lives as long as the process.
pub(crate) fn start() -> Result<SocketAddr> {
    let socket = bind()?;
    let address = socket.local_addr()?;
    thread::Builder::new().name("echo".to_owned()).spawn(move || {
        let mut buffer = [0_u8; 65_536];
        loop {
            // An answer to a socket that is gone shows here as an error of the next call.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            socket.send_to(buffer.get(..length).unwrap_or_default(), from).ok();
        }
    })?;
    Ok(address)
}

/// A socket that nobody reads: the kernel drops what it has no room for.
pub(crate) fn pit() -> Result<UdpSocket> {
    bind()
}

fn bind() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(QUEUE)?;
    Ok(socket)
}
