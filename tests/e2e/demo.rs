//! `adit demo`, the first command that a new reader runs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::process::adit;

fn files_in(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir.path()).unwrap().count()
}

#[test]
fn every_check_of_the_demo_is_ok_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let output = adit().args(["demo", "--once"]).env("TMPDIR", dir.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{said}");
    assert_eq!(said, "", "a demo that works has nothing to warn of");
    let rules = |line: &str| line.starts_with("-----");
    let rows: Vec<&str> = text.lines().skip_while(|l| !rules(l)).skip(1).collect();
    let rows: Vec<&str> = rows.into_iter().take_while(|l| !rules(l)).collect();
    assert!(rows.len() >= 10, "{text}");
    for row in &rows {
        assert_eq!(row.get(49..52), Some("ok "), "{row:?} in\n{text}");
    }
    let total = rows.len();
    assert!(text.ends_with(&format!("\n{total} of {total} checks passed\n")), "{text}");
    assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 80), "{text}");
    assert_eq!(files_in(&dir), 0);
}

/// A demo that goes on running, killed when dropped.
struct Running {
    child: Child,
    /// What it printed, to its last command.
    text: String,
}

impl Running {
    fn start(dir: &tempfile::TempDir) -> Self {
        let mut command = adit();
        command.arg("demo").env("TMPDIR", dir.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut running = Self { child, text: String::new() };
        while !running.text.ends_with("    127.0.0.1\n") {
            let line = lines.next().unwrap_or_else(|| panic!("ended early: {}", running.text));
            running.text.push_str(&line.unwrap());
            running.text.push('\n');
        }
        running
    }

    /// The command printed below the comment that contains `about`.
    fn command(&self, about: &str) -> &str {
        let (_, rest) = self.text.split_once(about).unwrap_or_else(|| panic!("{}", self.text));
        let (_, rest) = rest.split_once('\n').unwrap();
        rest.split("\n\n").next().unwrap()
    }

    /// Runs a printed command in a shell, as a reader would, and returns what it printed.
    fn try_out(&self, about: &str, input: &str) -> String {
        let mut shell = Command::new("sh")
            .args(["-c", self.command(about)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = shell.wait_with_output().unwrap();
        assert!(output.status.success(), "{}: {:?}", self.command(about), output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_commands_that_the_demo_prints_work_as_printed() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = Running::start(&dir);
    let probed = demo.try_out("# What is that agent?", "");
    assert!(probed.contains("adit-demo") && probed.contains("TCP       works"), "{probed}");
    assert!(probed.contains("UDP       works"), "{probed}");
    let page = demo.try_out("# The page", "");
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("<title>adit demo"), "{page}");
    assert_eq!(demo.try_out("# What you type comes back", "hello\n"), "hello\n");
    assert_eq!(demo.try_out("# Each line comes back", "one\ntwo\n"), "one\ntwo\n");
    if cfg!(feature = "peers") {
        let info = demo.try_out("# The agent's HTTP API", "");
        assert!(info.contains("\"supports_tcp_stream\":true"), "{info}");
    }
    assert_eq!(files_in(&dir), 1);
    demo.signal(Signal::SIGINT);
    assert!(demo.child.wait().unwrap().success());
    assert_eq!(files_in(&dir), 0);
}

#[test]
fn a_demo_stopped_in_the_middle_of_its_checks_removes_its_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = adit()
        .args(["demo", "--once"])
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().starts_with("a probe")).unwrap().unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    lines.by_ref().for_each(drop);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("checks not made"), "{said}");
    assert_eq!(files_in(&dir), 0);
}
