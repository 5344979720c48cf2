//! The sizes and times of an agent.

use std::time::Duration;

/// What strangers and clients may use, and how long each phase may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections that have spoken: handshakes, API calls and streams together.
    pub connections: usize,
    /// Handshakes in progress. One source may have a quarter of them.
    pub handshakes: usize,
    /// Connections of one source address, and as many UDP sessions (an IPv6 source is its /64); no
    /// limit when `None`.
    pub per_source: Option<usize>,
    /// From accepting a connection to the end of its TLS handshake.
    pub handshake: Duration,
    /// From the end of the handshake to the whole stream header.
    pub header: Duration,
    /// Resolving and connecting to the destination.
    pub dial: Duration,
    /// How long the second direction of a stream may be silent once the first has ended.
    pub half_close: Duration,
    /// UDP sessions, apart from connections. [`Limits::handshakes`] and [`Limits::per_source`] hold
    /// for them too, counted apart as well.
    pub udp_sessions: usize,
    /// How long nothing may pass through a UDP session, in either direction, before it ends.
    pub udp_idle: Duration,
    /// How long running streams may go on after a request to stop.
    pub drain: Duration,
}

impl Default for Limits {
    /// The stream protocol's limits (10 s each for handshake, header and dialling), room for
    /// 4096 connections and as many UDP sessions.
    fn default() -> Self {
        Self {
            connections: 4096,
            handshakes: 256,
            per_source: None,
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            dial: Duration::from_secs(10),
            half_close: Duration::from_secs(300),
            udp_sessions: 4096,
            udp_idle: Duration::from_secs(300),
            drain: Duration::from_secs(10),
        }
    }
}
