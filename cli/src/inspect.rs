//! `childproof inspect`: what processes wait for that no guard is above.

use std::io::{self, IsTerminal, Write};

use childproof::__engine::inspect::{Wanted, look};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Nothing that was asked for was found, as pgrep(1) says it.
const NONE: u8 = 1;

/// What `childproof inspect` was told.
pub(crate) struct Inspect {
    wanted: Wanted,
    json: bool,
    with_stacks: bool,
}

/// Its command line.
pub(crate) fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("inspect")
        .about("Shows what processes wait for: lineage, stacks, both ends of their pipes and sockets, the cause")
        .override_usage("childproof inspect [--json] [--no-stacks] <PID | PATTERN>...\n       childproof inspect --orphans [--json] [--no-stacks] [PATTERN]...")
        .after_help(
            "It sends no signal, and what it looks at goes on unharmed.\n\
             Exit codes: 0 if a process was found, 1 if none was, 125 if childproof failed.",
        )
        .arg(
            Arg::new("wanted")
                .value_name("PID | PATTERN")
                .num_args(1..)
                .required_unless_present("orphans")
                .help(
                    "A process by its number, or all whose command line has PATTERN in it; with `*` or `?` it is a glob for \
                     the whole of it",
                ),
        )
        .arg(flag(
            "orphans",
            "What earlier test runs have left: orphans whose program lies in a target folder of cargo's, or that have a \
             variable of a test runner in their environment; and orphans that match PATTERN",
        ))
        .arg(flag("json", "Write one JSON object instead of text"))
        .arg(flag("no-stacks", "Do not stop threads for the moment in which their stacks are read"))
}

pub(crate) fn of(matches: &ArgMatches) -> Inspect {
    let mut wanted = Wanted { orphans: matches.get_flag("orphans"), ..Wanted::default() };
    for word in matches.get_many::<String>("wanted").unwrap_or_default() {
        match word.parse() {
            Ok(pid) if pid > 0 => wanted.pids.push(pid),
            _ => wanted.patterns.push(word.clone()),
        }
    }
    Inspect { wanted, json: matches.get_flag("json"), with_stacks: !matches.get_flag("no-stacks") }
}

/// Looks, and writes what was seen. Gives the exit code.
pub(crate) fn run(options: &Inspect) -> u8 {
    let Wanted { pids, patterns, orphans } = &options.wanted;
    let words = orphans.then(|| "--orphans".to_owned()).into_iter();
    let words = words.chain(pids.iter().map(i32::to_string)).chain(patterns.iter().cloned());
    let name = format!("inspect {}", words.collect::<Vec<String>>().join(" "));
    let seen = look(&name, &options.wanted, options.with_stacks);
    let text = match options.json {
        true => seen.json() + "\n",
        false => {
            let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            seen.text(!unwanted && io::stdout().is_terminal())
        }
    };
    if let Err(error) = io::stdout().write_all(text.as_bytes()) {
        eprintln!("childproof: cannot write the report: {error}");
        return crate::FAILED;
    }
    if seen.is_empty() { NONE } else { 0 }
}
