//! Concludes from facts what they mean. Reads nothing and prints nothing.

mod ends;
mod explain;
mod forks;
mod futex;
mod leaked;
mod parents;
#[cfg_attr(not(feature = "sites"), allow(dead_code, reason = "no stack is read"))]
pub(crate) mod runtimes;
mod sockets;
mod stray;
mod stuck;
mod threads;
mod unproved;

use std::collections::{HashMap, HashSet};
use std::fmt;

use nix::libc;

use crate::facts::{Class, Facts, Makes, Process};
use crate::outcome::{Body, End, Running};
use crate::policy::{Policy, Settings};
use crate::registry::{Form, Place};

use ends::Strayed;
pub(crate) use ends::Unread;
pub(crate) use futex::Awaited;
pub(crate) use leaked::is_daemon;
pub(crate) use parents::{By, Ended};
pub(crate) use stray::{Holder, Pipe, Stray};
pub(crate) use stuck::{Because, Stuck};

/// Why a test failed. Several may hold at once, and all are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Panicked,
    Error,
    TimedOut,
    EndedEarly,
    Signal,
    LeakedProcess,
    StrayFd,
    Unwaited,
    Threads,
    ThreadedFork,
    Unkillable,
    /// The test could not be run or followed to its end.
    Lost,
}

impl Cause {
    /// The name in the JSON schema.
    #[cfg(any(feature = "json", feature = "junit"))]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cause::Panicked => "panicked",
            Cause::Error => "error",
            Cause::TimedOut => "timed_out",
            Cause::EndedEarly => "ended_early",
            Cause::Signal => "signal",
            Cause::LeakedProcess => "leaked_process",
            Cause::StrayFd => "stray_fd",
            Cause::Unwaited => "unwaited",
            Cause::Threads => "threads",
            Cause::ThreadedFork => "threaded_fork",
            Cause::Unkillable => "unkillable",
            Cause::Lost => "lost",
        }
    }
}

/// Where something was made, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// What was called: `pipe2`, `fork`, `posix_spawnp`, `exit`.
    pub(crate) call: String,
    /// The process that called it.
    pub(crate) maker: i32,
    /// An inode, or the pid of the process that was made; of an end the pid and the exit code.
    pub(crate) keys: [u64; 2],
    pub(crate) makes: Makes,
    /// Of a fork or an end: how many threads the caller had, 0 if that is not known.
    pub(crate) threads: u32,
    /// Of a fork or an end: the name of the thread that called; `main` for the first one.
    pub(crate) thread: String,
    /// Of a fork: the child has called an `exec`, whatever came of it.
    pub(crate) execed: bool,
    /// Of fds: they were made with close-on-exec.
    pub(crate) cloexec: bool,
    /// The program that was started, with its arguments.
    pub(crate) command_line: Vec<String>,
    /// `tests/server.rs:31:10`; `None` if there is no debug information.
    pub(crate) place: Option<String>,
    /// The function of that place.
    pub(crate) function: Option<String>,
    /// Who called it, the user's own frames with their places, the innermost first.
    pub(crate) callers: Vec<String>,
    /// Every function of the stack, the innermost first.
    pub(crate) functions: Vec<String>,
    /// An async runtime made it for itself.
    pub(crate) of_runtime: bool,
    /// And keeps it until the process ends.
    pub(crate) is_kept: bool,
    /// It is a process that `tokio::process` has started.
    pub(crate) is_tokios: bool,
    /// The whole stack, if `CHILDPROOF_BACKTRACE=full` asks for it.
    pub(crate) stack: Vec<String>,
}

impl Origin {
    /// The line of code, in words: `at src/server.rs:88:20 Server::start`.
    pub(crate) fn at(&self) -> String {
        match (&self.place, &self.function) {
            (Some(place), Some(function)) => format!("at {place} {function}"),
            (Some(place), None) => format!("at {place}"),
            // How to get the line is said once, by `lineless`.
            (None, Some(function)) => format!("in {function}"),
            (None, None) => "by code without debug information".to_owned(),
        }
    }
}

/// The addresses in a test's facts, in words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// Who made what was left.
    pub(crate) origins: Vec<Origin>,
    /// Whether the stacks are whole, as `CHILDPROOF_BACKTRACE=full` asks for.
    pub(crate) full: bool,
    /// Whether the test binary has no lines of the user's code.
    pub(crate) lineless: bool,
    /// The frames of a thread, the innermost first.
    pub(crate) stacks: HashMap<i32, Vec<String>>,
    /// The line of the user's own code that a thread is in: `tests/server.rs:31:10`.
    pub(crate) lines: HashMap<i32, String>,
    /// Of others' code, the function that the user's own called and that a thread is in.
    pub(crate) called: HashMap<i32, String>,
    /// The static that a thread's futex lies in.
    pub(crate) locks: HashMap<i32, String>,
    /// What a thread's futex is, if its stack tells.
    pub(crate) awaited: HashMap<i32, Awaited>,
    /// The threads that wait for work of an async runtime.
    pub(crate) in_runtime: HashSet<i32>,
}

/// One thing that went wrong: a sentence, and what usually mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Why the test failed; `None` if this only explains.
    pub(crate) cause: Option<Cause>,
    pub(crate) sentence: String,
    pub(crate) fix: Option<String>,
    /// What allows it if it is meant.
    pub(crate) allow: Vec<Allow>,
}

/// An argument of a test that lets something pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allow {
    pub(crate) argument: &'static str,
    pub(crate) value: String,
}

impl Allow {
    fn new(argument: &'static str, value: impl Into<String>) -> Allow {
        Allow { argument, value: value.into() }
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = \"{}\"", self.argument, self.value)
    }
}

/// What one run of one test came to.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    /// How an argument of the test is written.
    pub(crate) form: Form,
    pub(crate) facts: Facts,
    pub(crate) findings: Vec<Finding>,
    /// The leaked process that a finding names.
    pub(crate) leaked: Option<i32>,
    /// The leaked processes that the policy lets pass.
    pub(crate) allowed: Vec<i32>,
    /// What is told and fails nothing.
    pub(crate) warnings: Vec<Finding>,
    /// The stray fds, same ones folded, with who holds the other end.
    pub(crate) strays: Vec<Stray>,
    /// The pipes that leaked processes hold, with who holds which end.
    pub(crate) pipes: Vec<Pipe>,
    /// Read ends at end-of-file that nobody reads.
    pub(crate) unread: Vec<Unread>,
    /// The programs that processes came from whose parents have ended.
    pub(crate) ended: Vec<Ended>,
    /// The threads that nothing was found to wake.
    pub(crate) stuck: Vec<Stuck>,
    pub(crate) names: Names,
}

impl Verdict {
    /// Of a test that nothing is to be said of.
    fn clean(name: &str, facts: Facts) -> Verdict {
        Verdict {
            name: name.to_owned(),
            form: Form { place: Place::Test, has_arguments: false },
            facts,
            findings: Vec::new(),
            leaked: None,
            allowed: Vec::new(),
            warnings: Vec::new(),
            strays: Vec::new(),
            pipes: Vec::new(),
            unread: Vec::new(),
            ended: Vec::new(),
            stuck: Vec::new(),
            names: Names::default(),
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.failures().next().is_some()
    }

    /// The findings that fail the test, each with its cause.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (Cause, &Finding)> {
        self.findings.iter().filter_map(|finding| Some((finding.cause?, finding)))
    }

    /// The causes, each once.
    pub(crate) fn causes(&self) -> Vec<Cause> {
        let mut causes: Vec<Cause> = Vec::new();
        for (cause, _) in self.failures() {
            if !causes.contains(&cause) {
                causes.push(cause);
            }
        }
        causes
    }

    /// The program that a process came from whose parent has ended, and where that was started.
    pub(crate) fn ended_parent(&self, pid: i32) -> Option<(&Ended, &Origin)> {
        let ended = self.ended.iter().find(|ended| ended.orphan == pid)?;
        Some((ended, self.origin_of_process(ended.parent)?))
    }

    /// Where the process `pid` was made.
    pub(crate) fn origin_of_process(&self, pid: i32) -> Option<&Origin> {
        origin_of_process(&self.names.origins, pid)
    }

    /// Where the pipe or socket with this inode was made.
    pub(crate) fn origin_of_inode(&self, inode: u64) -> Option<&Origin> {
        origin_of_inode(&self.names.origins, inode)
    }

    /// The call by which the test's process ended before its body came back.
    pub(crate) fn origin_of_end(&self) -> Option<&Origin> {
        origin_of_end(&self.names.origins, &self.facts)
    }

    /// Whether a runtime made this socket for itself.
    pub(crate) fn is_of_runtime(&self, inode: u64) -> bool {
        is_of_runtime(&self.names.origins, inode)
    }

    /// The wait of a thread, if nothing was found to end it.
    pub(crate) fn stuck_at(&self, tid: i32) -> Option<&Stuck> {
        self.stuck.iter().find(|stuck| stuck.tid == tid)
    }

    pub(crate) fn has(&self, cause: Cause) -> bool {
        self.findings.iter().any(|finding| finding.cause == Some(cause))
    }

    /// Takes back what would let the test pass where that has been decided elsewhere: the environment and the
    /// command line, which are `outside`, win over the attribute.
    pub(crate) fn obey(&mut self, outside: &Policy) {
        for finding in self.findings.iter_mut().chain(&mut self.warnings) {
            let arguments = finding.allow.iter().map(|allow| allow.argument);
            let Some(argument) = arguments.clone().find(|argument| outside.sets(argument)) else { continue };
            let note = format!(
                "`{argument}` is set by `CHILDPROOF_{}` or on the command line, which win over the test's own argument.",
                argument.to_uppercase()
            );
            finding.allow.clear();
            if !self.facts.notes.contains(&note) {
                self.facts.notes.push(note);
            }
        }
    }

    /// The processes of one class, in the order of the tree.
    pub(crate) fn of_class(&self, class: Class) -> impl Iterator<Item = &Process> {
        self.facts.processes.iter().filter(move |process| process.class == class)
    }
}

/// Judges a test by its facts and its policy.
///
/// `names` are empty if nothing was recorded.
pub(crate) fn conclude(name: &str, settings: &Settings, mut facts: Facts, names: Names) -> Verdict {
    if facts.are_clean() {
        return Verdict::clean(name, facts);
    }
    stray::allow(&mut facts, settings, &names.origins);
    let strays = stray::fold(&facts);
    facts.notes.extend(stuck::too_many(&facts));
    facts.notes.extend(lineless(&names));
    facts.notes.extend(unrecorded(&facts));
    let stuck = stuck::find(&facts, &names);
    let mut findings = Vec::new();
    let strayed = ends::strayed(&facts, &names);
    let unread = ends::unread(&facts);
    let told = explain::find(&facts, &stuck, &names, &strayed, &unread, &mut findings);
    let first = findings.len();
    endings(&facts, settings, origin_of_end(&names.origins, &facts), &mut findings);
    if stuck.iter().any(|stuck| stuck.proved() || stuck.tid == facts.pid) {
        // More time would help nobody, as far as can be seen.
        findings[first..].iter_mut().for_each(|finding| finding.allow.clear());
    }
    let ended = parents::find(&facts, &names);
    let allowed = leaked::allowed(&facts, settings);
    let leaked = leaked::find(&facts, settings, &allowed, &ended, &names, &mut findings);
    stray::find(&facts, &strays, &names.origins, &mut findings);
    ends::find(&strayed, told, &mut findings);
    drop(strayed);
    counts(&facts, settings, &mut findings);
    let forks = forks::find(settings, &names.origins, &stuck, facts.pid);
    let (forks, warnings) = forks.into_iter().partition(|finding| finding.cause.is_some());
    findings.extend::<Vec<Finding>>(forks);
    for survivor in &facts.survivors {
        findings.push(Finding {
            cause: Some(Cause::Unkillable),
            sentence: format!(
                "pid {} `{}` could not be killed: {}.",
                survivor.pid, survivor.name, survivor.why
            ),
            fix: Some(format!(
                "it still runs: end it by hand (`kill -9 {}`), as a user who may.",
                survivor.pid
            )),
            allow: Vec::new(),
        });
    }
    let pipes = stray::pipes(&facts);
    Verdict {
        findings,
        warnings,
        leaked,
        allowed,
        strays,
        pipes,
        unread,
        ended,
        stuck,
        names,
        ..Verdict::clean(name, facts)
    }
}

/// What would name lines where none is known.
fn lineless(names: &Names) -> Option<String> {
    let words = "the test binary has no debug information: `debug = \"limited\"` in its profile, without `strip`, gives lines.";
    names.lineless.then(|| words.to_owned())
}

/// Why a line may not be known.
fn unrecorded(facts: &Facts) -> Option<String> {
    let words = "the test made more pipes and processes than are recorded, the first and the last of them: where a line \
                 is not known, that may be why";
    facts.unrecorded.then(|| words.to_owned())
}

/// Where the process `pid` was made.
fn origin_of_process(origins: &[Origin], pid: i32) -> Option<&Origin> {
    origins.iter().rev().find(|origin| origin.makes == Makes::Process && origin.keys[0] == pid as u64)
}

/// Where the pipe or socket with this inode was made. The last who made it: numbers come again.
fn origin_of_inode(origins: &[Origin], inode: u64) -> Option<&Origin> {
    origins.iter().rev().find(|origin| origin.makes == Makes::Fds && origin.keys.contains(&inode))
}

/// The call by which the test's process ended before its body came back.
fn origin_of_end<'a>(origins: &'a [Origin], facts: &Facts) -> Option<&'a Origin> {
    // Several threads may have been at it: one of them came first.
    let is_it = |origin: &&Origin| match facts.end {
        End::Exited { code } => origin.call == "exec" || origin.keys[1] == u64::from(code as u8),
        End::Signalled { signal } => origin.call == "abort" && signal == libc::SIGABRT,
        End::TimedOut | End::Lost { .. } => false,
    };
    origins.iter().rev().filter(|origin| origin.makes == Makes::End).find(is_it)
}

/// Whether a runtime made a socket for itself.
fn is_of_runtime(origins: &[Origin], inode: u64) -> bool {
    origin_of_inode(origins, inode).is_some_and(|origin| origin.of_runtime)
}

/// How body and process came to their end.
fn endings(facts: &Facts, settings: &Settings, call: Option<&Origin>, findings: &mut Vec<Finding>) {
    let mut add = |cause, sentence: String, fix: Option<&str>, allow: Option<Allow>| {
        let (fix, allow) = (fix.map(str::to_owned), allow.into_iter().collect());
        findings.push(Finding { cause: Some(cause), sentence, fix, allow });
    };
    match &facts.body {
        Body::Unfinished | Body::Passed | Body::PanickedAsExpected => {}
        Body::Panicked => add(Cause::Panicked, "the body panicked: see its output.".into(), None, None),
        Body::Error => add(Cause::Error, "the body returned an error: see its output.".into(), None, None),
        Body::DidNotPanic => {
            add(
                Cause::Panicked,
                "the body did not panic, and `#[should_panic]` says that it does.".into(),
                None,
                None,
            );
        }
        Body::PanickedOtherwise { message } => add(
            Cause::Panicked,
            format!(
                "the body panicked with {message:?}, which does not contain what `#[should_panic(expected = ..)]` says."
            ),
            None,
            None,
        ),
    }
    let came_back = facts.body != Body::Unfinished;
    let limit = settings.timeout.unwrap_or_default().as_secs_f64();
    match &facts.end {
        End::Exited { code } if facts.unchecked => add(
            Cause::EndedEarly,
            format!(
                "the body came back, and then another thread ended the test process with code {code} before it was \
                 known what the body had left."
            ),
            Some("join every thread that the body starts, or use `std::thread::scope`."),
            None,
        ),
        End::Exited { code } if *code != 0 && facts.body.has_passed() => add(
            Cause::EndedEarly,
            format!("the body came back, and then the test process exited with code {code}."),
            Some(
                "look at `atexit` handlers and destructors of statics: a leak checker such as LSan tells it so.",
            ),
            None,
        ),
        End::Exited { .. } if came_back => {}
        End::Exited { code } => add(
            Cause::EndedEarly,
            format!(
                "the test process exited with code {code} before its body came back: it called {}.",
                call.map_or_else(
                    || "`exit`, `_exit` or `exec`".to_owned(),
                    |call| format!("`{}`", call.call)
                )
            ),
            Some("return from the body. A test that must exit or exec does so in a child process."),
            None,
        ),
        End::Signalled { signal } if came_back => add(
            Cause::Signal,
            format!(
                "the body came back, and then {} ended the test process while it exited.",
                signal_name(*signal)
            ),
            Some("look at `atexit` handlers, destructors of statics, and threads that still ran."),
            None,
        ),
        End::Signalled { signal } => add(
            Cause::Signal,
            format!("the test process was ended by {}.", signal_name(*signal)),
            signal_hint(*signal),
            None,
        ),
        End::TimedOut if came_back => add(
            Cause::TimedOut,
            format!("the body came back, but the test process had not exited after {limit} s."),
            Some("look at `atexit` handlers and destructors of statics."),
            None,
        ),
        End::TimedOut => add(
            Cause::TimedOut,
            format!("the body had not come back after {limit} s (the timeout)."),
            None,
            Some(Allow::new("timeout", format!("{}s", (2.0 * limit).ceil().max(600.0)))),
        ),
        End::Lost { why } => add(Cause::Lost, format!("the test could not be guarded: {why}."), None, None),
    }
}

/// Zombies and threads, where the policy denies them.
fn counts(facts: &Facts, settings: &Settings, findings: &mut Vec<Finding>) {
    let unwaited: Vec<String> = facts
        .processes
        .iter()
        .filter(|process| process.class == Class::Unwaited)
        .map(|process| format!("{} `{}`", process.pid, process.comm))
        .collect();
    if settings.deny_unwaited && !unwaited.is_empty() {
        findings.push(Finding {
            cause: Some(Cause::Unwaited),
            sentence: format!("{} had exited and nobody waited for it: pid {}.", plural(unwaited.len(), "child"), unwaited.join(", ")),
            fix: Some("call `wait` on every `Child`, also after `kill`: a `Child` that is dropped is not waited for.".to_owned()),
            allow: vec![Allow::new("unwaited", "allow")],
        });
    }
    if settings.deny_threads && facts.threads > 0 {
        findings.push(Finding {
            cause: Some(Cause::Threads),
            sentence: format!(
                "{} still ran when the body came back{}.",
                plural(facts.threads as usize, "thread"),
                running(facts)
            ),
            fix: Some("join every thread that the body starts, or use `std::thread::scope`.".to_owned()),
            allow: vec![Allow::new("threads", "allow")],
        });
    }
}

/// `: `worker-3` (tid 3391), tid 3392 (no name so far)`.
fn running(facts: &Facts) -> String {
    let named = |thread: &Running| match thread.name.as_str() {
        // It may only just have been started: std's threads name themselves.
        "" => format!("tid {} (no name so far)", thread.tid),
        name => format!("`{name}` (tid {})", thread.tid),
    };
    let mut names: Vec<String> = facts.running.iter().map(named).collect();
    // One may have ended between the count and the names.
    let more = (facts.threads as usize).saturating_sub(names.len());
    if names.is_empty() {
        return String::new();
    }
    if more > 0 {
        names.push(format!("{more} more"));
    }
    format!(": {}", names.join(", "))
}

/// `1 process`, `2 processes`, `3 children`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    match (count, noun) {
        (1, _) => format!("1 {noun}"),
        (_, "child") => format!("{count} children"),
        (_, noun) if noun.ends_with("process") => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn enumerate(words: &[String]) -> String {
    match words.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => words.concat(),
    }
}

/// `SIGSEGV (11)`, `SIGRTMIN+3 (37)`.
pub(crate) fn signal_name(signal: i32) -> String {
    // glibc keeps 32 and 33 for itself and begins at 34.
    const FIRST_REAL_TIME: i32 = 34;
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => format!("{known} ({signal})"),
        Err(_) if signal == FIRST_REAL_TIME => format!("SIGRTMIN ({signal})"),
        Err(_) if signal > FIRST_REAL_TIME => {
            format!("SIGRTMIN+{} ({signal})", signal - FIRST_REAL_TIME)
        }
        Err(_) => format!("signal {signal}"),
    }
}

fn signal_hint(signal: i32) -> Option<&'static str> {
    match signal {
        libc::SIGKILL => Some(
            "somebody sent SIGKILL: the body itself, another process, or the kernel when memory ran out (`dmesg`).",
        ),
        libc::SIGABRT => Some(
            "the body aborted: a panic while panicking or where nothing may unwind (`extern \"C\"`), a stack \
             overflow, a failed check of the C library, or `abort`. What it printed last says which.",
        ),
        libc::SIGSEGV => Some(
            "it reached for memory that is not there or not its own: look at `unsafe` code and at C libraries. A \
             stack overflow of a Rust thread ends with SIGABRT.",
        ),
        libc::SIGBUS => Some(
            "it reached for memory that could not be given: behind the end of a mapped file, which may have been \
             cut meanwhile, or of a full /dev/shm.",
        ),
        libc::SIGILL => Some(
            "an instruction that this processor does not have (`target-cpu`), or the trap that a compiler puts \
             where the code never comes.",
        ),
        libc::SIGFPE => Some("a division by zero outside of Rust, which would have panicked."),
        libc::SIGALRM => Some("`alarm` or `setitimer` was called, and nobody handles the signal."),
        libc::SIGPIPE => Some("the body set SIGPIPE to its default; Rust programs start with it ignored."),
        _ => None,
    }
}
