//! Log lines that strangers can cause, at a bounded rate.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::clock;

/// Lets `burst` lines through in every `window` and counts the rest; the first line of a later
/// window tells how many were left out. Where there may be none, somebody calls [`Flood::settle`].
///
/// One `Flood` stands for one kind of event, so that noise of one kind never hides another.
#[derive(Debug)]
pub struct Flood {
    what: &'static str,
    burst: u32,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    start: Option<Instant>,
    passed: u32,
    left_out: u64,
    /// Of the last line left out.
    level: Option<log::Level>,
}

impl Flood {
    /// Lets `burst` lines through in every `window`. `what` names the kind, in the plural.
    pub const fn new(what: &'static str, burst: u32, window: Duration) -> Self {
        let state = State { start: None, passed: 0, left_out: 0, level: None };
        Self { what, burst, window, state: Mutex::new(state) }
    }

    /// Whether a line may be written now, and if so how many were left out since the last one.
    fn pass(&self, now: Instant, level: log::Level) -> Option<u64> {
        let mut state = self.lock();
        if state.start.is_none_or(|start| now.duration_since(start) >= self.window) {
            state.start = Some(now);
            state.passed = 0;
        }
        if state.passed < self.burst {
            state.passed += 1;
            Some(std::mem::take(&mut state.left_out))
        } else {
            state.left_out += 1;
            state.level = Some(level);
            None
        }
    }

    /// Writes the line that `text` makes at `level`, unless the rate is used up; a line that
    /// follows left-out ones says how many.
    pub fn log(&self, level: log::Level, text: impl FnOnce() -> String) {
        if !log::log_enabled!(level) {
            return;
        }
        match self.pass(clock::now(), level) {
            Some(0) => log::log!(level, "{}", text()),
            Some(more) => {
                log::log!(level, "{} ({more} similar lines left out before this one)", text())
            }
            None => {}
        }
    }

    /// Tells how many lines were left out, when their window is over and no later line has told.
    /// Returns when to call it again: nothing is due before, unless more lines are left out.
    pub fn settle(&self, now: Instant) -> Option<Instant> {
        match self.due(now) {
            Due::Nothing => None,
            Due::At(moment) => Some(moment),
            Due::Now(level, count) => {
                log::log!(level, "{count} more lines about {} were left out", self.what);
                None
            }
        }
    }

    fn due(&self, now: Instant) -> Due {
        let mut state = self.lock();
        let Some((start, level)) = state.start.zip(state.level) else { return Due::Nothing };
        if state.left_out == 0 {
            return Due::Nothing;
        }
        if now.duration_since(start) < self.window {
            return Due::At(start + self.window);
        }
        Due::Now(level, std::mem::take(&mut state.left_out))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a flood has to tell.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    At(Instant),
    Now(log::Level, u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);
    const LEVEL: log::Level = log::Level::Info;

    #[test]
    fn the_next_window_tells_what_was_left_out() {
        let flood = Flood::new("tests", 2, WINDOW);
        let start = clock::now();
        assert_eq!(flood.pass(start, LEVEL), Some(0));
        assert_eq!(flood.pass(start, LEVEL), Some(0));
        for _ in 0..5 {
            assert_eq!(flood.pass(start + WINDOW * 9 / 10, LEVEL), None);
        }
        assert_eq!(flood.pass(start + WINDOW, LEVEL), Some(5));
        assert_eq!(flood.pass(start + WINDOW, LEVEL), Some(0));
        assert_eq!(flood.due(start + WINDOW), Due::Nothing, "told already");
    }

    #[test]
    fn a_flood_that_stopped_is_told_once_when_its_window_is_over() {
        let flood = Flood::new("tests", 1, WINDOW);
        let start = clock::now();
        assert_eq!(flood.due(start), Due::Nothing);
        assert_eq!(flood.pass(start, LEVEL), Some(0));
        assert_eq!(flood.due(start), Due::Nothing, "none was left out");
        assert_eq!(flood.pass(start, LEVEL), None);
        assert_eq!(flood.pass(start, LEVEL), None);
        assert_eq!(flood.due(start), Due::At(start + WINDOW));
        assert_eq!(flood.due(start + WINDOW), Due::Now(LEVEL, 2));
        assert_eq!(flood.due(start + WINDOW), Due::Nothing);
    }
}
