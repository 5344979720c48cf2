//! adit: reach any TCP or UDP service of a small box through one mutually authenticated port.
//!
//! This page is the map of the house. What the program does for its users is in the README and the
//! manual pages.
//!
//! # Rooms, by floor
//!
//! A room imports only from floors below it, so each can be read, tested and trusted without those
//! above.
//!
//! ```text
//!  5   main.rs ── cli       flags, environment, signals, logger → one run → exit code
//!                  │
//!      ┌───────────┴───────────┐
//!  4   agent                   client
//!      accept, ALPN, rules,    dial through an agent,
//!      streams, HTTP API       probe, what is it?
//!      └───────────┬───────────┘
//!      ┌───────────┼───────────┬────────────────────────┐
//!  3   relay       tls ──────→ http                     dtls
//!      two-way     one TLS     requests and answers     sessions of
//!      copy with   connection  over any connection      datagrams, many
//!      half-close  as halves   (tls implements it)      on one socket
//!      └───────────┼───────────┴────────────────────────┘
//!      ┌───────────┴───────────┐
//!  2   net                     pki
//!      dial, listen, options,  identities, authorities,
//!      halves of a socket,     bundles, names
//!      sockets for datagrams
//!      └───────────┬───────────┘
//!  1   wire                    pure codecs: the stream header, what a DTLS record shows
//!                  │
//!  0   lifecycle               stop, threads, clock, slots, floods
//! ```
//!
//! | floor | room | its main types |
//! |---|---|---|
//! | 5 | [`cli`] | [`cli::main`], [`cli::Exit`] |
//! | 4 | [`agent`] | [`agent::Agent`], [`agent::Services`], [`agent::Limits`], [`agent::policy::Policy`], [`agent::api::Api`], [`agent::health::Health`] |
//! | 4 | [`client`] | [`client::Client`], [`client::UdpStream`], [`client::Probe`], [`client::Info`], [`client::Capabilities`] |
//! | 3 | [`relay`] | [`relay::Relay`], [`relay::Report`] |
//! | 3 | [`http`] | [`http::serve`], [`http::Request`], [`http::Response`], [`http::Connection`] |
//! | 3 | [`tls`] | [`tls::accept`], [`tls::connect`], [`tls::TlsStream`] |
//! | 3 | [`dtls`] | [`dtls::Listener`], [`dtls::Session`], [`dtls::Consumer`], [`dtls::connect`], [`dtls::ClientSession`] |
//! | 2 | [`net`] | [`net::dial()`], [`net::Conn`], [`net::Source`], [`net::Sink`], [`net::ListenAddr`], [`net::udp`] |
//! | 2 | [`pki`] | [`pki::Identity`], [`pki::Authority`], [`pki::NameRules`], [`pki::provider`] |
//! | 1 | [`wire`] | [`wire::header`], [`wire::dtls`] |
//! | 0 | [`lifecycle`] | [`lifecycle::Stop`], [`lifecycle::Deadline`], [`lifecycle::Slots`], [`lifecycle::Flood`], [`lifecycle::threads`] |
//!
//! `agent` and `client` do not know each other. Nothing below floor 5 reads flags, environment or
//! signals, and nothing there prints, so everything can run twice in one process, as the tests and
//! the demo do. `wire`, the rules of `agent::policy` and the messages of `http` are pure: slices
//! and values in, values out, no clock, socket or log.
//!
//! # Journeys
//!
//! **A stream through the agent.** The acceptor, one thread, polls listeners, stop flag and the
//! lobby, where connections wait until their first bytes arrive. One that has spoken takes its
//! slots and a thread (`agent-7`): [`tls::accept`] under a deadline, ALPN, [`wire::header::read`],
//! [`agent::policy::Policy::check_name`], [`net::dial()`] with
//! [`agent::policy::Policy::permits`] for each address, then [`relay::Relay::run`] on two threads
//! of another [`lifecycle::threads::Group`] (`agent-7-up`, `agent-7-down`), whose stacks never saw
//! a handshake. The slots are free when the last of them is done; a thread without work waits half
//! a second for more.
//!
//! **Datagrams through the agent.** Each UDP socket has one thread that receives (`udp-0`, a
//! [`dtls::Listener`]). A datagram of an address with a session goes to that. A ClientHello from
//! elsewhere is answered with a cookie, which costs nothing that stays; who brings the cookie back
//! gets a [`dtls::Session`], its slots and a thread (`agent-8`): handshake under a deadline, the
//! header in a datagram of its own, the rules, a connected socket of the destination. From then on
//! what the client sends is decrypted and passed on by the thread that receives, which never waits
//! for it; another thread (`agent-8-udp`) carries what the destination sends. `udp-janitor` ends
//! the sessions through which nothing passes.
//!
//! **A call of the HTTP API.** The same until ALPN, which says `http/1.1` or nothing: then
//! [`http::serve`] answers on that thread, with [`agent::api::Api::answer`].
//!
//! **A probe.** The client sends a header with [`wire::header::FLAG_PROBE`] and waits for the
//! agent's close: under TLS 1.3 a refused certificate shows no earlier. Nothing is dialled.
//! [`client::Client::capabilities`] asks the API first and then probes both transports at once.
//!
//! **`adit connect`.** [`client::Client::open`] dials the agent and sends the header; the two
//! halves of the stream are piped to standard input and output by a thread each. With `--udp` it is
//! [`client::Client::udp`], a codec tells datagrams apart in what the two threads read and write,
//! and the main thread watches for a silence after the end of input.
//!
//! **Stopping.** A signal raises a [`lifecycle::Stop`]. The acceptor sees it in its poll and
//! returns; connections that carry no stream end, and so do UDP sessions, whose clients are told;
//! TCP streams go on until the drain time is over or a second signal comes. The rest is cut: their
//! sockets are aborted, which wakes their threads, and [`agent::Summary`] names them.
//!
//! # One TLS connection, two threads
//!
//! [`tls::TlsStream::split`] gives a [`net::Source`] and a [`net::Sink`]. The reader waits on the
//! socket with no lock held and locks the TLS state only to decrypt; the writer locks it only to
//! encrypt and sends with a lock of its own. Records that reading produces (alerts, key updates)
//! leave through the writer's path, in order.
//!
//! # One DTLS session, two threads
//!
//! A [`dtls::Session`] locks OpenSSL's state for a datagram at a time, in or out, and never while
//! it waits. The thread that receives for all sessions only ever finds the lock taken by one that
//! encrypts a datagram and sends it without waiting.
//!
//! # What a stranger can use
//!
//! Silent connections: a descriptor each, 1024 of them. Handshakes: [`agent::Limits::handshakes`],
//! a quarter for one source. Over UDP the bytes of an answer that is shorter than its question, and
//! nothing else before the cookie; then the same number of handshakes. Log lines: a
//! [`lifecycle::Flood`] for each kind. A thread only after the first byte, and a destination only
//! after a verified certificate.

pub mod agent;
pub mod cli;
pub mod client;
pub mod dtls;
pub mod http;
pub mod lifecycle;
pub mod net;
pub mod pki;
pub mod relay;
pub mod tls;
pub mod wire;
