//! What the clients do: windows of numbered datagrams, single round trips, session after session,
//! and strangers who never come back.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::{MsgHdr, SockAddr, SockRef};

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
    let socket = SockRef::from(&socket);
    let target = SockAddr::from(target);
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
        let control = source(Ipv4Addr::new(127, high + 1, middle, low));
        let buffers = [IoSlice::new(&hello)];
        let message =
            MsgHdr::new().with_addr(&target).with_buffers(&buffers).with_control(&control);
        socket.sendmsg(&message, 0)?;
    }
    Ok(())
}

/// A control message that sets the source address, see ip(7), `IP_PKTINFO`.
fn source(address: Ipv4Addr) -> Vec<u8> {
    let (head, info) = (size_of::<usize>() + 8, 12_usize);
    let mut control = Vec::with_capacity(head + info + 4);
    control.extend((head + info).to_ne_bytes());
    control.extend(nix::libc::IPPROTO_IP.to_ne_bytes());
    control.extend(nix::libc::IP_PKTINFO.to_ne_bytes());
    control.extend(0_i32.to_ne_bytes());
    control.extend(address.octets());
    control.extend([0; 4]);
    control.resize((head + info).next_multiple_of(size_of::<usize>()), 0);
    control
}
