use super::*;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

fn soon() -> Deadline {
    Deadline::after("dial", Duration::from_secs(60))
}

fn any(_: SocketAddr) -> bool {
    true
}

fn listener(on: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((on, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address of this machine where nobody listens: its port is held by a socket that only binds.
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A listener that drops every SYN: it has room for one connection nobody accepts, and has it.
struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _filler: TcpStream,
}

fn black_hole() -> BlackHole {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 9), 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let filler = TcpStream::connect(address).unwrap();
    // Readable is when the connection has reached the queue, which is now full.
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::NONE).unwrap(), 1);
    BlackHole { address, _listener: socket, _filler: filler }
}

#[test]
fn a_literal_of_either_family_is_reached_and_the_stream_is_tuned_and_blocking() {
    for host in ["127.0.0.1", "::1", "[::1]", "::1%lo", "::ffff:127.0.0.1"] {
        let on = if host.contains("127") { "127.0.0.1" } else { "::1" };
        let (listener, address) = listener(on);
        let mut stream = dial(host, address.port(), &any, &soon()).unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(socket2::SockRef::from(&stream).keepalive().unwrap());
        listener.accept().unwrap().0.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
    }
}

#[test]
fn localhost_is_reached_whichever_family_listens() {
    for on in ["127.0.0.1", "::1"] {
        let (_listener, address) = listener(on);
        let stream = dial("localhost", address.port(), &any, &soon());
        // Not every machine names ::1 localhost; where it does, both must work.
        if on == "127.0.0.1" || stream.is_ok() {
            assert_eq!(stream.unwrap().peer_addr().unwrap(), address);
        }
    }
}

#[test]
fn a_refused_connection_names_its_address() {
    let (_held, address) = refusing();
    let error = dial("127.0.0.1", address.port(), &any, &soon()).unwrap_err();
    let DialError::Connect(failed) = &error else { panic!("{error:?}") };
    assert_eq!(failed[0].0, address);
    assert_eq!(failed[0].1.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")), "{error}");
}

#[test]
fn a_refused_address_gives_way_to_the_next() {
    let (_held, dead) = refusing();
    let (_listener, alive) = listener("::1");
    assert_eq!(connect(&[dead, alive], &soon()).unwrap().peer_addr().unwrap(), alive);
}

#[test]
fn a_black_holed_address_gives_way_to_the_next() {
    let hole = black_hole();
    let (_listener, alive) = listener("127.0.0.1");
    assert_eq!(connect(&[hole.address, alive], &soon()).unwrap().peer_addr().unwrap(), alive);
}

#[test]
fn a_black_holed_destination_ends_with_the_deadline() {
    let hole = black_hole();
    let (_held, dead) = refusing();
    let short = Deadline::after("dial", Duration::from_millis(30));
    let error = connect(&[dead, hole.address], &short).unwrap_err();
    let DialError::TimedOut { phase: Phase::Connecting { waiting, failed }, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((waiting.as_slice(), failed[0].0), ([hole.address].as_slice(), dead));
    let text = format!("connecting to {}: dial timed out after 30ms; before that ", hole.address);
    assert!(error.to_string().starts_with(&text), "{error}");
}

#[test]
fn more_dead_addresses_than_may_be_tried_at_once_are_all_tried() {
    let (_held, dead) = refusing();
    let mut addresses = vec![dead; CONCURRENT * 2];
    let (_listener, alive) = listener("127.0.0.1");
    addresses.push(alive);
    assert_eq!(connect(&addresses, &soon()).unwrap().peer_addr().unwrap(), alive);
}

#[test]
fn the_permit_sees_every_resolved_address_and_its_refusal_is_final() {
    let (_listener, address) = listener("127.0.0.1");
    // The spellings that only the resolver understands, too.
    for host in ["localhost", "127.0.0.1", "::ffff:127.0.0.1", "0x7f.1", "2130706433", "127.1"] {
        let permit = |address: SocketAddr| !address.ip().is_loopback();
        let error = dial(host, address.port(), &permit, &soon()).unwrap_err();
        let DialError::Denied(denied) = &error else { panic!("{host} gave {error:?}") };
        assert!(denied.iter().all(|address| address.ip().is_loopback()));
    }
}

#[test]
fn only_permitted_addresses_are_dialled() {
    let (_listener, address) = listener("127.0.0.1");
    let stream = dial("localhost", address.port(), &|a| a.is_ipv4(), &soon()).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), address);
}

#[test]
fn families_take_turns_beginning_with_the_preferred_one() {
    let all = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"];
    let all: Vec<SocketAddr> = all.iter().map(|text| text.parse().unwrap()).collect();
    let turns: Vec<_> = interleave(&all).iter().map(ToString::to_string).collect();
    assert_eq!(turns, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
    assert!(interleave(&[]).is_empty());
}

#[test]
fn a_list_of_many_addresses_is_shown_in_part() {
    let many: Vec<SocketAddr> =
        (0..9).map(|n| SocketAddr::from((Ipv4Addr::new(10, 0, 0, n), 1))).collect();
    assert_eq!(
        DialError::Denied(many).to_string(),
        "destination rules deny 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3 and 5 more"
    );
}

#[test]
fn waiting_never_rounds_down_to_spinning() {
    assert_eq!(timeout(Duration::from_nanos(1)), PollTimeout::from(1u8));
    assert_eq!(timeout(Duration::ZERO), PollTimeout::ZERO);
    assert_eq!(timeout(Duration::MAX), PollTimeout::MAX);
}
