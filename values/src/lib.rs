//! The names of the arguments of `childproof`'s attributes, and their valid values.
//!
//! Not public API. The attributes read an argument when a test is compiled, and the library reads the
//! environment variable of the same name when the test runs. A procedural macro cannot call the library that
//! it serves, so both use this crate.

use std::fmt;
use std::time::Duration;

/// An argument of `#[childproof::test]`.
#[derive(Debug)]
pub struct Argument {
    /// Its name, also that of the method of `Policy`.
    pub name: &'static str,
    /// Its valid values.
    pub value: Value,
    /// A value as written in an attribute.
    pub example: &'static str,
    /// Whether it may be given more than once.
    pub repeatable: bool,
    /// Where else it can be set.
    pub scope: Scope,
}

/// Where an argument can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In an attribute, a `Policy`, and for the whole run by an environment variable.
    Run,
    /// In an attribute or a `Policy`.
    Test,
    /// In an attribute alone.
    Attribute,
    /// In `childproof::policy!`, and for the whole run by an environment variable.
    Target,
}

/// The valid values of an argument. `Display` lists them.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// Parsed by [`timeout`].
    Timeout,
    /// Parsed by [`duration`].
    Duration,
    /// One of these.
    Choice(Choice),
    /// Any text but an empty one: a description, and an example.
    Text(&'static str),
    /// The path of a crate.
    Path,
}

/// One of several words. `Display` lists them all.
#[derive(Clone, Copy, Debug)]
pub struct Choice(pub &'static [&'static str]);

impl Argument {
    const fn new(name: &'static str, value: Value, example: &'static str, scope: Scope) -> Argument {
        Argument { name, value, example, repeatable: false, scope }
    }

    const fn repeatable(mut self) -> Argument {
        self.repeatable = true;
        self
    }
}

impl Choice {
    /// The index of a word among the valid ones.
    pub fn index(self, word: &str) -> Option<usize> {
        self.0.iter().position(|known| *known == word)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, word) in self.0.iter().enumerate() {
            let before = match at {
                0 => "",
                _ if at + 1 == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{before}`{word}`")?;
        }
        Ok(())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Timeout => f.write_str("a duration above zero such as `500ms`, `5s` or `2m`, or `none`"),
            Value::Duration => f.write_str("a duration such as `500ms`, `5s` or `2m`"),
            Value::Choice(choice) => choice.fmt(f),
            Value::Text(what) => f.write_str(what),
            Value::Path => {
                f.write_str("the path of the crate: `crate = childproof` or `crate = \"childproof\"`")
            }
        }
    }
}

/// The values of `fds`, in the order of the library's `Fds`.
pub const FDS_VALUES: Choice = Choice(&["pipes", "all", "off"]);
/// The values of `threaded_fork`, in the order of the library's `ThreadedFork`.
pub const THREADED_FORK_VALUES: Choice = Choice(&["warn", "deny", "allow"]);
/// The values of `isolation`, in the order of the library's `Isolation`.
pub const ISOLATION_VALUES: Choice = Choice(&["off", "pidns"]);
/// The values of `processes`, in the order of the library's `Level`.
pub const LEVELS: Choice = Choice(&["deny", "warn", "allow"]);
const DENY_OR_ALLOW: Choice = Choice(&["deny", "allow"]);

/// How long a body may run.
pub const TIMEOUT: Argument = Argument::new("timeout", Value::Timeout, "\"5s\"", Scope::Run);
/// How long descendants may take to end once the body has returned.
pub const GRACE: Argument = Argument::new("grace", Value::Duration, "\"500ms\"", Scope::Run);
/// Whether a leaked process fails the test.
pub const PROCESSES: Argument = Argument::new("processes", Value::Choice(LEVELS), "\"deny\"", Scope::Run);
/// Leaked processes that are expected.
pub const ALLOW_PROCESS: Argument = Argument::new(
    "allow_process",
    Value::Text("a glob on the command line such as `sleep *`"),
    "\"sleep *\"",
    Scope::Run,
)
.repeatable();
/// Which fds must be closed.
pub const FDS: Argument = Argument::new("fds", Value::Choice(FDS_VALUES), "\"all\"", Scope::Run);
/// Code whose fds are expected.
pub const ALLOW_CREATED_BY: Argument = Argument::new(
    "allow_created_by",
    Value::Text("the beginning of a path such as `signal_hook_registry`"),
    "\"signal_hook_registry\"",
    Scope::Run,
)
.repeatable();
/// The verdict on an allowance of a test that nothing was left for.
pub const UNUSED_ALLOWANCES: Argument =
    Argument::new("unused_allowances", Value::Choice(LEVELS), "\"warn\"", Scope::Run);
/// Whether a zombie fails the test.
pub const UNWAITED: Argument =
    Argument::new("unwaited", Value::Choice(DENY_OR_ALLOW), "\"deny\"", Scope::Run);
/// Whether a thread that is still running fails the test.
pub const THREADS: Argument = Argument::new("threads", Value::Choice(DENY_OR_ALLOW), "\"deny\"", Scope::Run);
/// The verdict on forks of a threaded process.
pub const THREADED_FORK: Argument =
    Argument::new("threaded_fork", Value::Choice(THREADED_FORK_VALUES), "\"deny\"", Scope::Run);
/// Whether a test runs in a PID namespace.
pub const ISOLATION: Argument =
    Argument::new("isolation", Value::Choice(ISOLATION_VALUES), "\"pidns\"", Scope::Run);
/// Tests of one key never run at the same time.
pub const SERIAL: Argument =
    Argument::new("serial", Value::Text("a key such as `port 8080`"), "\"port 8080\"", Scope::Test);
/// The verdict on a stock target whose unguarded tests leave a process.
pub const UNGUARDED: Argument = Argument::new("unguarded", Value::Choice(LEVELS), "\"deny\"", Scope::Target);
/// The path of the library, if it was renamed.
pub const CRATE: Argument = Argument::new("crate", Value::Path, "childproof", Scope::Attribute);

/// All arguments, in the order in which the documentation lists them.
pub const ARGUMENTS: [&Argument; 14] = [
    &TIMEOUT,
    &GRACE,
    &PROCESSES,
    &ALLOW_PROCESS,
    &FDS,
    &ALLOW_CREATED_BY,
    &UNUSED_ALLOWANCES,
    &UNWAITED,
    &THREADS,
    &THREADED_FORK,
    &ISOLATION,
    &SERIAL,
    &UNGUARDED,
    &CRATE,
];

/// Reads a duration: a whole or decimal number directly followed by `us`, `ms`, `s`, `m` or `h`.
pub fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit);
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let seconds = number * scale;
    // A year is longer than any test, and keeps later sums of durations from overflowing.
    (seconds <= 365.0 * 86_400.0).then(|| Duration::from_secs_f64(seconds))
}

/// Reads a timeout: a duration above zero, or `none`.
pub fn timeout(text: &str) -> Option<Option<Duration>> {
    match text {
        "none" => Some(None),
        _ => duration(text).filter(|limit| !limit.is_zero()).map(Some),
    }
}

/// Checks a timeout that was given on a command line, and returns it as it was written.
///
/// # Errors
///
/// If it is none: what would be valid.
pub fn checked_timeout(text: &str) -> Result<String, String> {
    checked(text, timeout(text), TIMEOUT.value)
}

/// Checks a duration that was given on a command line, and returns it as it was written.
///
/// # Errors
///
/// If it is none: what would be valid.
pub fn checked_duration(text: &str) -> Result<String, String> {
    checked(text, duration(text), GRACE.value)
}

fn checked<T>(text: &str, parsed: Option<T>, valid: Value) -> Result<String, String> {
    parsed.map(|_| text.to_owned()).ok_or_else(|| format!("expected {valid}"))
}

/// Separates the items of a list in an environment variable.
pub const SEPARATOR: char = ';';

/// Reads a list of texts, none of which is empty.
pub fn list(text: &str) -> Option<Vec<&str>> {
    let items: Vec<&str> = text.split(SEPARATOR).map(str::trim).collect();
    (!items.contains(&"")).then_some(items)
}

/// Parses `deny` (true) or `allow`.
pub fn deny(text: &str) -> Option<bool> {
    DENY_OR_ALLOW.index(text).map(|at| at == 0)
}

/// Finds the known word nearest to another one. `most` returns, for the length of a known word, the largest
/// edit distance that is accepted.
pub fn nearest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
    most: impl Fn(usize) -> usize,
) -> Option<&'a str> {
    let distances = known.into_iter().map(|known| (strsim::levenshtein(word, known), known));
    distances.min().filter(|(distance, known)| *distance <= most(known.len())).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, expected) in [
            ("250us", 250),
            ("500ms", 500_000),
            ("5s", 5_000_000),
            ("1.5s", 1_500_000),
            ("2m", 120_000_000),
            ("1h", 3_600_000_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_micros(expected)), "{text}");
        }
        for text in
            ["", "5", "s", "5 s", " 5s", "-1s", ".5s", "5.s", "1.2.3s", "1e3s", "1d", "9999h", "5S", "5sec"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
        assert_eq!((timeout("none"), timeout("0s")), (Some(None), None));
        assert_eq!(timeout("5s"), Some(Some(Duration::from_secs(5))));
    }

    #[test]
    fn a_list_has_no_empty_item() {
        assert_eq!(list("sleep *"), Some(vec!["sleep *"]));
        assert_eq!(list("sleep *; cat -?"), Some(vec!["sleep *", "cat -?"]));
        for text in ["", ";", "a;", "a;;b", " "] {
            assert_eq!(list(text), None, "{text}");
        }
    }

    #[test]
    fn what_would_be_valid_names_all_words() {
        assert_eq!(Choice(&["full"]).to_string(), "`full`");
        assert_eq!(UNWAITED.value.to_string(), "`deny` or `allow`");
        assert_eq!(FDS.value.to_string(), "`pipes`, `all` or `off`");
    }

    #[test]
    fn an_example_is_a_valid_value() {
        for argument in ARGUMENTS {
            let example = argument.example.trim_matches('"');
            let valid = match argument.value {
                Value::Timeout => timeout(example).is_some(),
                Value::Duration => duration(example).is_some(),
                Value::Choice(choice) => choice.index(example).is_some(),
                Value::Text(_) | Value::Path => !example.is_empty(),
            };
            assert!(valid, "{argument:?}");
        }
    }

    #[test]
    fn the_nearest_word_is_no_other_word() {
        let known = ["grace", "fds", "timeout"];
        let nearest = |word| nearest(word, known, |length| length / 3);
        assert_eq!(nearest("timout"), Some("timeout"));
        assert_eq!(nearest("fd"), Some("fds"));
        assert_eq!(nearest("grid"), None);
        assert_eq!(nearest(""), None);
    }
}
