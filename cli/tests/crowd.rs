//! The leak that needs a crowd: a stock test binary whose tests start helpers by `fork` among threads. A helper that finds
//! a lock taken by a thread that it does not have hangs, in every run another one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/crowd.rs")
}

/// The suite, built by rustc and nothing else.
struct Suite(TempDir);

impl Suite {
    fn build(flags: &[&str]) -> Suite {
        let directory = tempfile::tempdir().unwrap();
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2024", "--test", "-g"]).args(flags).arg(source());
        let built = rustc.arg("-o").arg(directory.path().join("crowd")).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Suite(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs all tests on 32 threads, guarded. Returns only when no process has its stdout or stderr any more.
    fn run(&self) -> Ran {
        let [ledger, json] = ["ledger", "report.json"].map(|name| self.path(name));
        let _ = fs::remove_file(&ledger);
        let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
        tool.args(["run", "--grace=1s", "--timeout=60s", "--json"]).arg(&json).arg("--");
        tool.arg(self.path("crowd")).args(["--test-threads", "32"]);
        tool.stdin(Stdio::null()).env("CROWD_LEDGER", &ledger);
        for name in ["LD_PRELOAD", "RUST_BACKTRACE", "RUST_LIB_BACKTRACE", "CHILDPROOF_BACKTRACE"] {
            tool.env_remove(name);
        }
        let output = tool.output().unwrap();
        let report = fs::read_to_string(json).unwrap_or_default();
        Ran { left: left(&ledger), report: serde_json::from_str(&report).unwrap_or_default(), output }
    }
}

/// The helpers that the suite itself has seen start and not end, each with its test.
fn left(ledger: &Path) -> BTreeMap<i64, String> {
    let ledger = fs::read_to_string(ledger).unwrap();
    let lines = || ledger.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let pid = |words: &[&str]| words[1].parse::<i64>().unwrap();
    let ended: BTreeSet<i64> = lines().filter(|words| words[0] == "ended").map(|words| pid(&words)).collect();
    let started = lines().filter(|words| words[0] == "started");
    started.map(|words| (pid(&words), words[2].to_owned())).filter(|(pid, _)| !ended.contains(pid)).collect()
}

struct Ran {
    output: Output,
    /// By pid: the test of each helper that was left.
    left: BTreeMap<i64, String>,
    report: Value,
}

/// The line of each `MARK`.
fn lines() -> BTreeMap<String, usize> {
    let source = fs::read_to_string(source()).unwrap();
    let marks = (1..).zip(source.lines()).filter_map(|(number, line)| {
        let (_, mark) = line.split_once("// MARK ")?;
        Some((mark.to_owned(), number))
    });
    marks.collect()
}

/// What a helper of a test may hang in: the mark of its `fork`, and the beginnings of the locks' names.
fn kinds(test: &str) -> &'static [(&'static str, &'static [&'static str])] {
    match test.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_') {
        "helper_panics" => &[("panic", PANIC)],
        "helper_starts_a_thread" => &[("thread", &["std::sys::pal::unix::stack_overflow::"])],
        "helper_locks" => &[("lock", &["crowd::CACHE"])],
        "helper_has_a_worker" => &[("reader", &[]), ("worker", PANIC)],
        other => panic!("{other} starts no helper"),
    }
}

const PANIC: &[&str] = &["std::panicking::HOOK", "std::sys::backtrace::lock::"];

impl Ran {
    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Checks that the text says of std's locks what they are for, and that a fork of a fork has inherited them too.
    fn check_text(&self) {
        let text: String = self.stderr().split_whitespace().collect::<Vec<_>>().join(" ");
        let waits = self.report["waits"].as_array().unwrap();
        let is_on = |wait: &Value, lock: &str| wait["on"].as_str().is_some_and(|on| on.starts_with(lock));
        for (lock, words) in [
            ("std::panicking::HOOK", "for the lock of std's panic hook (std::panicking::HOOK) that a thread"),
            (
                "std::sys::backtrace::",
                "for the lock under which std's panic hook prints (std::sys::backtrace::",
            ),
            (
                "std::sys::pal::unix::stack_overflow::",
                "for the lock of std's stack-overflow table (std::sys::",
            ),
        ] {
            let is_said = text.contains(words) || text.contains("never make progress, for other reasons");
            assert!(is_said || !waits.iter().any(|wait| is_on(wait, lock)), "{lock}: {}", self.stderr());
        }
        let workers = |process: &&Value| process["lineage"].as_array().unwrap().len() > 1;
        let mut workers = self.report["processes"].as_array().unwrap().iter().filter(workers);
        let is_alone = text.contains("(std::sys::backtrace::lock::LOCK), and it has no other thread");
        assert!(
            !is_alone && (workers.next().is_none() || text.contains(" is a fork of, was forked.")),
            "{text}"
        );
    }

    /// Checks that the report has what was left, with test, line and lock, and nothing else.
    fn check(&self, lines: &BTreeMap<String, usize>) {
        let said = || format!("{:#}\n{}", self.report, self.stderr());
        let processes = self.report["processes"].as_array().unwrap();
        let leaked: Vec<&Value> = processes.iter().filter(|process| process["class"] == "leaked").collect();
        let pids: BTreeSet<i64> = leaked.iter().map(|process| process["pid"].as_i64().unwrap()).collect();
        assert_eq!(pids, self.left.keys().copied().collect(), "{}", said());
        assert_eq!(self.report["survivors"], Value::Array(Vec::new()), "{}", said());
        self.check_text();
        for process in leaked {
            let pid = process["pid"].as_i64().unwrap();
            let test = &self.left[&pid];
            assert_eq!(process["test"], test.as_str(), "{pid}: {}", said());
            assert_eq!(process["killed"], true, "{pid}: {}", said());
            let at = process["spawned_at"].as_str().unwrap_or_default();
            let is_at = |mark: &str| at.contains(&format!("crowd.rs:{}:", lines[mark]));
            let (mark, locks) = kinds(test).iter().find(|(mark, _)| is_at(mark)).unwrap_or_else(|| {
                panic!("{pid} of {test} was forked at {at}: {}", said());
            });
            let waits = self.report["waits"].as_array().unwrap().iter().filter(|wait| wait["pid"] == pid);
            let waits: Vec<&Value> = waits.collect();
            let text = |wait: &Value, key: &str| wait[key].as_str().unwrap_or_default().to_owned();
            let is_named = |wait: &&Value| locks.iter().any(|lock| text(wait, "on").starts_with(lock));
            // A lock of the C library has no name: there, the function in which it hangs.
            let is_in = |wait: &&Value| wait["on"].is_null() && wait["stack"][0].is_string();
            let is_known = match *mark {
                "reader" => waits.iter().any(|wait| text(wait, "syscall") == "read"),
                _ => waits.iter().any(|wait| is_named(wait) || waits.len() == 1 && is_in(wait)),
            };
            assert!(is_known, "{pid} of {test}, {mark}: {waits:#?}\n{}", said());
        }
    }
}

/// Runs the suite as it was written, and as it was mended.
fn crowds(rounds: usize) {
    let lines = lines();
    let (leaky, mended) = (Suite::build(&[]), Suite::build(&["--cfg", "mended"]));
    let mut counts = Vec::new();
    for _ in 0..rounds {
        let ran = leaky.run();
        let code = if ran.left.is_empty() { 0 } else { 123 };
        assert_eq!(ran.output.status.code(), Some(code), "{}", ran.stderr());
        ran.check(&lines);
        counts.push(ran.left.len());
        let ran = mended.run();
        assert_eq!(ran.output.status.code(), Some(0), "{}", ran.stderr());
        assert!(ran.output.stderr.is_empty(), "{}", ran.stderr());
    }
    println!("helpers left: {counts:?}");
    // A crowd that nothing is left of proves nothing.
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn what_hangs_on_a_lock_of_a_crowd_is_charged_to_its_test_with_line_and_lock() {
    crowds(3);
}

#[test]
#[ignore = "takes minutes"]
fn what_hangs_on_a_lock_of_a_crowd_is_charged_to_its_test_with_line_and_lock_30_times() {
    crowds(30);
}
