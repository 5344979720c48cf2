//! ssh through `adit connect` to a real sshd.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use super::{Running, tool};
use crate::support::command::run;
use crate::support::pattern::{MIB, Pattern};
use crate::support::process::AgentProcess;
use crate::support::{PATIENCE, Pki, PkiFiles, destinations};

struct Sshd {
    dir: tempfile::TempDir,
    address: SocketAddr,
    _running: Running,
}

impl Sshd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for key in ["host", "user"] {
            let mut keygen = tool("ssh-keygen", "openssh-client");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(key));
            run(&mut keygen, b"").ok();
        }
        std::fs::copy(path("user.pub"), path("authorized")).unwrap();
        let address = destinations::unused();
        let config = format!(
            "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n",
            path("host").display(),
            path("authorized").display(),
        );
        std::fs::write(path("config"), config).unwrap();
        // Where sshd locks itself in before a login; packages make it at boot.
        drop(std::fs::create_dir_all("/run/sshd"));
        let mut command = tool("sshd", "openssh-server");
        command.arg("-D").arg("-e").arg("-f").arg(path("config"));
        let command = command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        let up = lines.by_ref().map(Result::unwrap).find(|line| line.contains("listening"));
        up.expect("sshd listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { dir, address, _running: Running(child) }
    }

    fn ssh(&self, agent: &AgentProcess, files: &PkiFiles) -> Command {
        let mut command = tool("ssh", "openssh-client");
        let proxy = format!(
            "ProxyCommand={} connect --agent {} {} %h:%p",
            env!("CARGO_BIN_EXE_adit"),
            agent.address,
            files.flags("client").join(" ")
        );
        command.args(["-F", "none", "-o", &proxy, "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]);
        command.args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        command.arg("-o").arg(format!("ConnectTimeout={}", PATIENCE.as_secs()));
        command.arg("-i").arg(self.dir.path().join("user"));
        command.args(["-p", &self.address.port().to_string()]);
        command.arg(self.address.ip().to_string());
        command
    }
}

#[test]
fn ssh_logs_in_and_carries_files_through_the_agent() {
    let files = Pki::new().files();
    let agent = AgentProcess::start(&files, &[]);
    let sshd = Sshd::start();
    let ran = run(sshd.ssh(&agent, &files).arg("echo through; exit 7"), b"");
    assert_eq!((ran.code, ran.text().as_str()), (Some(7), "through\n"), "{ran:?}");
    let data = Pattern::bytes(64 * MIB);
    let ran = run(sshd.ssh(&agent, &files).arg("cat"), &data).ok();
    assert!(ran.out == data, "64 MiB there and back");
    // ssh may end its proxy before the stream has: how it ended is not ours to say.
    agent.wait_for("stream ended id=2 ");
}
