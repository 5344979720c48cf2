//! What a test asks about the agent's process as the system sees it, and clients for it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;

use adit::client::{Client, Timeouts};
use adit::pki::Identity;
use adit::tls::{SERVER_NAME, provider};
use socket2::{Domain, Socket, Type};

use super::process::AgentProcess;
use super::{PATIENCE, Pki};

impl AgentProcess {
    /// A client with a certificate of `pki`.
    pub fn client_of(&self, pki: &Pki) -> Client {
        self.client_with(&pki.client("tester"))
    }

    pub fn client_with(&self, identity: &Identity) -> Client {
        let timeouts = Timeouts { dial: PATIENCE, handshake: PATIENCE, answer: PATIENCE };
        let address = self.address.to_string();
        Client::new(&address, SERVER_NAME, identity, provider::default(), timeouts).unwrap()
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// Its threads at this moment.
    pub fn threads(&self) -> usize {
        fs::read_dir(self.proc("task")).unwrap().count()
    }

    /// Its open descriptors at this moment.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Its resident memory at this moment, in KiB.
    pub fn resident(&self) -> usize {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Log lines with this text, so far.
    pub fn count(&self, text: &str) -> usize {
        self.log().iter().filter(|line| line.contains(text)).count()
    }

    /// Ends it with a signal, and sees to it that it ended well and that nothing of it panicked.
    pub fn ends_well(mut self) -> Vec<String> {
        self.signal("SIGTERM");
        assert!(self.wait().success());
        self.wait_for("agent ended");
        let log = self.log();
        assert!(!log.iter().any(|line| line.contains("panic")), "{log:#?}");
        log
    }
}

/// Connects from another loopback address, `127.0.0.<last>`: another source to the agent.
pub fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits until something holds that no event announces.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        thread::yield_now();
    }
}
