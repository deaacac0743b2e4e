//! What is checked, with which limits, and where each value comes from.
//!
//! Five layers, the strongest first: command line, `CHILDPROOF_*` environment, the attribute, the harness's
//! [`Policy`], the target's `childproof::policy!`; below them the defaults. Each layer is a [`Policy`] in
//! which any field may be unset; [`Settings`] is the result, with all fields set.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use childproof_values::{self as values, Argument, Choice, Scope};

pub use super::isolation::Isolation;
use crate::sys::wire::{Wire, wire_struct};

/// Selects the kinds of file descriptors that fail a test that opens them and leaves them open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fds {
    /// Pipes and named FIFOs only: a leaked end can keep a reader waiting.
    Pipes,
    /// Every kind: files, sockets, epolls, memfds.
    All,
    /// None: the fd table is not read.
    Off,
}

/// Selects the verdict on a test that forks while it has other threads, when the child does not go straight
/// on to exec.
///
/// The child has one thread, and every lock that another thread held at that moment stays locked in it
/// forever. Between fork and exec only async-signal-safe calls are sound (fork(2), signal-safety(7)); CPython
/// has warned about the same since 3.12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadedFork {
    /// It passes with a warning.
    Warn,
    /// It fails.
    Deny,
    /// It passes.
    Allow,
}

/// The verdict on processes that were left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Not public API: generated code uses it.
pub enum Level {
    Deny,
    Warn,
    Allow,
}

impl Level {
    /// In the order of [`values::LEVELS`].
    const ALL: [Level; 3] = [Level::Deny, Level::Warn, Level::Allow];

    fn read(text: &str) -> Option<Level> {
        Level::ALL.get(values::LEVELS.index(text)?).copied()
    }
}

impl Wire for Level {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u8).put(out);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        Level::ALL.get(usize::from(u8::get(input)?)).copied()
    }
}

impl Fds {
    /// In the order of [`values::FDS_VALUES`].
    const ALL: [Fds; 3] = [Fds::Pipes, Fds::All, Fds::Off];

    fn read(text: &str) -> Option<Fds> {
        Fds::ALL.get(values::FDS_VALUES.index(text)?).copied()
    }
}

impl ThreadedFork {
    /// In the order of [`values::THREADED_FORK_VALUES`].
    const ALL: [ThreadedFork; 3] = [ThreadedFork::Warn, ThreadedFork::Deny, ThreadedFork::Allow];

    fn read(text: &str) -> Option<ThreadedFork> {
        ThreadedFork::ALL.get(values::THREADED_FORK_VALUES.index(text)?).copied()
    }
}

impl Wire for Fds {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u8).put(out);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        Fds::ALL.get(usize::from(u8::get(input)?)).copied()
    }
}

impl Wire for ThreadedFork {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u8).put(out);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        ThreadedFork::ALL.get(usize::from(u8::get(input)?)).copied()
    }
}

/// Sets what is checked at the end of a test, and the time limits.
///
/// A policy may leave fields unset: only what was set here counts, the rest comes from the defaults. The
/// test's attribute, the `CHILDPROOF_*` environment and the command line take precedence over it.
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
    pub(crate) processes: Option<Level>,
    pub(crate) unused_allowances: Option<Level>,
    pub(crate) deny_unwaited: Option<bool>,
    pub(crate) deny_threads: Option<bool>,
    pub(crate) threaded_fork: Option<ThreadedFork>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) allow_process: Vec<String>,
    pub(crate) allow_created_by: Vec<String>,
    pub(crate) serial: Option<String>,
    pub(crate) keep: Option<bool>,
}

impl Policy {
    /// Makes a policy that sets nothing.
    pub const fn new() -> Self {
        Policy {
            timeout: None,
            grace: None,
            fds: None,
            processes: None,
            unused_allowances: None,
            deny_unwaited: None,
            deny_threads: None,
            threaded_fork: None,
            isolation: None,
            allow_process: Vec::new(),
            allow_created_by: Vec::new(),
            serial: None,
            keep: None,
        }
    }

    /// Sets how long a body may run. The default is 300 s.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(Some(limit));
        self
    }

    /// Removes the time limit of bodies.
    pub fn no_timeout(mut self) -> Self {
        self.timeout = Some(None);
        self
    }

    /// Sets how long descendants may take to exit by themselves once the body has ended, and running threads
    /// to close their fds. The default is 200 ms; the wait ends early when the last one is gone.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Sets which kinds of fds are checked. The default is [`Fds::Pipes`].
    pub fn fds(mut self, fds: Fds) -> Self {
        self.fds = Some(fds);
        self
    }

    /// Accepts leaked processes. They are killed all the same.
    pub fn allow_processes(mut self) -> Self {
        self.processes = Some(Level::Allow);
        self
    }

    /// Warns of leaked processes, and accepts them: for a suite that is not clean yet. They are killed all the
    /// same.
    pub fn warn_processes(mut self) -> Self {
        self.processes = Some(Level::Warn);
        self
    }

    /// Fails a test that leaves a process, which is the default, where a weaker policy accepts it.
    pub fn deny_processes(mut self) -> Self {
        self.processes = Some(Level::Deny);
        self
    }

    /// Fails a test that passes and leaves nothing that one of its own `allow_process` or `allow_created_by` allows.
    pub fn deny_unused_allowances(mut self) -> Self {
        self.unused_allowances = Some(Level::Deny);
        self
    }

    /// Warns of a test that passes and leaves nothing that one of its own `allow_process` or `allow_created_by` allows.
    pub fn warn_unused_allowances(mut self) -> Self {
        self.unused_allowances = Some(Level::Warn);
        self
    }

    /// Fails a test that leaves a zombie: a child that has exited and was never waited for.
    pub fn deny_unwaited(mut self) -> Self {
        self.deny_unwaited = Some(true);
        self
    }

    /// Accepts zombies, which is the default, where a weaker policy fails the test.
    pub fn allow_unwaited(mut self) -> Self {
        self.deny_unwaited = Some(false);
        self
    }

    /// Fails a test that still has running threads when its body returns.
    pub fn deny_threads(mut self) -> Self {
        self.deny_threads = Some(true);
        self
    }

    /// Accepts running threads, which is the default, where a weaker policy fails the test.
    pub fn allow_threads(mut self) -> Self {
        self.deny_threads = Some(false);
        self
    }

    /// Sets the verdict on a test that forks while it has other threads. The default is
    /// [`ThreadedFork::Warn`].
    pub fn threaded_fork(mut self, verdict: ThreadedFork) -> Self {
        self.threaded_fork = Some(verdict);
        self
    }

    /// Sets whether a test runs in a PID namespace. The default is [`Isolation::Off`].
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Expects leaked processes whose command line matches `glob` (`*` any run of characters,
    /// `?` one character). They are killed, and do not fail the test. Repeatable.
    pub fn allow_process(mut self, glob: impl Into<String>) -> Self {
        self.allow_process.push(glob.into());
        self
    }

    /// Expects fds that were created in code whose path is `prefix` or below it, such as
    /// `"signal_hook_registry"`. Repeatable.
    pub fn allow_created_by(mut self, prefix: impl Into<String>) -> Self {
        self.allow_created_by.push(prefix.into());
        self
    }

    /// Never runs two tests with the same `key` at the same time, not even in two test binaries.
    pub fn serial(mut self, key: impl Into<String>) -> Self {
        self.serial = Some(key.into());
        self
    }

    /// Stops what leaked or hangs, and keeps it.
    #[cfg_attr(not(feature = "__engine"), allow(dead_code, reason = "only the tool calls it"))]
    #[doc(hidden)]
    pub fn keep(mut self) -> Self {
        self.keep = Some(true);
        self
    }

    /// Fills unset fields from `weaker`. Lists add up: a glob allowed anywhere is allowed.
    pub(crate) fn over(mut self, weaker: &Policy) -> Policy {
        self.timeout = self.timeout.or(weaker.timeout);
        self.grace = self.grace.or(weaker.grace);
        self.fds = self.fds.or(weaker.fds);
        self.processes = self.processes.or(weaker.processes);
        self.unused_allowances = self.unused_allowances.or(weaker.unused_allowances);
        self.deny_unwaited = self.deny_unwaited.or(weaker.deny_unwaited);
        self.deny_threads = self.deny_threads.or(weaker.deny_threads);
        self.threaded_fork = self.threaded_fork.or(weaker.threaded_fork);
        self.isolation = self.isolation.or(weaker.isolation);
        self.allow_process.extend(weaker.allow_process.iter().cloned());
        self.allow_created_by.extend(weaker.allow_created_by.iter().cloned());
        self.serial = self.serial.or_else(|| weaker.serial.clone());
        self.keep = self.keep.or(weaker.keep);
        self
    }

    /// Whether this policy sets an argument of the attribute.
    pub(crate) fn sets(&self, argument: &str) -> bool {
        match argument {
            "timeout" => self.timeout.is_some(),
            "fds" => self.fds.is_some(),
            "processes" => self.processes.is_some(),
            "unwaited" => self.deny_unwaited.is_some(),
            "threads" => self.deny_threads.is_some(),
            "threaded_fork" => self.threaded_fork.is_some(),
            // The other arguments add up, or never make a test pass.
            _ => false,
        }
    }

    /// Fills unset fields with the defaults.
    pub(crate) fn settle(self) -> Settings {
        Settings {
            timeout: self.timeout.unwrap_or(Some(Duration::from_secs(300))),
            grace: self.grace.unwrap_or(Duration::from_millis(200)),
            fds: self.fds.unwrap_or(Fds::Pipes),
            processes: self.processes.unwrap_or(Level::Deny),
            unused_allowances: self.unused_allowances.unwrap_or(Level::Allow),
            deny_unwaited: self.deny_unwaited.unwrap_or(false),
            deny_threads: self.deny_threads.unwrap_or(false),
            threaded_fork: self.threaded_fork.unwrap_or(ThreadedFork::Warn),
            isolation: self.isolation.unwrap_or(Isolation::Off),
            allow_process: self.allow_process,
            allow_created_by: self.allow_created_by,
            serial: self.serial,
            keep: self.keep.unwrap_or(false),
        }
    }
}

wire_struct! {
    /// A policy with all fields set: what one test is judged by.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Settings {
        pub(crate) timeout: Option<Duration>,
        pub(crate) grace: Duration,
        pub(crate) fds: Fds,
        pub(crate) processes: Level,
        pub(crate) unused_allowances: Level,
        pub(crate) deny_unwaited: bool,
        pub(crate) deny_threads: bool,
        pub(crate) threaded_fork: ThreadedFork,
        pub(crate) isolation: Isolation,
        pub(crate) allow_process: Vec<String>,
        pub(crate) allow_created_by: Vec<String>,
        pub(crate) serial: Option<String>,
        /// What leaked or hangs is stopped and kept.
        pub(crate) keep: bool,
    }
}

/// An invalid value: where it was set, what it is, what would be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadValue {
    pub(crate) place: String,
    pub(crate) value: String,
    pub(crate) valid: String,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid value `{}` for `{}`: expected {}", self.value, self.place, self.valid)
    }
}

/// Begins the name of the variable with the address of a shared fixture.
pub(crate) const SHARED: &str = "CHILDPROOF_SHARED_";

const TRACE: Choice = Choice(&["fds"]);
const BACKTRACE: Choice = Choice(&["full", "short"]);
const SWITCH: Choice = Choice(&["0", "1"]);
/// Settings that only have a variable and no argument, with their valid values unless any is.
const VARIABLES_ONLY: [(&str, Option<Choice>); 6] = [
    ("backtrace", Some(BACKTRACE)),
    ("trace", Some(TRACE)),
    ("debug", None),
    ("shared", Some(SWITCH)),
    ("keep", Some(SWITCH)),
    ("require", Some(SWITCH)),
];

/// The name of the variable for an argument.
fn variable(argument: &str) -> String {
    format!("CHILDPROOF_{}", argument.to_uppercase())
}

/// Every variable that is read, by the name of its argument.
fn variables() -> impl Iterator<Item = &'static str> {
    let arguments =
        values::ARGUMENTS.into_iter().filter(|argument| matches!(argument.scope, Scope::Run | Scope::Target));
    arguments.map(|argument| argument.name).chain(VARIABLES_ONLY.map(|(name, _)| name))
}

/// Finds a variable that nearly has the name of a setting: a typo would silently be ignored. Other variables
/// that begin with `CHILDPROOF_` are ignored.
pub(crate) fn misspelt(mut names: impl Iterator<Item = OsString>) -> Option<String> {
    names.find_map(|name| misspelt_variable(&name.to_string_lossy()))
}

fn misspelt_variable(name: &str) -> Option<String> {
    let argument = name.strip_prefix("CHILDPROOF_")?;
    if name.starts_with(SHARED) {
        return None;
    }
    if variables().any(|known| variable(known) == name) {
        return None;
    }
    let of_a_test = values::ARGUMENTS.into_iter().filter(|argument| argument.scope == Scope::Test);
    if let Some(known) = of_a_test.map(|argument| argument.name).find(|known| variable(known) == name) {
        let place = "is set in a test's attribute, in `childproof::policy!` or in a `Policy`";
        return Some(format!("unknown variable `{name}`: `{known}` {place}"));
    }
    let begins = |known: &&str| {
        let rest = argument.strip_prefix(&*known.to_uppercase());
        rest.is_some_and(|rest| rest.starts_with('_'))
    };
    if let Some(known) = variables().filter(begins).max_by_key(|known| known.len()) {
        return Some(format!("unknown variable `{name}`: `{}` is probably meant", variable(known)));
    }
    values::nearest(&argument.to_lowercase(), variables(), |length| (length / 3).min(2))?;
    let known: Vec<String> = variables().map(str::to_uppercase).collect();
    Some(format!("unknown variable `{name}`: expected one of CHILDPROOF_{}", known.join(", _")))
}

/// Reads the `CHILDPROOF_*` environment. `get` is `std::env::var_os`, or a table in a test.
///
/// # Errors
///
/// The first variable with an invalid value, and what would be valid.
pub(crate) fn from_environment(get: impl Fn(&str) -> Option<OsString>) -> Result<Policy, BadValue> {
    fn read<T>(
        get: &impl Fn(&str) -> Option<OsString>,
        (name, valid): (&str, impl fmt::Display),
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, BadValue> {
        let place = variable(name);
        let Some(raw) = get(&place) else {
            return Ok(None);
        };
        let bad = || BadValue { place, value: raw.to_string_lossy().into_owned(), valid: valid.to_string() };
        raw.to_str().and_then(parse).map(Some).ok_or_else(bad)
    }
    // These are used elsewhere; here they are only validated.
    for (name, choice) in VARIABLES_ONLY {
        if let Some(choice) = choice {
            read(&get, (name, choice), |text| choice.index(text))?;
        }
    }
    let of = |argument: &Argument| (argument.name, argument.value);
    read(&get, of(&values::UNGUARDED), Level::read)?;
    let list = |argument: &Argument| {
        let valid = format!("{}, or several with `{}` between them", argument.value, values::SEPARATOR);
        let items = read(&get, (argument.name, valid), |text| {
            values::list(text).map(|items| items.into_iter().map(str::to_owned).collect::<Vec<_>>())
        });
        items.map(Option::unwrap_or_default)
    };
    Ok(Policy {
        allow_process: list(&values::ALLOW_PROCESS)?,
        allow_created_by: list(&values::ALLOW_CREATED_BY)?,
        timeout: read(&get, of(&values::TIMEOUT), values::timeout)?,
        grace: read(&get, of(&values::GRACE), values::duration)?,
        fds: read(&get, of(&values::FDS), Fds::read)?,
        processes: read(&get, of(&values::PROCESSES), Level::read)?,
        unused_allowances: read(&get, of(&values::UNUSED_ALLOWANCES), Level::read)?,
        deny_unwaited: read(&get, of(&values::UNWAITED), values::deny)?,
        deny_threads: read(&get, of(&values::THREADS), values::deny)?,
        threaded_fork: read(&get, of(&values::THREADED_FORK), ThreadedFork::read)?,
        isolation: read(&get, of(&values::ISOLATION), Isolation::read)?,
        keep: read(&get, ("keep", SWITCH), |text| SWITCH.index(text).map(|index| index == 1))?,
        ..Policy::new()
    })
}

/// Whether all tests of a target are to run in one process.
pub(crate) fn is_shared(get: impl Fn(&str) -> Option<OsString>) -> bool {
    get("CHILDPROOF_SHARED").is_some_and(|value| value == "1")
}

/// Whether bodies run in the process that a debugger has started: `CHILDPROOF_DEBUG` is set, and not to `0`.
pub(crate) fn is_debug(get: impl Fn(&str) -> Option<OsString>) -> bool {
    get("CHILDPROOF_DEBUG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// The verdict on processes that unguarded tests of a stock target leave. An invalid value of the variable is reported
/// elsewhere.
pub(crate) fn unguarded(target: Option<Level>, get: impl Fn(&str) -> Option<OsString>) -> Level {
    let value = get(&variable(values::UNGUARDED.name));
    let level = value.and_then(|value| Level::read(value.to_str()?));
    level.or(target).unwrap_or(Level::Warn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_nearly_ours_is_found() {
        let misspelt = |name: &str| misspelt([name.into()].into_iter()).is_some();
        for name in [
            "SERIAL",
            "ALLOW_PROCESES",
            "TIMOUT",
            "TIMEOUTS",
            "timeout",
            "FD",
            "FDSS",
            "GRACES",
            "THREAD",
            "THREADED_FORKS",
            "PROCESS",
            "TIMEOUT_SECS",
            "ALLOW_PROCESS_X",
        ] {
            assert!(misspelt(&format!("CHILDPROOF_{name}")), "{name}");
        }
        for name in [
            "TIMEOUT",
            "ALLOW_PROCESS",
            "ALLOW_CREATED_BY",
            "FDS",
            "TRACE",
            "GRACE",
            "FOO",
            "BLESS",
            "FORK_SERVER",
            "SPACE",
            "",
        ] {
            assert!(!misspelt(&format!("CHILDPROOF_{name}")), "{name}");
        }
        assert!(!misspelt("TIMOUT"));
    }

    #[test]
    fn a_list_is_read_from_the_environment() {
        let read =
            |value: &str| from_environment(|name| (name == "CHILDPROOF_ALLOW_PROCESS").then(|| value.into()));
        assert_eq!(
            read("sleep *;cat").map(|policy| policy.allow_process),
            Ok(vec!["sleep *".into(), "cat".into()])
        );
        let message = read("sleep *;").map_err(|bad| bad.to_string()).err().unwrap_or_default();
        assert!(message.ends_with("such as `sleep *`, or several with `;` between them"), "{message}");
    }

    #[test]
    fn a_value_names_its_variant() {
        fn named<T: std::fmt::Debug>(values: Choice, variants: &[T]) {
            let names: Vec<String> =
                variants.iter().map(|variant| format!("{variant:?}").to_lowercase()).collect();
            assert_eq!(names, values.0);
        }
        named(values::FDS_VALUES, &Fds::ALL);
        named(values::THREADED_FORK_VALUES, &ThreadedFork::ALL);
        named(values::ISOLATION_VALUES, &Isolation::ALL);
    }

    #[test]
    fn a_variant_is_the_one_that_was_sent() {
        let mut bytes = Vec::new();
        Fds::ALL.iter().for_each(|fds| fds.put(&mut bytes));
        ThreadedFork::ALL.iter().for_each(|verdict| verdict.put(&mut bytes));
        Isolation::ALL.iter().for_each(|isolation| isolation.put(&mut bytes));
        let input = &mut bytes.as_slice();
        assert!(Fds::ALL.into_iter().all(|fds| Fds::get(input) == Some(fds)));
        assert!(ThreadedFork::ALL.into_iter().all(|verdict| ThreadedFork::get(input) == Some(verdict)));
        assert!(Isolation::ALL.into_iter().all(|isolation| Isolation::get(input) == Some(isolation)));
    }
}
