//! `adit agent`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::identity::{self, IdentityFlags};
use super::signals::Signals;
use super::{Exit, count, duration, environment, start_logging};
use crate::agent::api::{Api, GODOXY_VERSION, Runtime};
use crate::agent::policy::Policy;
use crate::agent::{self, Agent, Limits, Services};
use crate::client::DEFAULT_PORT;
use crate::dtls::ServerContext;
use crate::lifecycle::clock;
use crate::net::{ListenAddr, udp::bind_both};
use crate::pki::{Identity, NameRules, Names, Purpose, utc};
use crate::tls::{self, ClientAuth};

/// Run the agent: carry streams to destinations for clients with a certificate.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "agent")]
pub struct AgentCommand {
    /// where to listen: ADDR:PORT, or PORT for every address; may be given several times (default:
    /// AGENT_PORT, else 8890)
    #[argh(option, arg_name = "addr:port")]
    listen: Vec<ListenAddr>,

    /// what this agent is called (default: AGENT_NAME, else the host name)
    #[argh(option)]
    name: Option<String>,

    /// PEM file of the authority whose clients may connect
    #[argh(option, arg_name = "file")]
    ca: Option<PathBuf>,

    /// PEM file of the agent's certificate
    #[argh(option, arg_name = "file")]
    cert: Option<PathBuf>,

    /// PEM file of the agent's key
    #[argh(option, arg_name = "file")]
    key: Option<PathBuf>,

    /// zip file with ca.pem, cert.pem and key.pem, instead of the three
    #[argh(option, arg_name = "file")]
    zip: Option<PathBuf>,

    /// destinations to allow, HOST[:PORTS] with HOST a name pattern, an address or a network; may
    /// be given several times (default: all)
    #[argh(option, arg_name = "rule")]
    allow: Vec<String>,

    /// destinations to refuse, before --allow; may be given several times
    #[argh(option, arg_name = "rule")]
    deny: Vec<String>,

    /// client names to let in (common name or any alternative name, * matches); may be given
    /// several times (default: every client of the authority)
    #[argh(option, arg_name = "pattern")]
    allow_name: Vec<String>,

    /// connections at the same time (default: 4096)
    #[argh(option, from_str_fn(count), arg_name = "n")]
    max_connections: Option<usize>,

    /// handshakes at the same time, a quarter of them for any one source (default: 256)
    #[argh(option, from_str_fn(count), arg_name = "n")]
    max_handshakes: Option<usize>,

    /// connections of one source address at the same time, and as many UDP sessions (default: no
    /// limit)
    #[argh(option, from_str_fn(count), arg_name = "n")]
    max_per_source: Option<usize>,

    /// UDP sessions at the same time, apart from connections (default: 4096)
    #[argh(option, from_str_fn(count), arg_name = "n")]
    max_udp_sessions: Option<usize>,

    /// end UDP sessions through which nothing passes for this long (default: 5m)
    #[argh(option, from_str_fn(duration), arg_name = "time")]
    udp_idle: Option<Duration>,

    /// UDP sockets, each with a thread that receives; more than one when one processor is not
    /// enough (default: 1)
    #[argh(option, from_str_fn(count), arg_name = "n")]
    udp_sockets: Option<usize>,

    /// carry TCP only
    #[argh(switch)]
    no_udp: bool,

    /// limit for the TLS or DTLS handshake (default: 10s)
    #[argh(option, from_str_fn(duration), arg_name = "time")]
    handshake_timeout: Option<Duration>,

    /// limit for the stream header (default: 10s)
    #[argh(option, from_str_fn(duration), arg_name = "time")]
    header_timeout: Option<Duration>,

    /// limit for resolving and reaching a destination (default: 10s)
    #[argh(option, from_str_fn(duration), arg_name = "time")]
    dial_timeout: Option<Duration>,

    /// how long the second direction of a stream may be silent once the first has ended (default:
    /// 5m)
    #[argh(option, from_str_fn(duration), arg_name = "time")]
    half_close_timeout: Option<Duration>,

    /// how long running TCP streams may go on after a signal to stop (default: 10s)
    #[argh(option, from_str_fn(duration), arg_name = "time")]
    drain: Option<Duration>,

    /// container runtime to report: docker or podman (default: RUNTIME, else docker)
    #[argh(option, arg_name = "name")]
    runtime: Option<String>,

    /// let everyone in over TCP, without a certificate: anyone who reaches the port reaches what
    /// the agent reaches
    #[argh(switch)]
    skip_client_cert_check: bool,

    /// log warnings and errors only
    #[argh(switch, short = 'q')]
    quiet: bool,

    /// log more: each connection; given twice, everything
    #[argh(switch, short = 'v')]
    verbose: u8,
}

/// Everything an agent needs, checked.
struct Config {
    listen: Vec<ListenAddr>,
    name: String,
    runtime: Runtime,
    identity: Identity,
    client_auth: ClientAuth,
    policy: Arc<Policy>,
    limits: Limits,
    /// None for TCP only.
    udp_sockets: usize,
    name_rules: NameRules,
}

/// Runs `adit agent` until a signal.
pub fn run(command: AgentCommand) -> Result<(), Exit> {
    start_logging(command.quiet, command.verbose)?;
    let config = configure(command, &environment::variable)?;
    let signals = Signals::install(|| notify(&[sd_notify::NotifyState::Stopping]))?;
    raise_descriptor_limit(&config.limits);
    let agent = bind(&config)?;
    for address in agent.local_addrs().unwrap_or_default() {
        log::info!("listening on {address}");
    }
    for address in agent.udp_addrs() {
        log::info!("listening on UDP {address}");
    }
    log::info!(
        "agent {:?} {} with {}",
        config.name,
        env!("CARGO_PKG_VERSION"),
        tls::provider::name()
    );
    tell_end(&config.identity, clock::wall());
    if matches!(config.client_auth, ClientAuth::Off) {
        log::warn!(
            "CLIENT CERTIFICATES ARE NOT CHECKED: whoever reaches this TCP port reaches everything \
             that this machine reaches (UDP clients must show one all the same)"
        );
    }
    notify(&[sd_notify::NotifyState::Ready]);
    let summary = {
        let stopping = signals.stop.clone();
        agent.run(&stopping, &signals.at_once)
    };
    for stream in &summary.cut {
        log::warn!("stream cut at shutdown {stream}");
    }
    log::info!("agent ended streams={} cut={}", summary.streams, summary.cut.len());
    if signals.at_once.is_raised() { Err(Exit::AtOnce) } else { Ok(()) }
}

fn configure(command: AgentCommand, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Exit> {
    let usage = |error: &dyn std::fmt::Display| Exit::Usage(error.to_string());
    let env_set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    let listen = if command.listen.is_empty() {
        let port = match env_set("AGENT_PORT") {
            Some(text) => text.trim().parse().map_err(|_| {
                Exit::Usage(format!("AGENT_PORT={text:?} is not a port: use a number up to 65535"))
            })?,
            None => DEFAULT_PORT,
        };
        vec![ListenAddr::Every(port)]
    } else {
        command.listen
    };
    let name = command.name.or_else(|| env_set("AGENT_NAME")).unwrap_or_else(host_name);
    let runtime = command.runtime.or_else(|| env_set("RUNTIME")).unwrap_or_else(|| "docker".into());
    let runtime = runtime.parse::<Runtime>().map_err(|e| usage(&e))?;
    let flags =
        IdentityFlags { ca: command.ca, cert: command.cert, key: command.key, zip: command.zip };
    let identity =
        identity::load(&flags, env, Purpose::Server, clock::wall()).map_err(|e| usage(&e))?;
    let skip = command.skip_client_cert_check
        || match env_set("AGENT_SKIP_CLIENT_CERT_CHECK") {
            Some(text) => boolean(&text).ok_or_else(|| {
                Exit::Usage(format!(
                    "AGENT_SKIP_CLIENT_CERT_CHECK={text:?} is neither true nor false"
                ))
            })?,
            None => false,
        };
    let rules = NameRules::new(&command.allow_name).map_err(|e| usage(&e))?;
    let client_auth = match skip {
        true if !rules.is_empty() => {
            return Err(Exit::Usage(
                "--allow-name needs client certificates: drop --skip-client-cert-check (or \
                 AGENT_SKIP_CLIENT_CERT_CHECK)"
                    .to_owned(),
            ));
        }
        true => ClientAuth::Off,
        false => ClientAuth::Required(rules.clone()),
    };
    let policy = Policy::parse(&command.allow, &command.deny).map_err(|e| usage(&e))?;
    let defaults = Limits::default();
    let limits = Limits {
        connections: command.max_connections.unwrap_or(defaults.connections),
        handshakes: command.max_handshakes.unwrap_or(defaults.handshakes),
        per_source: command.max_per_source,
        handshake: command.handshake_timeout.unwrap_or(defaults.handshake),
        header: command.header_timeout.unwrap_or(defaults.header),
        dial: command.dial_timeout.unwrap_or(defaults.dial),
        half_close: command.half_close_timeout.unwrap_or(defaults.half_close),
        udp_sessions: command.max_udp_sessions.unwrap_or(defaults.udp_sessions),
        udp_idle: command.udp_idle.unwrap_or(defaults.udp_idle),
        drain: command.drain.unwrap_or(defaults.drain),
    };
    let udp_sockets = match (command.no_udp, command.udp_sockets) {
        (true, Some(_)) => {
            return Err(Exit::Usage("--no-udp leaves nothing for --udp-sockets".to_owned()));
        }
        (true, None) => 0,
        (false, sockets) => sockets.unwrap_or(1),
    };
    let policy = Arc::new(policy);
    Ok(Config {
        listen,
        name,
        runtime,
        identity,
        client_auth,
        policy,
        limits,
        udp_sockets,
        name_rules: rules,
    })
}

fn bind(config: &Config) -> Result<Agent, Exit> {
    let provider = tls::provider::default();
    let tls = tls::server(
        &config.identity,
        config.client_auth.clone(),
        &Services::ALPN,
        provider.clone(),
    )
    .map_err(|error| Exit::Usage(error.to_string()))?;
    let bound: Vec<_> = config
        .listen
        .iter()
        .map(|at| bind_both(at, config.udp_sockets))
        .collect::<Result<_, _>>()
        .map_err(|error| Exit::Failed(error.to_string()))?;
    let (listeners, ports): (Vec<_>, Vec<_>) = bound.into_iter().unzip();
    let health = agent::health_checks(&config.policy, provider)
        .map_err(|error| Exit::Failed(format!("cannot make health checks: {error}")))?;
    let api = Api {
        name: config.name.clone(),
        runtime: config.runtime,
        version: GODOXY_VERSION,
        supports_tcp_stream: true,
        supports_udp_stream: config.udp_sockets > 0,
        health,
    };
    let services =
        Services { tls, policy: config.policy.clone(), api, limits: config.limits.clone() };
    let agent = Agent::new(listeners, services)
        .map_err(|error| Exit::Failed(format!("cannot start the agent: {error}")))?;
    if config.udp_sockets == 0 {
        return Ok(agent);
    }
    // Over UDP a certificate is required whatever the flags say of TCP.
    let context = ServerContext::new(&config.identity, config.name_rules.clone())
        .map_err(|error| Exit::Usage(format!("{error} (--no-udp does without)")))?;
    Ok(agent.with_datagrams(ports.into_iter().flatten().collect(), &context))
}

/// Says until when the agent's certificate is valid, loudly when it is time to issue another.
fn tell_end(identity: &Identity, now: SystemTime) {
    // What it has behind it must be valid as long.
    let ends = identity.chain.iter().filter_map(|certificate| Names::of(certificate).ok());
    let Some(end) = ends.map(|names| names.not_after).min() else { return };
    let days = end.duration_since(now).map_or(0, |left| left.as_secs() / DAY);
    let level = if days < SOON { log::Level::Warn } else { log::Level::Info };
    let seconds = end.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let date = utc(i64::try_from(seconds).unwrap_or(i64::MAX));
    let unit = if days == 1 { "day" } else { "days" };
    log::log!(level, "certificate valid until {date} ({days} {unit})");
}

const DAY: u64 = 24 * 60 * 60;

/// Days before a certificate's end from which the agent warns.
const SOON: u64 = 30;

/// Takes as many descriptors as the system gives, and says so when they do not suffice.
fn raise_descriptor_limit(limits: &Limits) {
    // Two sockets a stream, one a UDP session, the lobby, and what a process has anyway.
    let wanted = limits.connections as u64 * 2 + limits.udp_sessions as u64 + 1024 + 64;
    let result = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let goal = hard.min(wanted.max(soft));
        if goal > soft {
            setrlimit(Resource::RLIMIT_NOFILE, goal, hard)?;
        }
        Ok(goal)
    });
    match result {
        Ok(have) if have < wanted => log::warn!(
            "{} connections and {} UDP sessions may need {wanted} file descriptors and the system \
             gives {have}: raise LimitNOFILE= (ulimit -n) or lower --max-connections and \
             --max-udp-sessions",
            limits.connections,
            limits.udp_sessions
        ),
        Ok(_) => {}
        Err(error) => log::warn!("cannot read or raise the limit of file descriptors: {error}"),
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::warn!("cannot tell the service manager: {error}");
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "agent".to_owned())
}

/// As Go's `strconv.ParseBool`, which existing deployments were written for.
fn boolean(text: &str) -> Option<bool> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
