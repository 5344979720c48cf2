//! `cargo bench --bench datagrams`: UDP through `adit agent`, beside UDP without anything between,
//! socat's DTLS forwarder and an agent on Go's pion.
//!
//! Every server ends mutual DTLS 1.2 with the same P-256 certificates and forwards to the same UDP
//! echo inside this process, on loopback. One load generator drives them all (see `dtls.rs` for
//! what it speaks): its own encryption and the echo run on the machine's processors beside the
//! server, so the direct way, which has neither, is a ceiling that no server can reach. In each
//! round the servers are started afresh and every measurement visits them one after another, in an
//! order that rotates from round to round; a ratio is taken within a round, and the table shows
//! medians.
//!
//! ```text
//! cargo build --release
//! cargo bench --bench datagrams               # five rounds, table on stdout, plot beside this file
//! cargo bench --bench datagrams -- --rounds 9
//! cargo bench --bench datagrams -- --quick    # does it still work? no figures worth keeping
//! cargo bench --bench datagrams -- --only adit --measure setup
//! ```
//!
//! The binary under test is `release/adit` of the same target directory, or `ADIT_BIN`. A rival that
//! is not there is left out: `apt-get install socat golang-go golang-github-pion-dtls.v2-dev`.
//!
//! What is measured:
//! - **echo**: 200 bytes to the echo and back, 32 datagrams on their way, one session and eight;
//!   beside it the server's processor time for each, and how many datagrams were lost.
//! - **round-trip**: the same with one datagram on its way.
//! - **setup**: handshake, header, one echo, close_notify; one session at a time and four at once;
//!   beside it the server's processor time for each.
//! - **memory**: resident (RSS) and proportional (PSS) at the start, with 1,000 sessions twelve
//!   seconds after one exchange each, and after they have closed.
//! - **flood**: one session's echoes while one thread sends 100,000 ClientHellos without a cookie,
//!   each from another address of 127.0.0.0/8, as fast as it can and at 10,000 a second; and what
//!   that leaves behind. The direct way shows what the sending alone costs: there they go to a
//!   socket that nobody reads. socat would start a process for each and is left out.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark is a program of its own: it lives by the wall clock and owns its threads"
)]

#[path = "../compare/certs.rs"]
mod certs;
mod dtls;
mod far;
mod load;
mod metric;
#[path = "../compare/process.rs"]
mod process;
#[path = "../compare/program.rs"]
mod program;
#[path = "../compare/report.rs"]
mod report;
mod servers;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use argh::FromArgs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::dtls::Clients;
use crate::load::Count;
use crate::metric::Metric;
use crate::report::Results;
use crate::servers::{Kind, Server};

/// Any failure ends the run; the text says which act failed.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Compare datagrams through adit with datagrams without it, socat and pion.
#[derive(FromArgs)]
struct Arguments {
    /// rounds to run (default 5)
    #[argh(option, default = "5")]
    rounds: usize,
    /// one short round and no plot: shows that everything works
    #[argh(switch)]
    quick: bool,
    /// only this way: adit, direct, socat or pion; may be repeated
    #[argh(option)]
    only: Vec<String>,
    /// only this: memory, echo, round-trip, setup or flood; may be repeated
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
    echo: Duration,
    setup: Duration,
    idle: usize,
    /// Before they are called idle, in milliseconds.
    calm: u64,
    strangers: u32,
}

impl Effort {
    fn full(rounds: usize) -> Self {
        Self {
            rounds: rounds.max(1),
            warm_up: Duration::from_millis(300),
            echo: Duration::from_millis(1700),
            setup: Duration::from_millis(2000),
            idle: 1000,
            calm: 12_000,
            strangers: 100_000,
        }
    }

    fn quick() -> Self {
        Self {
            rounds: 1,
            warm_up: Duration::from_millis(50),
            echo: Duration::from_millis(100),
            setup: Duration::from_millis(200),
            idle: 50,
            calm: 200,
            strangers: 2_000,
        }
    }
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("datagrams: {error}");
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
            .ok_or_else(|| format!("--only {name}: adit, direct, socat or pion"))?;
        kinds.push(kind);
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL);
    }
    kinds.retain(|kind| match kind.unavailable() {
        Some(why) => {
            eprintln!("without {}: {why}", kind.name());
            false
        }
        None => true,
    });
    // A socket here and one or two in the server for each idle session; it inherits the limit.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(65_536)), hard)?;

    let dir = tempfile::tempdir()?;
    let certificates = certs::create(dir.path())?;
    let bench = Bench {
        clients: Clients::new(&certificates)?,
        certificates,
        echo: far::start()?,
        pit: far::pit()?,
        effort,
        measure: &arguments.measure,
        dir: dir.path(),
    };
    let mut results = Results::default();
    for round in 0..bench.effort.rounds {
        eprintln!("round {} of {}", round + 1, bench.effort.rounds);
        let mut order = kinds.clone();
        order.rotate_left(round % kinds.len().max(1));
        bench.round(&order, &mut results)?;
    }
    println!("{}", report::table(&results, &kinds));
    if let Some(ratio) = results.ratio((Metric::Eight, Kind::Adit), (Metric::One, Kind::Adit)) {
        println!("Eight sessions of adit make {ratio:.2}× the echoes of one.");
    }
    if !quick && kinds.len() > 1 && arguments.measure.is_empty() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/datagrams/datagrams.svg");
        std::fs::write(&path, report::plot(&results, &kinds))?;
        eprintln!("plot written to {}", path.display());
    }
    Ok(())
}

/// What all rounds share.
struct Bench<'a> {
    clients: Clients,
    certificates: certs::Certificates,
    echo: SocketAddr,
    /// Where strangers end whom no server awaits.
    pit: UdpSocket,
    effort: Effort,
    /// What to measure; everything when empty.
    measure: &'a [String],
    dir: &'a Path,
}

impl Bench<'_> {
    fn round(&self, order: &[Kind], results: &mut Results) -> Result<()> {
        let mut servers = Vec::new();
        for &kind in order {
            servers.push(Server::start(kind, self.dir, &self.certificates, self.echo)?);
        }
        for server in &mut servers {
            self.wait_until_ready(server)?;
        }
        type Measurement<'m> = &'m dyn Fn(&Server, &mut Results) -> Result<()>;
        let measurements: [(&str, Measurement<'_>); 5] = [
            ("memory", &|server, results| self.memory(server, results)),
            ("echo", &|server, results| self.echo(server, results)),
            ("round-trip", &|server, results| self.round_trip(server, results)),
            ("setup", &|server, results| self.setup(server, results)),
            ("flood", &|server, results| self.flood(server, results)),
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

    fn wait_until_ready(&self, server: &mut Server) -> Result<()> {
        let start = Instant::now();
        loop {
            server.check_alive()?;
            match self.clients.check(server, self.echo) {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > Duration::from_secs(10) => {
                    return Err(format!("{} is not ready: {error}", server.kind.name()).into());
                }
                Err(_) => pause(20),
            }
        }
    }

    fn memory(&self, server: &Server, results: &mut Results) -> Result<()> {
        let Some(program) = &server.program else { return Ok(()) };
        let kind = server.kind;
        // The session that showed the server to be ready is over.
        pause(100);
        let start = program.memory()?;
        results.add(Metric::StartRss, kind, mib(start.resident));
        results.add(Metric::StartPss, kind, mib(start.proportional));
        let mut flows = Vec::with_capacity(self.effort.idle);
        for number in 0..self.effort.idle {
            let open = || -> Result<dtls::Flow> {
                let mut flow = self.clients.open(server, self.echo)?;
                flow.round_trip()?;
                Ok(flow)
            };
            flows.push(open().map_err(|error| format!("idle session {number}: {error}"))?);
        }
        // Nothing passes for a while, as an idle session has it.
        pause(self.effort.calm);
        let open = program.memory()?;
        let each = |with: u64, without: u64| {
            (with as f64 - without as f64) / 1024.0 / self.effort.idle as f64
        };
        results.add(Metric::IdleRss, kind, each(open.resident, start.resident));
        results.add(Metric::IdlePss, kind, each(open.proportional, start.proportional));
        results.add(Metric::IdleThreads, kind, servers::threads(program)? as f64);
        for flow in flows {
            flow.close();
        }
        let mut after = program.memory()?.resident;
        for _ in 0..20 {
            pause(100);
            after = after.min(program.memory()?.resident);
            if after <= start.resident {
                break;
            }
        }
        results.add(Metric::AfterRss, kind, mib(after));
        Ok(())
    }

    fn echo(&self, server: &Server, results: &mut Results) -> Result<()> {
        let (mut lost, mut done) = (0, 0);
        for (flows, metric, cpu_metric) in
            [(1, Metric::One, Metric::OneCpu), (8, Metric::Eight, Metric::EightCpu)]
        {
            self.pumping(server, flows, |counts| {
                pause_for(self.effort.warm_up);
                let cpu = server.cpu_ms()?;
                let before = Tally::of(counts);
                pause_for(self.effort.echo);
                let tally = Tally::of(counts).since(&before);
                results.add(metric, server.kind, tally.rate()?);
                if let (Some(before), Some(after)) = (cpu, server.cpu_ms()?) {
                    let each = (after - before) * 1e3 / tally.done as f64;
                    results.add(cpu_metric, server.kind, each);
                }
                lost += tally.lost;
                done += tally.done;
                Ok(())
            })?;
        }
        results.add(Metric::Lost, server.kind, lost as f64 * 1e6 / (lost + done) as f64);
        Ok(())
    }

    /// Keeps `flows` sessions busy while `watch` looks at their counts.
    fn pumping(
        &self,
        server: &Server,
        flows: usize,
        watch: impl FnOnce(&[Count]) -> Result<()>,
    ) -> Result<()> {
        let mut open = Vec::new();
        for _ in 0..flows {
            let mut flow = self.clients.open(server, self.echo)?;
            flow.round_trip()?;
            open.push(flow);
        }
        let counts: Vec<Count> = open.iter().map(|_| Count::default()).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = open
                .iter_mut()
                .zip(&counts)
                .map(|(flow, count)| scope.spawn(|| load::pump(flow, count, &stop)))
                .collect();
            let seen = watch(&counts);
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().map_err(|_| "a client thread panicked")??;
            }
            seen
        })?;
        for flow in open {
            flow.close();
        }
        Ok(())
    }

    fn round_trip(&self, server: &Server, results: &mut Results) -> Result<()> {
        let mut flow = self.clients.open(server, self.echo)?;
        flow.round_trip()?;
        let mut times = load::round_trips(&mut flow, self.effort.echo)?;
        flow.close();
        times.sort_unstable();
        for (metric, percent) in [(Metric::Median, 50), (Metric::Tail, 99)] {
            let rank = times.len() * percent / 100;
            let time = times.get(rank).ok_or("no round trip was completed")?;
            results.add(metric, server.kind, time.as_secs_f64() * 1e6);
        }
        Ok(())
    }

    fn setup(&self, server: &Server, results: &mut Results) -> Result<()> {
        if server.program.is_none() {
            return Ok(());
        }
        for (workers, metric, cpu_metric) in
            [(1, Metric::Serial, Metric::SerialCpu), (4, Metric::Four, Metric::FourCpu)]
        {
            let before = server.cpu_ms()?;
            let (count, elapsed) =
                load::reconnect(&self.clients, server, self.echo, workers, self.effort.setup)?;
            // The last sessions are still being torn down.
            pause(50);
            results.add(metric, server.kind, count as f64 / elapsed.as_secs_f64());
            if let (Some(before), Some(after)) = (before, server.cpu_ms()?) {
                results.add(cpu_metric, server.kind, (after - before) / count as f64);
            }
        }
        Ok(())
    }

    fn flood(&self, server: &Server, results: &mut Results) -> Result<()> {
        let target = match server.kind {
            Kind::Socat => return Ok(()),
            Kind::Direct => self.pit.local_addr()?,
            Kind::Adit | Kind::Pion => server.address,
        };
        let hello = self.clients.first_datagram()?;
        let state = || match &server.program {
            Some(program) => Ok(Some((program.memory()?.resident, servers::threads(program)?))),
            None => Result::Ok(None),
        };
        let mut before = None;
        self.pumping(server, 1, |counts| {
            pause_for(self.effort.warm_up);
            before = state()?;
            let start = Tally::of(counts);
            pause_for(self.effort.echo);
            let quiet = Tally::of(counts).since(&start).rate()?;
            for (metric, rate, part) in
                [(Metric::Trickled, Some(10_000), 5), (Metric::Flooded, None, 1)]
            {
                let start = Tally::of(counts);
                load::strangers(&hello, target, self.effort.strangers / part, rate)?;
                let busy = Tally::of(counts).since(&start).rate()?;
                results.add(metric, server.kind, busy / quiet * 100.0);
            }
            Ok(())
        })?;
        // What was queued is still being answered.
        pause(500);
        if let (Some(before), Some(after)) = (before, state()?) {
            results.add(Metric::FloodRss, server.kind, mib(after.0) - mib(before.0));
            results.add(Metric::FloodThreads, server.kind, after.1 as f64 - before.1 as f64);
        }
        Ok(())
    }
}

/// What all flows have done until a moment.
struct Tally {
    at: Instant,
    done: u64,
    lost: u64,
}

impl Tally {
    fn of(counts: &[Count]) -> Self {
        Self {
            at: Instant::now(),
            done: counts.iter().map(|count| count.done.load(Ordering::Relaxed)).sum(),
            lost: counts.iter().map(|count| count.lost.load(Ordering::Relaxed)).sum(),
        }
    }

    fn since(self, before: &Self) -> Span {
        Span {
            elapsed: self.at.duration_since(before.at),
            done: self.done - before.done,
            lost: self.lost - before.lost,
        }
    }
}

/// What they have done between two moments.
struct Span {
    elapsed: Duration,
    done: u64,
    lost: u64,
}

impl Span {
    fn rate(&self) -> Result<f64> {
        match self.done {
            0 => Err("not one echo came back".into()),
            done => Ok(done as f64 / self.elapsed.as_secs_f64()),
        }
    }
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
