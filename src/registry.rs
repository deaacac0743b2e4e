//! What `#[childproof::test]` registers, and how it is found again.
//!
//! Each attribute leaves a [`Test`] in a static and one pointer in `.init_array`. Before `main`
//! the pointers run and push their statics onto a list: no allocation, no order to rely on, and
//! no section that a linker's garbage collection could drop (`.init_array` is always kept).

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

use crate::policy::{Fds, Policy, ThreadedFork};

/// How the arguments of a test are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) place: Place,
    /// There are some already.
    pub(crate) has_arguments: bool,
}

/// Where the arguments of a test are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `#[childproof::test(..)]`
    Test,
    /// `#[childproof::guard(..)]`
    Guard,
    /// `Harness::test_with(.., Policy::new()..)`
    Policy,
}

/// The arguments of one attribute, as constants. A field that was not given is `None` or empty.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // Not public API: only generated code fills it.
pub struct Attribute {
    pub timeout: Option<Option<Duration>>,
    pub grace: Option<Duration>,
    pub fds: Option<Fds>,
    pub deny_processes: Option<bool>,
    pub deny_unwaited: Option<bool>,
    pub deny_threads: Option<bool>,
    pub threaded_fork: Option<ThreadedFork>,
    pub allow_process: &'static [&'static str],
    pub allow_created_by: &'static [&'static str],
    pub serial: Option<&'static str>,
    /// `#[ignore]` is `Some("")`, `#[ignore = "why"]` is `Some("why")`.
    pub ignore: Option<&'static str>,
    /// `#[should_panic]` is `Some("")`, `#[should_panic(expected = "..")]` is `Some("..")`.
    pub should_panic: Option<&'static str>,
    /// The function also carries a foreign `#[should_panic]` that libtest will judge.
    pub libtest_expects_panic: bool,
    /// The user wrote `#[childproof::guard]`.
    pub is_guard: bool,
    /// There is something in its parentheses.
    pub has_arguments: bool,
}

impl Attribute {
    /// Sets nothing.
    pub const NONE: Attribute = Attribute {
        timeout: None,
        grace: None,
        fds: None,
        deny_processes: None,
        deny_unwaited: None,
        deny_threads: None,
        threaded_fork: None,
        allow_process: &[],
        allow_created_by: &[],
        serial: None,
        ignore: None,
        should_panic: None,
        libtest_expects_panic: false,
        is_guard: false,
        has_arguments: false,
    };

    pub(crate) fn form(&self) -> Form {
        let place = if self.is_guard { Place::Guard } else { Place::Test };
        Form { place, has_arguments: self.has_arguments }
    }

    pub(crate) fn policy(&self) -> Policy {
        let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
        Policy {
            timeout: self.timeout,
            grace: self.grace,
            fds: self.fds,
            deny_processes: self.deny_processes,
            deny_unwaited: self.deny_unwaited,
            deny_threads: self.deny_threads,
            threaded_fork: self.threaded_fork,
            allow_process: owned(self.allow_process),
            allow_created_by: owned(self.allow_created_by),
            serial: self.serial.map(str::to_owned),
        }
    }
}

/// One registered test.
#[derive(Debug)]
pub struct Test {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
    pub(crate) body: fn() -> ExitCode,
    /// Elsewhere: it has no addresses in it, or few, so that nobody writes to where it lies. What was written
    /// to is copied for every test that is forked, and there may be thousands of these.
    pub(crate) attribute: &'static Attribute,
    /// The file as the compiler was given it, and the line.
    pub(crate) place: (&'static str, u32),
    next: AtomicPtr<Test>,
    /// The place in the order of registration, which is the same in every process of a binary.
    index: AtomicUsize,
    /// libtest has run it in this process.
    has_run: AtomicBool,
}

static HEAD: AtomicPtr<Test> = AtomicPtr::new(std::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

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
        let (index, has_run) = (AtomicUsize::new(0), AtomicBool::new(false));
        Test { module, name, body, attribute, place, next, index, has_run }
    }

    /// Adds the test to the list. Runs before `main`, once a test, in one thread.
    pub fn register(&'static self) {
        self.index.store(COUNT.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        self.next.store(HEAD.load(Ordering::Relaxed), Ordering::Relaxed);
        HEAD.store((&raw const *self).cast_mut(), Ordering::Release);
    }

    /// Notes that libtest runs it; tells whether it has done so before.
    pub(crate) fn has_run_before(&self) -> bool {
        self.has_run.swap(true, Ordering::Relaxed)
    }

    /// The place in [`registered`]'s list.
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

/// Finds the test that has this place in the order of registration and a name of this mark.
pub(crate) fn find(tests: &[&'static Test], index: usize, mark: u64) -> Option<&'static Test> {
    tests.get(index).copied().filter(|test| mark_of(&test.path()) == mark)
}

/// Tells a name from others, in eight bytes: FNV-1a (Fowler, Noll, Vo) of its parts.
pub(crate) fn mark_of(name: &[&str]) -> u64 {
    let mut mark = 0xcbf2_9ce4_8422_2325_u64;
    for part in name {
        for byte in part.as_bytes() {
            mark = (mark ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    mark
}

/// Lists every registered test in the order of registration.
pub(crate) fn registered() -> Vec<&'static Test> {
    let mut tests = Vec::with_capacity(COUNT.load(Ordering::Relaxed));
    let mut at = HEAD.load(Ordering::Acquire);
    while let Some(test) = crate::sys::registered(at) {
        tests.push(test);
        at = test.next.load(Ordering::Relaxed);
    }
    tests.reverse();
    tests
}
