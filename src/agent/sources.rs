//! How much of a shared resource each source address uses.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Places per source address. Clones share them.
///
/// An IPv6 source is its /64, which is what one customer or one box is given (RFC 6177).
#[derive(Clone, Debug)]
pub(super) struct Sources(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    taken: Mutex<HashMap<IpAddr, usize>>,
    limit: usize,
}

impl Sources {
    /// At most `limit` places for any one source.
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { taken: Mutex::default(), limit }))
    }

    /// Takes a place for `source`, or `None` when it has all that one source may have.
    pub(super) fn take(&self, source: IpAddr) -> Option<SourceSlot> {
        let source = network(source);
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(source).or_default();
        if *count >= self.0.limit {
            return None;
        }
        *count += 1;
        Some(SourceSlot { sources: self.clone(), source })
    }

    /// Takes a place even if `source` has all that it may have: one that is about to be free.
    pub(super) fn take_over(&self, source: IpAddr) -> SourceSlot {
        let source = network(source);
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken.entry(source).or_default() += 1;
        SourceSlot { sources: self.clone(), source }
    }
}

/// One taken place; dropping it frees the place.
#[derive(Debug)]
pub(super) struct SourceSlot {
    sources: Sources,
    source: IpAddr,
}

impl Drop for SourceSlot {
    fn drop(&mut self) {
        let mut taken = self.sources.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

/// The address under which a source is counted.
pub(super) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_share_and_a_v6_source_is_its_64() {
        let sources = Sources::new(1);
        let ip = |text: &str| text.parse().unwrap();
        let first = sources.take(ip("192.0.2.1")).unwrap();
        assert!(sources.take(ip("192.0.2.1")).is_none());
        assert!(sources.take(ip("::ffff:192.0.2.1")).is_none(), "the same source, mapped");
        let _other = sources.take(ip("192.0.2.2")).unwrap();
        let _v6 = sources.take(ip("2001:db8:1:2::1")).unwrap();
        assert!(sources.take(ip("2001:db8:1:2::ffff")).is_none());
        let _v6 = sources.take(ip("2001:db8:1:3::1")).unwrap();
        drop(first);
        assert!(sources.take(ip("192.0.2.1")).is_some());
        assert_eq!(sources.0.taken.lock().unwrap().len(), 3, "nothing is kept for a free source");
    }
}
