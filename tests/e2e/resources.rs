//! What a stream holds, it gives back.

use std::io::{Read, Write};
use std::thread;

use crate::support::pattern::MIB;
use crate::support::process::{AgentProcess, Usage};
use crate::support::{Pki, destinations};

#[test]
fn two_thousand_streams_leave_no_thread_and_no_descriptor_behind() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let echo = destinations::echo().port();
    let client = agent.client(&files);
    let before = agent.idle_usage(&files);
    thread::scope(|scope| {
        for worker in 0..4 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..500 {
                    let mut stream = client.open("127.0.0.1", echo).unwrap();
                    stream.write_all(b"ping").unwrap();
                    stream.read_exact(&mut [0; 4]).unwrap();
                    match (worker + round) % 3 {
                        // In order, by a reset, and by vanishing without close_notify.
                        0 => stream.close(std::time::Duration::ZERO),
                        1 => stream.conn().abort(),
                        _ => stream.conn().finish().unwrap(),
                    }
                }
            });
        }
    });
    agent.wait_for_usage(before);
}

#[test]
fn many_streams_at_once_are_given_back_too() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let echo = destinations::echo().port();
    let client = agent.client(&files);
    let before = agent.idle_usage(&files);
    let mut streams: Vec<_> = (0..200).map(|_| client.open("127.0.0.1", echo).unwrap()).collect();
    for stream in &mut streams {
        stream.write_all(&vec![1; MIB / 8]).unwrap();
        stream.read_exact(&mut vec![0; MIB / 8]).unwrap();
    }
    // Two threads and two sockets a stream, once the threads that wait for jobs have ended.
    agent.wait_for_usage(Usage {
        threads: before.threads + 2 * 200,
        descriptors: before.descriptors + 2 * 200,
    });
    drop(streams);
    agent.wait_for_usage(before);
}
