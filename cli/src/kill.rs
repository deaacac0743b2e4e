//! `childproof kill`: ends what earlier test runs have left.

use std::io::{self, Write};

use childproof::__engine::inspect::Leftovers;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Something that was asked for was not ended.
const LEFT: u8 = 1;

/// What `childproof kill` was told.
pub(crate) struct Kill {
    /// None: everything that earlier runs have left.
    pids: Option<Vec<i32>>,
}

/// Its command line.
pub(crate) fn command() -> Command {
    Command::new("kill")
        .about("Ends what earlier test runs have left, each process with everything below it, and says what that was")
        .override_usage("childproof kill <PID>...\n       childproof kill --orphans")
        .after_help(
            "What has its parent, is in a container, is a service or is of a run that may go on is left alone.\n\
             What a test may have started and is not shown to be its orphan is named with the reason.\n\
             Exit codes: 0 if all has ended, 1 if something was left alone or could not be ended, 125 if childproof failed.",
        )
        .arg(
            Arg::new("pids")
                .value_name("PID")
                .num_args(1..)
                .required_unless_present("orphans")
                .conflicts_with("orphans")
                .value_parser(clap::value_parser!(i32).range(1..))
                .help("An orphan that `childproof inspect --orphans` lists, or a process that a guard has kept"),
        )
        .arg(
            Arg::new("orphans")
                .long("orphans")
                .action(ArgAction::SetTrue)
                .help("All that `childproof inspect --orphans` lists"),
        )
}

pub(crate) fn of(matches: &ArgMatches) -> Kill {
    let pids = || matches.get_many("pids").unwrap_or_default().copied().collect();
    Kill { pids: (!matches.get_flag("orphans")).then(pids) }
}

/// Shows what it ends, and ends it. Gives the exit code.
pub(crate) fn run(options: &Kill) -> u8 {
    match end(options) {
        Ok(true) => 0,
        Ok(false) => LEFT,
        Err(error) => {
            eprintln!("childproof: cannot write what is ended: {error}");
            crate::FAILED
        }
    }
}

/// Tells whether all that was asked for has ended.
fn end(options: &Kill) -> io::Result<bool> {
    /// What is ended may leave orphans in its turn: how often these are looked for.
    const ROUNDS: usize = 5;
    let mut out = io::stdout();
    let mut all = true;
    for round in 0..ROUNDS {
        let leftovers = match &options.pids {
            Some(pids) => Leftovers::with(pids),
            None => Leftovers::all(),
        };
        for line in leftovers.refused() {
            eprintln!("childproof: {line}");
            all = false;
        }
        if round == 0 {
            for line in leftovers.doubtful() {
                writeln!(out, "{line}")?;
            }
        }
        if leftovers.is_empty() {
            if round == 0 && options.pids.is_none() {
                writeln!(out, "no process was found that an earlier test run has left")?;
            }
            break;
        }
        // Shown before anything happens to it.
        out.write_all(leftovers.text().as_bytes())?;
        out.flush()?;
        for (text, has_ended) in leftovers.end() {
            out.write_all(text.as_bytes())?;
            all &= has_ended;
        }
        if options.pids.is_some() || !all {
            break;
        }
    }
    Ok(all)
}
