//! `adit demo`: the main job on one machine, checked and measured.

mod checks;
mod datagrams;
mod destinations;
mod dns;
mod stage;

use std::path::Path;
use std::time::Duration;

use argh::FromArgs;
use log::LevelFilter;

use super::signals::Signals;
use super::{Exit, print, printable, start_logging};
use crate::tls;
use checks::CHECKS;
use stage::Stage;

/// Show the main job on throwaway certificates: an agent on loopback, streams through it, checks.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "demo")]
pub struct DemoCommand {
    /// exit after the checks: 0 when all passed, else 1 (default: keep running until Ctrl-C, for
    /// trying the commands printed)
    #[argh(switch)]
    once: bool,
}

/// Runs `adit demo`. Fails when a check does.
pub fn run(command: DemoCommand) -> Result<(), Exit> {
    start_logging(false, 0)?;
    // The hundreds of streams of the checks would bury the table; later ones may be seen.
    let level = log::max_level();
    log::set_max_level(level.min(LevelFilter::Warn));
    // From here on a signal ends the demo in order, so that its files go away.
    let signals = Signals::install(|| {})?;
    let stage = Stage::set_up(&signals).map_err(|error| Exit::Failed(error.to_string()))?;
    print(&introduction(&stage))?;
    let (done, failed) = check(&stage, &signals)?;
    if !command.once && !signals.stop.is_raised() {
        print(&next(&stage))?;
        log::set_max_level(level);
        while !signals.stop.wait(FOREVER) {}
    }
    stage.take_down(&signals);
    if signals.at_once.is_raised() {
        return Err(Exit::AtOnce);
    }
    match (failed, CHECKS.len() - done) {
        (0, 0) => Ok(()),
        (0, left) => Err(Exit::Failed(format!("stopped with {left} checks not made"))),
        (failed, _) => Err(Exit::Failed(format!("{failed} of {done} checks failed"))),
    }
}

/// A wait is bounded, so this one is repeated.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// Makes the checks and prints each one's row. Returns how many were made and how many failed.
fn check(stage: &Stage, signals: &Signals) -> Result<(usize, usize), Exit> {
    print(&row("Check", "", "Measured"))?;
    print(&"-".repeat(WIDTH))?;
    let (mut done, mut failed) = (0, 0);
    for (what, check) in CHECKS {
        let checked = check(stage);
        // A signal cuts the stream of the check under way, which says nothing about the agent.
        if signals.stop.is_raised() {
            break;
        }
        done += 1;
        match checked {
            Ok(measured) => print(&row(what, "ok", &measured))?,
            Err(error) => {
                failed += 1;
                print(&row(what, "FAILED", ""))?;
                print(&format!("    {}", printable(&explain(&*error))))?;
            }
        }
    }
    print(&"-".repeat(WIDTH))?;
    print(&format!("{} of {} checks passed", done - failed, CHECKS.len()))?;
    Ok((done, failed))
}

fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => tls::explain(error),
        None => error.to_string(),
    }
}

/// Columns of the output: what the narrowest usual terminal has.
const WIDTH: usize = 80;

fn row(what: &str, verdict: &str, measured: &str) -> String {
    format!("{what:<48} {verdict:<6} {measured:>24}")
}

fn introduction(stage: &Stage) -> String {
    format!(
        "adit {} demo (TLS by {})\n\
         \n\
         {:<14} {}\n\
         {:<14} {}\n\
         {:<14} {}\n\
         {:<14} {} (UDP)\n\
         {:<14} {} (UDP)\n\
         {:<14} {}\n",
        env!("CARGO_PKG_VERSION"),
        tls::provider::name(),
        "agent",
        stage.agent,
        "HTTP page",
        stage.destinations.page,
        "echo service",
        stage.destinations.echo,
        "echo service",
        stage.destinations.udp_echo,
        "name server",
        stage.destinations.dns,
        "certificates",
        stage.dir().display(),
    )
}

/// The commands to try, with their real paths and ports.
fn next(stage: &Stage) -> String {
    let adit = std::env::current_exe().map_or_else(|_| "adit".to_owned(), |path| quoted(&path));
    let file = |name: &str| quoted(&stage.dir().join(name));
    let destinations = &stage.destinations;
    let (zip, agent, page, echo) =
        (file("client.zip"), stage.agent, destinations.page, destinations.echo);
    let udp_echo = destinations.udp_echo;
    let port = agent.port();
    format!(
        "\n\
         It goes on running. Try these in another terminal; Ctrl-C here ends it and\n\
         removes the certificates.\n\
         \n\
         # What is that agent?\n\
         {adit} probe --zip {zip} \\\n    \
             {agent}\n\
         \n\
         # The page, through the agent\n\
         printf 'GET / HTTP/1.0\\r\\n\\r\\n' | \\\n    \
             {adit} connect --agent {agent} \\\n    \
             --zip {zip} {page}\n\
         \n\
         # What you type comes back (Ctrl-D ends it)\n\
         {adit} connect --agent {agent} \\\n    \
             --zip {zip} {echo}\n\
         \n\
         # Each line comes back as a datagram\n\
         {adit} connect --udp --agent {agent} \\\n    \
             --zip {zip} {udp_echo}\n\
         \n\
         # The agent's HTTP API, on the same port\n\
         curl --cacert {ca} \\\n    \
             --cert {cert} \\\n    \
             --key {key} \\\n    \
             --resolve godoxy.agent:{port}:127.0.0.1 \\\n    \
             https://godoxy.agent:{port}/godoxy/agent/info\n\
         \n\
         # ssh through the agent, if this machine runs sshd\n\
         ssh -o ProxyCommand=\"{adit} connect \\\n    \
             --agent {agent} --zip {zip} %h:%p\" \\\n    \
             127.0.0.1\n",
        ca = file("ca.pem"),
        cert = file("client.pem"),
        key = file("client-key.pem"),
    )
}

/// A path as a shell reads it back.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@=".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_fits_the_terminal() {
        for (what, _) in CHECKS {
            assert!(what.chars().count() <= 48, "{what}");
        }
        assert_eq!(row("x", "FAILED", "1").chars().count(), WIDTH);
    }

    #[test]
    fn a_path_with_spaces_and_quotes_survives_the_shell() {
        assert_eq!(quoted(Path::new("/tmp/adit-demo-x/ca.pem")), "/tmp/adit-demo-x/ca.pem");
        assert_eq!(quoted(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    }
}
