//! `adit pki`: what its commands make, show and refuse.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use adit::cli::pki::{PkiCommand, PkiCommandError, run};
use adit::pki::{Identity, Purpose};
use argh::FromArgs as _;

/// What `adit pki ARGS` prints, or its error.
fn pki(args: &[&str]) -> Result<String, PkiCommandError> {
    let command = PkiCommand::from_args(&["adit", "pki"], args)
        .map_err(|exit| PkiCommandError::Usage(exit.output))?;
    let mut out = Vec::new();
    run(&command, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

struct Set {
    dir: tempfile::TempDir,
}

impl Set {
    fn new() -> Self {
        let set = Self { dir: tempfile::tempdir().unwrap() };
        pki(&["init", &set.path("pki")]).unwrap();
        set
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn identity(&self, pair: &str) -> Identity {
        let file = |name: String| PathBuf::from(self.path(&name));
        Identity::from_files(
            &file("pki/ca.pem".to_owned()),
            &file(format!("pki/{pair}.pem")),
            &file(format!("pki/{pair}-key.pem")),
        )
        .unwrap()
    }
}

fn now() -> std::time::SystemTime {
    adit::lifecycle::clock::wall()
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/godoxy-pki/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn mode(path: &str) -> u32 {
    Path::new(path).metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_set_whose_keys_only_the_owner_reads() {
    let set = Set::new();
    set.identity("server").check(Purpose::Server, now()).unwrap();
    set.identity("client").check(Purpose::Client, now()).unwrap();
    for name in ["ca-key.pem", "server-key.pem", "client-key.pem"] {
        assert_eq!(mode(&set.path(&format!("pki/{name}"))), 0o600, "{name}");
    }
    let names = std::fs::read_dir(set.path("pki")).unwrap();
    assert_eq!(names.count(), 6);
}

#[test]
fn init_never_overwrites() {
    let set = Set::new();
    let before = std::fs::read(set.path("pki/ca-key.pem")).unwrap();
    std::fs::remove_file(set.path("pki/client.pem")).unwrap();
    let error = pki(&["init", &set.path("pki")]).unwrap_err();
    assert!(!error.is_usage());
    assert!(error.to_string().contains("server-key.pem"), "{error}");
    assert_eq!(std::fs::read(set.path("pki/ca-key.pem")).unwrap(), before);
    assert!(!Path::new(&set.path("pki/client.pem")).exists());
}

#[test]
fn init_takes_names_and_days() {
    let set = Set { dir: tempfile::tempdir().unwrap() };
    let dir = set.path("pki");
    let names = ["--name", "box.example.com", "--name", "192.0.2.9", "--client-name", "laptop"];
    pki(&[&["init", &dir, "--days", "365243", "--ca-name", "home"], names.as_slice()].concat())
        .unwrap();
    let shown = pki(&["show", &set.path("pki/server.pem"), &set.path("pki/client.pem")]).unwrap();
    assert!(shown.contains("names    IP 192.0.2.9, DNS box.example.com\n"), "{shown}");
    assert!(shown.contains("subject  O=adit, OU=Client, CN=laptop\n"), "{shown}");
    assert!(shown.contains("issuer   O=adit, CN=home\n"), "{shown}");
    assert!(
        shown.contains("(365242 days left)") || shown.contains("(365243 days left)"),
        "{shown}"
    );
}

#[test]
fn issued_pairs_belong_to_the_set_and_stand_beside_it() {
    let set = Set::new();
    let dir = set.path("pki");
    pki(&["issue", "--dir", &dir, "--client", "alice"]).unwrap();
    set.identity("alice").check(Purpose::Client, now()).unwrap();
    assert_eq!(mode(&set.path("pki/alice-key.pem")), 0o600);
    let error = pki(&["issue", "--dir", &dir, "--client", "alice"]).unwrap_err();
    assert!(error.to_string().contains("nothing is ever overwritten"), "{error}");
    let out = set.path("box");
    let printed = pki(&["issue", "--dir", &dir, "--server", "--out", &out]).unwrap();
    assert_eq!(printed, format!("{out}.pem\n{out}-key.pem\n"));
    // A name cannot lead out of the directory.
    let printed = pki(&["issue", "--dir", &dir, "--client", "../../etc/x"]).unwrap();
    assert!(printed.starts_with(&format!("{dir}/_._.._etc_x.pem")), "{printed}");
}

#[test]
fn issue_asks_for_what_is_missing() {
    let set = Set::new();
    let dir = set.path("pki");
    for args in [
        vec!["issue", "--dir", &dir, "alice"],
        vec!["issue", "--dir", &dir, "--client", "--server", "alice"],
        vec!["issue", "--dir", &dir, "--client"],
        vec!["issue", "--dir", &dir, "--client", "alice", "--days", "0"],
        vec!["issue", "--dir", &dir, "--client", "alice", "--days", "99999"],
        vec!["issue", "--dir", &dir, "--server", "no host"],
        vec!["show"],
    ] {
        let error = pki(&args).unwrap_err();
        assert!(error.is_usage(), "{args:?}: {error}");
    }
    let error = pki(&["issue", "--dir", "/nonexistent", "--server"]).unwrap_err();
    assert!(!error.is_usage() && error.to_string().contains("/nonexistent/ca.pem"), "{error}");
}

#[test]
fn env_lines_load_with_and_without_the_ca_key() {
    let set = Set::new();
    let dir = set.path("pki");
    for (flag, ca_key) in [(None, true), (Some("--no-ca-key"), false)] {
        let args: Vec<&str> = ["env", &dir].into_iter().chain(flag).collect();
        let text = pki(&args).unwrap();
        let value = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
        };
        let ca = value("AGENT_CA_CERT=");
        assert_eq!(!ca.ends_with(';'), ca_key);
        let identity = Identity::from_pairs(&ca, &value("AGENT_SSL_CERT=")).unwrap();
        identity.check(Purpose::Server, now()).unwrap();
        assert_eq!(identity.chain, set.identity("server").chain);
    }
    std::fs::remove_file(set.path("pki/ca-key.pem")).unwrap();
    let error = pki(&["env", &dir]).unwrap_err().to_string();
    assert!(error.contains("--no-ca-key"), "{error}");
}

#[test]
fn env_refuses_a_clients_pair() {
    let set = Set::new();
    let error = pki(&["env", &set.path("pki"), "--pair", &set.path("pki/client")]).unwrap_err();
    assert!(error.to_string().contains("for clients only"), "{error}");
}

#[test]
fn a_zip_holds_the_clients_side_and_is_not_overwritten() {
    let set = Set::new();
    let (dir, out) = (set.path("pki"), set.path("box.zip"));
    pki(&["zip", &dir, "--out", &out]).unwrap();
    assert_eq!(mode(&out), 0o600);
    let identity = Identity::from_zip(Path::new(&out)).unwrap();
    identity.check(Purpose::Client, now()).unwrap();
    assert_eq!(identity.chain, set.identity("client").chain);
    let before = std::fs::read(&out).unwrap();
    assert!(pki(&["zip", &dir, "--out", &out]).is_err());
    assert_eq!(std::fs::read(&out).unwrap(), before);
}

#[test]
fn show_tells_the_same_of_pem_environment_pair_and_zip() {
    let set = Set::new();
    let dir = set.path("pki");
    let text = pki(&["env", &dir]).unwrap();
    let env = set.path("agent.env");
    std::fs::write(&env, format!("# the agent\nAGENT_NAME=box\n{text}")).unwrap();
    let zip = set.path("box.zip");
    pki(&["zip", &dir, "--out", &zip]).unwrap();
    let pair = text.lines().nth(1).unwrap();
    let bare = pair.strip_prefix("AGENT_SSL_CERT=").unwrap();

    let fingerprint = |of: &str| {
        let text = pki(&["show", "--json", &set.path(&format!("pki/{of}.pem"))]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[0]["certificates"][0]["sha256"].as_str().unwrap().to_owned()
    };
    let (ca, server, client) = (fingerprint("ca"), fingerprint("server"), fingerprint("client"));
    for (what, expected) in [
        (env.as_str(), vec![&ca, &server]),
        (pair, vec![&server]),
        (bare, vec![&server]),
        (zip.as_str(), vec![&ca, &client]),
    ] {
        let shown = pki(&["show", what]).unwrap();
        let found: Vec<&str> =
            shown.lines().filter_map(|line| line.strip_prefix("    SHA-256  ")).collect();
        assert_eq!(found, expected, "{shown}");
        assert!(shown.contains("ECDSA P-256 (belongs to certificate 1)"), "{shown}");
        assert!(!shown.contains("NO certificate"), "{shown}");
    }
}

#[test]
fn show_reads_the_files_of_a_go_deployment() {
    let shown = pki(&["show", &fixture("agent.env"), &fixture("client.pem")]).unwrap();
    assert!(shown.contains("agent.env: AGENT_CA_CERT\n"), "{shown}");
    assert_eq!(shown.matches("until    3026-11-21 01:29:07 UTC (").count(), 3, "{shown}");
    assert!(shown.contains("serial   17:8c:a3:7f:d4:9e:b7:51:46:f2:75:f5:af:e8:07:9d"), "{shown}");
    assert!(shown.contains("use      server\n") && shown.contains("use      client\n"));
    assert!(pki(&["show", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]).is_err());
}

/// OpenSSL's own program, which shares nothing with what issued these.
#[cfg(feature = "peers")]
mod openssl_program {
    use super::*;

    fn openssl(args: &[&str]) -> (bool, String) {
        let output = std::process::Command::new("openssl").args(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    fn verifies_a_set_for_its_uses_only() {
        let set = Set::new();
        let ca = set.path("pki/ca.pem");
        for (pair, good, bad) in
            [("server", "sslserver", "sslclient"), ("client", "sslclient", "sslserver")]
        {
            let cert = set.path(&format!("pki/{pair}.pem"));
            let verify = |purpose: &str, ca: &str| {
                openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, &cert])
            };
            let (good, text) = verify(good, &ca);
            assert!(good, "{text}");
            assert!(!verify(bad, &ca).0);
            assert!(!verify("any", &fixture("ca.pem")).0);
        }
        let server = set.path("pki/server.pem");
        let name = ["verify", "-CAfile", &ca, "-verify_hostname", "godoxy.agent", &server];
        assert!(openssl(&name).0);
    }

    #[test]
    fn verifies_what_the_ca_of_a_go_deployment_issues() {
        let set = Set { dir: tempfile::tempdir().unwrap() };
        let out = set.path("box");
        let dir = fixture("");
        pki(&["issue", "--dir", &dir, "--server", "--out", &out]).unwrap();
        let (good, text) =
            openssl(&["verify", "-CAfile", &fixture("ca.pem"), &format!("{out}.pem")]);
        assert!(good, "{text}");
    }

    #[test]
    fn shows_the_same_fingerprint() {
        let server = fixture("server.pem");
        let (_, text) = openssl(&["x509", "-noout", "-fingerprint", "-sha256", "-in", &server]);
        let (_, fingerprint) = text.trim().split_once('=').unwrap();
        assert!(pki(&["show", &server]).unwrap().contains(fingerprint));
    }
}
