//! The failures and warnings of a run: each is reported when its test ends, and what they have in common at the end of the run.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::outputs::TargetNames;
use crate::diagnosis::{Groups, Verdict};
use crate::report::annotations::{Annotations, Checkout};
use crate::report::summary;
use crate::report::text::{self, Layout};
use crate::sys;
use crate::sys::lock::lock;

/// The variable with the path of the file that a runner of GitHub's shows with the step.
const STEP_SUMMARY: &str = "GITHUB_STEP_SUMMARY";

/// The failures so far.
pub(super) struct Failures {
    groups: Mutex<Groups>,
    warnings: Mutex<Groups>,
    /// Only on a runner that shows them.
    annotations: Option<Mutex<Annotations>>,
}

/// The report of a failed test.
pub(super) struct Report {
    pub(super) text: String,
    /// The test whose report says the same, if another one came before.
    first: Option<String>,
}

impl Report {
    /// The same report in another layout.
    pub(super) fn again(&self, verdict: &Verdict, layout: Layout) -> String {
        match &self.first {
            _ if self.text.is_empty() => String::new(),
            Some(first) => text::folded(verdict, first, layout),
            None => text::report(verdict, layout),
        }
    }
}

impl Failures {
    /// `get` is `std::env::var_os`.
    pub(super) fn new(get: impl Fn(&str) -> Option<OsString>) -> Failures {
        let annotations = Checkout::of_runner(get).map(|checkout| Mutex::new(Annotations::new(checkout)));
        Failures { groups: Mutex::default(), warnings: Mutex::default(), annotations }
    }

    /// Adds a failed test, and writes its report: three lines, if an earlier one says the rest. `defined` is the test's
    /// line. No text if the test's own output `says` everything.
    pub(super) fn add(
        &self,
        verdict: &Verdict,
        round: Option<&str>,
        defined: (&str, u32),
        says: bool,
        layout: Layout,
    ) -> Report {
        if let Some(annotations) = &self.annotations {
            lock(annotations).add(verdict, defined);
        }
        let name = round.map_or_else(|| verdict.name.clone(), |round| format!("{} ({round})", verdict.name));
        // The first report is ready before another one may point to it, so that it comes first.
        let is_first = !says && !lock(&self.groups).has_one_like(verdict);
        let full = is_first.then(|| text::report(verdict, layout));
        let first = lock(&self.groups).add(verdict, &name, says);
        let text = match (&first, full) {
            _ if says => String::new(),
            (Some(first), _) => text::folded(verdict, first, layout),
            (None, Some(full)) => full,
            (None, None) => text::report(verdict, layout),
        };
        Report { text, first }
    }

    /// Adds the warnings of a test that passed.
    pub(super) fn add_warnings(&self, verdict: &Verdict) {
        if !verdict.warnings.is_empty() {
            lock(&self.warnings).add_warnings(verdict);
        }
    }

    pub(super) fn groups(&self) -> MutexGuard<'_, Groups> {
        lock(&self.groups)
    }

    /// The failures and the warnings by line, and the annotations; empty, or whole lines. `warned` if the warnings were
    /// shown before. How often each test failed, if there were several `rounds`.
    pub(super) fn summary(&self, warned: bool, rounds: Option<u64>) -> String {
        let failures = match rounds {
            Some(rounds) => summary::rounds(&self.groups(), rounds),
            None => summary::text(&self.groups()),
        };
        let lists = [failures, summary::warnings(&lock(&self.warnings), !warned)];
        let mut out: String = lists.into_iter().flatten().map(|list| format!("{list}\n")).collect();
        for line in self.annotations.iter().flat_map(|all| lock(all).lines().collect::<Vec<_>>()) {
            out.push_str(&line);
            out.push('\n');
        }
        out
    }

    /// Adds the table of the failures to the summary of a step of GitHub's, where there is one. The error is a message.
    /// `is_single` if each test has a run of its own.
    pub(super) fn write_step_summary(&self, is_single: bool) -> Result<(), String> {
        let Some(path) = std::env::var_os(STEP_SUMMARY).filter(|path| !path.is_empty()) else {
            return Ok(());
        };
        let names = TargetNames::of_self();
        let target = match names.package == names.binary {
            true => names.binary,
            false => format!("{} {}", names.package, names.binary),
        };
        let Some(table) = summary::markdown(&self.groups(), &target, is_single) else { return Ok(()) };
        let written = OpenOptions::new().create(true).append(true).open(&path);
        // In one call: other targets, and other processes of nextest's, add to the same file.
        let written = written.and_then(|mut file| file.write_all(table.as_bytes()));
        written.map_err(|error| {
            format!("childproof: cannot write `{STEP_SUMMARY}={}`: {error}", Path::new(&path).display())
        })
    }
}

/// Writes to stdout, past std's lock and buffer: another thread may have the lock for good, and the process is about to
/// end.
pub(super) fn print(text: &str) {
    sys::print_to(1, text);
}
