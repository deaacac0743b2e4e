//! Bazel's protocol: shards, a filter, and files, by the letter of its test encyclopedia.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Fixture, PATIENCE, Ran, Run, scratch, until};

/// All tests of the fixture that are not ignored.
const ALL: [&str; 9] = [
    "added::a",
    "added::b",
    "added::c",
    "added::d",
    "added::e",
    "added::f",
    "first",
    "runs_a_harness",
    "warns",
];

/// A run of the fixture in a directory of its own, with the variables that Bazel sets for a shard.
struct Shard {
    directory: PathBuf,
    command: Command,
}

impl Shard {
    fn new(name: &str, arguments: &[&str], shard: Option<(usize, usize)>) -> Shard {
        let directory = scratch().join(name);
        fs::create_dir(&directory).unwrap();
        fs::create_dir(directory.join("tmp")).unwrap();
        let mut command = Fixture::build("leaky").command("bazel", arguments);
        command
            .env("BAZEL_OUT", &directory)
            .env("BAZEL_EXIT_FILE", directory.join("exit"))
            .env("BAZEL_TEST", "1")
            .env("TEST_TARGET", "//:bazel")
            .env("TEST_TMPDIR", directory.join("tmp"))
            .env("TEST_PREMATURE_EXIT_FILE", directory.join("exit"))
            .env("TEST_WARNINGS_OUTPUT_FILE", directory.join("warnings"))
            .env("XML_OUTPUT_FILE", directory.join("xml"));
        if let Some((index, total)) = shard {
            let (index, total) = (index.to_string(), total.to_string());
            command.env("TEST_SHARD_INDEX", &index).env("TEST_TOTAL_SHARDS", &total);
            // `test-setup.sh` sets these too.
            command.env("GTEST_SHARD_INDEX", &index).env("GTEST_TOTAL_SHARDS", &total);
            command.env("TEST_SHARD_STATUS_FILE", directory.join("status"));
        }
        Shard { directory, command }
    }

    fn run(&mut self) -> Ran {
        Ran::of(&mut self.command)
    }

    /// The lines of the tests that ran, here or in a directory below.
    fn lines(&self, below: &str) -> Vec<String> {
        let lines = fs::read_to_string(self.directory.join(below).join("ran")).unwrap_or_default();
        lines.lines().map(str::to_owned).collect()
    }

    /// The names of the tests that ran, sorted.
    fn names(&self, below: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .lines(below)
            .iter()
            .map(|line| line.split_once(' ').map_or(line.as_str(), |(name, _)| name).to_owned())
            .collect();
        names.sort();
        names
    }
}

/// Runs all shards in two ways that must not make a difference, and checks that each test ran in one of them.
#[track_caller]
fn check_shards(kind: &str, arguments: &[&str], variable: Option<&str>, total: usize) {
    let run = |name: String, index: usize, more: &[&str], backwards: bool| {
        let arguments: Vec<&str> = arguments.iter().chain(more).copied().collect();
        let mut shard = Shard::new(&name, &arguments, Some((index, total)));
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        File::create(shard.directory.join("status")).unwrap().set_modified(old).unwrap();
        if let Some(variable) = variable {
            shard.command.env(variable, "1");
        }
        if backwards {
            shard.command.env("BAZEL_BACKWARDS", "1");
        }
        let ran = shard.run();
        assert_eq!(ran.code, Some(0), "{name}: {}", ran.all());
        let status = fs::metadata(shard.directory.join("status")).unwrap();
        assert!(status.modified().unwrap() > old, "{name}: the status file was not touched");
        // No variable of Bazel's is left for the body, and the file shows that tests run.
        let tmp = shard.directory.join("tmp");
        for line in shard.lines("") {
            let words: Vec<&str> = line.split(' ').collect();
            let own = words[1].strip_prefix("TMPDIR=").unwrap();
            assert!(Path::new(own).starts_with(&tmp) && Path::new(own) != tmp, "{name}: {line}");
            assert_eq!(words[2..], ["running"], "{name}: {line}");
        }
        assert!(!shard.directory.join("exit").exists(), "{name}: {}", ran.all());
        assert_eq!(fs::read_dir(tmp).unwrap().count(), 0, "{name}: something is left in TEST_TMPDIR");
        assert!(shard.directory.join("xml").exists(), "{name}: {}", ran.all());
        shard
    };
    let mut together = Vec::new();
    for index in 0..total {
        // Which tests are added first, and the order of a run, may differ from machine to machine.
        let shard = run(format!("{kind}-{index}"), index, &[], index % 2 == 1);
        let again = run(format!("{kind}-{index}-again"), index, &["--shuffle"], index % 2 == 0);
        assert_eq!(shard.names(""), again.names(""), "{kind}: shard {index} differs");
        if shard.names("").contains(&"runs_a_harness".to_owned()) {
            // The harness that a test runs has no shards, and the same scratch directory.
            assert_eq!(shard.names("below"), ALL[..6], "{kind}");
            let tmp = shard.directory.join("tmp");
            for line in shard.lines("below") {
                let own = line.split(' ').nth(1).unwrap().strip_prefix("TMPDIR=").unwrap().to_owned();
                let levels = Path::new(&own).strip_prefix(&tmp).unwrap().components().count();
                assert_eq!(levels, 4, "{kind}: a run in a test uses the directory of that: {line}");
            }
        }
        together.extend(shard.names(""));
    }
    together.sort();
    assert_eq!(together, ALL, "{kind}: each test runs in one shard");
}

#[childproof::test(timeout = "600s")]
fn each_test_runs_in_one_of_three_shards() {
    check_shards("plain", &[], None, 3);
}

/// There are more shards than tests, so some are empty; those pass.
#[childproof::test(timeout = "600s")]
fn each_test_runs_in_one_of_a_dozen_shards() {
    check_shards("dozen", &[], None, 12);
}

#[childproof::test(timeout = "600s")]
fn tests_on_threads_of_one_process_are_sharded() {
    check_shards("shared", &["--shared"], None, 3);
}

/// The tests start by exec there.
#[childproof::test(timeout = "600s")]
fn tests_of_a_main_with_threads_are_sharded() {
    check_shards("threads", &[], Some("BAZEL_THREADS"), 3);
}

#[childproof::test]
fn a_shard_that_cannot_be_is_an_error() {
    let total = "invalid value `3` for `TEST_TOTAL_SHARDS`: expected `TEST_SHARD_INDEX` to be set too, to a whole number \
                 below `TEST_TOTAL_SHARDS`, which is 3";
    for (number, (variables, message)) in [
        (
            [("TEST_TOTAL_SHARDS", "3"), ("TEST_SHARD_INDEX", "3")],
            "invalid value `3` for `TEST_SHARD_INDEX`: expected a whole number below `TEST_TOTAL_SHARDS`, which is 3",
        ),
        (
            [("TEST_TOTAL_SHARDS", "three"), ("TEST_SHARD_INDEX", "0")],
            "invalid value `three` for `TEST_TOTAL_SHARDS`: expected a number of shards, or 0 for no sharding",
        ),
        ([("TEST_TOTAL_SHARDS", "3"), ("TEST_TARGET", "")], total),
        (
            [("TEST_TARGET", ""), ("TEST_SHARD_INDEX", "1")],
            "invalid value `1` for `TEST_SHARD_INDEX`: expected `TEST_TOTAL_SHARDS` to be set too, to the number of \
             shards",
        ),
        (
            [("TEST_TARGET", ""), ("TEST_TMPDIR", "/nonexistent")],
            "invalid value `/nonexistent` for `TEST_TMPDIR`: expected the path of a directory that exists",
        ),
        (
            [("TEST_TARGET", ""), ("TEST_PREMATURE_EXIT_FILE", "/nonexistent/file")],
            "cannot create `TEST_PREMATURE_EXIT_FILE=/nonexistent/file`: No such file or directory (os error 2)",
        ),
        (
            [("TEST_TARGET", ""), ("TEST_SHARD_STATUS_FILE", "/nonexistent/file")],
            "cannot touch `TEST_SHARD_STATUS_FILE=/nonexistent/file`: No such file or directory (os error 2)",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut shard = Shard::new(&number.to_string(), &[], None);
        shard.command.envs(variables);
        let ran = shard.run();
        assert_eq!((ran.code, ran.stderr), (Some(2), format!("error: {message}\n")), "{}", ran.stdout);
        assert_eq!(shard.names(""), [""; 0]);
    }
}

#[childproof::test]
fn the_filter_selects_where_the_command_line_does_not() {
    let run = |name: &str, arguments: &[&str], shard: Option<(usize, usize)>| {
        let mut shard = Shard::new(name, arguments, shard);
        shard.command.env("TESTBRIDGE_TEST_ONLY", "added::");
        let ran = shard.run();
        assert_eq!(ran.code, Some(0), "{}", ran.all());
        (shard.names(""), ran)
    };
    assert_eq!(run("filter", &[], None).0, ALL[..6]);
    assert_eq!(run("line", &["fir"], None).0, ["first"]);
    // The shards have what is selected between them.
    assert_eq!(run("first", &[], Some((0, 2))).0, ["added::a", "added::c", "added::e"]);
    assert_eq!(run("second", &[], Some((1, 2))).0, ["added::b", "added::d", "added::f"]);
    let (_, list) = run("list", &["--list", "--format=terse"], Some((1, 2)));
    let listed: Vec<String> = ALL[..6].iter().map(|name| format!("{name}: test")).collect();
    assert_eq!(list.stdout.lines().collect::<Vec<_>>(), listed, "a list has the tests of all shards");
}

/// rules_rust lists all tests, and runs those of the shard by their exact names.
#[childproof::test]
fn tests_that_a_runner_names_are_not_sharded_again() {
    let mut list = Shard::new("list", &["--list", "--format=terse"], Some((1, 2)));
    let listed = list.run();
    assert_eq!(listed.stdout.lines().count(), ALL.len() + 3, "{}", listed.all());
    for file in ["status", "exit", "xml"] {
        assert!(!list.directory.join(file).exists(), "nothing runs, so nothing writes {file}");
    }
    let mut exact = Shard::new("exact", &["--exact", "added::a", "added::b", "warns"], Some((1, 2)));
    exact.command.env("TESTBRIDGE_TEST_ONLY", "first").env("TEST_PREMATURE_EXIT_FILE", "/nonexistent/file");
    let ran = exact.run();
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert_eq!(exact.names(""), ["added::a", "added::b", "warns"]);
    assert!(!exact.directory.join("status").exists(), "the runner has this file");
    // A body still has none of the variables.
    let has_none = |line: &String| line.split(' ').count() == 2;
    assert!(exact.lines("").iter().all(has_none), "{:?}", exact.lines(""));
}

#[childproof::test]
fn the_first_failure_ends_the_run_where_bazel_asks_for_it() {
    let mut shard = Shard::new("shard", &["--include-ignored", "--skip=waits", "--test-threads=1"], None);
    shard.command.env("TESTBRIDGE_TEST_RUNNER_FAIL_FAST", "1");
    let ran = shard.run();
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert_eq!(shard.names(""), ["fails"]);
    // It ended in order, so only the exit code says that it failed.
    assert!(!shard.directory.join("exit").exists());
}

#[childproof::test]
fn a_run_that_does_not_reach_its_end_leaves_the_file_that_says_so() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let Shard { directory, command } = Shard::new(signal.as_str(), &["waits", "--ignored"], None);
        let mut run = Run::spawn(command);
        until("the test", || directory.join("ran").exists());
        assert!(directory.join("exit").exists());
        kill(Pid::from_raw(run.pid()), signal).unwrap();
        run.finish();
        run.assert_nothing_left(PATIENCE);
        assert!(directory.join("exit").exists(), "{signal}");
    }
}

#[childproof::test]
fn warnings_are_appended_to_the_file_for_them() {
    let mut shard = Shard::new("shard", &["warns", "first"], None);
    let path = shard.directory.join("warnings");
    fs::write(&path, "an earlier line\n").unwrap();
    let ran = shard.run();
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let written = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "an earlier line"), "{written}");
    assert!(lines[1].starts_with("warns: pid ") && lines[1].contains("tests/bazel.rs:"), "{written}");
    // One that cannot be written is no verdict.
    let mut shard = Shard::new("broken", &["warns"], None);
    let ran = Ran::of(shard.command.env("TEST_WARNINGS_OUTPUT_FILE", "/nonexistent/file"));
    let said = "childproof: cannot write `TEST_WARNINGS_OUTPUT_FILE=/nonexistent/file`: No such file";
    assert!(ran.code == Some(0) && ran.stderr.contains(said), "{}", ran.all());
}

/// Rules that a small Bazel downloads for any target, and that a shell test does not need.
const RULES: [(&str, &str, &str); 3] = [
    ("rules_cc", "cc", "binary library test import proto_library toolchain toolchain_suite"),
    (
        "rules_java",
        "java",
        "binary library test import plugin runtime toolchain package_configuration proto_library lite_proto_library",
    ),
    ("remote_coverage_tools", "", ""),
];

/// `BAZEL` is its path, such as that of the program in npm's `@bazel/bazel-linux_x64` 2.1.0. It runs without a network.
#[childproof::test(timeout = "600s")]
#[ignore = "needs a Bazel, by its path in `BAZEL`"]
fn a_real_bazel_runs_all_shards() {
    let workspace = scratch().join("workspace");
    let mut overrides = Vec::new();
    for (repository, prefix, rules) in RULES {
        let directory = scratch().join(repository);
        fs::create_dir_all(directory.join(prefix)).unwrap();
        fs::write(directory.join("WORKSPACE"), "").unwrap();
        let public = "package(default_visibility = [\"//visibility:public\"])\nfilegroup(name = \"coverage_report_generator\")";
        fs::write(directory.join(prefix).join("BUILD"), public).unwrap();
        let rules: String =
            rules.split(' ').map(|rule| format!("{prefix}_{rule} = native.{prefix}_{rule}\n")).collect();
        fs::write(directory.join(prefix).join("defs.bzl"), rules).unwrap();
        overrides.push(format!("--override_repository={repository}={}", directory.display()));
    }
    fs::create_dir(&workspace).unwrap();
    fs::write(workspace.join("WORKSPACE"), "").unwrap();
    fs::write(workspace.join("BUILD"), "sh_test(name = \"t\", srcs = [\"binary\"], shard_count = 3)")
        .unwrap();
    fs::copy(Fixture::build("leaky").binary("bazel"), workspace.join("binary")).unwrap();
    let out = scratch().join("out");
    fs::create_dir(&out).unwrap();
    let bazel = || {
        let mut command = Command::new(std::env::var("BAZEL").unwrap());
        command
            .arg(format!("--output_user_root={}", scratch().join("root").display()))
            .current_dir(&workspace);
        command
    };
    let run = |arguments: &[&str]| {
        let mut command = bazel();
        command.args(["test", "//:t", "--spawn_strategy=local", "--test_output=all"]).args(&overrides);
        Ran::of(command.arg(format!("--test_env=BAZEL_OUT={}", out.display())).args(arguments))
    };
    let ran = run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let lines = fs::read_to_string(out.join("ran")).unwrap();
    let names: Vec<&str> = lines.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names.len(), ALL.len(), "{lines}");
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), ALL.into_iter().collect(), "{lines}");
    for shard in 1..=3 {
        let log = workspace.join(format!("bazel-testlogs/t/shard_{shard}_of_3/test.xml"));
        let xml = fs::read_to_string(log).unwrap();
        assert!(xml.contains("<testcase name=\"added::"), "{xml}");
    }
    fs::remove_file(out.join("ran")).unwrap();
    let ran = run(&["--test_filter=added::b"]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let lines = fs::read_to_string(out.join("ran")).unwrap();
    assert!(lines.starts_with("added::b ") && lines.lines().count() == 1, "{lines}");
    let ran = run(&["--test_arg=--include-ignored", "--test_arg=--skip=waits"]);
    assert_eq!(ran.code, Some(3), "a test has failed: {}", ran.all());
    // Its server would be left, as the report says without this.
    assert_eq!(Ran::of(bazel().arg("shutdown")).code, Some(0));
}
