//! Writes failed tests as GitHub annotations: lines of output that the runner shows as errors at lines of code.
//!
//! The runner expects a command at the beginning of a line, with only white space before it, and unescapes
//! its contents (`ActionCommand.cs` in actions/runner).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::words::plural;
use super::{escape, sentence, summary};
use crate::diagnosis::{Cause, Finding, Kind, Stray, Verdict};
use crate::guard::report_page::Body;
use crate::recorder::call_site::SourceLocation;

/// The directory where the runner has checked out the repository, and the current directory.
pub(crate) struct Checkout {
    workspace: Option<PathBuf>,
    here: PathBuf,
}

impl Checkout {
    /// The checkout of the runner that started this process; `None` if there is none.
    pub(crate) fn of_runner(get: impl Fn(&str) -> Option<OsString>) -> Option<Checkout> {
        if get("GITHUB_ACTIONS")? != "true" {
            return None;
        }
        let workspace = get("GITHUB_WORKSPACE").filter(|path| !path.is_empty()).map(PathBuf::from);
        Some(Checkout { workspace, here: std::env::current_dir().unwrap_or_default() })
    }

    /// The path of a file as GitHub knows it, relative to the root of the repository.
    fn file(&self, file: &str) -> String {
        let absolute = self.here.join(file);
        let inside = |root: &Path| absolute.strip_prefix(root).ok();
        let path = self.workspace.as_deref().and_then(inside);
        let path =
            path.or_else(|| absolute.ancestors().find(|root| root.join(".git").exists()).and_then(inside));
        path.unwrap_or(Path::new(file)).display().to_string()
    }

    /// The same for a path as the compiler has it. The compiler runs in the workspace's directory, and a
    /// test in its package's, which is the same or below.
    fn compiled(&self, file: &str) -> String {
        let paths = self.here.ancestors().map(|directory| directory.join(file));
        let found = paths.into_iter().find(|path| path.exists());
        self.file(found.as_deref().and_then(Path::to_str).unwrap_or(file))
    }
}

/// The annotations of a run: one for each line of code, with the tests that failed because of it. GitHub shows only ten
/// per step.
pub(crate) struct Annotations {
    checkout: Checkout,
    all: Vec<Annotation>,
    places: HashMap<AnnotationKey, usize>,
}

/// What failed tests have in common that are one annotation. No cause if only an explanation is known.
#[derive(Clone, PartialEq, Eq, Hash)]
struct AnnotationKey {
    cause: Option<Cause>,
    file: String,
    line: u32,
    column: u32,
}

struct Annotation {
    key: AnnotationKey,
    /// What each test did.
    what: &'static str,
    /// The words on the first test.
    message: String,
    /// Each once.
    tests: Vec<String>,
}

impl Annotations {
    pub(crate) fn new(checkout: Checkout) -> Annotations {
        Annotations { checkout, all: Vec::new(), places: HashMap::new() }
    }

    /// Adds a failed test.
    ///
    /// It is placed at the first finding with a known line: a test that panicked may have leaked a process
    /// because of the panic, and then the line of the leak is in more need of a reader. Its explanation comes first, and
    /// the other findings follow. If no line of the repository is known, it is placed at the test's, `defined`.
    pub(crate) fn add(&mut self, verdict: &Verdict, defined: (&str, u32)) {
        let failures = || verdict.failures().map(|(_, finding)| finding);
        let placed = |is_panic: bool| {
            failures()
                .filter(move |finding| matches!(finding.kind, Kind::Panicked { .. }) == is_panic)
                .find_map(|finding| {
                    Some((finding, finding.kind.place().and_then(|place| self.at(place, is_panic))?))
                })
        };
        let found = placed(false).or_else(|| placed(true));
        let Some(subject) = found.as_ref().map(|(finding, _)| *finding).or_else(|| failures().next()) else {
            return;
        };
        let (file, line, column) = match found {
            Some((_, place)) => place,
            None => (self.checkout.compiled(defined.0), defined.1, 0),
        };
        let key = AnnotationKey { cause: subject.cause, file, line, column };
        let at = *self.places.entry(key.clone()).or_insert_with(|| {
            let (what, message) = (what(verdict, subject), message(verdict, subject));
            self.all.push(Annotation { key, what, message, tests: Vec::new() });
            self.all.len() - 1
        });
        let tests = &mut self.all[at].tests;
        if !tests.contains(&verdict.name) {
            tests.push(verdict.name.clone());
        }
    }

    /// A place as GitHub knows it. A panic may come from a file of std's or of another crate's, which is not in the
    /// repository.
    fn at(&self, place: &SourceLocation, is_panic: bool) -> Option<(String, u32, u32)> {
        let file = self.checkout.compiled(&place.file);
        (!is_panic || Path::new(&file).is_relative()).then_some((file, place.line, place.column))
    }

    /// The annotations, each as a line without its end.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.all.iter().map(|annotation| {
            let Annotation { key, what, message, tests } = annotation;
            let mut line = format!("::error file={},line={},", property(&key.file), key.line);
            if key.column > 0 {
                let _ = write!(line, "col={},", key.column);
            }
            let (title, names) = match &tests[..] {
                [test] => (format!("{test} {what}"), String::new()),
                tests => {
                    let count = plural(tests.len(), "test");
                    (
                        format!("{count} {what}"),
                        format!("%0A{count}: {}", data(&escape::text(&summary::names(tests)))),
                    )
                }
            };
            let _ = write!(line, "title={}::{message}{names}", property(&title));
            line
        })
    }
}

/// The sentences of a test's findings, the explanations first, then the subject's.
fn message(verdict: &Verdict, subject: &Finding) -> String {
    let explained = verdict.findings.iter().take_while(|finding| finding.cause.is_none()).count();
    let (explanations, others) = verdict.findings.split_at(explained);
    let others = others.iter().filter(|finding| !std::ptr::eq(*finding, subject));
    let sentences = explanations.iter().chain([subject]).chain(others);
    sentences.map(|finding| data(&sentence::of(verdict, finding))).collect::<Vec<_>>().join("%0A")
}

/// What the test did, to end a title that begins with the test's name.
fn what(verdict: &Verdict, finding: &Finding) -> &'static str {
    let Some(cause) = finding.cause else { return "never makes progress" };
    match cause {
        Cause::Panicked if verdict.facts.body == Body::DidNotPanic => "did not panic",
        Cause::Panicked => "panicked",
        Cause::Error => "failed",
        Cause::TimedOut => "timed out",
        Cause::Cut => "was cut with the run",
        Cause::EndedEarly => "ended early",
        Cause::Signal => "was ended by a signal",
        Cause::LeakedProcess => "leaked a process",
        Cause::StrayFd if verdict.strays.iter().all(Stray::is_pipe) => "left a pipe open",
        Cause::StrayFd => "left an fd open",
        Cause::Unwaited => "left a zombie",
        Cause::ThreadedFork => "forked among threads",
        Cause::Threads => "left a thread running",
        Cause::LeftMount => "left a mount",
        Cause::UnusedAllowance => "allows what it did not leave",
        Cause::Unkillable => "left a process that cannot be killed",
        Cause::Unguarded => "could not be guarded",
    }
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(&escape::text(text)).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::{Checkout, data, property};

    #[test]
    fn nothing_ends_a_command_or_begins_another() {
        assert_eq!(data("50%\r\n::error::a, b: c"), "50%25%0D%0A::error::a, b: c");
        assert_eq!(property("a::b, 50%0A\u{1b}\n"), r"a%3A%3Ab%2C 50%250A\u{1b}\n");
    }

    #[test]
    fn a_path_begins_at_the_root_of_the_repository() {
        let checkout = |workspace: Option<&str>| Checkout {
            workspace: workspace.map(Into::into),
            here: "/home/runner/work/repo/crates/server".into(),
        };
        let inside = checkout(Some("/home/runner/work/repo"));
        assert_eq!(inside.file("tests/a.rs"), "crates/server/tests/a.rs");
        assert_eq!(inside.file("/home/runner/work/repo/b/src/lib.rs"), "b/src/lib.rs");
        assert_eq!(inside.file("/elsewhere/src/lib.rs"), "/elsewhere/src/lib.rs");
        assert_eq!(checkout(Some("/home/runner/work/re")).file("tests/a.rs"), "tests/a.rs");
        assert_eq!(checkout(None).file("tests/a.rs"), "tests/a.rs");
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
    fn a_path_of_the_compilers_begins_at_the_workspace() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("rust/crates/server");
        std::fs::create_dir_all(here.join("tests")).unwrap();
        std::fs::write(here.join("tests/a.rs"), "").unwrap();
        let checkout = Checkout { workspace: None, here };
        assert_eq!(checkout.compiled("crates/server/tests/b.rs"), "crates/server/tests/b.rs");
        std::fs::write(root.path().join(".git"), "gitdir: elsewhere").unwrap();
        for file in ["crates/server/tests/a.rs", "tests/a.rs"] {
            assert_eq!(checkout.compiled(file), "rust/crates/server/tests/a.rs");
        }
    }

    #[test]
    fn only_a_runner_is_told() {
        let of = |value: &'static str| {
            Checkout::of_runner(|name| (name == "GITHUB_ACTIONS").then(|| value.into())).is_some()
        };
        assert!(of("true") && !of("false") && !of(""));
        assert!(Checkout::of_runner(|_| None).is_none());
    }
}
