//! SIGINT, SIGTERM and SIGHUP as two flags.

use nix::sys::signal::{SigSet, Signal};

use crate::lifecycle::Stop;

use super::Exit;

/// What signals ask for.
#[derive(Clone, Debug)]
pub struct Signals {
    /// The first signal: finish what runs, begin nothing new.
    pub stop: Stop,
    /// The second: end at once.
    pub at_once: Stop,
}

impl Signals {
    /// Flags that no signal raises, for runs inside another program.
    pub fn detached() -> Result<Self, Exit> {
        let flag =
            || Stop::new().map_err(|e| Exit::Failed(format!("cannot make a stop flag: {e}")));
        Ok(Self { stop: flag()?, at_once: flag()? })
    }

    /// Flags that the process's signals raise. Once per process. The first signal also calls
    /// `on_stop`, on a thread that handles signals only.
    pub fn install(on_stop: impl Fn() + Send + 'static) -> Result<Self, Exit> {
        let signals = Self::detached()?;
        if hangups_are_ignored() {
            // Catching it would undo what `nohup` did. A blocked signal reaches no thread that is
            // started from here on.
            let mut hangup = SigSet::empty();
            hangup.add(Signal::SIGHUP);
            hangup
                .thread_block()
                .map_err(|error| Exit::Failed(format!("cannot leave SIGHUP ignored: {error}")))?;
        }
        let raised = signals.clone();
        ctrlc::set_handler(move || {
            if raised.stop.is_raised() {
                raised.at_once.raise();
            } else {
                raised.stop.raise();
                on_stop();
            }
        })
        .map_err(|error| Exit::Failed(format!("cannot catch signals: {error}")))?;
        Ok(signals)
    }
}

/// Whether the process was started with SIGHUP ignored, as `nohup` does. Where there is no such
/// file, it was not.
fn hangups_are_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangups(&status))
}

/// The same of the text of that file, whose `SigIgn` is a mask in hexadecimal with signal 1 in the
/// lowest bit (proc_pid_status(5)).
fn ignores_hangups(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|m| m & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_the_lowest_bit_of_the_mask() {
        assert!(ignores_hangups("Name:\tadit\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangups("SigBlk:\t1\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangups(""));
    }
}
