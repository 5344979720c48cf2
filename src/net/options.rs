//! The options of every stream.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Silence before the first keep-alive probe. Below the 60 s or more after which the common NATs
/// and load balancers forget a connection, so an idle stream also stays known to them.
pub const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between unanswered keep-alive probes.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered keep-alive probes after which the peer is dead.
pub const KEEP_ALIVE_PROBES: u32 = 3;

/// Sets `TCP_NODELAY` and keep-alive.
///
/// Nodelay because the relay writes whatever it has read in one call: Nagle's algorithm would only
/// hold back the end of a message until the peer acknowledges the part before.
///
/// Keep-alive because a stream has no limit on idleness: a peer that vanished while nothing was
/// under way is found 30 s + 3 × 10 s = 60 s after its last sign of life. One that vanished with
/// data under way is found by the kernel's retransmissions instead (tcp(7), `tcp_retries2`, about
/// 15 min). `TCP_USER_TIMEOUT` would shorten that, but also ends a live peer that merely stops
/// reading for as long, such as a pager at the end of a pipe.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_IDLE)
        .with_interval(KEEP_ALIVE_INTERVAL)
        .with_retries(KEEP_ALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keep_alive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_tuned_stream_finds_a_dead_peer_within_a_minute() {
        let (stream, _peer) = pair();
        tune(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        let limit = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(limit, Duration::from_secs(60));
    }
}
