//! `cargo childproof`: has cargo run what it builds under `childproof run`, for one call.
//!
//! ```text
//! cargo childproof test ── guard ── cargo test ──┬── childproof __runner ── guard ── test binary
//!                                                └── childproof __runner ── ..
//! ```
//!
//! Cargo's runner is set in the environment of that cargo alone, and taken out of that of what it runs. Each runner adds
//! what it has seen to a file of the call. Cargo itself runs guarded, so that it ends with the call, however that ends.

mod call;
mod cfg;
mod results;
mod runners;
mod summary;
mod words;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use childproof::__engine::{Ending, Guarded, InUse, Outcome, Policy, keeps, over_environment};
use clap::{Arg, ArgMatches};

use self::call::Call;
pub(crate) use self::call::texts;
use self::results::Results;
use crate::options;
use crate::run::{self, End, Followed, OwnDirectory, say};
use crate::{FAILED, LEAK};

/// How long the runners that are still there when cargo has ended, as after Ctrl-C, may take to report.
const RUNNERS: Duration = Duration::from_secs(2);

/// Runs cargo with these arguments. Gives the exit code.
pub(crate) fn run(arguments: Vec<OsString>) -> u8 {
    // Cargo gives the name of the subcommand, too.
    let arguments = match arguments.split_first() {
        Some((first, rest)) if first == "childproof" => rest.to_vec(),
        _ => arguments,
    };
    let name = OsString::from("cargo childproof");
    let matches = match command().try_get_matches_from(std::iter::once(name).chain(arguments)) {
        Ok(matches) => matches,
        Err(stop) if stop.use_stderr() => {
            eprint!("{stop}");
            return FAILED;
        }
        Err(help) => {
            print!("{help}");
            return 0;
        }
    };
    guarded(&matches).unwrap_or_else(|why| {
        say(&format!("childproof: {why}\n"));
        FAILED
    })
}

const ABOUT: &str = "\
Runs a command of cargo, and everything that cargo runs for it under `childproof run`: test binaries, documentation
tests, benchmarks, `cargo run`'s program. Nothing in the project is changed. What is left behind does not keep cargo from
running the next binary; under cargo-nextest, and of a documentation test, it fails the test.";

const AFTER: &str = "\
Exit codes: cargo's own if it failed, 123 if it passed and something was left (`--leak-exit-code`), 125 if childproof
failed.";

/// The command line of `cargo childproof`.
pub(crate) fn command() -> clap::Command {
    clap::Command::new("cargo childproof")
        .bin_name("cargo childproof")
        .about(ABOUT)
        .after_help(AFTER)
        .override_usage(
            "cargo childproof [OPTIONS] test|bench|run [CARGO'S OPTIONS]..\n       \
             cargo childproof [OPTIONS] nextest run [OPTIONS]..",
        )
        .args_override_self(true)
        .arg_required_else_help(true)
        .args(options::options())
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .value_parser(clap::value_parser!(OsString))
                .help("The command of cargo, and its arguments"),
        )
}

fn guarded(matches: &ArgMatches) -> Result<u8, String> {
    // Each runner reads the environment; here it is only made sure of.
    if keeps(&over_environment(Policy::new())?) {
        return Err("`CHILDPROOF_KEEP` is for a single command, since the guard of cargo kills what a binary leaves: run that \
                    binary by `childproof run --keep`"
            .to_owned());
    }
    let arguments: Vec<OsString> = matches.get_many("command").unwrap_or_default().cloned().collect();
    let json = matches.get_one::<std::path::PathBuf>("json");
    let mut json = json.map(|path| create(path)).transpose()?;
    let leak_exit_code = matches.get_one("leak-exit-code").copied().unwrap_or(LEAK);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let is_nextest = words::command(&arguments)?.is_some_and(|name| name == "nextest");

    let mut command = Command::new(&cargo);
    command.args(&arguments);
    let triples = runners::of_call(&cargo, &arguments)?;
    // From here to the start of the guard nothing would remove it.
    let directory = OwnDirectory::create(None);
    let directory = directory.map_err(|error| format!("no directory for this call: {error}"))?;
    let own: Vec<String> = triples.keys().map(|triple| runners::variable(triple)).collect();
    for (triple, runner) in &triples {
        let call = Call {
            options: options::given(matches, &["json", "leak-exit-code", "command"]),
            // Cargo runs the next binary all the same; nextest and rustdoc show what a test has printed only if it failed.
            leak_exit_code: if is_nextest { leak_exit_code } else { 0 },
            doctest_exit_code: leak_exit_code,
            runner: runner.clone(),
            environment: own.iter().map(|name| (name.clone(), std::env::var(name).ok())).collect(),
        };
        let file = directory.path().join(triple);
        call.write(&file)?;
        command.env(runners::variable(triple), runners::line(directory.path(), &file)?);
    }
    let results = Results::create(directory.path())?;

    let policy = Policy::new().no_timeout().grace(RUNNERS).allow_processes();
    let mut guarded = Guarded::start(command, policy, Some(&directory.scratch), None)
        .map_err(|error| format!("cargo cannot be guarded: {error}"))?;
    let mut followed = Followed::new(false);
    let look = |outcome: Box<Outcome>| say(&outcome.conclude(None).inspection(run::is_coloured()));
    let outcome = match followed.follow(&mut guarded, &look) {
        End::Over(outcome) => outcome,
        End::NotStarted(error) => return Ok(run::not_started(&cargo, &error)),
        End::Failed(why) => return Err(why),
    };
    let ending = outcome.ending();
    let report = outcome.conclude(None);
    let results = results.read();
    guarded.shut_down();
    drop(directory);
    let results = results?;
    if let Some(json) = &mut json {
        for line in results.reports() {
            writeln!(json, "{line}").map_err(|error| format!("cannot write the JSON report: {error}"))?;
        }
    }
    say(&summary::text(&results, &report.json(), followed.last_signal()));
    Ok(match ending {
        Ending::Exited(0) if results.has_leaks() => leak_exit_code,
        ending => followed.end_as(&ending).take(),
    })
}

fn create(path: &Path) -> Result<File, String> {
    File::create(path).map_err(|error| format!("cannot write `--json {}`: {error}", path.display()))
}

/// Runs what cargo runs, as its runner: the file of the call, and the program with its arguments. Gives the exit code.
pub(crate) fn run_one(arguments: &[OsString]) -> u8 {
    let failed = |why: String| {
        say(&format!("childproof: {why}\n"));
        FAILED
    };
    let [file, command @ ..] = arguments else {
        return failed("a runner was started without a call".to_owned());
    };
    let file = Path::new(file);
    let call = match Call::read(file) {
        Ok(call) => call,
        Err(why) => return failed(why),
    };
    let mut options = match call.run(command) {
        Ok(options) => options,
        Err(why) => return failed(why),
    };
    // The guard of the call removes it, also if it has to kill the guard of this program. If that guard is killed, the
    // next call removes it, and not before this program and its guard have ended.
    options.scratch = file.parent().map(Path::to_owned);
    options.is_in_summary = true;
    let _in_use = options.scratch.as_deref().map(InUse::new);
    if command.first().is_some_and(|program| is_doctest(program)) {
        options.leak_exit_code = call.doctest_exit_code;
    }
    let entry = match Results::of(file).begin(command) {
        Ok(entry) => entry,
        Err(why) => return failed(why),
    };
    run::run(&options, |report, signal| entry.end(&report.json(), signal))
}

/// Whether rustdoc has made a program.
fn is_doctest(program: &OsStr) -> bool {
    let directories = Path::new(program).ancestors().skip(1);
    let mut names = directories.filter_map(|path| path.file_name());
    names.any(|name| name.as_encoded_bytes().starts_with(b"rustdoctest"))
}

/// Reads a file whose absence is an error.
fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
