//! The manual pages against `--help`, both ways.
//!
//! The markup held here: an option is an item `.It Fl -name Ar arg`, one with a short form
//! `.It Fl n , Fl -name`; the synopsis of its page names it as `Fl -name` too. Commands are
//! `.It Xr adit-name 1` in adit(1), each with a page of its own, whose commands in turn are
//! subsections `.Ss name`.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::process::adit;

/// Options with the argument that each takes, short forms as options of their own.
type Options = BTreeMap<String, Option<String>>;

/// What `adit WORDS --help` says.
struct Help {
    options: Options,
    commands: BTreeSet<String>,
}

impl Help {
    fn of(words: &[&str]) -> Self {
        let output = adit().args(words).arg("--help").output().unwrap();
        assert!(output.status.success(), "{words:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let usage = text.lines().next().unwrap();
        let mut options = Options::new();
        for line in section(&text, "Options:") {
            // A long name leaves a single space before its description.
            for name in line.split(' ').take_while(|word| word.starts_with('-')) {
                let name = name.trim_end_matches(',');
                options.insert(name.to_owned(), argument(usage, name));
            }
        }
        assert!(options.remove("--help").is_some(), "{text}");
        let names = section(&text, "Commands:").into_iter();
        let commands = names.map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        Self { options, commands }
    }
}

/// The entries of a section of the help: lines indented by two spaces and no more.
fn section<'a>(text: &'a str, title: &str) -> Vec<&'a str> {
    let lines = text.lines().skip_while(|line| *line != title).skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    lines.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' ')).collect()
}

/// What follows an option in the usage line: `--listen <addr:port...>` takes `addr:port`.
fn argument(usage: &str, name: &str) -> Option<String> {
    let (_, rest) = usage.split_once(&format!("{name} <"))?;
    Some(rest.split('>').next().unwrap().trim_end_matches("...").to_owned())
}

fn page(name: &str) -> String {
    let path = format!("{}/man/{name}.1", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A part of a page: from the line `.Sh title` or `.Ss title` to the next of its kind or above.
fn part<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let ends = |line: &&str| {
        line.starts_with(".Sh ") || (heading.starts_with(".Ss ") && line.starts_with(".Ss "))
    };
    page.lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !ends(line))
        .collect()
}

/// The options that the items of these lines describe.
fn items(lines: &[&str]) -> Options {
    let mut options = Options::new();
    for item in lines.iter().filter_map(|line| line.strip_prefix(".It Fl ")) {
        let (names, argument) = match item.split_once(" Ar ") {
            Some((names, argument)) => (names, Some(argument.to_owned())),
            None => (item, None),
        };
        for name in names.split(" , Fl ") {
            options.insert(format!("-{name}"), argument.clone());
        }
    }
    options.remove("--help");
    options
}

/// The options that these lines name anywhere.
fn named(lines: &[&str]) -> Options {
    let words: Vec<&str> = lines.iter().flat_map(|line| line.split([' ', '.'])).collect();
    let mut options = Options::new();
    for (at, _) in words.iter().enumerate().filter(|(_, word)| **word == "Fl") {
        let takes = words.get(at + 2).is_some_and(|word| *word == "Ar");
        options.insert(format!("-{}", words[at + 1]), takes.then(|| words[at + 3].to_owned()));
    }
    options
}

/// Holds a command without commands of its own against `described` and `synopsis`.
fn compare(words: &[&str], described: &[&str], synopsis: &[&str]) {
    let help = Help::of(words);
    assert_eq!(items(described), help.options, "{words:?}: page (left) and --help (right)");
    assert_eq!(named(synopsis), help.options, "{words:?}: synopsis (left) and --help (right)");
}

#[test]
fn adit_1_lists_every_command_and_option_and_nothing_else() {
    let (page, help) = (page("adit"), Help::of(&[]));
    let lines: Vec<&str> = page.lines().collect();
    assert_eq!(items(&lines), help.options);
    assert_eq!(named(&part(&page, ".Sh SYNOPSIS")), help.options);
    let listed = lines.iter().filter_map(|line| line.strip_prefix(".It Xr adit-"));
    let listed: BTreeSet<_> = listed.map(|rest| rest.trim_end_matches(" 1").to_owned()).collect();
    assert_eq!(listed, help.commands);
}

#[test]
fn every_page_has_the_options_of_its_command_and_no_others() {
    for command in Help::of(&[]).commands {
        let page = page(&format!("adit-{command}"));
        assert!(page.contains("Fl -help"), "{command}");
        let help = Help::of(&[&command]);
        if help.commands.is_empty() {
            let lines: Vec<&str> = page.lines().collect();
            compare(&[&command], &lines, &part(&page, ".Sh SYNOPSIS"));
            continue;
        }
        assert!(help.options.is_empty(), "{command} has options beside commands");
        let description = part(&page, ".Sh DESCRIPTION");
        let described = description.iter().filter_map(|line| line.strip_prefix(".Ss "));
        assert_eq!(described.map(str::to_owned).collect::<BTreeSet<_>>(), help.commands);
        for inner in &help.commands {
            let heading = format!(".Nm adit {command} {inner}");
            let synopsis = part(&page, ".Sh SYNOPSIS");
            let synopsis = synopsis.split(|line| line.starts_with(".Nm "));
            let names = page.lines().filter(|line| line.starts_with(".Nm adit pki "));
            let at = names.take_while(|line| *line != heading).count();
            let synopsis = synopsis.skip(1).nth(at).unwrap_or_else(|| panic!("{heading}"));
            compare(&[&command, inner], &part(&page, &format!(".Ss {inner}")), synopsis);
        }
    }
}

#[test]
fn every_page_belongs_to_a_command() {
    let commands = Help::of(&[]).commands;
    let mut expected: BTreeSet<_> = commands.iter().map(|name| format!("adit-{name}.1")).collect();
    expected.insert("adit.1".to_owned());
    let entries = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/man")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found: BTreeSet<_> = names.filter(|name| name.ends_with(".1")).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_markup_is_read_as_it_is_meant() {
    let lines = [".It Fl q , Fl -quiet", ".It Fl -listen Ar addr:port", ".It Pa /etc"];
    let options: Options = [("-q", None), ("--quiet", None), ("--listen", Some("addr:port"))]
        .map(|(name, argument)| (name.to_owned(), argument.map(str::to_owned)))
        .into();
    assert_eq!(items(&lines), options);
    assert_eq!(named(&[".Op Fl q | Fl -quiet", ".Fl -listen Ar addr:port"]), options);
    let usage = "Usage: adit agent [--listen <addr:port...>] [--name <name>] [-q]";
    assert_eq!(argument(usage, "--listen").as_deref(), Some("addr:port"));
    assert_eq!(argument(usage, "-q"), None);
}
