//! What the clients do: windows of numbered datagrams, single round trips, session after session,
//! and strangers who never come back.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::Result;
use crate::dtls::{Clients, Flow};
use crate::servers::Server;

/// One datagram of the echo measurements, in bytes.
const PAYLOAD: usize = 200;

/// Datagrams on their way at once.
const WINDOW: usize = 32;

/// What one flow has seen; alone on its cache lines.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Count {
    pub(crate) done: AtomicU64,
    /// Overtaken by a later one, or never seen again.
    pub(crate) lost: AtomicU64,
}

/// Keeps a window of datagrams on its way until `stop`; a lost one makes room for a new one.
pub(crate) fn pump(flow: &mut Flow, count: &Count, stop: &AtomicBool) -> Result<()> {
    let mut pending = VecDeque::with_capacity(WINDOW);
    let mut datagram = [0x42_u8; PAYLOAD];
    let mut answer = [0_u8; 2048];
    let mut next = 0_u64;
    let (mut done, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        while pending.len() < WINDOW {
            set_number(&mut datagram, next);
            flow.send(&datagram)?;
            pending.push_back(next);
            next += 1;
        }
        if let Some(length) = flow.receive(&mut answer)? {
            let number = number(answer.get(..length).unwrap_or_default())?;
            while pending.front().is_some_and(|&oldest| oldest < number) {
                pending.pop_front();
                lost += 1;
            }
            if pending.front() == Some(&number) {
                pending.pop_front();
                done += 1;
            }
        } else {
            lost += pending.len() as u64;
            pending.clear();
        }
        count.done.store(done, Ordering::Relaxed);
        count.lost.store(lost, Ordering::Relaxed);
    }
    Ok(())
}

fn set_number(datagram: &mut [u8; PAYLOAD], number: u64) {
    if let Some(start) = datagram.first_chunk_mut() {
        *start = number.to_be_bytes();
    }
}

fn number(answer: &[u8]) -> Result<u64> {
    match answer.first_chunk() {
        Some(start) if answer.len() == PAYLOAD => Ok(u64::from_be_bytes(*start)),
        _ => Err("the echo came back changed".into()),
    }
}

/// Times of one datagram at a time, for as long as `duration`, and how many were lost.
pub(crate) fn round_trips(flow: &mut Flow, duration: Duration) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    let mut datagram = [0x42_u8; PAYLOAD];
    let mut answer = [0_u8; 2048];
    let start = Instant::now();
    for next in 0.. {
        let before = Instant::now();
        if before.duration_since(start) > duration {
            break;
        }
        set_number(&mut datagram, next);
        flow.send(&datagram)?;
        while let Some(length) = flow.receive(&mut answer)? {
            // Anything else is the late answer to one that was given up.
            if number(answer.get(..length).unwrap_or_default())? == next {
                // The first ones find caches cold.
                if next >= 100 {
                    times.push(before.elapsed());
                }
                break;
            }
        }
    }
    Ok(times)
}

/// Opens, echoes once and closes, over and over on `workers` threads; returns how many sessions
/// that made and how long it took.
pub(crate) fn reconnect(
    clients: &Clients,
    server: &Server,
    echo: SocketAddr,
    workers: usize,
    duration: Duration,
) -> Result<(u64, Duration)> {
    let start = Instant::now();
    let worker = || -> Result<u64> {
        let mut count = 0;
        while start.elapsed() < duration {
            let mut flow = clients.open(server, echo)?;
            flow.round_trip()?;
            flow.close();
            count += 1;
        }
        Ok(count)
    };
    let counts: Vec<Result<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<u64>>| {
            thread.join().unwrap_or_else(|_| Err("a client thread panicked".into()))
        };
        threads.into_iter().map(join).collect()
    });
    Ok((counts.into_iter().sum::<Result<u64>>()?, start.elapsed()))
}

/// Sends `count` first datagrams to `target`, each from another address of 127.0.0.0/8: `rate` a
/// second, or as fast as one thread can.
pub(crate) fn strangers(
    hello: &[u8],
    target: SocketAddr,
    count: u32,
    rate: Option<u32>,
) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let target = SockaddrStorage::from(target);
    let mut hello = hello.to_vec();
    let start = Instant::now();
    for number in 0..count {
        if let Some(rate) = rate {
            let due = Duration::from_secs(1) * number / rate;
            // In little crowds, a millisecond apart.
            if let Some(early) = due.checked_sub(start.elapsed())
                && early > Duration::from_millis(1)
            {
                std::thread::sleep(early);
            }
        }
        // The client's random follows the headers of record (13) and message (12) and the version.
        if let Some(random) = hello.get_mut(27..31) {
            random.copy_from_slice(&number.to_be_bytes());
        }
        let [_, high, middle, low] = number.to_be_bytes();
        let source = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes([127, high + 1, middle, low]),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&hello)],
            &[ControlMessage::Ipv4PacketInfo(&source)],
            MsgFlags::empty(),
            Some(&target),
        )?;
    }
    Ok(())
}
