//! What is checked, how long, and where each value comes from.
//!
//! Four layers, the strongest first: command line, `CHILDPROOF_*` environment, the attribute,
//! the harness's [`Policy`]; below them the defaults. Each layer is a [`Policy`] with holes;
//! [`Settings`] is the stack with the holes filled.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use crate::wire::wire_struct;

/// Which kinds of file descriptors fail a test that opens them and leaves them open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fds {
    /// Pipes only: what keeps a reader waiting.
    Pipes,
    /// Every kind: files, sockets, epolls, memfds.
    All,
    /// None: the fd table is not read.
    Off,
}

/// What becomes of a test that forks while it has other threads, when the child does not go
/// straight on to exec.
///
/// The child has one thread, and every lock that another thread held at that moment stays locked
/// in it for ever. Between fork and exec only async-signal-safe calls are sound (fork(2),
/// signal-safety(7)); CPython warns of the same since 3.12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadedFork {
    /// It passes, and the fork is told.
    Warn,
    /// It fails.
    Deny,
    /// It passes.
    Allow,
}

/// What is checked at the end of a test, and how long things may take.
///
/// A policy has holes: only what was set here counts, the rest comes from the defaults. The
/// test's attribute, the `CHILDPROOF_*` environment and the command line win over it.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use childproof::{Fds, Policy};
///
/// let policy = Policy::new().timeout(Duration::from_secs(5)).fds(Fds::All);
/// # let _ = policy;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub(crate) timeout: Option<Option<Duration>>,
    pub(crate) grace: Option<Duration>,
    pub(crate) fds: Option<Fds>,
    pub(crate) deny_processes: Option<bool>,
    pub(crate) deny_unwaited: Option<bool>,
    pub(crate) deny_threads: Option<bool>,
    pub(crate) threaded_fork: Option<ThreadedFork>,
    pub(crate) allow_process: Vec<String>,
    pub(crate) allow_created_by: Vec<String>,
    pub(crate) serial: Option<String>,
}

impl Policy {
    /// Makes a policy that sets nothing.
    pub const fn new() -> Self {
        Policy {
            timeout: None,
            grace: None,
            fds: None,
            deny_processes: None,
            deny_unwaited: None,
            deny_threads: None,
            threaded_fork: None,
            allow_process: Vec::new(),
            allow_created_by: Vec::new(),
            serial: None,
        }
    }

    /// Sets how long a body may run. The default is 300 s.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(Some(limit));
        self
    }

    /// Lets bodies run for as long as they like.
    pub fn no_timeout(mut self) -> Self {
        self.timeout = Some(None);
        self
    }

    /// Sets how long descendants may take to end by themselves once the body has ended, and threads
    /// that still run to close what they own. The default is 200 ms; the wait ends early when the
    /// last one is gone.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Sets which kinds of fds are checked. The default is [`Fds::Pipes`].
    pub fn fds(mut self, fds: Fds) -> Self {
        self.fds = Some(fds);
        self
    }

    /// Lets leaked processes pass. They are killed all the same.
    pub fn allow_processes(mut self) -> Self {
        self.deny_processes = Some(false);
        self
    }

    /// Fails a test that leaves a process, as is the default, where a weaker policy lets it pass.
    pub fn deny_processes(mut self) -> Self {
        self.deny_processes = Some(true);
        self
    }

    /// Fails a test that leaves a zombie: a child that has exited and was never waited for.
    pub fn deny_unwaited(mut self) -> Self {
        self.deny_unwaited = Some(true);
        self
    }

    /// Lets zombies pass, as is the default, where a weaker policy fails the test.
    pub fn allow_unwaited(mut self) -> Self {
        self.deny_unwaited = Some(false);
        self
    }

    /// Fails a test whose threads still run when its body returns.
    pub fn deny_threads(mut self) -> Self {
        self.deny_threads = Some(true);
        self
    }

    /// Lets such threads pass, as is the default, where a weaker policy fails the test.
    pub fn allow_threads(mut self) -> Self {
        self.deny_threads = Some(false);
        self
    }

    /// Sets what becomes of a test that forks while it has other threads. The default is
    /// [`ThreadedFork::Warn`].
    pub fn threaded_fork(mut self, verdict: ThreadedFork) -> Self {
        self.threaded_fork = Some(verdict);
        self
    }

    /// Expects leaked processes whose command line matches `glob` (`*` any run of characters,
    /// `?` one character). They are killed, and do not fail the test. Repeatable.
    pub fn allow_process(mut self, glob: impl Into<String>) -> Self {
        self.allow_process.push(glob.into());
        self
    }

    /// Expects fds that were made in code whose path is `prefix` or below it, such as
    /// `"signal_hook_registry"`. Repeatable.
    pub fn allow_created_by(mut self, prefix: impl Into<String>) -> Self {
        self.allow_created_by.push(prefix.into());
        self
    }

    /// Never runs two tests of one `key` at the same time, also not in two test binaries.
    pub fn serial(mut self, key: impl Into<String>) -> Self {
        self.serial = Some(key.into());
        self
    }

    /// Fills the holes of `self` from `weaker`. Lists add up: a glob allowed anywhere is allowed.
    pub(crate) fn over(mut self, weaker: &Policy) -> Policy {
        self.timeout = self.timeout.or(weaker.timeout);
        self.grace = self.grace.or(weaker.grace);
        self.fds = self.fds.or(weaker.fds);
        self.deny_processes = self.deny_processes.or(weaker.deny_processes);
        self.deny_unwaited = self.deny_unwaited.or(weaker.deny_unwaited);
        self.deny_threads = self.deny_threads.or(weaker.deny_threads);
        self.threaded_fork = self.threaded_fork.or(weaker.threaded_fork);
        self.allow_process.extend(weaker.allow_process.iter().cloned());
        self.allow_created_by.extend(weaker.allow_created_by.iter().cloned());
        self.serial = self.serial.or_else(|| weaker.serial.clone());
        self
    }

    /// Whether this argument of the attribute has a value here.
    pub(crate) fn sets(&self, argument: &str) -> bool {
        match argument {
            "timeout" => self.timeout.is_some(),
            "fds" => self.fds.is_some(),
            "processes" => self.deny_processes.is_some(),
            "unwaited" => self.deny_unwaited.is_some(),
            "threads" => self.deny_threads.is_some(),
            "threaded_fork" => self.threaded_fork.is_some(),
            // The others add up, or let nothing pass.
            _ => false,
        }
    }

    /// Fills what is left open with the defaults.
    pub(crate) fn settle(self) -> Settings {
        Settings {
            timeout: self.timeout.unwrap_or(Some(Duration::from_secs(300))),
            grace: self.grace.unwrap_or(Duration::from_millis(200)),
            fds: self.fds.unwrap_or(Fds::Pipes),
            deny_processes: self.deny_processes.unwrap_or(true),
            deny_unwaited: self.deny_unwaited.unwrap_or(false),
            deny_threads: self.deny_threads.unwrap_or(false),
            threaded_fork: self.threaded_fork.unwrap_or(ThreadedFork::Warn),
            allow_process: self.allow_process,
            allow_created_by: self.allow_created_by,
            serial: self.serial,
        }
    }
}

wire_struct! {
    /// A policy without holes: what one test is judged by.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Settings {
        pub(crate) timeout: Option<Duration>,
        pub(crate) grace: Duration,
        pub(crate) fds: Fds,
        pub(crate) deny_processes: bool,
        pub(crate) deny_unwaited: bool,
        pub(crate) deny_threads: bool,
        pub(crate) threaded_fork: ThreadedFork,
        pub(crate) allow_process: Vec<String>,
        pub(crate) allow_created_by: Vec<String>,
        pub(crate) serial: Option<String>,
    }
}

/// A value that cannot be read: where it stands, what it is, what would be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadValue {
    pub(crate) place: String,
    pub(crate) value: String,
    pub(crate) valid: &'static str,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid value `{}` for `{}`: expected {}", self.value, self.place, self.valid)
    }
}

pub(crate) const DURATION: &str = "a duration such as `500ms`, `5s` or `2m`";
pub(crate) const TIMEOUT: &str = "a duration such as `500ms`, `5s` or `2m`, or `none`";
const FDS: &str = "`pipes`, `all` or `off`";
const DENY: &str = "`deny` or `allow`";
const TRACE: &str = "`fds`";
const BACKTRACE: &str = "`full` or `short`";
const THREADED_FORK: &str = "`warn`, `deny` or `allow`";

/// Reads a duration: a whole or decimal number directly followed by `us`, `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
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
    // A year is more than any test, and keeps every later sum of durations far from overflow.
    (seconds <= 365.0 * 86_400.0).then(|| Duration::from_secs_f64(seconds))
}

/// Reads a timeout: a duration above zero, or `none`.
pub(crate) fn timeout(text: &str) -> Option<Option<Duration>> {
    match text {
        "none" => Some(None),
        _ => duration(text).filter(|limit| !limit.is_zero()).map(Some),
    }
}

fn fds(text: &str) -> Option<Fds> {
    match text {
        "pipes" => Some(Fds::Pipes),
        "all" => Some(Fds::All),
        "off" => Some(Fds::Off),
        _ => None,
    }
}

fn deny(text: &str) -> Option<bool> {
    match text {
        "deny" => Some(true),
        "allow" => Some(false),
        _ => None,
    }
}

fn threaded_fork(text: &str) -> Option<ThreadedFork> {
    match text {
        "warn" => Some(ThreadedFork::Warn),
        "deny" => Some(ThreadedFork::Deny),
        "allow" => Some(ThreadedFork::Allow),
        _ => None,
    }
}

/// Every variable that is read, without `CHILDPROOF_`.
const VARIABLES: [&str; 9] =
    ["TIMEOUT", "GRACE", "PROCESSES", "FDS", "UNWAITED", "THREADS", "THREADED_FORK", "BACKTRACE", "TRACE"];

/// Arguments that only a test itself has, as variables would be called.
const OF_A_TEST: [&str; 3] = ["ALLOW_PROCESS", "ALLOW_CREATED_BY", "SERIAL"];

/// Finds a variable that is none of ours and nearly is: what it was meant for would silently not
/// be done. Others that begin with `CHILDPROOF_` are somebody else's business.
pub(crate) fn misspelt(names: impl Iterator<Item = OsString>) -> Option<String> {
    for name in names {
        let text = name.to_string_lossy();
        let Some(name) = text.strip_prefix("CHILDPROOF_").filter(|name| !VARIABLES.contains(name)) else {
            continue;
        };
        if OF_A_TEST.contains(&name) {
            return Some(format!(
                "unknown variable `CHILDPROOF_{name}`: `{}` is set in a test's attribute or in a `Policy`",
                name.to_lowercase()
            ));
        }
        let is_near = |known: &str| distance(&name.to_uppercase(), known) <= (known.len() / 3).min(2);
        if VARIABLES.into_iter().any(is_near) {
            return Some(format!(
                "unknown variable `CHILDPROOF_{name}`: expected one of CHILDPROOF_{}",
                VARIABLES.join(", _")
            ));
        }
    }
    None
}

/// How many letters have to be put in, taken out or replaced to make one word of the other
/// (Levenshtein 1966).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let cost = (before + usize::from(a != b)).min(row[j] + 1).min(row[j + 1] + 1);
            before = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[other.len()]
}

/// Reads the `CHILDPROOF_*` environment. `get` is `std::env::var_os`, or a table in a test.
///
/// # Errors
///
/// The first variable whose value cannot be read, with what would be valid.
pub(crate) fn from_environment(get: impl Fn(&str) -> Option<OsString>) -> Result<Policy, BadValue> {
    fn read<T>(
        get: &impl Fn(&str) -> Option<OsString>,
        name: &str,
        valid: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, BadValue> {
        let Some(raw) = get(name) else {
            return Ok(None);
        };
        match raw.to_str().and_then(parse) {
            Some(value) => Ok(Some(value)),
            None => {
                Err(BadValue { place: name.to_owned(), value: raw.to_string_lossy().into_owned(), valid })
            }
        }
    }
    // Read where they are obeyed; here they are only made sure of.
    read(&get, "CHILDPROOF_TRACE", TRACE, |text| (text == "fds").then_some(()))?;
    read(&get, "CHILDPROOF_BACKTRACE", BACKTRACE, |text| matches!(text, "full" | "short").then_some(()))?;
    Ok(Policy {
        timeout: read(&get, "CHILDPROOF_TIMEOUT", TIMEOUT, timeout)?,
        grace: read(&get, "CHILDPROOF_GRACE", DURATION, duration)?,
        fds: read(&get, "CHILDPROOF_FDS", FDS, fds)?,
        deny_processes: read(&get, "CHILDPROOF_PROCESSES", DENY, deny)?,
        deny_unwaited: read(&get, "CHILDPROOF_UNWAITED", DENY, deny)?,
        deny_threads: read(&get, "CHILDPROOF_THREADS", DENY, deny)?,
        threaded_fork: read(&get, "CHILDPROOF_THREADED_FORK", THREADED_FORK, threaded_fork)?,
        ..Policy::new()
    })
}

#[cfg(test)]
mod tests {
    use super::{distance, misspelt};

    #[test]
    fn a_variable_that_is_nearly_ours_is_found() {
        let misspelt = |name: &str| misspelt([name.into()].into_iter()).is_some();
        for name in [
            "SERIAL",
            "ALLOW_PROCESS",
            "TIMOUT",
            "TIMEOUTS",
            "timeout",
            "FD",
            "FDSS",
            "GRACES",
            "THREAD",
            "THREADED_FORKS",
            "PROCESS",
        ] {
            assert!(misspelt(&format!("CHILDPROOF_{name}")), "{name}");
        }
        for name in ["TIMEOUT", "FDS", "TRACE", "GRACE", "FOO", "BLESS", "FORK_SERVER", "SPACE", ""] {
            assert!(!misspelt(&format!("CHILDPROOF_{name}")), "{name}");
        }
        assert!(!misspelt("TIMOUT"));
    }

    #[test]
    fn a_distance_counts_letters() {
        for (one, other, expected) in
            [("", "", 0), ("ab", "", 2), ("", "ab", 2), ("abc", "axc", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
