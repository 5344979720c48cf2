//! SIGINT, SIGTERM and SIGHUP as two flags.

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
