//! Where a hang is: of the test, or of the tests that a libtest binary below a command was running.

use super::charged;
use super::evidence::Evidence;
use crate::guard::facts::Process;
use crate::recorder::call_site::{RUNS_TEST, SourceLocation};

/// The line of the user's code that a thread is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hang {
    pub(crate) place: SourceLocation,
    /// The line is that of a `block_on`: the `.await` below it is not on the stack.
    pub(crate) in_block_on: bool,
}

/// A test of libtest's that ran at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunningTest {
    pub(crate) name: String,
    /// The thread that runs it.
    pub(crate) tid: i32,
    pub(crate) hang: Option<Hang>,
}

impl Evidence<'_> {
    /// The line that a thread is in. The subject of the facts is known by its pid.
    pub(super) fn hang(&self, tid: i32) -> Option<Hang> {
        let place = self.names.lines.get(&tid)?.clone();
        let called = self.names.called.get(&tid);
        Some(Hang { place, in_block_on: called.is_some_and(|called| called.ends_with("::block_on")) })
    }

    /// Whether a thread is libtest's own, which only waits for those that run tests.
    pub(super) fn is_of_libtest(&self, tid: i32) -> bool {
        let functions = self.names.functions.get(&tid);
        functions.is_some_and(|functions| !functions.iter().any(|name| name.starts_with(RUNS_TEST)))
    }

    /// The tests that a command was running. Those that a test itself runs are left out.
    pub(super) fn running_tests(&self) -> Vec<RunningTest> {
        let mut found: Vec<RunningTest> = Vec::new();
        if !self.facts.is_command() {
            return found;
        }
        let mut pids: Vec<i32> = Vec::new();
        for process in &self.facts.processes {
            if process.lineage.iter().any(|pid| pids.contains(pid)) {
                continue;
            }
            let tests = self.tests_of(process);
            if !tests.is_empty() {
                pids.push(process.pid);
            }
            found.extend(tests);
        }
        found
    }

    /// By the test's function on the stack; or else by the names of the threads beside libtest's own.
    fn tests_of(&self, process: &Process) -> Vec<RunningTest> {
        let by_function = process.tasks.iter().filter_map(|thread| {
            Some((thread.tid, charged::function(self.names.functions.get(&thread.tid)?)?))
        });
        let mut tests: Vec<(i32, String)> = by_function.collect();
        if tests.is_empty() && process.tasks.iter().any(|thread| self.is_of_libtest(thread.tid)) {
            let others = process.tasks.iter().filter(|thread| thread.tid != process.pid);
            tests.extend(others.filter_map(|thread| Some((thread.tid, charged::thread(&thread.name)?))));
        }
        let mut found: Vec<RunningTest> = Vec::new();
        for (tid, name) in tests {
            // A thread that a test starts has its name.
            if found.iter().all(|known| known.name != name) {
                found.push(RunningTest { name, tid, hang: self.hang(tid) });
            }
        }
        found
    }
}
