//! The command line: libtest's, all of it, and our own flags.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};
use libtest_mimic::{ColorSetting, FormatSetting};

use crate::policy::{self, BadValue, Policy};

/// What was asked for on the command line and in the environment variables of libtest and Bazel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) filters: Vec<String>,
    pub(crate) skip: Vec<String>,
    pub(crate) exact: bool,
    pub(crate) ignored: bool,
    pub(crate) include_ignored: bool,
    pub(crate) exclude_should_panic: bool,
    /// `--bench` without `--test`: there are no benchmarks in here.
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
    /// The seed, if the order is to be shuffled.
    pub(crate) shuffle: Option<Option<u64>>,
    pub(crate) repeat: u64,
    pub(crate) fail_fast: bool,
    pub(crate) json: Option<PathBuf>,
    /// Where JUnit goes, and what stands before the path in the place that says so.
    pub(crate) junit: Option<(&'static str, PathBuf)>,
    /// cargo-nextest has started this process for one test, and no XML is asked for but by the variable.
    pub(crate) is_nextests: bool,
    pub(crate) policy: Policy,
}

/// Why there are no options: a message and the exit code that goes with it.
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
            // `--help` is an answer; everything else is a mistake.
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
        policy.timeout = one("timeout").and_then(policy::timeout);
        policy.grace = one("grace").and_then(policy::duration);
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
            repeat: matches.get_one::<u64>("repeat").copied().unwrap_or(1),
            fail_fast: flag("fail-fast"),
            json: matches.get_one::<PathBuf>("json").cloned(),
            is_nextests: false,
            junit: matches.get_one::<PathBuf>("junit").map(|path| ("--junit ", path.clone())),
            policy,
        }
    }

    /// Adds what libtest and Bazel's tests read from the environment. The command line wins.
    fn environment(&mut self, get: impl Fn(&str) -> Option<OsString>) -> Result<(), BadValue> {
        let text = |name: &str| get(name).map(|value| value.to_string_lossy().into_owned());
        let is_on = |name: &str| text(name).is_some_and(|value| value != "0");
        let bad = |place: &str, value: &str, valid| BadValue {
            place: place.to_owned(),
            value: value.to_owned(),
            valid,
        };
        self.no_capture |= is_on("RUST_TEST_NOCAPTURE");
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
        // Bazel sets it for every test, also for one that was built without the feature: that is only said.
        if let (None, true) = (&self.junit, cfg!(feature = "junit")) {
            let path = get("XML_OUTPUT_FILE").filter(|path| !path.is_empty());
            self.is_nextests = get("NEXTEST").is_some() && self.exact && self.filters.len() == 1;
            self.junit = path.filter(|_| !self.is_nextests).map(|path| ("XML_OUTPUT_FILE=", path.into()));
        }
        Ok(())
    }

    /// Whether what is written to stdout is to have colours.
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

    /// Whether a test of this name is among the selected ones.
    pub(crate) fn selects(&self, name: &str, ignored: bool, should_panic: bool) -> bool {
        let hit = |pattern: &String| {
            if self.exact { name == pattern } else { name.contains(pattern.as_str()) }
        };
        (self.filters.is_empty() || self.filters.iter().any(hit))
            && !self.skip.iter().any(hit)
            && !(self.ignored && !self.include_ignored && !ignored)
            && !(self.exclude_should_panic && should_panic)
            && !self.benches_only
    }
}

fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let value = |name: &'static str, what: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(what).help(help)
    };
    let timeout: fn(&str) -> Result<String, String> =
        |text| checked(text, policy::timeout(text), policy::TIMEOUT);
    let duration: fn(&str) -> Result<String, String> =
        |text| checked(text, policy::duration(text), policy::DURATION);
    let command = Command::new("childproof")
        .args_override_self(true)
        .about("Runs tests, each in its own guarded process tree.")
        .no_binary_name(false)
        .override_usage("[OPTIONS] [FILTER]...")
        .after_help(
            "A filter selects the tests whose name contains it, or is it with --exact.\n\
             Environment: CHILDPROOF_TIMEOUT, _GRACE, _FDS, _PROCESSES, _UNWAITED, _THREADS,\n\
             CHILDPROOF_THREADED_FORK, CHILDPROOF_BACKTRACE=full, CHILDPROOF_TRACE=fds,\n\
             RUST_TEST_THREADS, RUST_TEST_NOCAPTURE, RUST_TEST_SHUFFLE,\n\
             RUST_TEST_SHUFFLE_SEED, XML_OUTPUT_FILE.",
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
        .arg(flag("fail-fast", "Start no further test once one has failed"))
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
                "Write one JSON object a test to this file; `{binary}` in it is the target's name",
            )
            .hide(cfg!(not(feature = "json")))
            .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(
            value(
                "junit",
                "PATH",
                "Write JUnit's XML to this file, at the end; `{binary}` in it is the target's name",
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

fn checked<T>(text: &str, parsed: Option<T>, valid: &str) -> Result<String, String> {
    parsed.map(|_| text.to_owned()).ok_or_else(|| format!("expected {valid}"))
}
