//! The command line is libtest's, also in the parts that other harnesses reject, and nextest's contract is
//! followed exactly.

use std::collections::BTreeSet;
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
        (&["--timeout=5"], "a duration above zero such as `500ms`, `5s` or `2m`, or `none`"),
        (&["--timeout=0s"], "a duration above zero such as `500ms`, `5s` or `2m`, or `none`"),
        (&["--grace", "soon"], "a duration such as `500ms`, `5s` or `2m`"),
        (&["--repeat=0"], "--repeat"),
        (&["--color=blue"], "always"),
        (&["--format=xml"], "terse"),
        (&["--shuffle-seed=x"], "--shuffle-seed"),
        (&["--json", "/dev/null/all"], "/dev/null/all"),
        (&["--junit", "/dev/null/all"], "cannot write `--junit /dev/null/all`: Not a directory"),
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
            "/dev/null/{pkg}.xml",
            "unknown `{pkg}` in `XML_OUTPUT_FILE=/dev/null/{pkg}.xml`: expected `{package}` or `{binary}`",
        ),
        ("XML_OUTPUT_FILE", "/dev/null/all", "cannot write `XML_OUTPUT_FILE=/dev/null/all`: Not a directory"),
        ("RUST_TEST_SHUFFLE_SEED", "x", "`RUST_TEST_SHUFFLE_SEED`: expected a whole number"),
        ("CHILDPROOF_TIMEOUT", "5", "`5` for `CHILDPROOF_TIMEOUT`: expected a duration"),
        ("CHILDPROOF_GRACE", "none", "`none` for `CHILDPROOF_GRACE`: expected a duration"),
        ("CHILDPROOF_FDS", "sockets", "`sockets` for `CHILDPROOF_FDS`: expected `pipes`, `all` or `off`"),
        ("CHILDPROOF_PROCESSES", "", "`` for `CHILDPROOF_PROCESSES`: expected `deny`, `warn` or `allow`"),
        ("CHILDPROOF_UNWAITED", "no", "`no` for `CHILDPROOF_UNWAITED`: expected `deny` or `allow`"),
        (
            "CHILDPROOF_THREADED_FORK",
            "no",
            "`no` for `CHILDPROOF_THREADED_FORK`: expected `warn`, `deny` or `allow`",
        ),
        ("CHILDPROOF_TRACE", "pipes", "`pipes` for `CHILDPROOF_TRACE`: expected `fds`"),
        ("CHILDPROOF_BACKTRACE", "1", "`1` for `CHILDPROOF_BACKTRACE`: expected `full` or `short`"),
        (
            "CHILDPROOF_TIMOUT",
            "5s",
            "unknown variable `CHILDPROOF_TIMOUT`: expected one of CHILDPROOF_TIMEOUT, _GRACE, _PROCESSES,",
        ),
        (
            "CHILDPROOF_TIMEOUT_SECS",
            "5",
            "unknown variable `CHILDPROOF_TIMEOUT_SECS`: `CHILDPROOF_TIMEOUT` is probably meant",
        ),
        ("CHILDPROOF_REQUIRE", "yes", "`yes` for `CHILDPROOF_REQUIRE`: expected `0` or `1`"),
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
    // A stock target has no such mode.
    let tests = ["nothing_at_all", "pipeline_waited_for"];
    let ran = Ran::of(fixture.command("stock", &tests).env("CHILDPROOF_SHARED", "1"));
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert_eq!(
        ran.stderr.matches("`CHILDPROOF_SHARED` is for `harness = false` targets").count(),
        1,
        "{}",
        ran.all()
    );
    // Variables of other tools.
    for target in ["harness", "stock"] {
        let ran = Ran::of(fixture.command(target, &["nothing_at_all"]).env("CHILDPROOF_DEMO", "1"));
        assert_eq!(ran.code, Some(0), "{}", ran.all());
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
fn keeps_the_files_of_several_targets_apart() {
    let fixture = leaky();
    let file = |name: &str| scratch().join(name);
    let (json, junit) = (file("{binary}.json"), file("{binary}-{}.xml"));
    for (target, test) in [("harness", "shapes::nothing_at_all"), ("reports", "passes")] {
        let arguments = [test, "--json", json.to_str().unwrap(), "--junit", junit.to_str().unwrap()];
        let ran = fixture.run(target, &arguments);
        assert_eq!(ran.code, Some(0), "{}", ran.all());
        let mut command = fixture.command(target, &[test]);
        Ran::of(command.env("XML_OUTPUT_FILE", file("{binary}.xml")));
    }
    for (target, test) in [("harness", "nothing_at_all"), ("reports", "passes")] {
        for end in [".json", "-{}.xml", ".xml"] {
            let text = std::fs::read_to_string(file(&format!("{target}{end}"))).unwrap();
            assert!(text.contains(test), "{target}{end}\n{text}");
        }
    }
    // Missing directories are created.
    let deep = file("a/b/{package}/{binary}.json");
    let mut command =
        fixture.command("harness", &["shapes::nothing_at_all", "--json", deep.to_str().unwrap()]);
    let ran = Ran::of(command.env("CARGO_PKG_NAME", "leaky"));
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(file("a/b/leaky/harness.json").is_file(), "{}", ran.all());
    let ran = fixture.run("harness", &["nothing_at_all", "--json", "/dev/null/{binary}"]);
    assert!(ran.stderr.contains("cannot write `--json /dev/null/harness`"), "{}", ran.all());
}

/// `cargo test` gives all targets the same arguments.
#[childproof::test(timeout = "600s")]
fn replaces_no_file_that_another_target_of_the_run_has_written() {
    drop(leaky());
    let json = scratch().join("all.json");
    let run = || {
        let mut command = std::process::Command::new(env!("CARGO"));
        command
            .args([
                "test",
                "--quiet",
                "--test",
                "harness",
                "--test",
                "reports",
                "--",
                "nothing_at_all",
                "passes",
            ])
            .args(["--json", json.to_str().unwrap()])
            .current_dir(crate::support::root().join("tests/fixtures/leaky"))
            .env("CARGO_TARGET_DIR", crate::support::root().join("target/fixtures"))
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_PKG_NAME");
        Ran::of(&mut command)
    };
    // The second run replaces the file of the first one.
    for _ in 0..2 {
        let ran = run();
        let said = ran.stderr.matches("was written by another target of this run").count();
        assert_eq!(said, 1, "{}", ran.all());
        let mut names: Vec<String> = std::fs::read_dir(scratch())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["all-leaky-reports.json", "all.json"], "{}", ran.all());
        for name in names {
            let text = std::fs::read_to_string(scratch().join(&name)).unwrap();
            assert!(text.lines().count() >= 1, "{name}: {text}");
        }
    }
}

/// Every key of a value with its path: `body.outcome`, `fds[].holders[].pid`, `causes[]`.
fn keys(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        // These differ between kinds: a unit test compares them with JSON.md.
        _ if path.ends_with(".fields") => drop(into.insert(path.to_owned())),
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                keys(value, &format!("{path}{dot}{name}"), into);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, &format!("{path}[]"), into)),
        _ => drop(into.insert(path.to_owned())),
    }
}

/// The strings in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[childproof::test]
fn writes_every_key_of_the_schema() {
    let fixture = leaky();
    let path = scratch().join("report.json");
    let json = path.to_str().unwrap();
    let mut text = String::new();
    let shapes = [
        "panics_and_leaks",
        "ignored",
        "nothing_at_all",
        "both_ends",
        "among_threads_that_leaks",
        "background_job_of_a_shell",
        "exits_in_the_middle_and_leaks",
    ];
    let evidence =
        ["lock_that_a", "fifo_that", "terminal_that_is", "semaphore_in", "signal_that", "child_that_waits"];
    let targets: [(&str, &[&str]); 4] = [
        ("harness", &shapes),
        ("waits", &["keeper_of", "lifelines_that"]),
        ("sockets", &["two_crossed"]),
        ("evidence", &evidence),
    ];
    for (target, tests) in targets {
        fixture.run(target, &[tests, &["--json", json]].concat());
        text += &std::fs::read_to_string(&path).unwrap();
    }
    assert_eq!(text.lines().count(), 21);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names = |line: &Value| -> BTreeSet<String> { line.as_object().unwrap().keys().cloned().collect() };
    let mut seen = BTreeSet::new();
    for line in &lines {
        assert_eq!(names(line), names(&lines[0]), "{line}");
        assert_eq!(line["schema"], 2);
        keys(line, "", &mut seen);
    }
    // `null` instead of an object, and in a passing test.
    for whole in [
        "processes[].spawned",
        "processes[].ended_parent",
        "fds[].created",
        "pipes[].created",
        "sockets[].created",
        "ended",
    ] {
        seen.remove(whole);
    }
    let page = std::fs::read_to_string(root().join("JSON.md")).unwrap();
    let rows: Vec<(&str, &str)> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | ")).collect();
    let documented: BTreeSet<String> =
        rows.iter().flat_map(|(key, _)| key.split(", ").map(|key| key.replace('`', ""))).collect();
    let missing: Vec<_> = seen.difference(&documented).collect();
    assert!(missing.is_empty(), "not in JSON.md: {missing:?}");
    let is_left = |key: &&String| key.starts_with("survivors") || *key == "kept[]";
    let unseen: Vec<_> = documented.difference(&seen).filter(|key| !is_left(key)).collect();
    // What only the command-line tool writes is read by the tests of that (`cli/tests`).
    let of_the_tool = |key: &&String| key.starts_with("inspection.") || *key == "fds[].test";
    let unseen: Vec<_> = unseen.into_iter().filter(|key| !of_the_tool(key)).collect();
    let rare = ["notes[]", "waits[].doubts[]"];
    let unseen: Vec<_> = unseen.into_iter().filter(|key| !rare.contains(&key.as_str())).collect();
    assert!(unseen.is_empty(), "in JSON.md, and never written: {unseen:?}");

    let values = |key: &str| -> BTreeSet<&str> {
        let (_, value) = rows.iter().find(|(known, _)| *known == format!("{key}`")).unwrap();
        quoted(value).collect()
    };
    let causes =
        crate::shapes::causes().chain(["cut", "left_mount", "unused_allowance", "unkillable", "unguarded"]);
    assert_eq!(causes.collect::<BTreeSet<_>>(), values("causes[]"));
    let reasons = values("waits[].because");
    assert!(crate::waits::all_reasons().all(|reason| reasons.contains(reason)), "{reasons:?}");
    for line in &lines {
        let class = |process: &Value| process["class"].as_str().unwrap().to_owned();
        let classes = line["processes"].as_array().unwrap().iter().map(class);
        assert!(classes.into_iter().all(|class| values("processes[].class").contains(class.as_str())));
    }
}

#[childproof::test]
fn help_names_the_program_and_the_variables() {
    let fixture = leaky();
    let ran = fixture.run("harness", &["--help"]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let name = fixture.binary("harness").file_name().unwrap().to_string_lossy().into_owned();
    for part in
        [&format!("Usage: {name} [OPTIONS] [FILTER]..."), "CHILDPROOF_REQUIRE=1", "CHILDPROOF_DEBUG=1"]
    {
        assert!(ran.stdout.contains(part), "no {part:?} in\n{}", ran.all());
    }
}

/// The JSON contains everything that the report says.
#[childproof::test]
fn writes_as_json_what_the_report_says() {
    let path = scratch().join("report.json");
    let arguments = ["--exact", "keeper_of_its_own_lifeline", "--json", path.to_str().unwrap()];
    let text = leaky().run("waits", &arguments).stdout;
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let list = |key: &str| line[key].as_array().unwrap().clone();
    // The report wraps its lines.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for finding in list("findings") {
        for key in ["sentence", "fix", "allow"] {
            let said = finding[key].as_str().unwrap_or_default();
            assert!(words.contains(said), "no {said:?} in\n{text}");
        }
    }
    let causes: Vec<Value> = list("findings").iter().map(|finding| finding["cause"].clone()).collect();
    assert_eq!(causes, [Value::Null, "timed_out".into()]);
    let [test, child] = &list("processes")[..] else { panic!("{line}") };
    assert_eq!(test["pid"], line["pid"]);
    let [pipe] = &list("pipes")[..] else { panic!("{line}") };
    assert_eq!((&pipe["queued"], &pipe["capacity"]), (&0.into(), &65536.into()));
    let mut ends: Vec<(&Value, &str)> = pipe["holders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|holder| (&holder["pid"], holder["end"].as_str().unwrap()))
        .collect();
    ends.sort_by_key(|(_, end)| *end == "write");
    assert_eq!(ends.last(), Some(&(&child["pid"], "write")), "{pipe}");
    assert_eq!(ends.iter().filter(|(_, end)| *end == "write").count(), 1, "{pipe}");
    // The text shows the stacks as chains.
    let chain = |stack: &Value| -> Vec<String> {
        stack.as_array().unwrap().iter().map(|frame| frame.as_str().unwrap().to_owned()).collect()
    };
    for wait in list("waits") {
        let stack = chain(&wait["stack"]).join(" < ");
        assert!(!stack.is_empty() && words.contains(&format!("in {stack}")), "no {stack} in\n{text}");
    }
    for made in [&pipe["created"], &child["spawned"]] {
        let stack = chain(&made["stack"]);
        assert!(stack.len() > 1 && stack.iter().all(|frame| words.contains(frame.as_str())), "{made}");
    }
    assert_eq!((&pipe["created"]["call"], &child["spawned"]["call"]), (&"pipe2".into(), &"fork".into()));
}

#[childproof::test]
fn repeat_counts_how_often_each_test_failed_and_at_which_line() {
    let fixture = Fixture::build("leaky");
    let leaks = "shapes::session_of_its_own";
    let ran = fixture.run("harness", &[leaks, "shapes::zombie", "--exact", "--repeat=3"]);
    assert!(ran.stdout.contains("failures in 3 rounds:\n"), "{}", ran.all());
    let line = ran.stdout.lines().find(|line| line.trim_start().starts_with("3 times "));
    let line = line.unwrap_or_else(|| panic!("{}", ran.all()));
    assert!(
        line.contains(&format!("{leaks} left `sleep 86399`: tests/fixtures/leaky/tests/shapes/mod.rs:")),
        "{line}"
    );

    let ran = fixture.run("harness", &[leaks, "--exact", "--repeat-until-failure"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert!(ran.stdout.contains("failures in 1 round:\n"), "{}", ran.all());
    let ran = fixture.run("harness", &["shapes::zombie", "--exact", "--repeat-until-failure", "--repeat=2"]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(ran.stdout.contains("\nround 2 of 2\n"), "{}", ran.all());
}
