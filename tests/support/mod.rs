//! What the tests share: certificates, agents in this process and as the real binary, and
//! destinations.

#![allow(dead_code, reason = "each subject uses its own part")]

pub mod agents;
pub mod command;
pub mod destinations;
pub mod dtls;
pub mod lossy;
pub mod pattern;
pub mod process;
pub mod raw_tls;
pub mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use adit::agent::api::{Api, GODOXY_VERSION, Runtime};
use adit::agent::policy::Policy;
use adit::agent::{Agent, Limits, Services, Summary, health_checks};
use adit::client::{Client, Timeouts};
use adit::dtls::ServerContext;
use adit::lifecycle::Stop;
use adit::net::udp::bind_both;
use adit::pki::{Authority, Identity, NameRules, Purpose, Request, Validity};
use adit::tls::{ClientAuth, SERVER_NAME, provider, server as tls_server};
use tempfile::TempDir;

/// How long a test waits for something that must happen. Long, because machines are slow at times,
/// and never waited for in full by a test that passes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A throwaway authority.
pub struct Pki {
    pub authority: Authority,
}

impl Pki {
    pub fn new() -> Self {
        // Longer than what it issues, a second later perhaps.
        let longer = Validity::days(SystemTime::now(), 91);
        Self { authority: Authority::create("test CA", longer).unwrap() }
    }

    pub fn server(&self) -> Identity {
        self.issue(Purpose::Server, SERVER_NAME, validity())
    }

    pub fn client(&self, name: &str) -> Identity {
        self.issue(Purpose::Client, name, validity())
    }

    /// A client certificate that ended a day ago.
    pub fn expired_client(&self) -> Identity {
        let day = 24 * 3600;
        let now = seconds();
        let validity = Validity { not_before: now - 3 * day, not_after: now - day };
        self.issue(Purpose::Client, "expired", validity)
    }

    pub fn issue(&self, purpose: Purpose, name: &str, validity: Validity) -> Identity {
        let request = Request { purpose, names: vec![name.to_owned()], validity };
        self.authority.identity(&request).unwrap()
    }

    /// Writes ca.pem, server.pem, server-key.pem, client.pem and client-key.pem.
    pub fn files(&self) -> PkiFiles {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), self.authority.certificate_pem()).unwrap();
        for (purpose, name, file) in
            [(Purpose::Server, SERVER_NAME, "server"), (Purpose::Client, "tester", "client")]
        {
            let request = Request { purpose, names: vec![name.to_owned()], validity: validity() };
            let issued = self.authority.issue(&request).unwrap();
            std::fs::write(dir.path().join(format!("{file}.pem")), issued.certificate_pem())
                .unwrap();
            std::fs::write(dir.path().join(format!("{file}-key.pem")), issued.key_pem()).unwrap();
        }
        PkiFiles { dir }
    }
}

fn validity() -> Validity {
    // Long enough for an agent not to warn of its end.
    Validity::days(SystemTime::now(), 90)
}

fn seconds() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// A folder with PEM files.
pub struct PkiFiles {
    dir: TempDir,
}

impl PkiFiles {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The identity of `server` or `client`.
    pub fn identity(&self, who: &str) -> Identity {
        let path = |name: &str| self.path(name);
        let (cert, key) = (path(&format!("{who}.pem")), path(&format!("{who}-key.pem")));
        Identity::from_files(&path("ca.pem"), &cert, &key).unwrap()
    }

    /// `--ca … --cert … --key …` for `server` or `client`.
    pub fn flags(&self, who: &str) -> Vec<String> {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        vec![
            "--ca".into(),
            path("ca.pem"),
            "--cert".into(),
            path(&format!("{who}.pem")),
            "--key".into(),
            path(&format!("{who}-key.pem")),
        ]
    }
}

/// How a test's agent differs from the default.
pub struct Setup {
    pub limits: Limits,
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub client_auth: ClientAuth,
    /// Of UDP clients.
    pub name_rules: NameRules,
    pub udp_sockets: usize,
    pub listen: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits { drain: Duration::from_millis(100), ..Limits::default() },
            allow: vec![],
            deny: vec![],
            client_auth: ClientAuth::Required(NameRules::new(&[]).unwrap()),
            name_rules: NameRules::default(),
            udp_sockets: 1,
            listen: "127.0.0.1:0",
        }
    }
}

/// A client of the agent at `address`.
pub fn client_of(address: SocketAddr, identity: &Identity) -> Client {
    let timeouts = Timeouts { dial: PATIENCE, handshake: PATIENCE, answer: PATIENCE };
    Client::new(&address.to_string(), SERVER_NAME, identity, provider::default(), timeouts).unwrap()
}

/// An agent in this process, stopped when dropped.
pub struct TestAgent {
    pub address: SocketAddr,
    pub pki: Pki,
    stop: Stop,
    thread: Option<JoinHandle<Summary>>,
}

impl TestAgent {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        let pki = Pki::new();
        let crypto = provider::default();
        let policy = Arc::new(Policy::parse(&setup.allow, &setup.deny).unwrap());
        let server = pki.server();
        let context = ServerContext::new(&server, setup.name_rules.clone()).unwrap();
        let tls = tls_server(&server, setup.client_auth, &Services::ALPN, crypto.clone()).unwrap();
        let api = Api {
            name: "test-agent".to_owned(),
            runtime: Runtime::Docker,
            version: GODOXY_VERSION,
            supports_tcp_stream: true,
            supports_udp_stream: true,
            health: health_checks(&policy, crypto).unwrap(),
        };
        let services = Services { tls, policy, api, limits: setup.limits };
        let (tcp, udp) = bind_both(&setup.listen.parse().unwrap(), setup.udp_sockets).unwrap();
        let agent = Agent::new(vec![tcp], services).unwrap().with_datagrams(udp, &context);
        let address = agent.local_addrs().unwrap()[0];
        let stop = Stop::new().unwrap();
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || agent.run(&stopping, &Stop::new().unwrap()));
        Self { address, pki, stop, thread: Some(thread) }
    }

    /// A client with a certificate of this agent's authority.
    pub fn client(&self) -> Client {
        self.client_with(&self.pki.client("tester"))
    }

    pub fn client_with(&self, identity: &Identity) -> Client {
        client_of(self.address, identity)
    }

    /// Stops it and tells what it did.
    pub fn stop(mut self) -> Summary {
        self.stop.raise();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
