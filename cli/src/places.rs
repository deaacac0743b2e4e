//! What runs of programs have left, by the line of code that started it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::cargo::texts;

/// The most tests that are named at one place.
const TESTS: usize = 8;

/// What was left, by its place and what it is.
#[derive(Default)]
pub(crate) struct Places {
    places: BTreeMap<String, LeftBehind>,
    /// Causes of failures other than what was left, by program.
    others: BTreeMap<String, BTreeSet<String>>,
    /// How many rounds there are.
    rounds: usize,
    /// How many reports of programs there are.
    reports: usize,
}

/// What was left from one place.
#[derive(Default)]
struct LeftBehind {
    /// Each test, with the rounds in which it left that.
    tests: BTreeMap<String, BTreeSet<usize>>,
    rounds: BTreeSet<usize>,
    count: usize,
    /// The pipes and sockets that are counted: both ends of one are open as one.
    inodes: BTreeSet<(usize, u64)>,
    /// The programs that left it.
    programs: BTreeSet<String>,
}

impl Places {
    /// Adds the JSON of the report on one more round.
    pub(crate) fn add(&mut self, report: &Value) {
        self.rounds += 1;
        self.add_to_round(report, "");
    }

    /// Adds the JSON of the report on a program.
    pub(crate) fn add_of(&mut self, report: &Value, program: &str) {
        self.reports += 1;
        self.rounds = 1;
        self.add_to_round(report, program);
    }

    fn add_to_round(&mut self, report: &Value, program: &str) {
        let no_list = Vec::new();
        let list = |name: &str| report[name].as_array().unwrap_or(&no_list);
        for process in list("processes") {
            if process["class"] != "leaked" || process["pid"] == report["pid"] {
                continue;
            }
            let place = process["spawned_at"].as_str();
            let place = place.or_else(|| process["ended_parent"]["spawned_at"].as_str());
            self.add_one(place, &format!("`{}`", words(process)), &process["test"], program, None);
        }
        for fd in list("fds") {
            let kind = fd["kind"].as_str().unwrap_or("fd");
            let what = format!("a {kind} that was open at the end");
            let inode = fd["inode"].as_u64().filter(|_| kind == "pipe");
            self.add_one(fd["created_at"].as_str(), &what, &fd["test"], program, inode);
        }
        let causes = texts(&report["causes"]).unwrap_or_default();
        let others = causes.iter().filter(|cause| !matches!(cause.as_str(), "leaked_process" | "stray_fd"));
        let of_program = self.others.entry(program.to_owned()).or_default();
        for cause in others {
            let words = cause.replace('_', " ");
            let findings = list("findings").iter().filter(|finding| finding["cause"] == cause.as_str());
            let tests =
                findings.flat_map(|finding| finding["fields"]["tests"].as_array().unwrap_or(&no_list));
            let named = tests.filter_map(|test| {
                let at = test["place"].as_str().map_or_else(String::new, |place| format!(" at {place}"));
                Some(format!("{words}: test {}{at}", test["test"].as_str()?))
            });
            let named: Vec<String> = named.collect();
            match named.is_empty() {
                true => of_program.extend([words]),
                false => of_program.extend(named),
            }
        }
    }

    fn add_one(&mut self, place: Option<&str>, what: &str, test: &Value, program: &str, inode: Option<u64>) {
        let place = place.unwrap_or("unknown line");
        let place = self.places.entry(format!("{place}  {what}")).or_default();
        if inode.is_none_or(|inode| place.inodes.insert((self.rounds.max(self.reports), inode))) {
            place.count += 1;
        }
        place.programs.insert(program.to_owned());
        place.rounds.insert(self.rounds);
        if let Some(test) = test.as_str() {
            place.tests.entry(test.to_owned()).or_default().insert(self.rounds);
        }
    }

    /// One line for each place: how often, in how many rounds if there are several, and by which tests.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.by_programs().into_values().flatten().collect()
    }

    /// The same by the programs that left it: a place that several have in common is there once.
    pub(crate) fn by_programs(&self) -> BTreeMap<String, Vec<String>> {
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (what, place) in &self.places {
            let programs: Vec<String> = place.programs.iter().cloned().collect();
            let times = match place.count {
                _ if self.rounds > 1 => format!(" ({} of {} rounds)", place.rounds.len(), self.rounds),
                1 => String::new(),
                count => format!(" ({count} times)"),
            };
            let line = format!("{what}{times}{}", self.of_tests(&place.tests));
            lines.entry(programs.join(", ")).or_default().push(line);
        }
        for (program, others) in self.others.iter().filter(|(_, others)| !others.is_empty()) {
            let line = others.iter().cloned().collect::<Vec<_>>().join(", ");
            lines.entry(program.clone()).or_default().push(line);
        }
        lines
    }

    fn of_tests(&self, tests: &BTreeMap<String, BTreeSet<usize>>) -> String {
        let named = |(test, rounds): (&String, &BTreeSet<usize>)| match rounds.len() {
            _ if self.rounds <= 1 || tests.len() == 1 => test.clone(),
            1 => format!("{test} (1 round)"),
            rounds => format!("{test} ({rounds} rounds)"),
        };
        let all = tests.iter().take(TESTS).map(named).collect::<Vec<_>>().join(", ");
        match tests.len() {
            0 => String::new(),
            1 => format!(", test {all}"),
            count if count > TESTS => format!(", {count} tests: {all} and {} more", count - TESTS),
            count => format!(", {count} tests: {all}"),
        }
    }
}

/// The command line of a process, its program without the folder; or the name that the kernel has for it.
pub(crate) fn words(process: &Value) -> String {
    let words = texts(&process["cmdline"]).unwrap_or_default();
    match words.split_first() {
        Some((program, rest)) => {
            let name = Path::new(program).file_name().map_or(program.into(), |name| name.to_string_lossy());
            std::iter::once(name.into_owned()).chain(rest.iter().cloned()).collect::<Vec<_>>().join(" ")
        }
        None => process["comm"].as_str().unwrap_or_default().to_owned(),
    }
}
