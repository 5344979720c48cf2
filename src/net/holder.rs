//! Which process holds a port, for an error message. Linux's `/proc` tells (proc(5)); where it
//! does not, nobody is named.

use std::fmt;
use std::fs;

/// A process that listens on a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name (`comm`), which it chose itself.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name.escape_debug(), self.pid)
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The process that listens on `port` of any local address. `None` when none does, or when it
/// belongs to another user and we may not look.
pub fn holder_of_port(transport: Transport, port: u16) -> Option<Holder> {
    // The states that listening sockets are in: for UDP, not connected.
    let (tables, state) = match transport {
        Transport::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
        Transport::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
    };
    let inodes: Vec<String> = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| inodes_in_state(&table, state, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        fs::read_dir(process.path().join("fd")).ok()?.flatten().find(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
        })?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(Holder { pid, name: name.trim_end().to_owned() })
    })
}

/// Inodes of the sockets on `port` in this state. A line of the table reads
/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`.
fn inodes_in_state(table: &str, state: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
        let listens = fields.nth(1)? == state;
        let inode = fields.nth(5)?.parse().ok()?;
        (listens && u16::from_str_radix(local_port, 16).ok()? == port).then_some(inode)
    };
    table.lines().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn our_own_listener_is_found() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let holder = holder_of_port(Transport::Tcp, listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(!holder.name.is_empty());
    }

    #[test]
    fn only_listening_sockets_of_that_port_count() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:22BA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1
   1: 0100007F:22BA 0100007F:C001 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1
   2: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1
";
        assert_eq!(inodes_in_state(table, "0A", 8890), [4711]);
        assert!(inodes_in_state("nonsense\n1: 2 3\n", "0A", 8890).is_empty());
    }
}
