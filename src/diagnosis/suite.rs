//! Charges what a suite has left to the tests whose threads made it. The rest is charged to the suite.
//!
//! What threads wait for is inferred from the whole tree: the waker of one test's process may be another test's.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::parents::ExitedParent;
use super::stuck::{Because, Stuck};
use super::verdict::{Inferred, Verdict, judge};
use super::{endings, stray};
use crate::config::policy::{Fds, Settings};
use crate::guard::facts::{Facts, Process};
use crate::guard::failure::GuardFailure;
use crate::guard::report_page::{Body, End, HeldBy, StrayFd};
use crate::guard::suite::Progress;
use crate::proc::fds::Fd;
use crate::recorder::call_site::{Names, ResolvedCallSite};

/// The most bytes of a thread's name that the kernel keeps.
const THREAD: usize = 15;

/// One test of a suite.
pub(crate) struct SuiteTest {
    /// Its name, which its thread has too.
    pub(crate) name: String,
    /// The path of its function; `None` if it was added by hand.
    pub(crate) path: Option<String>,
    pub(crate) settings: Settings,
    /// How far it came.
    pub(crate) progress: Progress,
}

/// The verdicts on a suite.
pub(crate) struct SuiteVerdict {
    /// In the order of the tests.
    pub(crate) tests: Vec<Result<Verdict, NotJudged>>,
    /// What no test is charged with.
    pub(crate) suite: Result<Verdict, NotJudged>,
    /// The test that ended the suite, by its timeout or by a call.
    pub(crate) ended_by: Option<usize>,
}

/// Why there is no verdict on a test, or on what no test is charged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotJudged {
    /// It did not end, and did not end the suite.
    NotEnded,
    /// It has left something that might have been gone at the end of its grace, but the suite ended before.
    WithinGrace,
    /// The fds that count could not be counted, since the suite was killed.
    FdsNotCounted,
    /// Something was left when the suite was killed, and nothing shows whether a running test needed it.
    MayBeNeeded,
}

/// Judges a suite that was requested at `requested`, by the monotonic clock. `timed_out` is the test that exceeded its timeout first.
pub(crate) fn conclude(
    name: &str,
    settings: &Settings,
    tests: &[SuiteTest],
    timed_out: Option<usize>,
    requested: Duration,
    (facts, names): (Facts, Names),
) -> SuiteVerdict {
    let inferred = Inferred::from(&facts, &names);
    let owners = Owners::find(tests, &facts, &names, &inferred.exited);
    let ended_by = ended_by(tests, timed_out, &facts, &names, &owners);
    let over = requested + facts.ran;
    let suite =
        Suite { tests, facts: &facts, names: &names, inferred: &inferred, owners: &owners, ended_by, over };
    let verdicts = (0..tests.len()).map(|number| suite.test(number)).collect();
    SuiteVerdict { tests: verdicts, suite: suite.rest(name, settings), ended_by }
}

/// The test that ended the suite before all tests had returned.
fn ended_by(
    tests: &[SuiteTest],
    timed_out: Option<usize>,
    facts: &Facts,
    names: &Names,
    owners: &Owners,
) -> Option<usize> {
    if facts.body != Body::Unfinished || facts.cut {
        return None;
    }
    match facts.end {
        End::TimedOut => timed_out,
        End::Unguarded { .. } => None,
        End::Exited { .. } | End::Signalled { .. } => {
            let by_call = endings::call_of_end(names, facts).and_then(|site| owners.of_call(site));
            let mut running =
                (0..).zip(tests).filter(|(_, test)| matches!(test.progress, Progress::Running { .. }));
            let only = running.next().filter(|_| running.next().is_none()).map(|(number, _)| number);
            let has_fault = |test: &SuiteTest| matches!(test.progress, Progress::Running { tid, .. } if facts.fault == Some(tid));
            by_call.or_else(|| tests.iter().position(has_fault)).or(only)
        }
    }
}

/// Which test made what.
struct Owners {
    /// By the name that the kernel keeps of a test's thread; `None` if several tests have it.
    threads: HashMap<String, Option<usize>>,
    /// By the path of the test's function.
    paths: HashMap<String, usize>,
    tests: usize,
    /// By pid.
    processes: HashMap<i32, usize>,
}

impl Owners {
    fn find(tests: &[SuiteTest], facts: &Facts, names: &Names, exited: &[ExitedParent]) -> Owners {
        let mut owners = Owners {
            threads: HashMap::new(),
            paths: HashMap::new(),
            tests: tests.len(),
            processes: HashMap::new(),
        };
        for (number, test) in tests.iter().enumerate() {
            let shared = owners.threads.entry(kernel_name(&test.name)).or_insert(Some(number));
            if *shared != Some(number) {
                *shared = None;
            }
            owners.paths.extend(test.path.clone().map(|path| (path, number)));
        }
        for process in &facts.processes {
            let parent =
                exited.iter().find(|exited| exited.orphan == process.pid).map(|exited| exited.parent);
            let chain = std::iter::once(process.pid).chain(process.lineage.iter().copied()).chain(parent);
            let owner = chain.filter_map(|pid| names.of_process(pid)).find_map(|site| owners.of_call(site));
            // A fork keeps the name of the thread.
            let by_name = || owners.of_thread(&process.comm).filter(|_| process.forked_without_exec);
            let owner = owner.or_else(by_name);
            owners.processes.extend(owner.map(|owner| (process.pid, owner)));
        }
        owners
    }

    /// The test that made a call: the one whose thread it was; or that the thread is named after, since a thread without
    /// a name has that of the thread which started it; or whose function is on the stack, as that of a task is.
    fn of_call(&self, site: &ResolvedCallSite) -> Option<usize> {
        let by_number = (site.test as usize).checked_sub(1).filter(|number| *number < self.tests);
        let by_name = || self.of_thread(&site.thread);
        let by_function = || site.functions.iter().rev().find_map(|function| self.of_function(function));
        by_number.or_else(by_name).or_else(by_function)
    }

    fn of_thread(&self, name: &str) -> Option<usize> {
        self.threads.get(name).copied().flatten()
    }

    /// The test that a function is, or is a closure of.
    fn of_function(&self, function: &str) -> Option<usize> {
        let function = function.trim_start_matches('<');
        let path = function.split("::{").next().unwrap_or(function);
        self.paths.get(path).copied()
    }

    fn of_process(&self, pid: i32) -> Option<usize> {
        self.processes.get(&pid).copied()
    }

    fn of_fd(&self, names: &Names, key: u64) -> Option<usize> {
        self.of_call(names.of_fd(key)?)
    }
}

/// What the kernel keeps of the name of a thread.
fn kernel_name(name: &str) -> String {
    String::from_utf8_lossy(&name.as_bytes()[..name.len().min(THREAD)]).into_owned()
}

struct Suite<'a> {
    tests: &'a [SuiteTest],
    facts: &'a Facts,
    names: &'a Names,
    inferred: &'a Inferred,
    owners: &'a Owners,
    ended_by: Option<usize>,
    /// A time, by the monotonic clock, at which the suite was not over yet.
    over: Duration,
}

impl Suite<'_> {
    /// The verdict on one test.
    fn test(&self, number: usize) -> Result<Verdict, NotJudged> {
        let test = &self.tests[number];
        let facts = self.facts;
        let mut own = Facts { pid: facts.pid, session: facts.session, ..clean() };
        match &test.progress {
            Progress::Running { since, .. } if facts.cut || self.ended_by == Some(number) => {
                (own.body, own.end, own.cut) = (Body::Unfinished, facts.end.clone(), facts.cut);
                (own.ran, own.time) = (*since, *since);
                own.fault = facts.fault;
            }
            Progress::Waiting | Progress::Running { .. } => return Err(NotJudged::NotEnded),
            Progress::Ended { body, time, .. } => {
                own.body = body.clone();
                own.body_time = Some(*time);
                (own.ran, own.time) = (*time, *time);
            }
        }
        let body = own.clone();
        self.add_share(&mut own, Some(number));
        self.add_threads(&mut own, Some(number));
        if facts.returned_child.is_some_and(|pid| self.owner_of_pid(pid) == Some(number)) {
            own.returned_children = facts.returned_children;
            own.returned_child = facts.returned_child;
        }
        if let Progress::Running { tid, .. } = test.progress {
            own.processes.splice(0..0, self.process_with(tid, &test.name));
            // In a process of its own, the thread of a test has the number of the process.
            let names = self.names_of(&own, Some(number), Some(tid));
            return Ok(self.judge(&test.name, &test.settings, own, names));
        }
        let verdict = self.judge_ended(test, own, number);
        match self.why_not_judged(test, &verdict) {
            Some(_) if !body.are_clean() => Ok(self.judge_ended(test, body, number)),
            Some(why) => Err(why),
            None => Ok(verdict),
        }
    }

    fn judge_ended(&self, test: &SuiteTest, own: Facts, number: usize) -> Verdict {
        if own.are_clean() {
            return Verdict::clean(&test.name, own);
        }
        let names = self.names_of(&own, Some(number), None);
        self.judge(&test.name, &test.settings, own, names)
    }

    /// Whether the suite was killed, and so did not record what it left.
    fn is_killed(&self) -> bool {
        self.facts.end == End::TimedOut
    }

    /// Why the verdict on a test that has ended is not certain: the suite was killed before the test's grace was over, or
    /// before its fds were counted.
    fn why_not_judged(&self, test: &SuiteTest, verdict: &Verdict) -> Option<NotJudged> {
        let Progress::Ended { at, .. } = test.progress else { return None };
        if !(self.is_killed() || self.facts.cut) {
            return None;
        }
        if verdict.failed() {
            return (at + test.settings.grace > self.over).then_some(NotJudged::WithinGrace);
        }
        let has_all = match test.settings.fds {
            Fds::Off => true,
            Fds::Pipes => self.are_pipes_known(),
            Fds::All => false,
        };
        (self.is_killed() && !has_all).then_some(NotJudged::FdsNotCounted)
    }

    /// The process of the suite, as it was before it was killed.
    fn process(&self) -> Option<&Process> {
        self.facts.processes.iter().find(|process| process.is_test)
    }

    /// Whether the pipes of the suite could be read, and the calls that made them.
    fn are_pipes_known(&self) -> bool {
        let fds = self.process().and_then(|process| process.fds.as_ref());
        let is_recorded = |fd: &Fd| fd.pipe().is_none_or(|ino| self.names.of_inode(ino).is_some());
        fds.is_some_and(|fds| fds.iter().all(is_recorded))
    }

    /// The pipes of a suite that was killed. It has not recorded them itself.
    fn pipes(&self) -> Vec<StrayFd> {
        let fds = self.process().filter(|_| self.is_killed()).map(Process::known_fds).unwrap_or_default();
        let pipes = fds.iter().filter_map(|fd| {
            let ino = fd.pipe()?;
            let Fd { fd, target, access, cloexec, .. } = fd.clone();
            Some(StrayFd { fd, target, ino, key: ino, access, cloexec, held_by: HeldBy::Table })
        });
        pipes.collect()
    }

    /// The verdict on what no test is charged with.
    fn rest(&self, name: &str, settings: &Settings) -> Result<Verdict, NotJudged> {
        let facts = self.facts;
        let mut own = Facts {
            pid: facts.pid,
            session: facts.session,
            body: facts.body.clone(),
            body_time: facts.body_time,
            end: facts.end.clone(),
            ran: facts.ran,
            time: facts.time,
            unseen: facts.unseen,
            unchecked: facts.unchecked,
            unrecorded: facts.unrecorded,
            mounts: facts.mounts.clone(),
            limits: facts.limits.clone(),
            ..clean()
        };
        self.add_share(&mut own, None);
        self.add_threads(&mut own, None);
        let mut settings = settings.clone();
        if !settings.deny_threads {
            // The name of a thread may be that of several tests: one that denies threads is not ignored.
            let denies = |name: &str| {
                let mut tests = self.tests.iter().filter(|test| test.settings.deny_threads);
                tests.any(|test| kernel_name(&test.name) == name)
            };
            own.running.retain(|thread| denies(&thread.name));
            own.threads = own.running.len() as u32;
            settings.deny_threads = own.threads > 0;
        }
        // More fds were left than are listed.
        own.stray_count += facts.stray_count.saturating_sub(facts.strays.len() as u32);
        if facts.returned_child.is_some_and(|pid| self.owner_of_pid(pid).is_none()) {
            own.returned_children = facts.returned_children;
            own.returned_child = facts.returned_child;
        }
        if self.ended_by.is_some() || facts.cut {
            // A test is charged with that.
            (own.body, own.end) = (Body::Passed, End::Exited { code: 0 });
        }
        if own.are_clean() {
            return Ok(Verdict::clean(name, own));
        }
        let names = self.names_of(&own, None, None);
        let verdict = self.judge(name, &settings, own, names);
        let Facts { survivors, mounts, processes, strays, .. } = &verdict.facts;
        let is_about_these = survivors.is_empty() && mounts.is_empty();
        let is_about_these = is_about_these && !(processes.is_empty() && strays.is_empty());
        // They may be those of a test that ran.
        let may_be_needed = verdict.failed() && is_about_these && (self.is_killed() || facts.cut);
        if may_be_needed { Err(NotJudged::MayBeNeeded) } else { Ok(verdict) }
    }

    /// Adds the processes, fds and calls that an owner is charged with.
    fn add_share(&self, own: &mut Facts, owner: Option<usize>) {
        let facts = self.facts;
        let is_own = |process: &&Process| !process.is_test && self.owners.of_process(process.pid) == owner;
        own.processes = facts.processes.iter().filter(is_own).cloned().collect();
        // The suite looks for all that one of its tests looks for.
        let counts = |stray: &StrayFd| match owner.map(|number| self.tests[number].settings.fds) {
            Some(Fds::Off) => false,
            Some(Fds::Pipes) => stray::is_pipe(stray),
            Some(Fds::All) | None => true,
        };
        let pipes = self.pipes();
        let strays = facts.strays.iter().chain(&pipes).filter(|stray| counts(stray));
        let strays = strays.filter(|stray| self.owners.of_fd(self.names, stray.key) == owner);
        // A test that runs may still close them.
        own.strays = strays.filter(|_| own.body != Body::Unfinished).cloned().collect();
        own.stray_count = own.strays.len() as u32;
        let calls = facts.call_sites.iter().zip(&self.names.call_sites);
        let calls = calls.filter(|(_, site)| self.owners.of_call(site) == owner);
        own.call_sites = calls.map(|(call, _)| call.clone()).collect();
        let survivors = facts.survivors.iter();
        own.survivors = survivors.filter(|one| self.owners.of_process(one.pid) == owner).cloned().collect();
        if own.processes.is_empty() && own.strays.is_empty() && own.body != Body::Unfinished {
            return;
        }
        own.preexisting.clone_from(&facts.preexisting);
        own.pipes.clone_from(&facts.pipes);
        own.sockets.clone_from(&facts.sockets);
        own.outside.clone_from(&facts.outside);
        own.mapped.clone_from(&facts.mapped);
        own.contended.clone_from(&facts.contended);
        own.unrecorded = facts.unrecorded;
    }

    /// Adds the threads that still ran at the end of the suite. A thread without a name has that of its test.
    fn add_threads(&self, own: &mut Facts, owner: Option<usize>) {
        let all = &self.facts.running;
        let running = all.iter().filter(|thread| self.owners.of_thread(&thread.name) == owner);
        own.running = running.cloned().collect();
        own.threads = own.running.len() as u32;
        if owner.is_none() {
            // More were running than are listed.
            own.threads += self.facts.threads.saturating_sub(all.len() as u32);
        }
    }

    fn owner_of_pid(&self, pid: i32) -> Option<usize> {
        self.names.of_process(pid).and_then(|site| self.owners.of_call(site))
    }

    /// The process of the suite with the threads of one test, that of its body first.
    fn process_with(&self, tid: i32, name: &str) -> Option<Process> {
        let suite = self.process()?;
        let kernel_name = kernel_name(name);
        let is_own = |thread: &&crate::proc::waits::Thread| thread.tid == tid || thread.name == kernel_name;
        let mut tasks: Vec<_> = suite.tasks.iter().filter(is_own).cloned().collect();
        tasks.sort_by_key(|thread| thread.tid != tid);
        Some(Process { tasks, ..suite.clone() })
    }

    /// The names without the forks of others, which are no findings about this owner.
    fn names_of(&self, own: &Facts, owner: Option<usize>, tid: Option<i32>) -> Names {
        let mut names = self.names.clone();
        let pids: HashSet<u64> = own.processes.iter().map(|process| process.pid as u64).collect();
        names.call_sites.retain(|site| {
            site.call != "fork" || pids.contains(&site.keys[0]) || self.owners.of_call(site) == owner
        });
        let line = tid.and_then(|tid| names.lines.get(&tid).cloned());
        names.lines.extend(line.map(|line| (own.pid, line)));
        let called = tid.and_then(|tid| names.called.get(&tid).cloned());
        names.called.extend(called.map(|called| (own.pid, called)));
        names
    }

    fn judge(&self, name: &str, settings: &Settings, mut own: Facts, names: Names) -> Verdict {
        let used = stray::allow(&mut own, settings, &names);
        let is_own = |pid: &&i32| own.processes.iter().any(|process| process.pid == **pid);
        own.kept = self.facts.kept.iter().filter(is_own).copied().collect();
        let tids: HashSet<i32> = own.tasks().map(|(_, thread)| thread.tid).collect();
        let pids: HashSet<i32> = own.processes.iter().map(|process| process.pid).collect();
        let Inferred { stuck, inherited, unwatched, exited } = self.inferred;
        let inferred = Inferred {
            stuck: stuck_of(stuck, own.pid, &tids),
            inherited: inherited.iter().filter(|one| pids.contains(&one.pid)).cloned().collect(),
            unwatched: unwatched.iter().filter(|one| pids.contains(&one.pid)).cloned().collect(),
            exited: exited.iter().filter(|one| pids.contains(&one.orphan)).cloned().collect(),
        };
        judge(name, settings, own, names, inferred).using(used)
    }
}

/// The stuck threads of one test. If all of its threads in the process `pid` can never make progress, they wait for each
/// other: the other threads of the process belong to other tests, or wait for these, and are left out of a cycle.
fn stuck_of(all: &[Stuck], pid: i32, tids: &HashSet<i32>) -> Vec<Stuck> {
    let mut own: Vec<Stuck> = all.iter().filter(|stuck| tids.contains(&stuck.tid)).cloned().collect();
    let is_in_cycle = |stuck: &&Stuck| stuck.pid == pid && stuck.because == Because::Cycle;
    let cycle: Vec<i32> = own.iter().filter(is_in_cycle).map(|stuck| stuck.tid).collect();
    for stuck in own.iter_mut().filter(|stuck| stuck.pid == pid && stuck.because == Because::Cycle) {
        if stuck.proved() && cycle.len() > 1 && stuck.ring.iter().any(|tid| !tids.contains(tid)) {
            stuck.ring.clone_from(&cycle);
        }
    }
    own
}

/// Facts of a test that passed, of which nothing is known yet.
fn clean() -> Facts {
    Facts {
        body: Body::Passed,
        end: End::Exited { code: 0 },
        ..Facts::unguarded(GuardFailure::ReadExitStatus {})
    }
}
