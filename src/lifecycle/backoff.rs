//! Growing waits between tries of something that keeps failing.

use std::time::Duration;

/// Doubles from `first` to `most`; a success starts it over.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// The first wait is `first`; no wait is longer than `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// How long to wait before the next try.
    pub fn failed(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.most);
        wait
    }

    /// A try succeeded: the next failure waits `first` again.
    pub fn succeeded(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_its_limit_and_starts_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(5), ms(12));
        assert_eq!(
            [backoff.failed(), backoff.failed(), backoff.failed(), backoff.failed()],
            [ms(5), ms(10), ms(12), ms(12)]
        );
        backoff.succeeded();
        assert_eq!(backoff.failed(), ms(5));
    }
}
