//! The report as JUnit's XML: one file a run, one suite, one test case a test.
//!
//! Of a run with `--repeat` too: tools tell test cases apart by their names, and GitLab shows only
//! one of those that share one, so that a later round's failure would be lost behind the success
//! of the first. A test that failed in any round is a failure, with the words of the first such
//! round, and the later ones below it, as Surefire writes them (`rerunFailure`). `flakyFailure`,
//! its word for a test that failed and then passed, would count as a success, and this run is none.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestRerun, TestSuite};
use tempfile::NamedTempFile;

use super::{escape, text};
use crate::diagnosis::{Cause, Verdict};

/// The most of one test's output that is kept, in bytes, from its end: the file is read as a whole
/// by what shows it, and it is kept in memory until the run is over.
const OUTPUT: usize = 256 << 10;

/// The most failed rounds of one test that are told besides the first.
const RERUNS: usize = 16;

/// The cases of a run, and the file that they go to.
pub(crate) struct Junit {
    file: Destination,
    target: String,
    begin: (SystemTime, Instant),
    cases: Vec<TestCase>,
    /// Where in `cases` a test is, by its name.
    places: HashMap<String, usize>,
}

impl Junit {
    /// Makes sure that the file can be written, before any test runs. Nothing is there until
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
        let output = clean(end_of(output));
        let Some((cause, _)) = verdict.failures().next() else {
            let case = self.case(&verdict.name, TestCaseStatus::success);
            case.time = Some(case.time.unwrap_or_default() + time);
            if !output.is_empty() && case.system_out.is_none() {
                case.set_system_out(output);
            }
            return;
        };
        let report = text::report(verdict, false);
        let words = clean(&match round {
            Some(round) => format!("{round}\n\n{report}"),
            None => report,
        });
        let first = verdict.findings.first();
        let message = clean(&escape::text(first.map_or("", |finding| &finding.sentence)));
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

    /// Adds a test that was not run, for `reason` if there is one. In a later round this is no news.
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

    /// The case of a test, new or from an earlier round.
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

    /// Writes the file: whole, or not at all.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        let (begin, clock) = self.begin;
        let mut suite = TestSuite::new(clean(&self.target));
        *suite.timestamp.get_or_insert_default() += begin.duration_since(UNIX_EPOCH).unwrap_or_default();
        suite.set_time(clock.elapsed()).add_test_cases(self.cases.drain(..));
        let mut report = Report::new(clean(&self.target));
        report.set_time(clock.elapsed()).add_test_suite(suite);
        let mut bytes = Vec::new();
        report.serialize(&mut bytes).map_err(io::Error::other)?;
        self.file.write(&bytes)
    }
}

/// A test that could not be judged is no failure of the code that it tests.
fn kind(cause: Cause) -> NonSuccessKind {
    match cause {
        Cause::Lost => NonSuccessKind::Error,
        _ => NonSuccessKind::Failure,
    }
}

/// A file that is there when it is complete, and not before.
///
/// It takes shape under another name and is renamed, and what an earlier run left is removed
/// first. Bazel reads its file after the run, also of one that it has ended by a timeout, and if
/// there is none it makes one that says so. Half a file, an empty one or yesterday's would pass
/// for the results.
struct Destination {
    path: PathBuf,
    /// Open if it cannot be renamed to: a pipe, a symlink, or a file in a directory that may not
    /// be written.
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

/// Makes a file in the same directory, with the mode that a new file has. It vanishes unless it is
/// renamed.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    tempfile::Builder::new()
        .prefix(".childproof-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory.unwrap_or(Path::new(".")))
}

/// The end of an output, which says more than its beginning.
fn end_of(output: &str) -> &str {
    let mut from = output.len().saturating_sub(OUTPUT);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    &output[from..]
}

/// Replaces what XML 1.0 has no way to write (section 2.2, production 2), and leaves out colours.
///
/// quick-junit would drop tabs, everything that looks like the beginning of an unfinished escape
/// sequence up to its end, and would let U+FFFE and U+FFFF through, which no parser accepts.
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

/// The length of the control sequence (ECMA-48, 5.4) that a text begins with, if it does.
fn colour(text: &str) -> Option<usize> {
    let bytes = text.strip_prefix("\x1b[")?.as_bytes();
    let end = bytes.iter().position(|byte| !matches!(byte, 0x20..=0x3f))?;
    matches!(bytes[end], 0x40..=0x7e).then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::{OUTPUT, clean, end_of};

    #[test]
    fn nothing_gets_into_the_xml_that_it_cannot_hold() {
        assert_eq!(clean("a\tb\r\nc\rd\n"), "a    b\nc\nd\n");
        assert_eq!(clean("\x1b[1;31mred\x1b[0m naïve ☃ \u{10fffe}"), "red naïve ☃ \u{10fffe}");
        assert_eq!(clean("\0\x01\x0b\x1f\u{7f}\u{85}\u{fffe}\u{ffff}"), "\u{fffd}".repeat(8));
        // An unfinished sequence, or one of another kind, takes nothing with it.
        assert_eq!(clean("\x1b]0;title and more"), "\u{fffd}]0;title and more");
        assert_eq!(clean("\x1b[12"), "\u{fffd}[12");
        assert_eq!(clean("\x1b[3é"), "\u{fffd}[3é");
        assert_eq!(clean("\x1b"), "\u{fffd}");
    }

    #[test]
    fn of_a_long_output_the_end_is_kept() {
        let long = format!("begin{}end", "é".repeat(OUTPUT));
        assert!(end_of(&long).len() <= OUTPUT && end_of(&long).ends_with("éend"));
        assert_eq!(end_of("short"), "short");
    }
}
