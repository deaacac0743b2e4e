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
    /// Causes of failures other than what was left.
    others: BTreeSet<String>,
    /// How many reports there are.
    rounds: usize,
}

/// What was left from one place.
#[derive(Default)]
struct LeftBehind {
    /// Each test, with the rounds in which it left that.
    tests: BTreeMap<String, BTreeSet<usize>>,
    rounds: BTreeSet<usize>,
    count: usize,
}

impl Places {
    /// Adds the JSON of the report on one run.
    pub(crate) fn add(&mut self, report: &Value) {
        self.rounds += 1;
        let no_list = Vec::new();
        let list = |name: &str| report[name].as_array().unwrap_or(&no_list);
        for process in list("processes") {
            if process["class"] != "leaked" || process["pid"] == report["pid"] {
                continue;
            }
            let place = process["spawned_at"].as_str();
            let place = place.or_else(|| process["ended_parent"]["spawned_at"].as_str());
            self.add_one(place, &format!("`{}`", words(process)), &process["test"]);
        }
        for fd in list("fds") {
            let kind = fd["kind"].as_str().unwrap_or("fd");
            let what = format!("a {kind} that was open at the end");
            self.add_one(fd["created_at"].as_str(), &what, &fd["test"]);
        }
        let causes = texts(&report["causes"]).unwrap_or_default();
        let others = causes.iter().filter(|cause| !matches!(cause.as_str(), "leaked_process" | "stray_fd"));
        self.others.extend(others.map(|cause| cause.replace('_', " ")));
    }

    fn add_one(&mut self, place: Option<&str>, what: &str, test: &Value) {
        let place = place.unwrap_or("unknown line");
        let place = self.places.entry(format!("{place}  {what}")).or_default();
        place.count += 1;
        place.rounds.insert(self.rounds);
        if let Some(test) = test.as_str() {
            place.tests.entry(test.to_owned()).or_default().insert(self.rounds);
        }
    }

    /// One line for each place: how often, in how many rounds if there are several, and by which tests.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (what, place) in &self.places {
            let times = match place.count {
                _ if self.rounds > 1 => format!(" ({} of {} rounds)", place.rounds.len(), self.rounds),
                1 => String::new(),
                count => format!(" ({count} times)"),
            };
            lines.push(format!("{what}{times}{}", self.of_tests(&place.tests)));
        }
        if !self.others.is_empty() {
            lines.push(self.others.iter().cloned().collect::<Vec<_>>().join(", "));
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
