//! Looks at processes that no guard is above, and ends what earlier runs have left of theirs.

use nix::sys::signal::{SigSet, Signal};

use super::layout;
use crate::config::policy::Policy;
use crate::diagnosis::{self, Verdict};
use crate::guard::end::{Ended, end_tree};
use crate::guard::inspect::{self, Limits};
use crate::guard::orphans::{Found, Refusal, Root, Survey};
use crate::recorder::symbols::{self, Threads};
use crate::report::inspection::Inspection;
use crate::report::{json, text};

/// Which processes are looked at.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Their numbers.
    pub pids: Vec<i32>,
    /// Of each a process has it in its command line, or that matches it as a glob if it has a `*` or `?`.
    pub patterns: Vec<String>,
    /// What earlier runs have left, and all other orphans that a pattern names.
    pub orphans: bool,
}

/// What was seen of the processes that were asked for.
pub struct Seen {
    verdict: Verdict,
    found: Found,
    limits: Limits,
    with_stacks: bool,
}

/// Looks at the processes that are wanted. `name` is what stands above the report.
///
/// They go on unharmed. Without stacks none is stopped, not even for a moment. The calling process has one thread.
pub fn look(name: &str, wanted: &Wanted, with_stacks: bool) -> Seen {
    // A thread that stops is known by this signal.
    let mut stops = SigSet::empty();
    stops.add(Signal::SIGCHLD);
    let _ = stops.thread_block();
    let survey = Survey::read();
    let matches = |comm: &str, line: &str| {
        let mut patterns = wanted.patterns.iter();
        patterns.find(|pattern| diagnosis::names_process(pattern, comm, line)).cloned()
    };
    let mut found =
        survey.asked_for(&wanted.pids, |comm, line| if wanted.orphans { None } else { matches(comm, line) });
    if wanted.orphans {
        found.join(survey.orphans(matches));
    }
    let seen = inspect::look(&survey, &found.roots, with_stacks);
    let facts = seen.facts;
    let others = facts.tasks().map(|(_, thread)| thread).collect();
    let threads = Threads { others, mapped: &facts.mapped, without_test: true, ..Threads::default() };
    let names = symbols::names(&[], &threads, || None);
    let settings = Policy::new().no_timeout().settle();
    let verdict = diagnosis::conclude(name, &settings, facts, names);
    Seen { verdict, found, limits: seen.limits, with_stacks }
}

impl Seen {
    /// Whether there is any process of those that were asked for.
    pub fn is_empty(&self) -> bool {
        self.found.roots.is_empty()
    }

    /// Writes it for people, for the terminal that may be behind stdout.
    pub fn text(&self, colour: bool) -> String {
        text::inspected(&self.verdict, &self.inspection(), layout(colour, 1))
    }

    /// Writes it as one line of JSON.
    pub fn json(&self) -> String {
        json::inspected(&self.verdict, &self.inspection())
    }

    fn inspection(&self) -> Inspection<'_> {
        Inspection { found: &self.found, limits: &self.limits, with_stacks: self.with_stacks }
    }
}

/// Processes that earlier runs have left, and that are to be ended.
#[derive(Default)]
pub struct Leftovers {
    roots: Vec<Root>,
    refused: Vec<(i32, Refusal)>,
    doubtful: Vec<(i32, Refusal)>,
}

impl Leftovers {
    /// Finds everything that earlier runs have left.
    pub fn all() -> Leftovers {
        let found = Survey::read().orphans(|_, _| None);
        Leftovers { roots: found.roots, refused: Vec::new(), doubtful: found.doubtful }
    }

    /// Finds those with these numbers, and which of the numbers are of none.
    pub fn with(pids: &[i32]) -> Leftovers {
        let survey = Survey::read();
        let mut leftovers = Leftovers::default();
        for pid in pids {
            match survey.orphan_with(*pid) {
                // Two may be of one tree.
                Ok(root) => {
                    let mut known = leftovers.roots.iter_mut();
                    match known.find(|known| known.stat.pid == root.stat.pid) {
                        Some(known) => known.asked_for.extend(root.asked_for),
                        None => leftovers.roots.push(root),
                    }
                }
                Err(why) => leftovers.refused.push((*pid, why)),
            }
        }
        leftovers
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Writes what they are, a line each, for the terminal that may be behind stdout.
    pub fn text(&self) -> String {
        text::listed(&self.roots, layout(false, 1))
    }

    /// Why numbers that were asked for are left alone, a line each.
    pub fn refused(&self) -> Vec<String> {
        self.refused.iter().map(|(pid, why)| text::refused(*pid, why)).collect()
    }

    /// What a test may have started and is left alone, and why, a line each: the run that it is of may go on, or so.
    pub fn doubtful(&self) -> Vec<String> {
        self.doubtful.iter().map(|(pid, why)| text::refused(*pid, why)).collect()
    }

    /// Ends each of them with everything below it. Gives a text for each, and whether all of it has ended.
    pub fn end(&self) -> impl Iterator<Item = (String, bool)> {
        self.roots.iter().map(|root| {
            let ended: Ended = end_tree(&root.stat);
            (text::killed(root, &ended), ended.survivors.is_empty())
        })
    }
}
