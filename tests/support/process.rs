//! The real binary.

use std::borrow::BorrowMut;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use adit::client::Client;

use super::{PATIENCE, PkiFiles, client_of};

/// A command line of the binary under test, without the caller's variables that steer it.
pub fn adit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    for (name, _) in std::env::vars() {
        if steers(&name) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether a variable of the caller's would be heeded.
fn steers(name: &str) -> bool {
    let prefixes = ["AGENT_", "ADIT_", "GODOXY_", "GOPROXY_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || matches!(name, "RUST_LOG" | "RUNTIME")
}

/// `adit agent` as a process of its own, killed when dropped.
pub struct AgentProcess {
    pub child: Child,
    pub address: SocketAddr,
    log: Arc<(Mutex<Log>, Condvar)>,
}

/// What it wrote to standard error.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    /// No more will come.
    ended: bool,
}

impl AgentProcess {
    /// Starts it on a free loopback port, with more flags, and waits until it listens.
    pub fn start(files: &PkiFiles, flags: &[&str]) -> Self {
        let mut command = adit();
        command.args(["agent", "--listen", "127.0.0.1:0"]).args(files.flags("server")).args(flags);
        Self::spawn(command)
    }

    /// A library client with the certificate in `files`.
    pub fn client(&self, files: &PkiFiles) -> Client {
        client_of(self.address, &files.identity("client"))
    }

    /// Starts a command line that runs the agent.
    pub fn spawn(mut command: impl BorrowMut<Command>) -> Self {
        let command = command.borrow_mut();
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new((Mutex::new(Log::default()), Condvar::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let shared = log.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                shared.0.lock().unwrap().lines.push(line);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().ended = true;
            shared.1.notify_all();
        });
        let mut agent = Self { child, address: ([127, 0, 0, 1], 0).into(), log };
        let line = agent.wait_for("listening on ");
        agent.address = line.rsplit(' ').next().unwrap().parse().unwrap();
        agent
    }

    /// Waits for a log line that contains `text`, also one already written, and returns it. Fails at
    /// once when the agent has ended without it.
    pub fn wait_for(&self, text: &str) -> String {
        let (log, changed) = &*self.log;
        let found = |log: &Log| log.lines.iter().find(|line| line.contains(text)).cloned();
        let (log, _) = changed
            .wait_timeout_while(log.lock().unwrap(), PATIENCE, |log| {
                !log.ended && found(log).is_none()
            })
            .unwrap();
        found(&log).unwrap_or_else(|| {
            let when = if log.ended { "the agent has ended" } else { "out of patience" };
            panic!("{when}: no log line with {text:?} in {:#?}", log.lines)
        })
    }

    /// Waits until it has as many threads and descriptors as `wanted`, or fewer.
    pub fn wait_for_usage(&self, wanted: Usage) {
        let end = Instant::now() + PATIENCE;
        while self.usage().exceeds(wanted) {
            assert!(Instant::now() < end, "{:?} and not {wanted:?}", self.usage());
            thread::yield_now();
        }
    }

    /// What it holds when it serves and nobody is connected.
    pub fn idle_usage(&self, files: &PkiFiles) -> Usage {
        self.client(files).probe().unwrap();
        let end = Instant::now() + PATIENCE;
        let serves = |task: std::io::Result<std::fs::DirEntry>| {
            let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
            name.is_ok_and(|name| name.starts_with("agent-") || name.starts_with("waiting"))
        };
        let tasks = format!("/proc/{}/task", self.child.id());
        while std::fs::read_dir(&tasks).unwrap().any(serves) {
            assert!(Instant::now() < end, "a connection that is over still has a thread");
            thread::yield_now();
        }
        self.usage()
    }

    /// Its threads and descriptors.
    pub fn usage(&self) -> Usage {
        let count =
            |what| std::fs::read_dir(format!("/proc/{}/{what}", self.child.id())).unwrap().count();
        Usage { threads: count("task"), descriptors: count("fd") }
    }

    /// Every log line so far.
    pub fn log(&self) -> Vec<String> {
        self.log.0.lock().unwrap().lines.clone()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let signal = name.parse::<nix::sys::signal::Signal>().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub threads: usize,
    pub descriptors: usize,
}

impl Usage {
    fn exceeds(self, other: Self) -> bool {
        self.threads > other.threads || self.descriptors > other.descriptors
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
