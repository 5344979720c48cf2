//! Programs that no one here wrote, at either end, and Go's TLS, HTTP and DTLS in two that we did.
//! `tests/needs` installs them.

mod dns;
mod dtls_gnutls;
mod dtls_openssl;
mod dtls_pion;
mod gnutls;
mod go;
mod mappings;
mod openssl;
mod ssh;
mod transfers;

use std::process::{Child, Command};

/// A program of a Debian package. Fails, with how to install it, when it is not there.
pub(crate) fn tool(name: &str, package: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/sbin", "/sbin"]);
    let found = dirs.map(|dir| std::path::Path::new(dir).join(name)).find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| panic!("no {name}: apt-get install -y {package}")))
}

/// A process that ends when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
