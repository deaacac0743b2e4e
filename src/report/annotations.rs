//! A failed test as an annotation of GitHub's: a line of output that its runner takes as an error
//! at a line of code.
//!
//! The runner wants a command at the beginning of a line, with nothing but space before it, and
//! unescapes what stands in it (`ActionCommand.cs` in actions/runner).

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::escape;
use crate::diagnosis::{Cause, Finding, Origin, Stray, Verdict};
use crate::facts::{Class, Makes};
use crate::outcome::Body;

/// Where the runner has put the repository, and where this process is.
pub(crate) struct Checkout {
    workspace: Option<PathBuf>,
    here: PathBuf,
}

impl Checkout {
    /// The checkout of the runner that started this process; `None` if none did.
    pub(crate) fn of_runner(get: impl Fn(&str) -> Option<OsString>) -> Option<Checkout> {
        if get("GITHUB_ACTIONS")? != "true" {
            return None;
        }
        let workspace = get("GITHUB_WORKSPACE").filter(|path| !path.is_empty()).map(PathBuf::from);
        Some(Checkout { workspace, here: std::env::current_dir().unwrap_or_default() })
    }

    /// The path of a file as GitHub knows it: from the root of the repository.
    fn file(&self, file: &str) -> String {
        let absolute = self.here.join(file);
        let inside = |root: &Path| absolute.strip_prefix(root).ok();
        let path = self.workspace.as_deref().and_then(inside);
        let path =
            path.or_else(|| absolute.ancestors().find(|root| root.join(".git").exists()).and_then(inside));
        path.unwrap_or(Path::new(file)).display().to_string()
    }

    /// The same of a path that the compiler was given. It runs where the workspace is, and a test
    /// where its package is, which is there or below.
    fn compiled(&self, file: &str) -> String {
        let paths = self.here.ancestors().map(|directory| directory.join(file));
        let found = paths.into_iter().find(|path| path.exists());
        self.file(found.as_deref().and_then(Path::to_str).unwrap_or(file))
    }
}

/// Writes the annotation of a failed test, without the end of its line.
///
/// It is about the first finding whose line of code is known: a test that panicked may have leaked
/// a process just because of that, but only the leak has a line. What explains it comes first, and
/// the other findings are told with it. If no line is known it is that of the test, `defined`.
pub(crate) fn annotation(verdict: &Verdict, defined: (&str, u32), checkout: &Checkout) -> String {
    let found = verdict.findings.iter().find_map(|finding| Some((finding, place(verdict, finding)?)));
    let first = verdict.failures().map(|(_, finding)| finding).next();
    let Some(subject) = found.map(|(finding, _)| finding).or(first) else {
        return String::new();
    };
    let (file, number, column) = match found.and_then(|(_, place)| split(place)) {
        Some((file, number, column)) => (checkout.file(file), number, column),
        None => (checkout.compiled(defined.0), defined.1, None),
    };
    let mut line = format!("::error file={},line={number},", property(&file));
    if let Some(column) = column {
        let _ = write!(line, "col={column},");
    }
    let title = property(&format!("{} {}", verdict.name, what(verdict, subject)));
    let explained = verdict.findings.iter().take_while(|finding| finding.cause.is_none()).count();
    let (explanations, others) = verdict.findings.split_at(explained);
    let sentences: Vec<String> = explanations
        .iter()
        .chain([subject])
        .chain(others.iter().filter(|finding| !std::ptr::eq(*finding, subject)))
        .map(|finding| data(&escape::text(&finding.sentence)))
        .collect();
    let _ = write!(line, "title={title}::{}", sentences.join("%0A"));
    line
}

/// The line of code that made what a finding is about, or that it happened in.
fn place<'a>(verdict: &'a Verdict, finding: &Finding) -> Option<&'a str> {
    let of_process = |pid: i32| verdict.origin_of_process(pid)?.place.as_deref();
    match finding.cause? {
        Cause::LeakedProcess => {
            let pid = verdict.leaked?;
            let process = verdict.facts.processes.iter().find(|process| process.pid == pid)?;
            // What a program has started is known by the line that started the program.
            let known = std::iter::once(&pid).chain(&process.lineage).find_map(|pid| of_process(*pid));
            known.or_else(|| verdict.ended_parent(pid)?.1.place.as_deref())
        }
        Cause::StrayFd => {
            verdict.strays.iter().find_map(|stray| verdict.origin_of_inode(stray.fd.ino)?.place.as_deref())
        }
        Cause::Unwaited => verdict.of_class(Class::Unwaited).find_map(|process| of_process(process.pid)),
        Cause::Unkillable => verdict.facts.survivors.iter().find_map(|survivor| of_process(survivor.pid)),
        Cause::ThreadedFork => {
            let is_one =
                |origin: &&Origin| origin.makes == Makes::Process && origin.threads > 1 && !origin.execed;
            let fork = verdict.names.origins.iter().find(is_one);
            fork?.place.as_deref()
        }
        Cause::TimedOut => verdict.names.lines.get(&verdict.facts.pid).map(String::as_str),
        Cause::EndedEarly | Cause::Signal => verdict
            .origin_of_end()
            .map_or_else(|| of_process(verdict.facts.returned_child?), |end| end.place.as_deref()),
        Cause::Panicked | Cause::Error | Cause::Threads | Cause::Lost => None,
    }
}

/// What a test did, as the end of a title that begins with its name.
fn what(verdict: &Verdict, finding: &Finding) -> &'static str {
    let Some(cause) = finding.cause else { return "waits for ever" };
    match cause {
        Cause::Panicked if verdict.facts.body == Body::DidNotPanic => "did not panic",
        Cause::Panicked => "panicked",
        Cause::Error => "failed",
        Cause::TimedOut => "timed out",
        Cause::EndedEarly => "ended early",
        Cause::Signal => "was ended by a signal",
        Cause::LeakedProcess => "leaked a process",
        Cause::StrayFd if verdict.strays.iter().all(Stray::is_pipe) => "left a pipe open",
        Cause::StrayFd => "left an fd open",
        Cause::Unwaited => "left a zombie",
        Cause::ThreadedFork => "forked among threads",
        Cause::Threads => "left a thread running",
        Cause::Unkillable => "left a process that cannot be killed",
        Cause::Lost => "could not be guarded",
    }
}

/// Splits `tests/server.rs:31:10`; not every place has a column.
fn split(place: &str) -> Option<(&str, u32, Option<u32>)> {
    let (rest, last) = place.rsplit_once(':')?;
    let last = last.parse().ok()?;
    match rest.rsplit_once(':').map(|(file, line)| (file, line.parse())) {
        Some((file, Ok(line))) => Some((file, line, Some(last))),
        _ => Some((rest, last, None)),
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
    use super::{Checkout, data, property, split};

    #[test]
    fn nothing_ends_a_command_or_begins_another() {
        assert_eq!(data("50%\r\n::error::a, b: c"), "50%25%0D%0A::error::a, b: c");
        assert_eq!(property("a::b, 50%0A\u{1b}\n"), r"a%3A%3Ab%2C 50%250A\u{1b}\n");
    }

    #[test]
    fn a_place_is_split_from_its_end() {
        assert_eq!(split("tests/server.rs:31:10"), Some(("tests/server.rs", 31, Some(10))));
        assert_eq!(split("tests/server.rs:31"), Some(("tests/server.rs", 31, None)));
        assert_eq!(split("odd:name.rs:31:10"), Some(("odd:name.rs", 31, Some(10))));
        assert_eq!(split("tests/server.rs"), None);
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
