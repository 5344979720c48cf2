//! `adit pki show`: what certificates say, wherever they are.

use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use serde::Serialize;

use super::PkiCommandError;
use crate::cli::printable;
use crate::pki::{
    Blocks, Description, Fault, IdentityError, MEMBERS, Place, decode_pair, describe_key,
    key_belongs_to, parse_key, read_bounded, read_zip, utc,
};

/// Show the certificates in PEM files, environment files, zip files, or a variable's value.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "show")]
pub struct ShowCommand {
    /// PEM file, file of AGENT_…= lines, zip file, or a base64;base64 pair
    #[argh(positional, arg_name = "what")]
    pub what: Vec<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// One place and what it holds.
#[derive(Debug, Serialize)]
struct Shown {
    place: String,
    certificates: Vec<Certificate>,
    keys: Vec<Key>,
}

#[derive(Debug, Serialize)]
struct Certificate {
    #[serde(flatten)]
    description: Description,
    /// Whole days until the validity ends; negative when it has ended.
    days_left: i64,
}

#[derive(Debug, Serialize)]
struct Key {
    kind: String,
    /// Number, from 1, of the certificate of this place that the key belongs to.
    certificate: Option<usize>,
}

impl ShowCommand {
    pub(super) fn run(&self, now: SystemTime, out: &mut dyn Write) -> Result<(), PkiCommandError> {
        if self.what.is_empty() {
            return Err(super::usage("name a PEM, environment or zip file to show"));
        }
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let mut all = Vec::new();
        for what in &self.what {
            all.append(&mut read(what, now)?);
        }
        if self.json {
            let text = serde_json::to_string_pretty(&all).map_err(std::io::Error::other)?;
            writeln!(out, "{text}")?;
        } else {
            for (index, shown) in all.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                shown.print(out)?;
            }
        }
        Ok(())
    }
}

/// Everything in one argument, whatever form it has.
fn read(what: &str, now: i64) -> Result<Vec<Shown>, PkiCommandError> {
    let path = Path::new(what);
    if what.contains(';') && !path.exists() {
        let value = what.split_once('=').filter(|(name, _)| is_variable(name));
        return Ok(vec![pair(value.map_or(what, |(_, value)| value), "the pair", now)?]);
    }
    let bytes = read_bounded(path)?;
    if bytes.starts_with(ZIP) {
        let texts = read_zip(path, &bytes)?;
        // The key of a zip belongs to the certificate beside it, so the two are shown together.
        let [ca, certificate, key] = &texts;
        let [ca_name, certificate_name, key_name] = MEMBERS;
        let place = |name| Place::Member(path.to_owned(), name);
        let ca = Shown::of(&place(ca_name), &[ca], now)?;
        let mut own = Shown::of(&place(certificate_name), &[certificate, b"\n", key], now)?;
        own.place.push_str(" and ");
        own.place.push_str(key_name);
        return Ok(vec![ca, own]);
    }
    let place = Place::File(path.to_owned());
    let shown = Shown::of(&place, &[&bytes], now)?;
    if !shown.certificates.is_empty() || !shown.keys.is_empty() {
        return Ok(vec![shown]);
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut all = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else { continue };
        if is_variable(name) && value.contains(';') {
            let value = value.trim().trim_matches(['"', '\'']);
            all.push(pair(value, &format!("{place}: {name}"), now)?);
        }
    }
    if all.is_empty() && text.contains(';') {
        all.push(pair(text.trim(), &place.to_string(), now)?);
    }
    if all.is_empty() {
        return Err(PkiCommandError::Nothing(place.to_string()));
    }
    Ok(all)
}

/// How a zip file begins: the signature of a local file header.
const ZIP: &[u8] = b"PK\x03\x04";

/// Whether a line's left side is the name of a variable and not the end of base64.
fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

fn pair(value: &str, label: &str, now: i64) -> Result<Shown, PkiCommandError> {
    let place = Place::Given("the pair");
    let (certificate, key) = decode_pair(&place, value)?;
    let mut shown = Shown::of(&place, &[&certificate, b"\n", &key], now)?;
    shown.place = label.to_owned();
    Ok(shown)
}

impl Shown {
    fn of(place: &Place, texts: &[&[u8]], now: i64) -> Result<Self, PkiCommandError> {
        let blocks = Blocks::parse(place, &texts.concat())?;
        let fail = |fault| IdentityError { place: place.clone(), fault };
        let mut certificates = Vec::new();
        for certificate in &blocks.certificates {
            let description =
                Description::of(certificate).map_err(|error| fail(Fault::BadCertificate(error)))?;
            let days_left = description.not_after.saturating_sub(now).div_euclid(DAY);
            certificates.push(Certificate { description, days_left });
        }
        let mut keys = Vec::new();
        for key in &blocks.keys {
            let key = parse_key(key).map_err(|error| fail(Fault::BadKey(error.into())))?;
            let own = |certificate| key_belongs_to(&key, certificate).unwrap_or(false);
            let certificate = blocks.certificates.iter().position(own).map(|index| index + 1);
            keys.push(Key { kind: describe_key(&key), certificate });
        }
        if blocks.encrypted_key {
            keys.push(Key { kind: "encrypted".to_owned(), certificate: None });
        }
        Ok(Self { place: place.to_string(), certificates, keys })
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "{}", self.place)?;
        for (index, certificate) in self.certificates.iter().enumerate() {
            let Certificate { description, days_left } = certificate;
            let list = |items: &[String], none: &str| match items {
                [] => none.to_owned(),
                items => items.join(", "),
            };
            let left = match days_left {
                days @ 0.. => format!("{days} days left"),
                days => format!("EXPIRED {} days ago", days.unsigned_abs()),
            };
            writeln!(out, "  certificate {}", index + 1)?;
            for (label, text) in [
                ("subject", description.subject.clone()),
                ("names", list(&description.names, "none")),
                ("use", list(&description.uses, "not restricted")),
                ("issuer", description.issuer.clone()),
                ("serial", description.serial.clone()),
                ("key", description.key.clone()),
                ("from", utc(description.not_before)),
                ("until", format!("{} ({left})", utc(description.not_after))),
                ("SHA-256", description.sha256.clone()),
            ] {
                writeln!(out, "    {label:8} {}", printable(&text))?;
            }
        }
        for key in &self.keys {
            let owner = match key.certificate {
                Some(number) => format!("belongs to certificate {number}"),
                None if self.certificates.is_empty() => "no certificate beside it".to_owned(),
                None => "belongs to NO certificate here".to_owned(),
            };
            writeln!(out, "  private key\n    key      {} ({owner})", key.kind)?;
        }
        Ok(())
    }
}

const DAY: i64 = 24 * 60 * 60;
