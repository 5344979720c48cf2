//! Counted places: whatever a stranger can make us hold is bounded by one of these.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A fixed number of places. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    taken: AtomicUsize,
    limit: usize,
}

impl Slots {
    /// `limit` free places.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { taken: AtomicUsize::new(0), limit }))
    }

    /// Takes a place, or `None` when all are taken. Never waits.
    pub fn take(&self) -> Option<Slot> {
        self.0
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < self.0.limit).then_some(n + 1)
            })
            .ok()
            .map(|_| Slot(self.0.clone()))
    }

    /// Takes a place even if none is free: one that is about to be.
    pub fn take_over(&self) -> Slot {
        self.0.taken.fetch_add(1, Ordering::AcqRel);
        Slot(self.0.clone())
    }

    /// Places in use now.
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Acquire)
    }

    /// All places.
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

/// One taken place; dropping it frees the place.
#[derive(Debug)]
pub struct Slot(Arc<Inner>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_slot_can_be_taken_again() {
        let slots = Slots::new(2);
        let first = slots.take().unwrap();
        let _second = slots.take().unwrap();
        assert!(slots.take().is_none());
        let third = slots.take_over();
        assert_eq!(slots.taken(), 3);
        drop(third);
        drop(first);
        assert_eq!(slots.taken(), 1);
        assert!(slots.take().is_some());
    }
}
