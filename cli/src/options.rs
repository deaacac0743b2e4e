//! The command line of `childproof`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use childproof::__engine::{Fds, Isolation};
use childproof_values as values;
use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, Error};
use clap_complete::Shell;

use crate::{LEAK, documents};

/// What was asked for.
pub(crate) enum Asked {
    /// `childproof run`.
    Run(Box<Run>),
    /// `childproof inspect`.
    Inspect(crate::inspect::Inspect),
    /// `childproof kill`.
    Kill(crate::kill::Kill),
    /// `childproof man`: which page.
    Man(String),
    /// `childproof completions`.
    Completions(Shell),
}

/// The options of `childproof run`.
pub(crate) struct Run {
    /// The program and its arguments; never empty.
    pub(crate) command: Vec<OsString>,
    pub(crate) grace: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) allow_process: Vec<String>,
    /// As the environment says, if nothing is given.
    pub(crate) fds: Option<Fds>,
    pub(crate) allow_created_by: Vec<String>,
    /// As the environment says, if nothing is given.
    pub(crate) isolation: Option<Isolation>,
    pub(crate) leak_exit_code: u8,
    pub(crate) json: Option<PathBuf>,
    pub(crate) junit: Option<PathBuf>,
    pub(crate) progress: bool,
    pub(crate) record: RecordOption,
    pub(crate) quiet: bool,
    /// As the environment says, if `false`.
    pub(crate) keep: bool,
    pub(crate) repeat: u64,
    pub(crate) until_failure: bool,
    /// Where the recorder's files go, if not to the directory for temporary files.
    pub(crate) scratch: Option<PathBuf>,
    /// How the command ended is said at the end of the call that it is of.
    pub(crate) is_in_summary: bool,
    /// What the command's environment has instead of this process's own; `None` is removed.
    pub(crate) environment: Vec<(String, Option<String>)>,
}

/// Which programs are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordOption {
    Program,
    Tree,
    Off,
}

/// Parses the arguments, beginning with the program's name. A request for help is an error, too.
pub(crate) fn read(arguments: Vec<OsString>) -> Result<Asked, Error> {
    let matches = command().try_get_matches_from(arguments)?;
    match matches.subcommand() {
        Some(("run", run)) => Ok(Asked::Run(Box::new(of_run(run)))),
        Some(("inspect", inspect)) => Ok(Asked::Inspect(crate::inspect::of(inspect))),
        Some(("kill", kill)) => Ok(Asked::Kill(crate::kill::of(kill))),
        Some(("man", man)) => Ok(Asked::Man(man.get_one("page").cloned().unwrap_or_default())),
        Some(("completions", of)) => {
            Ok(Asked::Completions(of.get_one("shell").copied().unwrap_or(Shell::Bash)))
        }
        // A subcommand is required.
        _ => {
            Err(command()
                .error(clap::error::ErrorKind::MissingSubcommand, "expected `run`, `inspect` or `kill`"))
        }
    }
}

/// Reads the options of `childproof run`.
fn of_run(matches: &ArgMatches) -> Run {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let until_failure = matches.try_get_one("repeat-until-failure").ok().flatten().copied().unwrap_or(false);
    Run {
        command: matches.get_many("command").unwrap_or_default().cloned().collect(),
        grace: text("grace").and_then(values::duration),
        timeout: text("timeout").and_then(values::timeout).flatten(),
        allow_process: matches.get_many("allow-process").unwrap_or_default().cloned().collect(),
        fds: match text("fds") {
            Some("pipes") => Some(Fds::Pipes),
            Some("all") => Some(Fds::All),
            Some(_) => Some(Fds::Off),
            None => None,
        },
        allow_created_by: matches.get_many("allow-created-by").unwrap_or_default().cloned().collect(),
        isolation: match text("isolation") {
            Some("pidns") => Some(Isolation::Pidns),
            Some(_) => Some(Isolation::Off),
            None => None,
        },
        leak_exit_code: matches.get_one("leak-exit-code").copied().unwrap_or(LEAK),
        json: matches.get_one("json").cloned(),
        junit: matches.try_get_one("junit").ok().flatten().cloned(),
        progress: matches.try_get_one("progress").ok().flatten().copied().unwrap_or(false),
        record: match text("record") {
            Some("off") => RecordOption::Off,
            Some("tree") => RecordOption::Tree,
            _ => RecordOption::Program,
        },
        quiet: matches.get_flag("quiet"),
        keep: matches.try_get_one("keep").ok().flatten().copied().unwrap_or(false),
        repeat: matches.try_get_one("repeat").ok().flatten().copied().unwrap_or(if until_failure {
            u64::MAX
        } else {
            1
        }),
        until_failure,
        scratch: None,
        is_in_summary: false,
        environment: Vec::new(),
    }
}

const EXIT_CODES: &str = "\
Environment: CHILDPROOF_GRACE, CHILDPROOF_FDS, CHILDPROOF_PROCESSES, CHILDPROOF_KEEP=1, CHILDPROOF_ISOLATION,
and CHILDPROOF_ALLOW_PROCESS and CHILDPROOF_ALLOW_CREATED_BY with `;` between their items. Options win, lists add up.

Signals are passed on to CMD. SIGQUIT, unless a terminal sent it, shows what runs and what it waits
for. A second SIGINT or SIGTERM ends CMD.

Exit codes: that of CMD if it failed, 128 + N if signal N ended it, 123 if it passed and left
something, 124 after the timeout, 125 if childproof failed, 126 if CMD cannot be executed, 127 if it
was not found.";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("childproof")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Guards the process tree of a command: what it leaves behind is named, and killed.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(run())
        .subcommand(crate::inspect::command())
        .subcommand(crate::kill::command())
        .subcommands(documents::commands())
}

/// `childproof run`.
pub(crate) fn run() -> Command {
    Command::new("run")
        .about("Runs a command, reports on stderr what it has left when it ends, and kills that")
        .override_usage("childproof run [OPTIONS] [--] CMD [ARGS]...")
        .after_help(EXIT_CODES)
        .args_override_self(true)
        .arg(
            Arg::new("command")
                .value_name("CMD")
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .value_parser(clap::value_parser!(OsString))
                .help(
                    "The program and its arguments: the first argument that is no option, and all behind it",
                ),
        )
        .args(options())
        .arg(
            Arg::new("junit")
                .long("junit")
                .value_name("PATH")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Write the report as JUnit's XML to this file, with CMD as the only test case"),
        )
        .arg(
            Arg::new("keep")
                .long("keep")
                .action(ArgAction::SetTrue)
                .help("Keep what leaked or hangs, stopped, for a debugger; `childproof kill` ends it"),
        )
        .arg(
            Arg::new("repeat")
                .long("repeat")
                .value_name("N")
                .conflicts_with("junit")
                .value_parser(clap::value_parser!(u64).range(1..))
                .help("Run CMD N times, and count at the end how often each test left what, by line"),
        )
        .arg(
            Arg::new("repeat-until-failure")
                .long("repeat-until-failure")
                .action(ArgAction::SetTrue)
                .conflicts_with("junit")
                .help("Run CMD again until it fails or leaves something, or N times with --repeat"),
        )
        .arg(
            Arg::new("progress")
                .long("progress")
                .action(ArgAction::SetTrue)
                .help("Show a line on the terminal while CMD runs: time, processes, what waits longest"),
        )
}

/// The options of every guard of a command.
pub(crate) fn options() -> Vec<Arg> {
    let value = |name: &'static str, what: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(what).help(help)
    };
    let timeout: fn(&str) -> Result<String, String> = values::checked_timeout;
    let duration: fn(&str) -> Result<String, String> = values::checked_duration;
    vec![
            value("grace", "TIME", "How long descendants may run on when CMD has ended [default: 200ms]")
                .value_parser(ValueParser::new(duration)),
            value("timeout", "TIME", "Look at CMD, report and kill it after this time [default: none]")
                .value_parser(ValueParser::new(timeout)),
            value(
                "allow-process",
                "GLOB",
                "Kill processes whose command line matches, and do not report them (repeatable)",
            )
            .action(ArgAction::Append),
            value(
            "fds",
            "KIND",
            "Report fds too that CMD's own program made and had left open when it ended, with their lines: `pipes`, `all` \
             (pipes and sockets) or `off` [default: off]",
        )
        .hide_possible_values(true)
        .value_parser(PossibleValuesParser::new(values::FDS_VALUES.0)),
        value(
            "isolation",
            "KIND",
            "Run CMD in a PID namespace, with which the kernel kills everything even if all of childproof is killed: `pidns` \
             or `off` [default: off]",
        )
        .hide_possible_values(true)
        .value_parser(PossibleValuesParser::new(values::ISOLATION_VALUES.0)),
        value("allow-created-by", "PATH", "Do not report fds that were made in this module or function (repeatable)")
            .action(ArgAction::Append),
        value("leak-exit-code", "N", "Exit code if CMD passed and left something [default: 123]")
                .value_parser(clap::value_parser!(u8)),
            value("json", "PATH", "Write the report as one JSON object to this file, also if nothing was left")
                .value_parser(clap::value_parser!(PathBuf)),
            value(
                "record",
                "WHAT",
                "Whose calls are recorded, for lines of code: those of CMD's own `program`, of the whole `tree`, or `off` \
                 [default: program]",
            )
            .hide_possible_values(true)
            .value_parser(PossibleValuesParser::new(["program", "tree", "off"])),
            Arg::new("quiet")
                .short('q')
                .long("quiet")
                .action(ArgAction::SetTrue)
                .help("Write no report to stderr; the exit code says that something was left"),
    ]
}

/// The options that were given, as they are written, without some.
pub(crate) fn given(matches: &ArgMatches, but: &[&str]) -> Vec<String> {
    let mut given = Vec::new();
    for option in options() {
        let name = option.get_id().as_str();
        if but.contains(&name) || matches.value_source(name) != Some(clap::parser::ValueSource::CommandLine) {
            continue;
        }
        if let ArgAction::SetTrue = option.get_action() {
            given.push(format!("--{name}"));
            continue;
        }
        for value in matches.get_raw(name).into_iter().flatten() {
            given.push(format!("--{name}={}", value.to_string_lossy()));
        }
    }
    given
}
