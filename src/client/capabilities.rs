//! What can be done through an agent: what it says, and what works.

use std::panic::resume_unwind;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::{Client, Info, InfoError, OpenError, Probe, UdpError};
use crate::lifecycle::threads;

/// What an agent says and what was found of it.
#[derive(Debug)]
pub struct Capabilities {
    /// What its API says, `None` when it could not be reached for that: `tcp` says why.
    pub info: Option<Result<Info, InfoError>>,
    /// Whether it carries TCP streams for us.
    pub tcp: Result<Probe, OpenError>,
    /// Whether it carries UDP streams for us, `None` when it says that it carries none at all.
    pub udp: Option<Result<Probe, UdpError>>,
}

impl Client {
    /// Asks the agent what it is and then, of both transports at once, whether they work, as
    /// GoDoxy's servers do before they use an agent.
    ///
    /// Takes no longer than the slower of the two, within [`Timeouts`](super::Timeouts): an agent
    /// that cannot be reached by TCP is not tried again for the next question, and UDP does not
    /// wait long for the answer to the first.
    pub fn capabilities(&self) -> Capabilities {
        let (tell, told) = bounded(1);
        let client = self.clone();
        let started = threads::spawn("probe-udp", move || client.udp_unless_refused(&told));
        let info = self.info();
        let carries_none = matches!(&info, Ok(info) if info.supports_udp_stream == Some(false));
        // Fails when it has begun, or never will.
        tell.send(carries_none).ok();
        let (info, tcp) = match info {
            // An agent that cannot be reached for one is not for the other.
            Err(InfoError::Open(error)) if !error.reached_agent() => (None, Err(error)),
            info => (Some(info), self.probe()),
        };
        let udp = match started {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // No thread is left: then one after the other.
            Err(_) if !carries_none => Some(self.probe_udp()),
            Err(_) => None,
        };
        Capabilities { info, tcp, udp: udp.filter(|_| !carries_none) }
    }

    /// Probes UDP once it is told whether the agent carries none, unless it does.
    fn udp_unless_refused(&self, carries_none: &Receiver<bool>) -> Option<Result<Probe, UdpError>> {
        match carries_none.recv_timeout(HEAD_START) {
            Ok(true) => None,
            Ok(false) | Err(_) => Some(self.probe_udp()),
        }
    }
}

/// How long the API's answer is waited for before UDP is tried all the same: what keeps two silent
/// transports from being waited for one after the other.
const HEAD_START: Duration = Duration::from_secs(1);
