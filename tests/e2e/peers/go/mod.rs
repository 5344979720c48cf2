//! Go's own TLS and HTTP, which GoDoxy's servers and agents use, at either end: `tests/peers/go`.

mod agent;
mod client;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde::Deserialize;

use super::tool;
use crate::support::command::run;

/// The program with one of its subcommands.
fn peer(subcommand: &str) -> Command {
    static PROGRAM: LazyLock<Result<PathBuf, String>> =
        LazyLock::new(|| build("go", &[("GO111MODULE", "on")]));
    // Where there is no Go, each test says so, and not only the one that came first.
    drop(go());
    let program = PROGRAM.as_ref().unwrap_or_else(|error| panic!("tests/peers/go: {error}"));
    let mut command = Command::new(program);
    command.arg(subcommand);
    // The key exchange that today's releases offer, whose first message is too long for one
    // segment; go.mod asks for a release without it. Older ones ignore this.
    command.env("GODEBUG", "tlsmlkem=1");
    command
}

pub(super) fn go() -> Command {
    tool("go", "golang-go")
}

/// Builds the program in a folder of `tests/peers`, without the network and without writing
/// anything outside the target directory.
pub(super) fn build(folder: &str, environment: &[(&str, &str)]) -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let programs = target.join(folder);
    let program = programs.join("peer");
    // Other tests may be running the one that is there.
    let new = programs.join(format!("peer-{}", std::process::id()));
    let source: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/peers", folder].iter().collect();
    let mut command = go();
    command.current_dir(source).args(["build", "-trimpath", "-buildvcs=false", "-o"]).arg(&new);
    command.env("GOCACHE", target.join("go/cache")).env("GOPATH", target.join("go/path"));
    for (name, value) in [
        ("GOENV", "off"),
        ("GOFLAGS", ""),
        ("GOWORK", "off"),
        ("GOPROXY", "off"),
        ("GOTOOLCHAIN", "local"),
        ("CGO_ENABLED", "0"),
    ] {
        command.env(name, value);
    }
    let ran = run(command.envs(environment.iter().copied()), b"");
    if ran.code != Some(0) {
        return Err(format!("does not build: {}", ran.err));
    }
    std::fs::rename(&new, &program).map_err(|error| error.to_string())?;
    Ok(program)
}

/// A header as the vectors and the program have it.
#[derive(Deserialize)]
struct Vector {
    hex: String,
}

#[test]
fn the_go_program_encodes_what_the_go_implementation_encodes() {
    let vectors = include_str!("../../../vectors/stream-header-275.json");
    let expected: Vec<Vector> = serde_json::from_str(vectors).unwrap();
    let lines: Vec<serde_json::Value> = serde_json::from_str(vectors).unwrap();
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let ran = run(&mut peer("headers"), input.as_bytes()).ok();
    let expected: Vec<_> = expected.iter().map(|vector| vector.hex.as_str()).collect();
    assert_eq!(ran.text().lines().collect::<Vec<_>>(), expected);
}
