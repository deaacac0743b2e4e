//! The command line is libtest's, also where other harnesses reject it, and nextest's contract is
//! kept to the letter.

use std::process::Command;

use serde_json::Value;

use crate::support::{Fixture, Ran, root, scratch};

fn leaky() -> Fixture {
    Fixture::build("leaky")
}

/// The tests that ran, in the order of their lines.
fn ran(output: &Ran) -> Vec<&str> {
    let lines = output.stdout.lines().filter_map(|line| line.strip_prefix("test "));
    let names = lines.filter_map(|line| line.split_once(" ... ").map(|(name, _)| name.trim()));
    names.filter(|name| name.contains("::")).collect()
}

#[childproof::test]
fn lists_for_nextest_the_tests_and_nothing_else() {
    let fixture = leaky();
    let all = fixture.run("harness", &["--list", "--format", "terse"]);
    assert_eq!((all.code, all.stderr.as_str()), (Some(0), ""));
    assert!(all.stdout.lines().count() > 70);
    for line in all.stdout.lines() {
        let name = line.strip_suffix(": test").unwrap_or_else(|| panic!("{line:?}"));
        assert!(name.starts_with("shapes::") && !name.contains(' '), "{line:?}");
    }
    let ignored = fixture.run("harness", &["--list", "--format", "terse", "--ignored"]);
    assert_eq!(ignored.stdout, "shapes::ignored: test\n");
    let stock = fixture.run("stock", &["--list", "--format", "terse"]);
    assert_eq!(all.stdout, stock.stdout);
}

#[childproof::test]
fn runs_under_nextest() {
    let installed = Command::new("cargo").args(["nextest", "--version"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        println!("skipped: cargo-nextest is not installed");
        return;
    }
    let fixture = leaky();
    let mut command = fixture.command("harness", &[]);
    let envs: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    command = Command::new("cargo");
    for name in envs {
        command.env_remove(name);
    }
    let output = Ran::of(
        command
            .args(["nextest", "run", "--no-fail-fast", "--color=never", "-E"])
            .arg("test(=shapes::child_dropped) + test(=shapes::child_waited_for) + test(=shapes::ignored)")
            .current_dir(root().join("tests/fixtures/leaky"))
            .env("CARGO_TARGET_DIR", root().join("target/fixtures")),
    );
    assert_eq!(output.code, Some(100), "{}", output.all());
    for line in [
        "PASS",
        "leaky::harness shapes::child_waited_for",
        "leaky::stock shapes::child_waited_for",
        "LEAK  shapes::child_dropped   body passed",
        "4 tests run: 2 passed, 2 failed",
    ] {
        assert!(output.stderr.contains(line), "{line}\n{}", output.all());
    }
}

#[childproof::test]
fn selects_as_libtest_does() {
    let fixture = leaky();
    for (arguments, expected) in [
        (&["--exact", "shapes::nothing_at_all"][..], &["shapes::nothing_at_all"][..]),
        (&["--exact", "nothing_at_all"], &[]),
        (&["nothing", "returns_ok"], &["shapes::nothing_at_all", "shapes::returns_ok"]),
        (&["child_", "waited", "--skip", "kill", "--skip", "child_", "--skip", "pipe"], &[]),
        (&["waited_for", "--skip", "killed", "--skip", "pipeline"], &["shapes::child_waited_for"]),
        (&["--ignored"], &["shapes::ignored"]),
        (&["ignored", "--include-ignored", "--exact"], &[]),
        (&["shapes::ignored", "--include-ignored", "--exact"], &["shapes::ignored"]),
        (&["panics_as", "--exclude-should-panic"], &[]),
        (&["nothing_at_all", "--bench"], &[]),
        (&["nothing_at_all", "--bench", "--test"], &["shapes::nothing_at_all"]),
    ] {
        let output = fixture.run("harness", arguments);
        let mut seen = ran(&output);
        seen.sort_unstable();
        assert_eq!(seen, expected, "{arguments:?}\n{}", output.all());
    }
}

#[childproof::test]
fn names_what_it_cannot_read_and_runs_nothing() {
    let fixture = leaky();
    for (arguments, expected) in [
        (&["--bogus"][..], "--bogus"),
        (&["--test-threads=0"], "--test-threads"),
        (&["--test-threads=many"], "many"),
        (&["--timeout=5"], "a duration such as `500ms`, `5s` or `2m`, or `none`"),
        (&["--timeout=0s"], "a duration such as `500ms`, `5s` or `2m`, or `none`"),
        (&["--grace", "soon"], "a duration such as `500ms`, `5s` or `2m`"),
        (&["--repeat=0"], "--repeat"),
        (&["--color=blue"], "always"),
        (&["--format=xml"], "terse"),
        (&["--shuffle-seed=x"], "--shuffle-seed"),
        (&["--json", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--junit", "/nowhere/at/all"], "cannot write `--junit /nowhere/at/all`: No such file"),
        (&["--junit", "/proc"], "cannot write `--junit /proc`: Is a directory"),
    ] {
        let output = fixture.run("harness", arguments);
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{arguments:?}\n{}", output.all());
        assert!(output.stderr.contains(expected), "{arguments:?}\n{}", output.all());
    }
    for (name, value, expected) in [
        ("RUST_TEST_THREADS", "0", "`RUST_TEST_THREADS`: expected a number"),
        (
            "XML_OUTPUT_FILE",
            "/nowhere/at/all",
            "cannot write `XML_OUTPUT_FILE=/nowhere/at/all`: No such file",
        ),
        ("RUST_TEST_SHUFFLE_SEED", "x", "`RUST_TEST_SHUFFLE_SEED`: expected a whole number"),
        ("CHILDPROOF_TIMEOUT", "5", "`5` for `CHILDPROOF_TIMEOUT`: expected a duration"),
        ("CHILDPROOF_GRACE", "none", "`none` for `CHILDPROOF_GRACE`: expected a duration"),
        ("CHILDPROOF_FDS", "sockets", "`sockets` for `CHILDPROOF_FDS`: expected `pipes`, `all` or `off`"),
        ("CHILDPROOF_PROCESSES", "", "`` for `CHILDPROOF_PROCESSES`: expected `deny` or `allow`"),
        ("CHILDPROOF_UNWAITED", "no", "`no` for `CHILDPROOF_UNWAITED`: expected `deny` or `allow`"),
        (
            "CHILDPROOF_THREADED_FORK",
            "no",
            "`no` for `CHILDPROOF_THREADED_FORK`: expected `warn`, `deny` or `allow`",
        ),
        ("CHILDPROOF_TRACE", "pipes", "`pipes` for `CHILDPROOF_TRACE`: expected `fds`"),
        ("CHILDPROOF_BACKTRACE", "1", "`1` for `CHILDPROOF_BACKTRACE`: expected `full` or `short`"),
        ("CHILDPROOF_THREADS", "1", "`1` for `CHILDPROOF_THREADS`: expected `deny` or `allow`"),
    ] {
        let output = Ran::of(fixture.command("harness", &["nothing_at_all"]).env(name, value));
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{name}\n{}", output.all());
        assert!(output.stderr.contains(expected), "{name}\n{}", output.all());
        if name.starts_with("CHILDPROOF_") {
            let output = Ran::of(fixture.command("stock", &["nothing_at_all"]).env(name, value));
            assert_eq!(output.code, Some(101), "{name}\n{}", output.all());
            assert!((output.stdout + &output.stderr).contains(expected), "{name}");
        }
    }
}

#[childproof::test]
fn shows_output_when_asked_to() {
    let fixture = leaky();
    let test = "shapes::much_output";
    let quiet = fixture.run("harness", &[test]);
    assert!(!quiet.stdout.contains("xxx"), "a passing test's output is kept back");
    for argument in ["--nocapture", "--no-capture", "--show-output"] {
        let output = fixture.run("harness", &[test, argument]);
        assert_eq!(output.stdout.matches(&"x".repeat(1023)).count(), 4096, "{argument}");
    }
    let output = Ran::of(fixture.command("harness", &[test]).env("RUST_TEST_NOCAPTURE", "1"));
    assert_eq!(output.stdout.matches(&"x".repeat(1023)).count(), 4096);
}

#[childproof::test]
fn shuffles_repeats_and_stops_early() {
    let fixture = leaky();
    let order = |seed: &str| {
        let output = fixture
            .run("harness", &["exits", "panics", "--test-threads=1", "--shuffle-seed", seed, "--quiet"]);
        let failures = output.stdout.split("failures:\n    ").nth(1).unwrap_or_default();
        let failures = failures.split("\n\n").next().unwrap_or_default().to_owned();
        assert!(output.stdout.contains(&format!("shuffle seed: {seed}")), "{}", output.all());
        failures
    };
    let first = order("1");
    assert_eq!(first, order("1"));
    assert!((2..10).any(|seed| order(&seed.to_string()) != first));

    let output = fixture.run("harness", &["nothing_at_all", "--repeat", "3"]);
    assert_eq!((ran(&output).len(), output.code), (3, Some(0)), "{}", output.all());

    let arguments =
        ["exits_in_the_middle", "returns_an_error", "--fail-fast", "--test-threads=1", "--repeat=3"];
    let output = fixture.run("harness", &arguments);
    assert_eq!(output.stdout.matches(" ... FAILED").count(), 1, "{}", output.all());
    assert!(output.stdout.contains("--fail-fast is set"), "{}", output.all());

    let output = fixture.run("harness", &["nothing_at_all", "--report-time"]);
    assert!(output.stdout.contains("shapes::nothing_at_all <0."), "{}", output.all());
}

#[childproof::test]
fn writes_every_key_of_the_schema() {
    let fixture = leaky();
    let path = scratch().join("report.json");
    fixture
        .run("harness", &["panics_and_leaks", "ignored", "nothing_at_all", "--json", path.to_str().unwrap()]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines() {
        let object: Value = serde_json::from_str(line).unwrap();
        let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected = [
            "body",
            "causes",
            "fds",
            "outcome",
            "processes",
            "schema",
            "seconds",
            "survivors",
            "test",
            "waits",
        ];
        assert_eq!(keys, expected, "{line}");
        assert_eq!(object["schema"], 1);
    }
}
