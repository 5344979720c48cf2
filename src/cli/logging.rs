//! The logger: one line per event on standard error, in the form that its reader wants.

use std::fmt;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::SystemTime;

use log::{Level, Record, SetLoggerError};
use nix::sys::stat::fstat;

use crate::lifecycle::clock;

/// What is logged when neither flags nor environment say so: streams that open and end, and
/// everything an operator should act on.
const DEFAULT_FILTER: &str = "info";

/// Who reads the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// The systemd journal: it has its own clock and takes the level from a `<N>` prefix
    /// (sd-daemon(3)).
    Journal,
    /// Anyone else.
    Stream,
}

/// Starts logging to standard error what `filter` lets through (see [`filter()`]). Fails when a
/// logger is set already.
pub fn init(filter: &str) -> Result<(), SetLoggerError> {
    let variable = |name| std::env::var(name).ok();
    let reader = reader(variable("JOURNAL_STREAM").as_deref(), stderr_device_and_inode());
    env_logger::Builder::new()
        .parse_filters(filter)
        .format(move |out, record| writeln!(out, "{}", line(reader, record, clock::wall())))
        .try_init()
}

/// What is logged, in env_logger's syntax: with `quiet`, warnings and errors; with `verbose` 1, also
/// this program's own debug lines; from 2 on, everything. Without these flags `ADIT_LOG` decides,
/// or else `RUST_LOG` as far as it says something of this program, or else `info`. A variable that
/// is empty counts as not set.
///
/// # Errors
/// `ADIT_LOG` has a word that is neither a level nor a module of this program: it would silence
/// everything, errors too.
pub fn filter(
    quiet: bool,
    verbose: u8,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    match (quiet, verbose) {
        (true, _) => return Ok("warn".to_owned()),
        (false, 0) => {}
        (false, 1) => return Ok(format!("{DEFAULT_FILTER},adit=debug")),
        (false, _) => return Ok("trace".to_owned()),
    }
    let variable = |name| env(name).filter(|value| !value.trim().is_empty());
    if let Some(own) = variable("ADIT_LOG") {
        let wrong = directives(&own).find(|word| !word.contains('=') && !is_ours(word));
        return match wrong.map(str::to_owned) {
            Some(word) => Err(format!(
                "ADIT_LOG: {word:?} is no level (error, warn, info, debug, trace, off)"
            )),
            None => Ok(own),
        };
    }
    let shared = variable("RUST_LOG").filter(|value| directives(value).any(is_ours));
    Ok(shared.unwrap_or_else(|| DEFAULT_FILTER.to_owned()))
}

/// The parts of a filter without its regular expression.
fn directives(filter: &str) -> impl Iterator<Item = &str> {
    let list = filter.split('/').next().unwrap_or_default();
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// Whether a directive is a level for everything, or names this program or a part of it.
fn is_ours(directive: &str) -> bool {
    let module = directive.split('=').next().unwrap_or_default().trim();
    directive.parse::<log::LevelFilter>().is_ok()
        || module == "adit"
        || module.starts_with("adit::")
}

/// systemd sets `JOURNAL_STREAM` to the device and inode of the stream it connects to the journal;
/// a child or a redirection may have replaced that stream (systemd.exec(5)).
fn reader(journal_stream: Option<&str>, stderr: Option<(u64, u64)>) -> Reader {
    let named = journal_stream
        .and_then(|text| text.split_once(':'))
        .and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    if named.is_some() && named == stderr { Reader::Journal } else { Reader::Stream }
}

fn stderr_device_and_inode() -> Option<(u64, u64)> {
    fstat(std::io::stderr().as_fd()).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// One record as one line, without its end.
///
/// Lines from other crates and below `info` also tell the module they come from.
fn line(reader: Reader, record: &Record<'_>, now: SystemTime) -> String {
    let message = OneLine(record.args());
    let target = record.target();
    let own = target == "adit" || target.starts_with("adit::");
    let origin =
        if own && record.level() <= Level::Info { String::new() } else { format!("{target}: ") };
    match reader {
        Reader::Journal => format!("<{}>{origin}{message}", priority(record.level())),
        Reader::Stream => {
            let now = humantime::format_rfc3339_millis(now);
            format!("{now} {:5} {origin}{message}", record.level())
        }
    }
}

/// The syslog priority of a level (RFC 5424, section 6.2.1).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A message whose control characters are escaped. Text from peers arrives escaped already; this
/// keeps a forgotten one from forging lines or driving a terminal.
struct OneLine<'a>(&'a fmt::Arguments<'a>);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        for part in text.split_inclusive(char::is_control) {
            match part.char_indices().next_back() {
                Some((at, last)) if last.is_control() => {
                    f.write_str(part.get(..at).unwrap_or_default())?;
                    write!(f, "{}", last.escape_debug())?;
                }
                _ => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn written(reader: Reader, level: Level, target: &str, message: &str) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        let args = format_args!("{message}");
        line(reader, &Record::builder().level(level).target(target).args(args).build(), now)
    }

    #[test]
    fn a_stream_gets_utc_times_and_the_journal_gets_priorities() {
        let text = written(Reader::Stream, Level::Warn, "adit::agent", "disk full");
        assert_eq!(text, "2026-01-02T03:04:05.678Z WARN  disk full");
        for (level, expected) in [
            (Level::Error, "<3>x"),
            (Level::Warn, "<4>x"),
            (Level::Info, "<6>x"),
            (Level::Debug, "<7>adit::agent: x"),
            (Level::Trace, "<7>adit::agent: x"),
        ] {
            assert_eq!(written(Reader::Journal, level, "adit::agent", "x"), expected);
        }
    }

    #[test]
    fn lines_of_other_crates_name_them() {
        assert_eq!(written(Reader::Journal, Level::Info, "aditional", "x"), "<6>aditional: x");
    }

    #[test]
    fn a_message_is_one_line_and_cannot_drive_a_terminal() {
        let text = written(Reader::Journal, Level::Info, "adit", "a\nb\r\u{1b}[2J\u{85}é\"");
        assert_eq!(text, "<6>a\\nb\\r\\u{1b}[2J\\u{85}é\"");
    }

    #[test]
    fn the_journal_is_recognised_by_the_stream_it_gave() {
        assert_eq!(reader(Some("8:1234"), Some((8, 1234))), Reader::Journal);
        for (variable, stderr) in [
            (Some("8:1234"), Some((8, 1235))),
            (Some("8:1234"), None),
            (Some("8"), Some((8, 1234))),
            (Some("x:y"), None),
            (None, Some((8, 1234))),
            (None, None),
        ] {
            assert_eq!(reader(variable, stderr), Reader::Stream, "{variable:?}");
        }
    }

    #[test]
    fn flags_win_over_the_environment() {
        let env = |name: &str| (name == "ADIT_LOG").then(|| "adit=trace".to_owned());
        assert_eq!(filter(false, 0, &|_| None).unwrap(), "info");
        assert_eq!(filter(false, 0, &env).unwrap(), "adit=trace");
        assert_eq!(filter(true, 0, &env).unwrap(), "warn");
        assert_eq!(filter(false, 1, &env).unwrap(), "info,adit=debug");
        assert_eq!(filter(false, 2, &env).unwrap(), "trace");
    }

    #[test]
    fn a_word_that_would_silence_everything_is_refused() {
        let with =
            |value: &'static str| move |name: &str| (name == "ADIT_LOG").then(|| value.to_owned());
        for wrong in ["warning", "inf", "1", "\"info\"", "info,verbose"] {
            assert!(filter(false, 0, &with(wrong)).unwrap_err().contains("is no level"), "{wrong}");
        }
        for right in ["WARN", "off", "info,rustls=debug", "adit", "adit::agent=trace/peer"] {
            assert_eq!(filter(false, 0, &with(right)).unwrap(), right);
        }
        assert_eq!(filter(false, 0, &with(" ")).unwrap(), "info");
    }

    #[test]
    fn what_others_want_logged_of_themselves_silences_nothing_here() {
        let with =
            |value: &'static str| move |name: &str| (name == "RUST_LOG").then(|| value.to_owned());
        assert_eq!(filter(false, 0, &with("myapp=debug")).unwrap(), "info");
        assert_eq!(
            filter(false, 0, &with("myapp=debug,adit=trace")).unwrap(),
            "myapp=debug,adit=trace"
        );
        assert_eq!(filter(false, 0, &with("debug")).unwrap(), "debug");
    }
}
