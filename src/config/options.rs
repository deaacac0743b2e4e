//! The command line: all of libtest's options, and childproof's own.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use childproof_values as values;
use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};
use libtest_mimic::{ColorSetting, FormatSetting};

use crate::config::bazel::Bazel;
use crate::config::policy::{BadValue, Policy};

/// The command line, and the environment variables of libtest and Bazel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) filters: Vec<String>,
    pub(crate) skip: Vec<String>,
    pub(crate) exact: bool,
    pub(crate) ignored: bool,
    pub(crate) include_ignored: bool,
    pub(crate) exclude_should_panic: bool,
    /// `--bench` without `--test`: nothing runs, since there are no benchmarks.
    pub(crate) benches_only: bool,
    pub(crate) list: bool,
    pub(crate) no_capture: bool,
    pub(crate) show_output: bool,
    pub(crate) quiet: bool,
    pub(crate) report_time: bool,
    pub(crate) threads: Option<usize>,
    pub(crate) color: Option<ColorSetting>,
    pub(crate) format: Option<FormatSetting>,
    pub(crate) logfile: Option<String>,
    /// `Some` if the order is shuffled, with the seed if one was given.
    pub(crate) shuffle: Option<Option<u64>>,
    pub(crate) repeat: u64,
    /// No further round starts after one with a failure.
    pub(crate) until_failure: bool,
    pub(crate) fail_fast: bool,
    /// All tests run on threads of one guarded process.
    pub(crate) shared: bool,
    pub(crate) json: Option<PathBuf>,
    /// The path of the JUnit file, and the option or variable that set it, for messages.
    pub(crate) junit: Option<(&'static str, PathBuf)>,
    /// Whether cargo-nextest started this process for one test.
    pub(crate) is_nextests: bool,
    pub(crate) bazel: Bazel,
    /// The names of the tests of this shard, if the target is sharded.
    pub(crate) in_shard: Option<HashSet<String>>,
    pub(crate) policy: Policy,
}

/// Why the process stops before any test: a message and an exit code.
pub(crate) struct Stop {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl Options {
    /// Reads the arguments (the program's name first) and libtest's environment.
    pub(crate) fn read(
        arguments: impl IntoIterator<Item = OsString>,
        get: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Options, Stop> {
        let matches = command().try_get_matches_from(arguments).map_err(|error| Stop {
            message: error.to_string(),
            // `--help` is a request; everything else is a mistake.
            code: if error.use_stderr() { 2 } else { 0 },
        })?;
        let mut options = Options::of(&matches);
        options.environment(get).map_err(|bad| Stop { message: format!("error: {bad}\n"), code: 2 })?;
        Ok(options)
    }

    fn of(matches: &ArgMatches) -> Options {
        let flag = |name: &str| matches.get_flag(name);
        let strings =
            |name: &str| matches.get_many::<String>(name).unwrap_or_default().cloned().collect::<Vec<_>>();
        let one = |name: &str| matches.get_one::<String>(name).map(String::as_str);
        let mut policy = Policy::new();
        policy.timeout = one("timeout").and_then(values::timeout);
        policy.grace = one("grace").and_then(values::duration);
        policy.keep = flag("keep").then_some(true);
        let seed = matches.get_one::<u64>("shuffle-seed").copied();
        Options {
            filters: strings("filter"),
            skip: strings("skip"),
            exact: flag("exact"),
            ignored: flag("ignored"),
            include_ignored: flag("include-ignored"),
            exclude_should_panic: flag("exclude-should-panic"),
            benches_only: flag("bench") && !flag("test"),
            list: flag("list"),
            no_capture: flag("nocapture"),
            show_output: flag("show-output"),
            quiet: flag("quiet"),
            report_time: flag("report-time"),
            threads: matches.get_one::<NonZeroUsize>("test-threads").map(|threads| threads.get()),
            color: one("color").map(|when| match when {
                "always" => ColorSetting::Always,
                "never" => ColorSetting::Never,
                _ => ColorSetting::Auto,
            }),
            format: one("format").map(|format| match format {
                "terse" => FormatSetting::Terse,
                "json" => FormatSetting::Json,
                _ => FormatSetting::Pretty,
            }),
            logfile: one("logfile").map(str::to_owned),
            shuffle: (flag("shuffle") || seed.is_some()).then_some(seed),
            repeat: matches.get_one::<u64>("repeat").copied().unwrap_or(if flag("repeat-until-failure") {
                u64::MAX
            } else {
                1
            }),
            until_failure: flag("repeat-until-failure"),
            fail_fast: flag("fail-fast"),
            shared: flag("shared"),
            json: matches.get_one::<PathBuf>("json").cloned(),
            is_nextests: false,
            bazel: Bazel::default(),
            in_shard: None,
            junit: matches.get_one::<PathBuf>("junit").map(|path| ("--junit ", path.clone())),
            policy,
        }
    }

    /// Adds the environment variables of libtest and Bazel. The command line takes precedence.
    fn environment(&mut self, get: impl Fn(&str) -> Option<OsString>) -> Result<(), BadValue> {
        let text = |name: &str| get(name).map(|value| value.to_string_lossy().into_owned());
        let is_on = |name: &str| text(name).is_some_and(|value| value != "0");
        let bad = |place: &str, value: &str, valid: &str| BadValue {
            place: place.to_owned(),
            value: value.to_owned(),
            valid: valid.to_owned(),
        };
        self.no_capture |= is_on("RUST_TEST_NOCAPTURE");
        self.shared |= is_on("CHILDPROOF_SHARED");
        if let (None, Some(value)) = (self.threads, text("RUST_TEST_THREADS")) {
            let threads = value.parse::<NonZeroUsize>();
            let threads =
                threads.map_err(|_| bad("RUST_TEST_THREADS", &value, "a number of threads above zero"))?;
            self.threads = Some(threads.get());
        }
        if self.shuffle.is_none() {
            let seed = text("RUST_TEST_SHUFFLE_SEED")
                .map(|value| {
                    value.parse().map_err(|_| bad("RUST_TEST_SHUFFLE_SEED", &value, "a whole number"))
                })
                .transpose()?;
            self.shuffle = (is_on("RUST_TEST_SHUFFLE") || seed.is_some()).then_some(seed);
        }
        self.is_nextests = get("NEXTEST").is_some() && self.exact && self.filters.len() == 1;
        self.bazel = Bazel::read(get, self.exact, self.list)?;
        self.fail_fast |= self.bazel.fail_fast;
        if self.filters.is_empty() {
            self.filters.extend(self.bazel.filter.clone());
        }
        // Bazel sets it for every test, also for one that was built without the feature: that only gives a
        // note.
        if let (None, true) = (&self.junit, cfg!(feature = "junit")) {
            let path = self.bazel.xml_file.clone();
            self.junit = path.filter(|_| !self.is_nextests).map(|path| ("XML_OUTPUT_FILE=", path));
        }
        Ok(())
    }

    /// Whether output on stdout is coloured.
    pub(crate) fn coloured(&self) -> bool {
        match self.color {
            Some(ColorSetting::Always) => true,
            Some(ColorSetting::Never) => false,
            _ => {
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !unwanted && std::io::stdout().is_terminal()
            }
        }
    }

    /// Whether no test is left out by its name or kind.
    pub(crate) fn is_of_all(&self) -> bool {
        self.filters.is_empty() && self.skip.is_empty() && !self.ignored && !self.benches_only
    }

    /// Leaves out the tests of the other shards, if the target is sharded. `names` are those of all tests.
    pub(crate) fn keep_shard(&mut self, names: impl Iterator<Item = String>) {
        let Some(shard) = self.bazel.shard else { return };
        self.in_shard = Some(shard.of(names.filter(|name| self.selects_name(name))));
    }

    /// Whether the filters let this name through.
    fn selects_name(&self, name: &str) -> bool {
        let hit = |pattern: &String| {
            if self.exact { name == pattern } else { name.contains(pattern.as_str()) }
        };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skip.iter().any(hit)
    }

    /// Whether a test of this name is among the selected ones.
    pub(crate) fn selects(&self, name: &str, ignored: bool, should_panic: bool) -> bool {
        self.in_shard.as_ref().map_or_else(|| self.selects_name(name), |names| names.contains(name))
            && !(self.ignored && !self.include_ignored && !ignored)
            && !(self.exclude_should_panic && should_panic)
            && !self.benches_only
    }
}

/// The name of the test binary, as it was called.
fn program() -> String {
    let called = std::env::args_os().next().map(PathBuf::from);
    let name = called.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "test".to_owned())
}

#[allow(clippy::too_many_lines, reason = "one table, an option after the other")]
fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let value = |name: &'static str, what: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(what).help(help)
    };
    let timeout: fn(&str) -> Result<String, String> = values::checked_timeout;
    let duration: fn(&str) -> Result<String, String> = values::checked_duration;
    let command = Command::new("childproof")
        .args_override_self(true)
        .about("Runs tests, each in its own guarded process tree.")
        .no_binary_name(false)
        .override_usage(format!("{} [OPTIONS] [FILTER]...", program()))
        .after_help(
            "A filter selects the tests whose name contains it, or is it with --exact.\n\
             Environment: CHILDPROOF_TIMEOUT, _GRACE, _FDS, _PROCESSES, _UNUSED_ALLOWANCES, _UNWAITED, _THREADS,\n\
             CHILDPROOF_THREADED_FORK, CHILDPROOF_ALLOW_PROCESS, CHILDPROOF_ALLOW_CREATED_BY,\n\
             CHILDPROOF_BACKTRACE=full, CHILDPROOF_TRACE=fds, CHILDPROOF_SHARED=1, CHILDPROOF_ISOLATION=pidns,\n\
             CHILDPROOF_KEEP=1, CHILDPROOF_DEBUG=1, CHILDPROOF_REQUIRE=1,\n\
             RUST_TEST_THREADS, RUST_TEST_NOCAPTURE, RUST_TEST_SHUFFLE, RUST_TEST_SHUFFLE_SEED.\n\
             Of Bazel: TEST_TOTAL_SHARDS, TEST_SHARD_INDEX, TEST_SHARD_STATUS_FILE, TESTBRIDGE_TEST_ONLY,\n\
             TESTBRIDGE_TEST_RUNNER_FAIL_FAST, TEST_TMPDIR, TEST_PREMATURE_EXIT_FILE, TEST_WARNINGS_OUTPUT_FILE,\n\
             XML_OUTPUT_FILE.",
        )
        .arg(
            Arg::new("filter")
                .value_name("FILTER")
                .num_args(0..)
                .help("Run only tests whose name contains one of these"),
        );
    command
        .next_help_heading("Which tests")
        .arg(flag("exact", "Match filters and --skip exactly, not as substrings"))
        .arg(value("skip", "FILTER", "Skip tests whose name contains this").action(ArgAction::Append))
        .arg(flag("ignored", "Run only ignored tests"))
        .arg(flag("include-ignored", "Run ignored tests too"))
        .arg(flag("exclude-should-panic", "Leave out tests that are expected to panic"))
        .arg(flag("test", "Run tests, not benchmarks (the default)"))
        .arg(flag("bench", "Run benchmarks; there are none in here"))
        .arg(flag("list", "List the selected tests and run none"))
        .next_help_heading("How they run")
        .arg(
            value("test-threads", "N", "Run this many tests at once")
                .value_parser(clap::value_parser!(NonZeroUsize)),
        )
        .arg(flag("shuffle", "Run in random order"))
        .arg(
            value("shuffle-seed", "SEED", "Run in the random order of this seed")
                .value_parser(clap::value_parser!(u64)),
        )
        .arg(value("repeat", "N", "Run everything N times").value_parser(clap::value_parser!(u64).range(1..)))
        .arg(flag("repeat-until-failure", "Run everything again until a test fails, or N times with --repeat"))
        .arg(flag("fail-fast", "Start no further test once one has failed"))
        .arg(flag("shared", "Run all tests on threads of one guarded process, and count what is left once, at its end"))
        .arg(flag("keep", "Keep what leaked or hangs, stopped, for a debugger, and start no further test"))
        .arg(
            value("timeout", "TIME", "How long a body may run, or `none`")
                .value_parser(ValueParser::new(timeout)),
        )
        .arg(
            value("grace", "TIME", "How long descendants may outlive it")
                .value_parser(ValueParser::new(duration)),
        )
        .arg(flag("force-run-in-process", "Accepted and without effect: every test has a process").hide(true))
        .next_help_heading("What is shown")
        .arg(flag("nocapture", "Do not capture the tests' output").alias("no-capture"))
        .arg(flag("show-output", "Show the output of passing tests too, and what they left in the grace"))
        .arg(
            Arg::new("quiet")
                .short('q')
                .long("quiet")
                .action(ArgAction::SetTrue)
                .help("One character a test"),
        )
        .arg(choice("color", "WHEN", &["auto", "always", "never"], "Colour the output").alias("colour"))
        .arg(choice("format", "FORMAT", &["pretty", "terse", "json"], "Format of the output"))
        .arg(
            Arg::new("report-time")
                .long("report-time")
                .action(ArgAction::SetTrue)
                .help("Show how long each test took"),
        )
        .arg(value("logfile", "PATH", "Write the output to this file"))
        .arg(
            value(
                "json",
                "PATH",
                "Write one JSON object a test to this file; `{package}` and `{binary}` in it are the target's names",
            )
            .hide(cfg!(not(feature = "json")))
            .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(
            value(
                "junit",
                "PATH",
                "Write JUnit's XML to this file, at the end; `{package}` and `{binary}` in it are the target's names",
            )
            .hide(cfg!(not(feature = "junit")))
            .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(Arg::new("unstable").short('Z').value_name("FLAG").action(ArgAction::Append).hide(true))
}

fn choice(
    name: &'static str,
    what: &'static str,
    values: &'static [&'static str],
    help: &'static str,
) -> Arg {
    Arg::new(name).long(name).value_name(what).value_parser(PossibleValuesParser::new(values)).help(help)
}
