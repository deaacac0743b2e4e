//! The report as JUnit XML: one file and one suite per run, one test case per test.
//!
//! With `--repeat` too: tools distinguish test cases by name, and GitLab shows only one of those with the
//! same name, so a failure in a later round would be hidden behind the success of the first. A test that
//! failed in any round is a failure, with the text of the first such round; later ones follow as Surefire
//! writes them (`rerunFailure`). Its `flakyFailure`, for a test that failed and then passed, would count as a
//! success, which this run is not.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestRerun, TestSuite};
use tempfile::NamedTempFile;

use super::words::end_of_output;
use super::{escape, sentence, summary, text};
use crate::diagnosis::{Cause, Groups, Verdict};

/// The most failed rounds of one test that are listed after the first.
const RERUNS: usize = 16;

/// The test cases of a run, and the file that they are written to.
pub(crate) struct Junit {
    file: Destination,
    target: String,
    begin: (SystemTime, Instant),
    cases: Vec<TestCase>,
    /// The index in `cases` of each test, by name.
    places: HashMap<String, usize>,
}

impl Junit {
    /// Checks that the file can be written, before any test runs. The file does not exist until
    /// [`write`](Junit::write).
    pub(crate) fn create(path: &Path, target: &str) -> io::Result<Junit> {
        Ok(Junit {
            file: Destination::prepare(path)?,
            target: target.to_owned(),
            begin: (SystemTime::now(), Instant::now()),
            cases: Vec::new(),
            places: HashMap::new(),
        })
    }

    /// Adds a test that ran; `round` says which of several rounds it was.
    pub(crate) fn ran(&mut self, verdict: &Verdict, output: &str, round: Option<&str>) {
        let time = verdict.facts.time;
        let output = clean(end_of_output(output));
        let Some((cause, _)) = verdict.failures().next() else {
            let case = self.case(&verdict.name, TestCaseStatus::success);
            case.time = Some(case.time.unwrap_or_default() + time);
            if !output.is_empty() && case.system_out.is_none() {
                case.set_system_out(output);
            }
            // A test that passed has no other place for text.
            if let Some(warning) = text::warning(verdict, text::Layout::PLAIN) {
                case.set_system_err(clean(&warning));
            }
            return;
        };
        let report = text::report(verdict, text::Layout::PLAIN);
        let words = clean(&match round {
            Some(round) => format!("{round}\n\n{report}"),
            None => report,
        });
        // An explanation of a failure is more useful than the mere fact.
        let first = verdict.findings.first();
        let message = clean(&first.map(|finding| sentence::of(verdict, finding)).unwrap_or_default());
        let kind = kind(cause);
        let case = self.case(&verdict.name, TestCaseStatus::success);
        case.time = Some(case.time.unwrap_or_default() + time);
        if let TestCaseStatus::NonSuccess { reruns, .. } = &mut case.status {
            if reruns.runs.len() < RERUNS {
                let mut rerun = TestRerun::new(kind);
                rerun.set_time(time).set_message(message).set_type(cause.name()).set_stack_trace(words);
                if !output.is_empty() {
                    rerun.set_system_out(output);
                }
                reruns.runs.push(rerun);
            }
            return;
        }
        case.status = TestCaseStatus::non_success(kind);
        case.status.set_message(message).set_type(cause.name()).set_description(words);
        case.system_out = (!output.is_empty()).then(|| output.into());
    }

    /// Adds a test that was not run, with `reason` if there is one. Ignored in later rounds.
    pub(crate) fn skipped(&mut self, name: &str, reason: &str) {
        let reason = clean(&escape::text(reason));
        self.case(name, || {
            let mut status = TestCaseStatus::skipped();
            if !reason.is_empty() {
                status.set_message(reason);
            }
            status
        });
    }

    /// Adds a line to the text of a failed test.
    fn add_to_text(&mut self, test: &str, line: &str) {
        let case = self.places.get(test).and_then(|at| self.cases.get_mut(*at));
        if let Some(TestCaseStatus::NonSuccess { description: Some(text), .. }) =
            case.map(|case| &mut case.status)
        {
            *text = format!("{}\n\n{line}", text.as_str().trim_end()).into();
        }
    }

    /// The test case of a test, new or from an earlier round.
    fn case(&mut self, name: &str, status: impl FnOnce() -> TestCaseStatus) -> &mut TestCase {
        let Junit { target, cases, places, .. } = self;
        let at = *places.entry(name.to_owned()).or_insert_with(|| {
            let mut case = TestCase::new(clean(name), status());
            case.set_classname(clean(target));
            cases.push(case);
            cases.len() - 1
        });
        &mut cases[at]
    }

    /// Writes the file: whole, or not at all. What several tests have in common stands in the text of each, which is what
    /// GitLab shows, and in that of the suite, as Jenkins shows it.
    pub(crate) fn write(&mut self, failures: &Groups) -> io::Result<()> {
        let (begin, clock) = self.begin;
        let mut suite = TestSuite::new(clean(&self.target));
        for group in failures.largest_first().into_iter().filter(|group| group.tests.len() > 1) {
            let line = clean(&summary::line(group));
            for test in &group.tests {
                self.add_to_text(test, &line);
            }
        }
        if let Some(text) = summary::text(failures) {
            suite.set_system_out(clean(&text));
        }
        *suite.timestamp.get_or_insert_default() += begin.duration_since(UNIX_EPOCH).unwrap_or_default();
        suite.set_time(clock.elapsed()).add_test_cases(self.cases.drain(..));
        let mut report = Report::new(clean(&self.target));
        report.set_time(clock.elapsed()).add_test_suite(suite);
        let mut bytes = Vec::new();
        report.serialize(&mut bytes).map_err(io::Error::other)?;
        self.file.write(&bytes)
    }
}

/// If a test could not be judged, its code has not failed.
fn kind(cause: Cause) -> NonSuccessKind {
    match cause {
        Cause::Unguarded | Cause::Cut => NonSuccessKind::Error,
        _ => NonSuccessKind::Failure,
    }
}

/// A file that appears only when it is complete.
///
/// It is written under another name and renamed, and the file of an earlier run is removed first. Bazel reads
/// its file after the run, also if it has killed the run at a timeout, and if there is none it writes one
/// that reports that. A partial, empty or old file would be taken for the results.
struct Destination {
    path: PathBuf,
    /// Open if the file cannot be replaced by a rename: a pipe, a symlink, or a file in a read-only
    /// directory.
    in_place: Option<File>,
}

impl Destination {
    fn prepare(path: &Path) -> io::Result<Destination> {
        let by_rename = fs::symlink_metadata(path).map_or(true, |found| found.is_file())
            && beside(path).is_ok()
            && fs::remove_file(path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true);
        let in_place = if by_rename { None } else { Some(File::create(path)?) };
        Ok(Destination { path: path.to_owned(), in_place })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.in_place {
            return file.write_all(bytes);
        }
        let mut file = beside(&self.path)?;
        file.write_all(bytes)?;
        file.persist(&self.path)?;
        Ok(())
    }
}

/// Creates a file in the same directory, with the mode of a new file. It is deleted unless it is renamed.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    tempfile::Builder::new()
        .prefix(".childproof-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory.unwrap_or(Path::new(".")))
}

/// Replaces characters that XML 1.0 cannot represent (section 2.2, production 2), and removes colours.
///
/// quick-junit would drop tabs, drop everything from the beginning of an unfinished escape sequence to its
/// end, and keep U+FFFE and U+FFFF, which no parser accepts.
fn clean(raw: &str) -> String {
    let mut safe = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let length = colour(rest).unwrap_or(c.len_utf8());
        match c {
            '\x1b' if length > 1 => {}
            '\t' => safe.push_str("    "),
            '\r' if rest.starts_with("\r\n") => {}
            '\r' => safe.push('\n'),
            '\n' => safe.push('\n'),
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                safe.push(char::REPLACEMENT_CHARACTER)
            }
            c => safe.push(c),
        }
        rest = &rest[length..];
    }
    safe
}

/// The length of the control sequence (ECMA-48, 5.4) at the beginning of a text, if there is one.
fn colour(text: &str) -> Option<usize> {
    let bytes = text.strip_prefix("\x1b[")?.as_bytes();
    let end = bytes.iter().position(|byte| !matches!(byte, 0x20..=0x3f))?;
    matches!(bytes[end], 0x40..=0x7e).then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn nothing_gets_into_the_xml_that_it_cannot_hold() {
        assert_eq!(clean("a\tb\r\nc\rd\n"), "a    b\nc\nd\n");
        assert_eq!(clean("\x1b[1;31mred\x1b[0m naïve ☃ \u{10fffe}"), "red naïve ☃ \u{10fffe}");
        assert_eq!(clean("\0\x01\x0b\x1f\u{7f}\u{85}\u{fffe}\u{ffff}"), "\u{fffd}".repeat(8));
        // An unfinished sequence, or one of another kind, does not remove what follows.
        assert_eq!(clean("\x1b]0;title and more"), "\u{fffd}]0;title and more");
        assert_eq!(clean("\x1b[12"), "\u{fffd}[12");
        assert_eq!(clean("\x1b[3é"), "\u{fffd}[3é");
        assert_eq!(clean("\x1b"), "\u{fffd}");
    }
}
