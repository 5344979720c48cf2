//! End-to-end tests: real sockets on port 0, the real binary where flags, signals or exit codes
//! matter. A file per subject; `support` holds what they share.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "tests say what they expect by panicking, and start threads as they like"
)]

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod api;
mod connect;
mod connect_udp;
mod demo;
mod duplex;
mod exhaustion;
mod godoxy;
mod headers;
mod hostile;
mod limits;
mod logs;
mod loss;
mod lossy;
mod man_pages;
#[cfg(feature = "peers")]
mod peers;
mod pki;
mod policy;
mod probe;
mod records;
mod resources;
mod stopping;
mod streams;
mod udp;
mod udp_hostile;
