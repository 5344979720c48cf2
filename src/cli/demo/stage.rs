//! What the demo runs on: throwaway certificates as files, an agent, destinations.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::destinations::Destinations;
use crate::agent::api::{Api, GODOXY_VERSION, Runtime};
use crate::agent::policy::Policy;
use crate::agent::{self, Agent, Limits, Services, Summary};
use crate::cli::signals::Signals;
use crate::client::{Client, ClientError, Timeouts};
use crate::dtls::ServerContext;
use crate::lifecycle::{clock, threads};
use crate::net::ListenAddr;
use crate::net::udp::bind_both;
use crate::pki::{
    Authority, Identity, IssueError, NameRules, NewFile, Purpose, Request, Validity, layout,
    write_new, write_zip,
};
use crate::tls::{self, ClientAuth, SERVER_NAME};

/// Everything that runs during the demo.
pub(super) struct Stage {
    /// Where the agent listens.
    pub(super) agent: SocketAddr,
    pub(super) destinations: Destinations,
    /// A port that the agent's rules deny. Something listens there, and nobody ever accepts.
    pub(super) forbidden: TcpListener,
    /// Another, for UDP.
    pub(super) forbidden_udp: UdpSocket,
    /// What the client of the demo shows.
    pub(super) client: Identity,
    /// What a client from elsewhere would show: the right authority for the agent's certificate,
    /// its own certificate from another.
    pub(super) stranger: Identity,
    /// What a client shows that takes another authority's word for the agent.
    pub(super) astray: Identity,
    thread: JoinHandle<Summary>,
    files: Files,
}

impl Stage {
    /// Makes certificates, writes them, and starts agent and destinations.
    pub(super) fn set_up(signals: &Signals) -> Result<Self, Box<dyn Error>> {
        let validity = Validity::days(clock::wall(), 1);
        let authority = Authority::create("adit demo CA", validity)?;
        let other = Authority::create("another CA", validity)?;
        let server = identity(&authority, Purpose::Server, SERVER_NAME, validity)?;
        let request = request(Purpose::Client, "demo-client", validity);
        let issued = authority.issue(&request)?;
        let foreign = other.issue(&request)?;
        let files = Files::write(&authority, &issued.certificate_pem(), &issued.key_pem())?;

        let ca = || vec![authority.certificate().clone()];
        let client = Identity::from_parts(ca(), vec![issued.certificate], issued.key);
        let stranger = Identity::from_parts(ca(), vec![foreign.certificate], foreign.key);
        let astray = identity(&other, Purpose::Client, "demo-client", validity)?;

        let destinations = Destinations::start()?;
        let forbidden = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        forbidden.set_nonblocking(true)?;
        let forbidden_udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        forbidden_udp.set_nonblocking(true)?;
        let denied = [forbidden.local_addr()?.port(), forbidden_udp.local_addr()?.port()];
        let agent = agent(&server, denied)?;
        let address = agent.local_addrs()?.first().copied().ok_or("the agent has no port")?;
        let (stop, at_once) = (signals.stop.clone(), signals.at_once.clone());
        let thread = threads::spawn("demo-agent", move || agent.run(&stop, &at_once))?;
        Ok(Self {
            agent: address,
            destinations,
            forbidden,
            forbidden_udp,
            client,
            stranger,
            astray,
            thread,
            files,
        })
    }

    /// The folder of the certificates.
    pub(super) fn dir(&self) -> &Path {
        &self.files.dir
    }

    /// A client of the agent that knows no TLS session yet.
    pub(super) fn client_as(&self, identity: &Identity) -> Result<Client, ClientError> {
        let provider = tls::provider::default();
        let agent = self.agent.to_string();
        Client::new(&agent, SERVER_NAME, identity, provider, Timeouts::default())
    }

    /// Ends everything and removes the files.
    pub(super) fn take_down(self, signals: &Signals) {
        signals.stop.raise();
        if self.thread.join().is_err() {
            log::error!("the demo's agent ended by a panic");
        }
        self.destinations.shut_down();
    }
}

fn request(purpose: Purpose, name: &str, validity: Validity) -> Request {
    Request { purpose, names: vec![name.to_owned()], validity }
}

fn identity(
    authority: &Authority,
    purpose: Purpose,
    name: &str,
    validity: Validity,
) -> Result<Identity, IssueError> {
    authority.identity(&request(purpose, name, validity))
}

/// An agent on loopback that leads nowhere else, and not to the ports `denied`.
fn agent(server: &Identity, denied: [u16; 2]) -> Result<Agent, Box<dyn Error>> {
    let provider = tls::provider::default();
    let clients = ClientAuth::Required(NameRules::new(&[])?);
    let tls = tls::server(server, clients, &Services::ALPN, provider.clone())?;
    let allow = ["127.0.0.0/8", "::1"].map(str::to_owned);
    let [tcp, udp] = denied;
    let deny = ["127.0.0.0/8", "[::1]"].map(|host| format!("{host}:{tcp},{udp}"));
    let policy = Arc::new(Policy::parse(&allow, &deny)?);
    let api = Api {
        name: "adit-demo".to_owned(),
        runtime: Runtime::Docker,
        version: GODOXY_VERSION,
        supports_tcp_stream: true,
        supports_udp_stream: true,
        health: agent::health_checks(&policy, provider)?,
    };
    let limits = Limits { drain: DRAIN, ..Limits::default() };
    let at = ListenAddr::One(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let (listener, ports) = bind_both(&at, 1)?;
    let context = ServerContext::new(server, NameRules::default())?;
    let agent = Agent::new(vec![listener], Services { tls, policy, api, limits })?;
    Ok(agent.with_datagrams(ports, &context))
}

/// Nobody's work is lost with a stream of a demo.
const DRAIN: Duration = Duration::from_secs(1);

/// The folder with the certificates, removed when dropped.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn write(authority: &Authority, cert: &str, key: &str) -> Result<Self, Box<dyn Error>> {
        let template = std::env::temp_dir().join("adit-demo-XXXXXX");
        // Its owner's alone (mkdtemp(3)), like the keys in it.
        let dir = nix::unistd::mkdtemp(&template)
            .map_err(|error| format!("cannot make the folder {}: {error}", template.display()))?;
        let files = Self { dir };
        let at = |name: &str| files.dir.join(name);
        let ca = authority.certificate_pem();
        let zip = write_zip([&ca, cert, key])?;
        write_new(
            None,
            &[
                NewFile::public(at(layout::CA), ca),
                NewFile::public(at("client.pem"), cert),
                NewFile::secret(at("client-key.pem"), key),
                NewFile::secret(at("client.zip"), zip),
            ],
        )?;
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}
