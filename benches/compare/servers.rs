//! The four servers and their configuration.

use std::net::SocketAddr;
use std::path::Path;

use crate::Result;
use crate::certs::Certificates;
use crate::far::Services;
use crate::program::{self, Program, find, free_port, missing, show};

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

/// A running server.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    /// TLS ports that lead to the sink, the source and the echo; all the same for adit.
    ports: [SocketAddr; 3],
    pub(crate) program: Program,
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
            Kind::Adit => (program::adit()?, adit_arguments(ports[0], certificates)),
            Kind::Stunnel => {
                let config = dir.join("stunnel.conf");
                std::fs::write(&config, stunnel_config(&pairs, certificates))?;
                (find(kind.name(), &["stunnel4", "stunnel"], "stunnel4")?, vec![show(&config)])
            }
            Kind::Haproxy => {
                let config = dir.join("haproxy.cfg");
                std::fs::write(&config, haproxy_config(&pairs, certificates))?;
                let arguments = vec!["-db".to_owned(), "-f".to_owned(), show(&config)];
                (find(kind.name(), &["haproxy"], "haproxy")?, arguments)
            }
            Kind::Nginx => {
                let config = dir.join("nginx.conf");
                std::fs::write(&config, nginx_config(dir, &pairs, certificates)?)?;
                let arguments =
                    ["-p", &show(dir), "-e", "nginx.log", "-c", &show(&config)].map(str::to_owned);
                let packages = "nginx-light libnginx-mod-stream";
                (find(kind.name(), &["nginx"], packages)?, arguments.to_vec())
            }
        };
        let program = Program::start(kind.name(), &program, arguments, dir)?;
        Ok(Self { kind, ports, program })
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

    pub(crate) fn check_alive(&mut self) -> Result<()> {
        self.program.check_alive()
    }
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
        return Err(missing(Kind::Nginx.name(), "nginx-light libnginx-mod-stream").into());
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
