//! Floor 0: how things start, wait, are counted and stop.
//!
//! Nothing here knows a protocol. Everything above uses these few types instead of the bare
//! standard library, so that every thread has a name and an owner, every wait can be woken, and
//! every resource a stranger can take has a number.

pub mod backoff;
pub mod clock;
pub mod flood;
pub mod heap;
pub mod process;
pub mod slots;
pub mod stop;
pub mod threads;

pub use backoff::Backoff;
pub use clock::Deadline;
pub use flood::Flood;
pub use process::end_process;
pub use slots::{Slot, Slots};
pub use stop::Stop;
