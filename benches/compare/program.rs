//! Programs under test: found, started, watched and ended.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, process};

/// A running program. Dropping it ends all its processes.
pub(crate) struct Program {
    name: &'static str,
    log: PathBuf,
    pub(crate) child: Child,
}

impl Program {
    /// Starts it with its log in `dir`; it may not listen yet.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        dir: &Path,
    ) -> Result<Self> {
        let path = dir.join(format!("{name}.log"));
        let log = File::create(&path)?;
        // The parent's death must reach the child even when this process is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(program)
            .args(arguments)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start setpriv (package util-linux): {error}"))?;
        Ok(Self { name, log: path, child })
    }

    /// An error, with what the program said, when it has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = std::fs::read_to_string(&self.log)?;
        Err(format!("{} ended early ({status}):\n{log}", self.name).into())
    }

    pub(crate) fn memory(&self) -> Result<process::Memory> {
        process::memory(self.child.id())
    }

    pub(crate) fn cpu_ms(&self) -> Result<f64> {
        process::cpu_ms(self.child.id())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // nginx's workers and socat's children outlive a parent that is killed outright: ask all
        // first, then make sure.
        let family = process::family(self.child.id()).unwrap_or_default();
        for &pid in &family {
            signal(pid, Signal::SIGTERM);
        }
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            for pid in family {
                signal(pid, Signal::SIGKILL);
            }
            if let Err(error) = self.child.wait() {
                eprintln!("{} is not gone: {error}", self.name);
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
pub(crate) fn adit() -> Result<PathBuf> {
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

/// The first of `programs` that is installed.
pub(crate) fn find(name: &str, programs: &[&str], packages: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons outside an ordinary user's PATH.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let candidates = directories.flat_map(|dir| programs.iter().map(move |name| dir.join(name)));
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| missing(name, packages).into())
}

pub(crate) fn missing(name: &str, packages: &str) -> String {
    format!("{name} is not installed: run `apt-get install -y {packages}`")
}

/// A port that is free for TCP and UDP, below those that the kernel gives to outgoing connections
/// (32768 and up), where it stays free until the server binds it.
pub(crate) fn free_port() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match TcpListener::bind(address).and_then(|_| UdpSocket::bind(address)) {
            Ok(_) => return Ok(address),
            Err(error) if port >= 30_000 => return Err(error.into()),
            Err(_) => {}
        }
    }
}

pub(crate) fn show(path: &Path) -> String {
    path.display().to_string()
}
