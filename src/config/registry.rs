//! The registry of tests that `#[childproof::test]` fills.
//!
//! Each attribute leaves a [`Test`] in a static and one pointer in `.init_array`. Before `main` the pointers
//! run and push their statics onto a list: no allocation, no dependence on order, and no section that a
//! linker's garbage collection could drop (`.init_array` is always kept).

use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

use super::policy::{Fds, Isolation, Level, Policy, ThreadedFork};
use crate::sys::static_list::{Linked, StaticList};

/// How the arguments of a test are written, for suggestions in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ArgumentSyntax {
    pub(crate) position: ArgumentPosition,
    /// Whether there are arguments already.
    pub(crate) has_arguments: bool,
}

/// Where the arguments of a test are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ArgumentPosition {
    /// On the command line of `childproof run`.
    #[cfg_attr(not(feature = "__engine"), allow(dead_code, reason = "only the tool has one"))]
    CommandLine,
    /// `#[childproof::test(..)]`
    Test,
    /// `#[childproof::guard(..)]`
    Guard,
    /// `Harness::test_with(.., Policy::new()..)`
    Policy,
    /// `childproof::policy!(..);`
    Target,
}

/// The arguments of one attribute, as constants. A field that was not given is `None` or empty.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // Not public API: only generated code fills it.
pub struct Attribute {
    pub timeout: Option<Option<Duration>>,
    pub grace: Option<Duration>,
    pub fds: Option<Fds>,
    pub processes: Option<Level>,
    pub unused_allowances: Option<Level>,
    pub deny_unwaited: Option<bool>,
    pub deny_threads: Option<bool>,
    pub threaded_fork: Option<ThreadedFork>,
    pub isolation: Option<Isolation>,
    pub allow_process: &'static [&'static str],
    pub allow_created_by: &'static [&'static str],
    pub serial: Option<&'static str>,
    /// `#[ignore]` is `Some("")`, `#[ignore = "why"]` is `Some("why")`.
    pub ignore: Option<&'static str>,
    /// `#[should_panic]` is `Some("")`, `#[should_panic(expected = "..")]` is `Some("..")`.
    pub should_panic: Option<&'static str>,
    /// Whether the function also carries a foreign `#[should_panic]`, which libtest judges.
    pub libtest_expects_panic: bool,
    /// Whether the user wrote `#[childproof::guard]`.
    pub is_guard: bool,
    /// Whether its parentheses contain anything.
    pub has_arguments: bool,
    /// Whether a foreign `#[test]` must make it one of libtest's.
    pub needs_test: bool,
    /// `childproof::policy!` alone: the verdict on what unguarded tests leave.
    pub unguarded: Option<Level>,
    /// The path of another attribute below `#[childproof::test]` that may have made a `#[test]` too.
    pub above: Option<&'static str>,
}

impl Attribute {
    /// The attribute without arguments.
    pub const NONE: Attribute = Attribute {
        timeout: None,
        grace: None,
        fds: None,
        processes: None,
        unused_allowances: None,
        deny_unwaited: None,
        deny_threads: None,
        threaded_fork: None,
        isolation: None,
        allow_process: &[],
        allow_created_by: &[],
        serial: None,
        ignore: None,
        should_panic: None,
        libtest_expects_panic: false,
        is_guard: false,
        has_arguments: false,
        needs_test: false,
        unguarded: None,
        above: None,
    };

    pub(crate) fn syntax(&self) -> ArgumentSyntax {
        let position = if self.is_guard { ArgumentPosition::Guard } else { ArgumentPosition::Test };
        ArgumentSyntax { position, has_arguments: self.has_arguments }
    }

    pub(crate) fn policy(&self) -> Policy {
        let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
        Policy {
            timeout: self.timeout,
            grace: self.grace,
            fds: self.fds,
            processes: self.processes,
            unused_allowances: self.unused_allowances,
            deny_unwaited: self.deny_unwaited,
            deny_threads: self.deny_threads,
            threaded_fork: self.threaded_fork,
            isolation: self.isolation,
            allow_process: owned(self.allow_process),
            allow_created_by: owned(self.allow_created_by),
            serial: self.serial.map(str::to_owned),
            keep: None,
        }
    }
}

/// One registered test.
#[derive(Debug)]
pub struct Test {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
    pub(crate) body: fn() -> ExitCode,
    /// A separate static that contains few or no addresses, so the loader writes nothing to it. A page that
    /// is written to is copied for every forked test, and there may be thousands of tests.
    pub(crate) attribute: &'static Attribute,
    /// The file as the compiler was given it, and the line.
    pub(crate) place: (&'static str, u32),
    next: AtomicPtr<Test>,
    /// The position in the order of registration, which is the same in every process of a binary.
    index: AtomicUsize,
    /// Whether libtest has run it in this process.
    has_run: AtomicBool,
    /// Whether its function was called in this process.
    is_reached: AtomicBool,
}

/// An address in the code of a crate that has added a test by hand.
static CODE_OF_ADDED: AtomicUsize = AtomicUsize::new(0);

/// Stores where code lies that was compiled for a test which is added by hand.
pub(crate) fn note_code_of_added(address: usize) {
    CODE_OF_ADDED.store(address, Ordering::Relaxed);
}

/// An address in code of the crate with the tests; `None` if there are no tests.
#[cfg(feature = "sites")]
pub(crate) fn code_of_tests() -> Option<usize> {
    let added = Some(CODE_OF_ADDED.load(Ordering::Relaxed)).filter(|address| *address != 0);
    registered().first().map(|test| test.body as usize).or(added)
}

/// The arguments of `childproof::policy!`, for all tests of the target.
static TARGET: OnceLock<&Attribute> = OnceLock::new();

/// Stores the arguments of `childproof::policy!`. The macro makes sure that it runs before `main`, in one
/// thread, and once.
pub fn set_target_policy(attribute: &'static Attribute) {
    let _ = TARGET.set(attribute);
}

/// The policy of `childproof::policy!`, for all tests of the target.
pub(crate) fn target_policy() -> Policy {
    TARGET.get().map(|attribute| attribute.policy()).unwrap_or_default()
}

/// How the arguments of the whole target are written.
pub(crate) fn target_syntax() -> ArgumentSyntax {
    ArgumentSyntax { position: ArgumentPosition::Target, has_arguments: TARGET.get().is_some() }
}

/// What `childproof::policy!` says of processes that unguarded tests leave.
pub(crate) fn target_unguarded() -> Option<Level> {
    TARGET.get().and_then(|attribute| attribute.unguarded)
}

/// Whether libtest is to run a registered test.
static HAS_LIBTEST: AtomicBool = AtomicBool::new(false);

/// Whether libtest is to run a registered test.
pub(crate) fn has_libtest() -> bool {
    HAS_LIBTEST.load(Ordering::Relaxed)
}

static TESTS: StaticList<Test> = StaticList::new();

impl Linked for Test {
    fn next(&self) -> &AtomicPtr<Test> {
        &self.next
    }
}

impl Test {
    /// Describes a test. `module` is `module_path!()`, `name` the function's name,
    /// `place` its `file!()` and `line!()`.
    pub const fn new(
        module: &'static str,
        name: &'static str,
        body: fn() -> ExitCode,
        place: (&'static str, u32),
        attribute: &'static Attribute,
    ) -> Test {
        let next = AtomicPtr::new(std::ptr::null_mut());
        let (index, has_run, is_reached) =
            (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
        Test { module, name, body, attribute, place, next, index, has_run, is_reached }
    }

    /// Adds the test to the list. Runs before `main`, once per test, in one thread.
    pub fn register(&'static self) {
        self.index.store(TESTS.push(self), Ordering::Relaxed);
    }

    /// The same of a test that libtest is to run.
    pub fn register_in_libtest(&'static self) {
        HAS_LIBTEST.store(true, Ordering::Relaxed);
        self.register();
    }

    /// Notes that libtest runs it, and returns whether it has done so before.
    pub(crate) fn has_run_before(&self) -> bool {
        self.has_run.swap(true, Ordering::Relaxed)
    }

    /// Notes that its function was called.
    pub(crate) fn reach(&self) {
        self.is_reached.store(true, Ordering::Relaxed);
    }

    /// Whether its function was called in this process.
    pub(crate) fn is_reached(&self) -> bool {
        self.is_reached.load(Ordering::Relaxed)
    }

    /// The position in [`registered`]'s list.
    pub(crate) fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed)
    }

    /// The name as libtest spells it: the path inside the crate.
    pub(crate) fn full_name(&self) -> String {
        self.path().concat()
    }

    fn path(&self) -> [&'static str; 3] {
        match self.module.split_once("::") {
            Some((_, inside)) => [inside, "::", self.name],
            None => ["", "", self.name],
        }
    }
}

/// Finds the test with this position in the order of registration, if its name has this hash.
pub(crate) fn find(tests: &[&'static Test], index: usize, hash: u64) -> Option<&'static Test> {
    tests.get(index).copied().filter(|test| name_hash(&test.path()) == hash)
}

/// FNV-1a hash (Fowler, Noll, Vo) of a name, given in parts.
pub(crate) fn name_hash(name: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in name {
        for byte in part.as_bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

/// Lists every registered test in the order of registration.
pub(crate) fn registered() -> Vec<&'static Test> {
    TESTS.entries()
}
