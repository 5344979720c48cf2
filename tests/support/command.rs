//! Commands that run to their end.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ran {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Fails unless the exit code was 0.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.text(), self.err);
        self
    }
}

/// Runs it with `input`, then the end of it, on its standard input.
pub fn run(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error} (tests/needs installs it)"));
    let (mut stdin, mut stderr) = (child.stdin.take().unwrap(), child.stderr.take().unwrap());
    thread::scope(|scope| {
        // It may end without reading all of it.
        scope.spawn(move || drop(stdin.write_all(input)));
        let err = scope.spawn(move || {
            let mut err = Vec::new();
            stderr.read_to_end(&mut err).unwrap();
            String::from_utf8_lossy(&err).into_owned()
        });
        let mut out = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        Ran { code: child.wait().unwrap().code(), out, err: err.join().unwrap() }
    })
}
