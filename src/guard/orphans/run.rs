//! Whether the run that a process is of may still go on.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::proc::process::Stat;
use crate::proc::runner_kinds::{self as runners, CARGO, Runner};
use crate::proc::started;
use crate::sys::Pid;

use super::{Started, Survey, above};

impl Survey {
    /// Another process of the run that a process may be of, if that run may go on.
    ///
    /// Such a process is no orphan itself, nor below one: cargo, nextest, a test binary. [`Survey::may_be_of_run`]
    /// says what both have in common.
    pub(super) fn of_same_run(&self, stat: &Stat) -> Option<&Stat> {
        let below = self.tree.below(stat.pid, &[]).into_iter().map(|below| below.pid);
        let own_tree: HashSet<Pid> = below.chain([stat.pid]).collect();
        let mut others: Vec<&Stat> = self.others().filter(|other| !own_tree.contains(&other.pid)).collect();
        // The first process of a container may be what runs the tests.
        others.extend(self.tree.get(1));
        others.sort_unstable_by_key(|other| other.pid);
        others.into_iter().filter(|other| self.may_be_of_run(other, stat)).find(|other| {
            let mut line = above(&self.tree, other.pid);
            line.push(other);
            !line.iter().any(|stat| stat.pid != 1 && self.is_adopted(stat) && !self.traces(stat).is_empty())
        })
    }

    /// Whether a process may be of the run that an orphan is of.
    fn may_be_of_run(&self, other: &Stat, orphan: &Stat) -> bool {
        let (own, others) = (self.started(orphan.pid), self.started(other.pid));
        // The clock of the kernel's list stands still for 10 ms; numbers are given in order, mostly.
        let was_there = (other.start_ticks, other.pid) < (orphan.start_ticks, orphan.pid);
        let folder = own.target_folder();
        let is_near = other.pgid == orphan.pgid || other.sid == orphan.sid;
        let by_folder = folder.is_some()
            && (folder == others.test_folder() || was_there && others.program == own.program);
        by_folder
            || was_there && is_near && self.runs_tests(other)
            || own.runners().into_iter().any(|runner| {
                others.may_be_one_run(own, runner) || was_there && self.may_own(runner, other, own)
            })
    }

    /// Whether a process runs tests, or is started by what does.
    fn runs_tests(&self, stat: &Stat) -> bool {
        let started = self.started(stat.pid);
        started.names(stat).any(runners::is_runner)
            || started.environment.as_ref().is_some_and(runners::has_any_variable)
            || started.target_folder().is_some()
    }

    /// Whether a process is a runner that may have started an orphan. Its own environment has none of its variables.
    fn may_own(&self, runner: &Runner, other: &Stat, orphan: &Started) -> bool {
        let started = self.started(other.pid);
        // A service runs no tests, as far as is known, unless both are in it, or this process is.
        let is_of_service = self.other_service(other).is_some() && started.unit != orphan.unit;
        if is_of_service || !started.names(other).any(|name| runner.has_program(name)) {
            return false;
        }
        if *runner == CARGO {
            return started.may_run_package_of(orphan);
        }
        // What it has started may be of another run.
        let below = self.tree.below(other.pid, &[]).into_iter().map(|stat| self.started(stat.pid));
        let mut of_runner = below.filter(|below| below.has_id(runner)).peekable();
        of_runner.peek().is_none() || of_runner.any(|below| below.may_be_one_run(orphan, runner))
    }
}

impl Started {
    /// The runners that have started it, by its variables or by the folder of its program.
    fn runners(&self) -> Vec<&'static Runner> {
        let mut found: Vec<&Runner> = self.environment.as_ref().into_iter().flat_map(runners::of).collect();
        if self.target_folder().is_some() && !found.contains(&&CARGO) {
            found.push(&CARGO);
        }
        found
    }

    /// The names of its program: that of the file may be one of an interpreter, whose script is an argument.
    fn names<'a>(&'a self, stat: &'a Stat) -> impl Iterator<Item = &'a str> {
        /// The program, and what it is told first: `python3 -m pytest`, `bash /usr/bin/bats`.
        const FIRST: usize = 3;
        let first = self.command_line.iter().take(FIRST);
        [stat.comm.as_str()]
            .into_iter()
            .chain(first.map(|argument| argument.rsplit('/').next().unwrap_or(argument)))
    }

    fn target_folder(&self) -> Option<PathBuf> {
        self.program.as_deref().and_then(started::target_folder)
    }

    /// The target folder that its program lies in as a test binary.
    fn test_folder(&self) -> Option<PathBuf> {
        let is_test = |program: &&Path| program.parent().is_some_and(|folder| folder.ends_with("deps"));
        self.program.as_deref().filter(is_test).and_then(started::target_folder)
    }

    fn has_id(&self, runner: &Runner) -> bool {
        runner.ids.iter().any(|id| self.variable(id).is_some())
    }

    /// Whether both have variables of a runner, and none that shows two runs.
    fn may_be_one_run(&self, other: &Started, runner: &Runner) -> bool {
        let has_variable = |started: &Started| {
            started.environment.as_ref().is_some_and(|variables| runner.has_variable(variables))
        };
        let differs =
            |id: &&str| matches!((self.variable(id), other.variable(id)), (Some(a), Some(b)) if a != b);
        has_variable(self) && has_variable(other) && !runner.ids.iter().any(differs)
    }

    /// Whether it may be a cargo that runs the tests of an orphan's package.
    fn may_run_package_of(&self, orphan: &Started) -> bool {
        let is_elsewhere = |place: &Path| {
            let Some(own) = self.folder.as_deref() else { return false };
            !place.starts_with(own) && !own.starts_with(place)
        };
        let names_manifest = self.command_line.iter().any(|argument| argument.starts_with("--manifest-path"));
        let package = orphan.variable("CARGO_MANIFEST_DIR").map(Path::new);
        let folder = orphan.target_folder();
        // The target folder lies in the workspace, mostly.
        let workspace = folder.as_deref().and_then(Path::parent);
        names_manifest || !package.or(workspace).is_some_and(is_elsewhere)
    }
}
