//! `cargo bench --bench compare`: `adit agent` beside Debian's stunnel4, HAProxy and nginx stream.
//!
//! Every server terminates mutual TLS with the same P-256 certificates and forwards plain TCP to
//! the same three services (a sink, a source, an echo) inside this process, on loopback. One load
//! generator drives them all (see `load.rs` for what it speaks). In each round the servers are
//! started afresh and every measurement visits them one after another, in an order that rotates
//! from round to round; a ratio is taken within a round, and the table shows medians.
//!
//! ```text
//! cargo build --release && cargo build --profile embedded
//! cargo bench --bench compare                 # five rounds, table on stdout, plot beside this file
//! cargo bench --bench compare -- --rounds 9
//! cargo bench --bench compare -- --quick      # does it still work? no figures worth keeping
//! cargo bench --bench compare -- --only nginx --measure up
//! ```
//!
//! The binary under test is `release/adit` of the same target directory, or `ADIT_BIN`. The rivals
//! come from `apt-get install stunnel4 haproxy nginx-light libnginx-mod-stream`; their
//! configuration, and why it is as it is, stands in `servers.rs`.
//!
//! What is measured:
//! - **bulk**: one connection, up (client to sink) and down (source to client), after a warm-up;
//!   beside it the processor time the server spent per gigabyte, which a noisy machine moves less.
//! - **round trip**: 64 bytes to the echo and back on one open connection.
//! - **new connections**: full handshake, 64 bytes through the echo, close, four clients at once;
//!   beside it the server's processor time for each. For adit also resumed, and with the
//!   post-quantum hybrid key exchange that its own clients prefer.
//! - **memory**: resident (RSS) and proportional (PSS, shared pages shared out) at the start, with
//!   1,000 idle connections after one exchange each, and after they have closed.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark is a program of its own: it lives by the wall clock and owns its threads"
)]

mod certs;
mod far;
mod load;
mod metric;
mod process;
mod program;
mod report;
mod servers;

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use argh::FromArgs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::load::{Clients, Handshake};
use crate::metric::Metric;
use crate::report::Results;
use crate::servers::{Kind, Server};

/// Any failure ends the run; the text says which act failed.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Compare adit with stunnel, HAProxy and nginx.
#[derive(FromArgs)]
struct Arguments {
    /// rounds to run (default 5)
    #[argh(option, default = "5")]
    rounds: usize,
    /// one short round and no plot: shows that everything works
    #[argh(switch)]
    quick: bool,
    /// only this server: adit, stunnel, haproxy or nginx; may be repeated
    #[argh(option)]
    only: Vec<String>,
    /// only this: memory, up, down, round-trip or new-connections; may be repeated
    #[argh(option)]
    measure: Vec<String>,
    /// the same as --quick, as `cargo bench -- --test` asks every benchmark
    #[argh(switch)]
    test: bool,
    /// what cargo adds by itself
    #[argh(switch)]
    #[expect(dead_code, reason = "accepted, and means nothing here")]
    bench: bool,
}

/// How long and how much.
struct Effort {
    rounds: usize,
    warm_up: Duration,
    bulk: Duration,
    echo: Duration,
    reconnect: Duration,
    idle: usize,
}

impl Effort {
    fn full(rounds: usize) -> Self {
        Self {
            rounds: rounds.max(1),
            warm_up: Duration::from_millis(300),
            bulk: Duration::from_millis(1700),
            echo: Duration::from_millis(1000),
            reconnect: Duration::from_millis(2000),
            idle: 1000,
        }
    }

    fn quick() -> Self {
        Self {
            rounds: 1,
            warm_up: Duration::from_millis(50),
            bulk: Duration::from_millis(200),
            echo: Duration::from_millis(100),
            reconnect: Duration::from_millis(200),
            idle: 50,
        }
    }
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let quick = arguments.quick || arguments.test;
    let effort = if quick { Effort::quick() } else { Effort::full(arguments.rounds) };
    let mut kinds = Vec::new();
    for name in &arguments.only {
        let kind = Kind::from_name(name)
            .ok_or_else(|| format!("--only {name}: adit, stunnel, haproxy or nginx"))?;
        kinds.push(kind);
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL);
    }
    // Two sockets here for each idle connection, and the servers inherit the limit.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(65_536)), hard)?;

    let dir = tempfile::tempdir()?;
    let bench = Bench {
        certificates: certs::create(dir.path())?,
        services: far::start()?,
        effort,
        measure: &arguments.measure,
        dir: dir.path(),
    };
    let clients = Clients::new(&bench.certificates)?;
    let mut results = Results::default();
    for round in 0..bench.effort.rounds {
        eprintln!("round {} of {}", round + 1, bench.effort.rounds);
        let mut order = kinds.clone();
        order.rotate_left(round % kinds.len());
        bench.round(&clients, &order, &mut results)?;
    }
    println!("{}", report::table(&results, &kinds));
    if kinds.contains(&Kind::Adit) {
        print!("{}", handshakes(&results));
        println!("{}", sizes(&program::adit()?)?);
    }
    if !quick && kinds.len() > 1 && arguments.measure.is_empty() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/compare.svg");
        std::fs::write(&path, report::plot(&results, &kinds))?;
        eprintln!("plot written to {}", path.display());
    }
    Ok(())
}

/// What all rounds share.
struct Bench<'a> {
    certificates: certs::Certificates,
    services: far::Services,
    effort: Effort,
    /// What to measure; everything when empty.
    measure: &'a [String],
    dir: &'a Path,
}

impl Bench<'_> {
    fn round(&self, clients: &Clients, order: &[Kind], results: &mut Results) -> Result<()> {
        let mut servers = Vec::new();
        for &kind in order {
            servers.push(Server::start(kind, self.dir, &self.certificates, &self.services)?);
        }
        for server in &mut servers {
            self.wait_until_ready(clients, server)?;
        }
        type Measurement<'m> = &'m dyn Fn(&Server, &mut Results) -> Result<()>;
        let measurements: [(&str, Measurement<'_>); 5] = [
            ("memory", &|server, results| self.memory(clients, server, results)),
            ("up", &|server, results| self.up(clients, server, results)),
            ("down", &|server, results| self.down(clients, server, results)),
            ("round-trip", &|server, results| self.round_trip(clients, server, results)),
            ("new-connections", &|server, results| self.reconnect(clients, server, results)),
        ];
        for (name, measure) in measurements {
            if !self.measure.is_empty() && !self.measure.iter().any(|wanted| wanted == name) {
                continue;
            }
            for server in &mut servers {
                if let Err(error) = measure(server, results) {
                    server.check_alive()?;
                    return Err(format!("{name}, {}: {error}", server.kind.name()).into());
                }
            }
        }
        Ok(())
    }

    fn wait_until_ready(&self, clients: &Clients, server: &mut Server) -> Result<()> {
        let start = Instant::now();
        loop {
            server.check_alive()?;
            match clients.check(server, self.services.echo) {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > Duration::from_secs(10) => {
                    return Err(format!("{} is not ready: {error}", server.kind.name()).into());
                }
                Err(_) => pause(20),
            }
        }
    }

    fn memory(&self, clients: &Clients, server: &Server, results: &mut Results) -> Result<()> {
        let kind = server.kind;
        let start = server.program.memory()?;
        results.add(Metric::StartRss, kind, mib(start.resident));
        results.add(Metric::StartPss, kind, mib(start.proportional));
        let sessions = clients.open_idle(server, self.services.echo, self.effort.idle)?;
        // Whatever belongs to the handshakes should be over when the connections are called idle.
        pause(200);
        let open = server.program.memory()?;
        let each = |with: u64, without: u64| {
            (with as f64 - without as f64) / 1024.0 / self.effort.idle as f64
        };
        results.add(Metric::IdleRss, kind, each(open.resident, start.resident));
        results.add(Metric::IdlePss, kind, each(open.proportional, start.proportional));
        for session in sessions {
            session.close()?;
        }
        let mut after = server.program.memory()?.resident;
        for _ in 0..20 {
            pause(100);
            after = after.min(server.program.memory()?.resident);
            if after <= start.resident {
                break;
            }
        }
        results.add(Metric::AfterRss, kind, mib(after));
        Ok(())
    }

    fn up(&self, clients: &Clients, server: &Server, results: &mut Results) -> Result<()> {
        let (rate, cpu) = self.bulk(server, &self.services.sunk, |done| {
            clients.fill(server, self.services.sink, || done.load(Ordering::Relaxed))
        })?;
        results.add(Metric::Up, server.kind, rate);
        results.add(Metric::UpCpu, server.kind, cpu);
        Ok(())
    }

    fn down(&self, clients: &Clients, server: &Server, results: &mut Results) -> Result<()> {
        let received = AtomicU64::new(0);
        let (rate, cpu) = self.bulk(server, &received, |done| {
            let stop = || done.load(Ordering::Relaxed);
            clients.empty(server, self.services.source, &received, stop)
        })?;
        results.add(Metric::Down, server.kind, rate);
        results.add(Metric::DownCpu, server.kind, cpu);
        Ok(())
    }

    /// Runs `transfer` on a thread and watches `counter`: MB/s, and the server's ms per GB.
    fn bulk(
        &self,
        server: &Server,
        counter: &AtomicU64,
        transfer: impl FnOnce(&AtomicBool) -> Result<()> + Send,
    ) -> Result<(f64, f64)> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let transfer = scope.spawn(|| transfer(&done));
            pause_for(self.effort.warm_up);
            let cpu = server.program.cpu_ms();
            let (start, before) = (Instant::now(), counter.load(Ordering::Relaxed));
            pause_for(self.effort.bulk);
            let (elapsed, after) = (start.elapsed(), counter.load(Ordering::Relaxed));
            let cpu_after = server.program.cpu_ms();
            done.store(true, Ordering::Relaxed);
            transfer.join().map_err(|_| "the client thread panicked")??;
            let bytes = (after - before) as f64;
            if after == before {
                return Err("not a byte arrived".into());
            }
            Ok((bytes / 1e6 / elapsed.as_secs_f64(), (cpu_after? - cpu?) / (bytes / 1e9)))
        })
    }

    fn round_trip(&self, clients: &Clients, server: &Server, results: &mut Results) -> Result<()> {
        let mut times = clients.round_trips(server, self.services.echo, self.effort.echo)?;
        times.sort_unstable();
        for (metric, percent) in [(Metric::Median, 50), (Metric::Tail, 99)] {
            let rank = times.len() * percent / 100;
            let time = times.get(rank).ok_or("no round trip was completed")?;
            results.add(metric, server.kind, time.as_secs_f64() * 1e6);
        }
        Ok(())
    }

    fn reconnect(&self, clients: &Clients, server: &Server, results: &mut Results) -> Result<()> {
        let run = |handshake| {
            clients.reconnect(server, self.services.echo, handshake, self.effort.reconnect)
        };
        let cpu = server.program.cpu_ms()?;
        let (count, elapsed) = run(Handshake::Full)?;
        // The last connections are still being torn down.
        pause(50);
        let cpu = server.program.cpu_ms()? - cpu;
        results.add(Metric::New, server.kind, count as f64 / elapsed.as_secs_f64());
        results.add(Metric::NewCpu, server.kind, cpu / count as f64);
        if server.kind == Kind::Adit {
            let (count, elapsed) = run(Handshake::Resumed)?;
            results.add(Metric::Resumed, server.kind, count as f64 / elapsed.as_secs_f64());
            if clients.has_hybrid() {
                // Only one of adit's crypto providers has it.
                match run(Handshake::Hybrid) {
                    Ok((count, elapsed)) => {
                        let rate = count as f64 / elapsed.as_secs_f64();
                        results.add(Metric::Hybrid, server.kind, rate);
                    }
                    Err(error) => eprintln!("no hybrid key exchange: {error}"),
                }
            }
        }
        Ok(())
    }
}

/// How adit's other handshakes compare with its full ones.
fn handshakes(results: &Results) -> String {
    let mut text = String::new();
    for (metric, what) in
        [(Metric::Resumed, "resumed"), (Metric::Hybrid, "with the hybrid key exchange")]
    {
        if let Some(ratio) = results.ratio((metric, Kind::Adit), (Metric::New, Kind::Adit)) {
            text += &format!("adit {what}: {ratio:.2}× its own rate of full handshakes.\n");
        }
    }
    text
}

/// Sizes of the binaries of the `release` and `embedded` profiles, as far as they are built.
fn sizes(adit: &Path) -> Result<String> {
    let mut text = String::new();
    for profile in ["release", "embedded"] {
        let path = adit.ancestors().nth(2).map(|dir| dir.join(profile).join("adit"));
        if let Some(path) = path.filter(|path| path.is_file()) {
            let size = std::fs::metadata(path)?.len() as f64 / f64::from(1 << 20);
            writeln!(text, "Binary, profile `{profile}`: {size:.2} MiB.")?;
        }
    }
    Ok(text)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Waits `milliseconds` for something that gives no sign when it is done.
fn pause(milliseconds: u64) {
    pause_for(Duration::from_millis(milliseconds));
}

fn pause_for(duration: Duration) {
    std::thread::sleep(duration);
}
