//! Floor 2: sockets. Dialling within a deadline, binding, and the options every stream gets.

mod conn;
pub mod dial;
mod half;
pub mod holder;
pub mod listen;
pub mod options;
pub mod resolve;
pub mod udp;

pub use conn::{Conn, IDLE_AFTER, TcpSink, TcpSource};
pub use dial::{DialError, Phase, dial, dial_udp};
pub use half::{Buffer, Event, LARGE, SMALL, Sink, Source};
pub use listen::{BindError, ListenAddr, bind_tcp};
pub use options::tune;
