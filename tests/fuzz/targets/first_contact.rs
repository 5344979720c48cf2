//! A stranger's datagrams: the input as it is; and, since no fuzzer guesses a cookie, as the rest
//! of a ClientHello with the right one and as what follows it. Answers go over loopback.
#![no_main]

use std::cell::RefCell;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adit::dtls::{FirstContact, ServerContext};
use adit::lifecycle::Deadline;
use adit::net::udp::{Route, UdpPort};
use adit::pki::{Authority, NameRules, Purpose, Request, Validity};
use libfuzzer_sys::fuzz_target;

struct Place {
    contact: FirstContact,
    client: UdpSocket,
    route: Route,
    plain: Vec<u8>,
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(Place::new());
}

/// Of a ClientHello with an empty session id: where its cookie's length stands.
const COOKIE_AT: usize = 60;

/// A ClientHello as OpenSSL's client sends it, with one suite and the groups and signatures for it.
fn hello(cookie: &[u8], rest: Option<&[u8]>) -> Vec<u8> {
    const REST: [u8; 36] = [
        0, 2, 0xc0, 0x2b, 1, 0, 0, 28, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 6, 0,
        4, 4, 3, 8, 4, 0, 23, 0, 0,
    ];
    let number = u8::from(!cookie.is_empty());
    let mut bytes = vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, number, 0, 0];
    bytes.extend([1, 0, 0, 0, 0, number, 0, 0, 0, 0, 0, 0, 0xfe, 0xfd]);
    bytes.extend([0x5a; 32]);
    bytes.push(0);
    bytes.push(cookie.len() as u8);
    bytes.extend(cookie);
    bytes.extend(rest.unwrap_or(&REST));
    for (at, less) in [(11, 13), (15, 25), (23, 25)] {
        let length = (bytes.len() - less) as u16;
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

impl Place {
    fn new() -> Self {
        let validity = Validity::days(SystemTime::now(), 9);
        let authority = Authority::create("fuzz", validity).unwrap();
        let validity = Validity::days(SystemTime::now(), 8);
        let names = vec!["godoxy.agent".to_owned()];
        let request = Request { purpose: Purpose::Server, names, validity };
        let identity = authority.identity(&request).unwrap();
        let context = ServerContext::new(&identity, NameRules::default()).unwrap();
        let port = UdpPort::bind(&"127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let route = Route { peer: client.local_addr().unwrap(), local: None };
        let contact = FirstContact::new(Arc::new(port), context);
        Self { contact, client, route, plain: vec![0; 16_384] }
    }

    /// What was answered, until now.
    fn answers(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = [0; 65_536];
        self.client.set_nonblocking(true).unwrap();
        while let Ok(size) = self.client.recv(&mut buffer) {
            all.push(buffer[..size].to_vec());
        }
        all
    }

    fn cookie(&mut self) -> Vec<u8> {
        loop {
            assert!(self.contact.meet(&hello(&[], None), self.route).is_none());
            let answers = self.answers();
            // Of so many strangers not all are answered.
            let Some(answer) = answers.first() else { continue };
            assert_eq!(answers.len(), 1, "one answer to one hello");
            assert_eq!(answer[13], 3, "with a cookie");
            return answer[13 + 12 + 3..].to_vec();
        }
    }
}

fuzz_target!(|data: &[u8]| {
    PLACE.with_borrow_mut(|place| {
        let route = place.route;
        assert!(place.contact.meet(data, route).is_none(), "a guessed cookie");
        let sent: usize = place.answers().iter().map(Vec::len).sum();
        assert!(sent <= data.len(), "{sent} bytes for {}", data.len());

        let cookie = place.cookie();
        let (first, rest) = data.split_at(data.len() / 2);
        for hello in [hello(&cookie, Some(data)), hello(&cookie, None)] {
            assert_eq!(usize::from(hello[COOKIE_AT]), cookie.len());
            let Some(session) = place.contact.meet(&hello, route) else { continue };
            for datagram in [first, rest] {
                session.arrived(datagram, &mut place.plain);
            }
            let now = Deadline::after("handshake", Duration::ZERO);
            assert!(session.handshake(&now).is_err(), "a handshake without a key");
        }
        place.answers();
    });
});
