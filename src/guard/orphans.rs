//! Finds what was asked for among all processes of the machine, and what earlier runs of tests have left there.
//!
//! What they have left is known by two facts together: its parent is not the process that started it, and it is a test's,
//! by the folder that its program lies in or by a variable of its environment. What a test that still runs has started is
//! no leftover, whatever its parent is.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::proc::process::{self, GUARD, KEPT, Stat};
use crate::proc::runners;
use crate::proc::started;
use crate::proc::tree::Tree;
use crate::sys::{self, Pid};

/// What takes in orphans besides the first process: service managers and the first processes of containers.
const REAPERS: [&str; 9] = [
    "systemd",
    "init",
    "tini",
    "dumb-init",
    "docker-init",
    "catatonit",
    "conmon",
    "containerd-shim",
    "s6-svscan",
];
/// What may be the first process of a container, and starts programs with the environment that it has.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "zsh", "busybox"];
/// How the names of programs begin that run tests, and whose own environment does not show it.
const RUNNERS: [&str; 12] = [
    "cargo", "nextest", "pytest", "py.test", "python", "bats", "node", "go", "ctest", "make", "meson",
    "bazel",
];
/// What net and fork server of a guard call themselves.
const NET: &str = super::net::TITLE;

/// A process that was asked for; everything below it was so with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) stat: Stat,
    /// The nearest first, up to the first process.
    pub(crate) ancestors: Vec<Ancestor>,
    /// Its parent is not the process that started it.
    pub(crate) is_adopted: bool,
    /// The file of its program; `None` if it may not be read.
    pub(crate) program: Option<PathBuf>,
    /// Empty if it may not be read.
    pub(crate) command_line: Vec<String>,
    pub(crate) age: Option<Duration>,
    /// Why it is in the list.
    pub(crate) traces: Vec<Trace>,
}

/// A process above another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ancestor {
    pub(crate) pid: Pid,
    pub(crate) comm: String,
}

/// Why a process is in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// It was asked for by its number.
    Pid,
    Pattern(String),
    /// Its program lies in a target folder of cargo's.
    TargetFolder(PathBuf),
    /// A variable that a test runner sets is in its environment.
    Variable {
        name: &'static str,
        value: String,
    },
    /// A guard has stopped it and kept it.
    Kept,
}

/// Why a process is not one that an earlier run has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoProcess,
    Zombie,
    /// It is this process, or one above it.
    Above,
    /// The process that started it is there.
    HasParent(Ancestor),
    /// A guard is above it: its run goes on.
    Guarded(Ancestor),
    /// A process of the same run is still there.
    RunGoesOn(Ancestor),
    /// Nothing shows that a test has started it.
    NoTrace,
    /// What would show it may not be read: the user that it runs as.
    Unreadable(Option<u32>),
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) roots: Vec<Root>,
    /// Numbers that no process has.
    pub(crate) missing: Vec<Pid>,
    /// Orphans of which it may not be read what started them.
    pub(crate) unreadable: usize,
    /// What belongs to a run that goes on.
    pub(crate) running: Vec<Pid>,
}

impl Found {
    /// Adds what was found by another question. What both have found is there once.
    pub(crate) fn join(&mut self, other: Found) {
        let known: HashSet<Pid> = self.roots.iter().map(|root| root.stat.pid).collect();
        let is_new = |root: &Root| {
            !known.contains(&root.stat.pid) && !root.ancestors.iter().any(|above| known.contains(&above.pid))
        };
        let new: Vec<Root> = other.roots.into_iter().filter(is_new).collect();
        let new_pids: HashSet<Pid> = new.iter().map(|root| root.stat.pid).collect();
        self.roots.retain(|root| !root.ancestors.iter().any(|above| new_pids.contains(&above.pid)));
        self.roots.extend(new);
        self.missing.extend(other.missing);
        self.unreadable += other.unreadable;
        self.running.extend(other.running);
    }
}

/// All processes of the machine, and what they were started as.
pub(crate) struct Survey {
    tree: Tree,
    /// This process and those above it.
    own: HashSet<Pid>,
    started: HashMap<Pid, Started>,
}

/// What a process was started as, as far as that may be read.
#[derive(Clone, Default)]
struct Started {
    program: Option<PathBuf>,
    environment: Option<HashMap<String, String>>,
}

impl Started {
    fn of(pid: Pid) -> Started {
        Started { program: started::program(pid), environment: runners::environment(pid) }
    }

    fn variable(&self, name: &str) -> Option<&String> {
        self.environment.as_ref()?.get(name)
    }
}

impl Survey {
    /// Reads all processes.
    pub(crate) fn read() -> Survey {
        let tree = Tree::read();
        let own = sys::own_pid();
        let above = above(&tree, own).into_iter().map(|stat| stat.pid).chain([own]).collect();
        let alive = |stat: &&Stat| !stat.is_zombie() && !stat.is_kernel_thread;
        let all = tree.processes().filter(alive);
        let started = all.map(|stat| (stat.pid, Started::of(stat.readable_id()))).collect();
        Survey { tree, own: above, started }
    }

    /// All processes.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The processes with these numbers, and those that `matches` names a pattern of.
    pub(crate) fn asked_for(&self, pids: &[Pid], matches: impl Fn(&str, &str) -> Option<String>) -> Found {
        let mut found = Found::default();
        for pid in pids {
            match self.tree.get(*pid).filter(|stat| !stat.is_zombie() && !stat.is_kernel_thread) {
                Some(stat) => found.roots.push(self.root(stat, vec![Trace::Pid])),
                None => found.missing.push(*pid),
            }
        }
        for stat in self.others() {
            let line = process::command_line(stat.readable_id()).join(" ");
            if let Some(pattern) = matches(&stat.comm, &line) {
                found.roots.push(self.root(stat, vec![Trace::Pattern(pattern)]));
            }
        }
        self.keep_topmost(&mut found.roots);
        found
    }

    /// What earlier runs have left, and of other orphans those that `matches` names a pattern of.
    pub(crate) fn orphans(&self, matches: impl Fn(&str, &str) -> Option<String>) -> Found {
        let mut found = Found::default();
        for stat in self.others() {
            match self.orphan(stat) {
                Ok(root) => found.roots.push(root),
                Err(Refusal::RunGoesOn(_)) => found.running.push(stat.pid),
                Err(Refusal::Unreadable(_)) => found.unreadable += 1,
                Err(Refusal::NoTrace) => {
                    let line = process::command_line(stat.readable_id()).join(" ");
                    let pattern = matches(&stat.comm, &line).map(Trace::Pattern);
                    found.roots.extend(pattern.map(|pattern| self.root(stat, vec![pattern])));
                }
                Err(_) => {}
            }
        }
        self.keep_topmost(&mut found.roots);
        found
    }

    /// A process that an earlier run has left, or why it is none.
    pub(crate) fn orphan_with(&self, pid: Pid) -> Result<Root, Refusal> {
        let stat = self.tree.get(pid).filter(|stat| !stat.is_kernel_thread).ok_or(Refusal::NoProcess)?;
        if stat.is_zombie() {
            return Err(Refusal::Zombie);
        }
        if self.own.contains(&pid) {
            return Err(Refusal::Above);
        }
        self.orphan(stat)
    }

    fn orphan(&self, stat: &Stat) -> Result<Root, Refusal> {
        let above = above(&self.tree, stat.pid);
        if let Some(guard) = above.iter().copied().chain([stat]).rfind(|stat| is_guard(stat)) {
            return match kept_by(&above) {
                Some(kept_by) if guard.pid != stat.pid => Ok(self.root(kept_by, vec![Trace::Kept])),
                _ => Err(Refusal::Guarded(Ancestor::of(guard))),
            };
        }
        if !self.is_adopted(stat) {
            let parent = above.first().copied().ok_or(Refusal::NoTrace)?;
            return Err(Refusal::HasParent(Ancestor::of(parent)));
        }
        let traces = self.traces(stat);
        if traces.is_empty() {
            let started = self.started(stat.pid);
            let is_read = started.program.is_some() && started.environment.is_some();
            return Err(match is_read {
                true => Refusal::NoTrace,
                false => Refusal::Unreadable(process::effective_uid(stat.pid)),
            });
        }
        // With a guard of its own it is a harness, which ends by itself.
        match self.guard_below(stat).or_else(|| self.of_same_run(stat)) {
            Some(other) => Err(Refusal::RunGoesOn(Ancestor::of(other))),
            None => Ok(self.root(stat, traces)),
        }
    }

    /// A guard that a process has for what it runs, and that does not only stay with what was kept.
    fn guard_below(&self, stat: &Stat) -> Option<&Stat> {
        let is_running = |stat: &&Stat| is_guard(stat) && !keeps(stat) && kept_by(&[stat]).is_none();
        self.tree.below(stat.pid, &[]).into_iter().find(is_running)
    }

    /// What shows that a test, or what ran it, has started a process.
    fn traces(&self, stat: &Stat) -> Vec<Trace> {
        let started = self.started(stat.pid);
        let variable = started.environment.as_ref().and_then(started::runner);
        let variable = variable.map(|(name, value)| Trace::Variable { name, value: value.to_owned() });
        // A program may be run from there as a service, whose manager starts it in a session or a unit of its own.
        let may_be_service = stat.sid == stat.pid || started::is_in_service(stat.pid);
        let program = started.program.as_ref().filter(|_| variable.is_some() || !may_be_service);
        let folder = program.and_then(|program| started::target_folder(program)).map(Trace::TargetFolder);
        variable.into_iter().chain(folder).collect()
    }

    /// Another process of the run that a process is of, if that run goes on.
    ///
    /// Such a process is no orphan itself, nor below one: cargo, nextest, a test binary. It has the number of the run; or it
    /// was there before, and is of the same package, runs the same program, or runs tests in the same process group.
    fn of_same_run(&self, stat: &Stat) -> Option<&Stat> {
        let own = self.started(stat.pid);
        let same = |name: &str, other: &Started| {
            let value = own.variable(name);
            value.is_some() && value == other.variable(name)
        };
        let is_of_run = |other: &&Stat| {
            let started = self.started(other.pid);
            let in_folder = |program: &PathBuf| started::target_folder(program).is_some();
            let same_program = started.program.is_some() && started.program == own.program;
            // The clock of the kernel's list stands still for 10 ms; numbers are given in order, mostly.
            let was_there = (other.start_ticks, other.pid) < (stat.start_ticks, stat.pid);
            let runs_tests = || {
                RUNNERS.iter().any(|runner| other.comm.starts_with(runner))
                    || started.environment.as_ref().and_then(started::runner).is_some()
                    || started.program.as_ref().is_some_and(in_folder)
            };
            same("NEXTEST_RUN_ID", started)
                || was_there && same("CARGO_MANIFEST_DIR", started)
                || was_there && same_program && own.program.as_ref().is_some_and(in_folder)
                || was_there && other.pgid == stat.pgid && runs_tests()
        };
        let mut others: Vec<&Stat> = self.others().filter(|other| other.pid != stat.pid).collect();
        others.sort_unstable_by_key(|other| other.pid);
        others.into_iter().filter(is_of_run).find(|other| {
            let mut line = above(&self.tree, other.pid);
            line.push(other);
            !line.iter().any(|stat| stat.pid != 1 && self.is_adopted(stat) && !self.traces(stat).is_empty())
        })
    }

    /// Whether the parent of a process is not the one that started it.
    fn is_adopted(&self, stat: &Stat) -> bool {
        let Some(parent) = self.tree.get(stat.ppid).filter(|_| stat.ppid != 0) else { return false };
        let is = |names: &[&str]| names.contains(&parent.comm.as_str());
        if is(&REAPERS) || parent.pid == 1 && stat.sid != parent.sid {
            return true;
        }
        // The first process of a container may be what runs the tests. A shell there sets no variable of a runner.
        let runner = || self.started(stat.pid).environment.as_ref().and_then(started::runner).is_some();
        if parent.pid == 1 && is(&SHELLS) && runner() {
            return true;
        }
        // It is in a session that neither it nor its parent has founded: a process has that from the one that forked it.
        stat.sid != stat.pid && stat.sid != parent.sid
    }

    /// The processes that are neither this one, nor above it, nor dead.
    fn others(&self) -> impl Iterator<Item = &Stat> {
        let is_other = |stat: &&Stat| {
            !stat.is_zombie() && !stat.is_kernel_thread && stat.pid != 1 && !self.own.contains(&stat.pid)
        };
        self.tree.processes().filter(is_other)
    }

    fn started(&self, pid: Pid) -> &Started {
        static NONE: Started = Started { program: None, environment: None };
        self.started.get(&pid).unwrap_or(&NONE)
    }

    fn root(&self, stat: &Stat, traces: Vec<Trace>) -> Root {
        let ancestors = above(&self.tree, stat.pid).into_iter().map(Ancestor::of).collect();
        let program = self.started(stat.pid).program.clone();
        Root {
            stat: stat.clone(),
            ancestors,
            is_adopted: self.is_adopted(stat),
            program,
            command_line: process::command_line(stat.readable_id()),
            age: process::age(stat),
            traces,
        }
    }

    /// Leaves out what is below another that was found, and has each once, the oldest first.
    fn keep_topmost(&self, roots: &mut Vec<Root>) {
        let all: HashSet<Pid> = roots.iter().map(|root| root.stat.pid).collect();
        roots.retain(|root| !root.ancestors.iter().any(|above| all.contains(&above.pid)));
        roots.sort_by_key(|root| (root.stat.start_ticks, root.stat.pid));
        roots.dedup_by_key(|root| root.stat.pid);
    }
}

impl Ancestor {
    fn of(stat: &Stat) -> Ancestor {
        Ancestor { pid: stat.pid, comm: stat.comm.clone() }
    }
}

/// Whether a process guards others, or is the tool that has it done.
fn is_guard(stat: &Stat) -> bool {
    stat.comm.as_bytes() == GUARD.to_bytes() || stat.comm == NET || keeps(stat)
}

/// The topmost process of the guard that has kept a process with these above it, the nearest first. A guard ends with its run,
/// unless it keeps something: then it has another name.
fn kept_by<'a>(above: &[&'a Stat]) -> Option<&'a Stat> {
    let mut guards = above.iter().copied().skip_while(|stat| !is_guard(stat));
    let nearest = guards.next().filter(|nearest| keeps(nearest))?;
    // Above it there may be the guard of another run.
    Some(guards.take_while(|stat| keeps(stat) || stat.comm == NET).last().unwrap_or(nearest))
}

/// Whether a process is a guard that stays with what it has kept.
fn keeps(stat: &Stat) -> bool {
    stat.comm.as_bytes() == KEPT.to_bytes()
}

/// The processes above one, the nearest first.
fn above(tree: &Tree, pid: Pid) -> Vec<&Stat> {
    let mut above: Vec<&Stat> = Vec::new();
    let mut next = tree.get(pid).and_then(|stat| tree.get(stat.ppid));
    // Parents may change while the list is read: no ring is followed.
    while let Some(stat) =
        next.filter(|stat| stat.pid != pid && above.iter().all(|known| known.pid != stat.pid))
    {
        above.push(stat);
        next = tree.get(stat.ppid);
    }
    above
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::path::PathBuf;

    use super::{Pid, Refusal, Started, Stat, Survey, Trace, Tree};

    struct Line(Pid, Pid, Pid, Pid, &'static str);

    /// Processes: pid, parent, group, session, name; and of some their environment.
    fn survey(lines: &[Line], environments: &[(Pid, &[(&str, &str)])]) -> Survey {
        let stats = lines.iter().map(|Line(pid, parent, group, session, name)| {
            let line = format!(
                "{pid} ({name}) S {parent} {group} {session} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0"
            );
            Stat::parse(line.as_bytes()).unwrap()
        });
        let tree = Tree::of(stats);
        let started = lines.iter().map(|line| {
            let own =
                environments.iter().find(|(pid, _)| *pid == line.0).map_or(&[][..], |(_, entries)| entries);
            let entries = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let program = Some(PathBuf::from("/usr/bin/a"));
            (line.0, Started { program, environment: Some(entries.collect()) })
        });
        let started = started.collect();
        Survey { tree, own: [900].into(), started }
    }

    const OF_CARGO: &[(&str, &str)] = &[("CARGO_MANIFEST_DIR", "/w/a")];

    #[test]
    fn an_orphan_of_a_test_is_found_with_what_is_below_it() {
        let survey = survey(
            // A service, and one with a child; an orphan of a shell; one of a test, with a child.
            &[
                Line(1, 0, 1, 1, "init"),
                Line(20, 1, 20, 20, "service"),
                Line(30, 1, 29, 28, "daemon"),
                Line(40, 1, 39, 28, "sleep"),
                Line(41, 40, 39, 28, "cat"),
            ],
            &[(40, OF_CARGO), (41, OF_CARGO)],
        );
        let found = survey.orphans(|_, _| None);
        let pids: Vec<Pid> = found.roots.iter().map(|root| root.stat.pid).collect();
        assert_eq!(pids, [40]);
        assert!(matches!(found.roots[0].traces[..], [Trace::Variable { name: "CARGO_MANIFEST_DIR", .. }]));
        assert_eq!(survey.orphan_with(30), Err(Refusal::NoTrace));
        assert!(matches!(survey.orphan_with(41), Err(Refusal::HasParent(parent)) if parent.pid == 40));
        assert_eq!(survey.orphan_with(50), Err(Refusal::NoProcess));
        assert_eq!(survey.orphan_with(900), Err(Refusal::NoProcess));
    }

    #[test]
    fn what_a_run_that_goes_on_has_started_is_left_alone() {
        let lines = [
            Line(1, 0, 1, 1, "init"),
            Line(10, 1, 10, 10, "bash"),
            Line(20, 10, 20, 10, "cargo"),
            Line(21, 20, 20, 10, "a-1234"),
            // One has left the group, the other has not.
            Line(40, 1, 39, 10, "sleep"),
            Line(41, 1, 20, 10, "sleep"),
        ];
        let all: Vec<(Pid, &[(&str, &str)])> = vec![(21, OF_CARGO), (40, OF_CARGO), (41, OF_CARGO)];
        let survey_of_run = survey(&lines, &all);
        assert!(matches!(survey_of_run.orphan_with(40), Err(Refusal::RunGoesOn(run)) if run.pid == 21));
        assert!(matches!(survey_of_run.orphan_with(41), Err(Refusal::RunGoesOn(_))));
        assert!(survey_of_run.orphans(|_, _| None).roots.is_empty());
        // Of another package only the process group tells.
        let other: Vec<(Pid, &[(&str, &str)])> =
            vec![(21, &[("CARGO_MANIFEST_DIR", "/w/b")]), (40, OF_CARGO), (41, OF_CARGO)];
        let survey_of_other = survey(&lines, &other);
        assert!(survey_of_other.orphan_with(40).is_ok());
        assert!(matches!(survey_of_other.orphan_with(41), Err(Refusal::RunGoesOn(_))));
    }

    #[test]
    fn what_the_first_process_of_a_container_has_started_itself_is_no_orphan() {
        let below = |first: &'static str| {
            let lines = [Line(1, 0, 1, 1, first), Line(20, 1, 1, 1, "a-1234"), Line(30, 1, 29, 28, "sleep")];
            let survey = survey(&lines, &[(20, OF_CARGO), (30, &[("CARGO_MANIFEST_DIR", "/w/b")])]);
            (survey.orphan_with(20).is_ok(), survey.orphan_with(30).is_ok())
        };
        assert_eq!(below("cargo"), (false, true));
        assert_eq!(below("sh"), (true, true));
        assert_eq!(below("tini"), (true, true));
    }

    #[test]
    fn a_subreaper_shows_by_the_session_of_what_it_took_in() {
        let survey = survey(
            &[
                Line(1, 0, 1, 1, "init"),
                Line(10, 1, 10, 10, "terminal"),
                Line(20, 10, 20, 20, "bash"),
                Line(30, 10, 29, 28, "sleep"),
            ],
            &[(20, &[("CARGO_MANIFEST_DIR", "/w/b")]), (30, OF_CARGO)],
        );
        assert!(survey.orphan_with(30).is_ok());
        assert!(matches!(survey.orphan_with(20), Err(Refusal::HasParent(parent)) if parent.pid == 10));
    }

    #[test]
    fn a_harness_is_left_alone_whoever_has_started_it() {
        let lines = [
            Line(1, 0, 1, 1, "init"),
            Line(20, 1, 20, 20, "a-1234"),
            Line(21, 20, 21, 21, "()"),
            Line(22, 21, 22, 22, "childproof"),
            Line(30, 22, 30, 22, "a-1234"),
            // Nothing guards what this one runs.
            Line(40, 1, 40, 40, "b-1234"),
        ];
        let survey = survey(&lines, &[(20, OF_CARGO), (40, &[("CARGO_MANIFEST_DIR", "/w/b")])]);
        assert!(matches!(survey.orphan_with(20), Err(Refusal::RunGoesOn(guard)) if guard.pid == 21));
        assert!(survey.orphan_with(40).is_ok());
    }

    #[test]
    fn a_stopped_process_that_nothing_shows_to_be_a_tests_is_no_orphan() {
        let stat =
            Stat { state: 'T', ..survey(&[Line(40, 1, 39, 28, "vim")], &[]).tree.get(40).unwrap().clone() };
        let mut survey = survey(&[Line(1, 0, 1, 1, "init")], &[]);
        survey.tree = Tree::of([survey.tree.get(1).unwrap().clone(), stat]);
        survey.started.insert(
            40,
            Started { program: Some(PathBuf::from("/usr/bin/vim")), environment: Some([].into()) },
        );
        assert_eq!(survey.orphan_with(40), Err(Refusal::NoTrace));
    }

    #[test]
    fn what_a_guard_is_above_is_of_its_run_unless_it_was_kept() {
        let lines = [
            Line(1, 0, 1, 1, "init"),
            Line(10, 1, 10, 10, "childproof"),
            Line(20, 10, 20, 20, "childproof"),
            Line(30, 20, 29, 28, "sleep"),
            // Its run has ended, below one that goes on.
            Line(11, 20, 11, 11, "()"),
            Line(21, 11, 21, 21, "childproof-kept"),
            Line(31, 21, 29, 28, "sleep"),
        ];
        let survey = survey(&lines, &[(30, OF_CARGO), (31, OF_CARGO)]);
        assert!(matches!(survey.orphan_with(30), Err(Refusal::Guarded(guard)) if guard.pid == 10));
        let kept = survey.orphan_with(31).unwrap();
        assert_eq!((kept.stat.pid, &kept.traces[..]), (11, &[Trace::Kept][..]));
    }
}
