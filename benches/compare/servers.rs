//! The four servers: their configuration, their processes, and the end of both.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::certs::Certificates;
use crate::far::Services;
use crate::{Result, pause, process};

/// The programs that are compared, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Adit,
    Stunnel,
    Haproxy,
    Nginx,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Adit, Self::Stunnel, Self::Haproxy, Self::Nginx];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Adit => "adit",
            Self::Stunnel => "stunnel",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }
}

/// One of the plain services, as the client of a server asks for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Sink,
    Source,
    Echo,
}

/// A running server. Dropping it ends all its processes.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    /// TLS ports that lead to the sink, the source and the echo; all the same for adit.
    ports: [SocketAddr; 3],
    child: Child,
}

impl Server {
    /// Writes the configuration into `dir` and starts the program; it may not listen yet.
    pub(crate) fn start(
        kind: Kind,
        dir: &Path,
        certificates: &Certificates,
        services: &Services,
    ) -> Result<Self> {
        let ports = match kind {
            Kind::Adit => [free_port()?; 3],
            _ => [free_port()?, free_port()?, free_port()?],
        };
        let pairs: Vec<(SocketAddr, SocketAddr)> =
            ports.into_iter().zip([services.sink, services.source, services.echo]).collect();
        let (program, arguments) = match kind {
            Kind::Adit => (adit_binary()?, adit_arguments(ports[0], certificates)),
            Kind::Stunnel => {
                let config = dir.join("stunnel.conf");
                std::fs::write(&config, stunnel_config(&pairs, certificates))?;
                (find(kind, &["stunnel4", "stunnel"], "stunnel4")?, vec![show(&config)])
            }
            Kind::Haproxy => {
                let config = dir.join("haproxy.cfg");
                std::fs::write(&config, haproxy_config(&pairs, certificates))?;
                let arguments = vec!["-db".to_owned(), "-f".to_owned(), show(&config)];
                (find(kind, &["haproxy"], "haproxy")?, arguments)
            }
            Kind::Nginx => {
                let config = dir.join("nginx.conf");
                std::fs::write(&config, nginx_config(dir, &pairs, certificates)?)?;
                let arguments =
                    ["-p", &show(dir), "-e", "nginx.log", "-c", &show(&config)].map(str::to_owned);
                let packages = "nginx-light libnginx-mod-stream";
                (find(kind, &["nginx"], packages)?, arguments.to_vec())
            }
        };
        let log = File::create(dir.join(format!("{}.log", kind.name())))?;
        // The parent's death must reach the child even when this process is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(&program)
            .args(arguments)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start setpriv (package util-linux): {error}"))?;
        Ok(Self { kind, ports, child })
    }

    /// Where a client connects to reach `service`.
    pub(crate) fn address(&self, service: Service) -> SocketAddr {
        let [sink, source, echo] = self.ports;
        match service {
            Service::Sink => sink,
            Service::Source => source,
            Service::Echo => echo,
        }
    }

    /// An error, with what the program said, when it has ended by itself.
    pub(crate) fn check_alive(&mut self, dir: &Path) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = std::fs::read_to_string(dir.join(format!("{}.log", self.kind.name())))?;
        Err(format!("{} ended early ({status}):\n{log}", self.kind.name()).into())
    }

    pub(crate) fn memory(&self) -> Result<process::Memory> {
        process::memory(self.child.id())
    }

    pub(crate) fn cpu_ms(&self) -> Result<f64> {
        process::cpu_ms(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's workers outlive a master that is killed outright: ask first, then make sure.
        let family = process::family(self.child.id()).unwrap_or_default();
        signal(self.child.id(), Signal::SIGTERM);
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            pause(10);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            for pid in family {
                signal(pid, Signal::SIGKILL);
            }
            if let Err(error) = self.child.wait() {
                eprintln!("compare: {} is not gone: {error}", self.kind.name());
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    // Already gone is as good as ended.
    if let Ok(pid) = i32::try_from(pid) {
        kill(Pid::from_raw(pid), signal).ok();
    }
}

/// The binary under test: `ADIT_BIN`, or the one of the `release` profile in the target directory
/// this benchmark was built in.
pub(crate) fn adit_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ADIT_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let path = own.ancestors().nth(3).unwrap_or(Path::new("target")).join("release/adit");
    if path.exists() {
        return Ok(path);
    }
    Err(format!("no {}: run `cargo build --release`, or set ADIT_BIN", path.display()).into())
}

fn adit_arguments(listen: SocketAddr, certificates: &Certificates) -> Vec<String> {
    let mut arguments = vec!["agent".to_owned(), "--listen".to_owned(), listen.to_string()];
    for (flag, file) in [
        ("--ca", &certificates.ca),
        ("--cert", &certificates.server_cert),
        ("--key", &certificates.server_key),
    ] {
        arguments.push(flag.to_owned());
        arguments.push(show(file));
    }
    arguments
}

/// One thread per connection is stunnel's only model here. Sessions are off, which spares it the
/// two tickets of every handshake; `TCP_NODELAY` on both sides keeps small answers from waiting.
fn stunnel_config(pairs: &[(SocketAddr, SocketAddr)], certificates: &Certificates) -> String {
    let mut text = format!(
        "foreground = yes\npid =\ndebug = err\nsyslog = no\n\
         socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n\
         cert = {}\nkey = {}\nCAfile = {}\nrequireCert = yes\nverifyChain = yes\n\
         sslVersionMin = TLSv1.2\ncurves = X25519:P-256\nrenegotiation = no\n\
         sessionResume = no\noptions = NO_TICKET\n",
        show(&certificates.server_cert),
        show(&certificates.server_key),
        show(&certificates.ca),
    );
    for (number, (listen, connect)) in pairs.iter().enumerate() {
        text += &format!("[service{number}]\naccept = {listen}\nconnect = {connect}\n");
    }
    text
}

/// Two threads, one for each processor of the smallest machine this runs on. No tickets and no
/// session cache. Buffers of 64 KiB took 15 % less processor time per byte than the default of 16,
/// and an idle connection holds none.
fn haproxy_config(pairs: &[(SocketAddr, SocketAddr)], certificates: &Certificates) -> String {
    let mut text =
        "global\n  nbthread 2\n  maxconn 4000\n  tune.ssl.cachesize 0\n  tune.bufsize 65536\n  \
         ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets\n  \
         ssl-default-bind-curves X25519:P-256\n\
         defaults\n  mode tcp\n  maxconn 4000\n  timeout connect 10s\n  timeout client 1h\n  \
         timeout server 1h\n"
            .to_owned();
    for (number, (listen, connect)) in pairs.iter().enumerate() {
        text += &format!(
            "listen service{number}\n  bind {listen} backlog 4096 ssl crt {} ca-file {} verify \
             required\n  server plain {connect}\n",
            show(&certificates.server_pair),
            show(&certificates.ca),
        );
    }
    text
}

/// Two workers sharing the listeners. Buffers of 64 KiB took 15 % less processor time per
/// byte than the default of 16, and less memory as well: pages no data has touched stay unmapped.
fn nginx_config(
    dir: &Path,
    pairs: &[(SocketAddr, SocketAddr)],
    certificates: &Certificates,
) -> Result<String> {
    // Debian builds the stream module as a file of its own; elsewhere it may be built in.
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() {
        format!("load_module {};\n", module.display())
    } else if Path::new("/etc/debian_version").exists() {
        return Err(missing(Kind::Nginx, "nginx-light libnginx-mod-stream").into());
    } else {
        String::new()
    };
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective())?
        .map_or_else(|| "root".to_owned(), |user| user.name);
    let user = if user == "root" { format!("user {user};\n") } else { String::new() };
    let mut text = format!(
        "{load}{user}daemon off;\nworker_processes 2;\nworker_rlimit_nofile 16384;\n\
         pid {};\nerror_log stderr error;\n\
         events {{ worker_connections 8192; }}\n\
         stream {{\n  access_log off;\n  tcp_nodelay on;\n  proxy_buffer_size 64k;\n  \
         proxy_timeout 1h;\n  \
         ssl_certificate {};\n  ssl_certificate_key {};\n  \
         ssl_client_certificate {};\n  ssl_verify_client on;\n  \
         ssl_protocols TLSv1.2 TLSv1.3;\n  ssl_ecdh_curve X25519:prime256v1;\n  \
         ssl_session_tickets off;\n  ssl_session_cache off;\n",
        show(&dir.join("nginx.pid")),
        show(&certificates.server_cert),
        show(&certificates.server_key),
        show(&certificates.ca),
    );
    for (listen, connect) in pairs {
        text +=
            &format!("  server {{ listen {listen} ssl backlog=4096; proxy_pass {connect}; }}\n");
    }
    text += "}\n";
    Ok(text)
}

fn find(kind: Kind, programs: &[&str], packages: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons outside an ordinary user's PATH.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let candidates = directories.flat_map(|dir| programs.iter().map(move |name| dir.join(name)));
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| missing(kind, packages).into())
}

fn missing(kind: Kind, packages: &str) -> String {
    format!("{} is not installed: run `apt-get install -y {packages}`", kind.name())
}

/// A free port below those that the kernel gives to outgoing connections (32768 and up), where
/// it stays free until the server binds it.
fn free_port() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) if port >= 30_000 => return Err(error.into()),
            Err(_) => {}
        }
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
