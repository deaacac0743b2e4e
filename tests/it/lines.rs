//! A report names the line of code that created what was left, for every call that can create it.
//!
//! `tests/fixtures/leaky/tests/lines.rs` has the leaks.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::support::{Fixture, Ran, root, scratch};

const SOURCE: &str = "tests/fixtures/leaky/tests/lines.rs";

/// The places that the JSON names for each test, each once, without columns.
fn places(more: &[&str]) -> (BTreeMap<String, Vec<String>>, Ran) {
    let json = scratch().join("lines.json");
    let arguments = [&["--json", json.to_str().unwrap(), "--color=never"], more].concat();
    let ran = Fixture::build("leaky").run("lines", &arguments);
    let lines = fs::read_to_string(json).unwrap();
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let places = places.entry(line["test"].as_str().unwrap().to_owned()).or_default();
        let keys = [("processes", "spawned_at"), ("fds", "created_at")];
        for (list, key) in keys {
            for item in line[list].as_array().unwrap() {
                let place = item[key].as_str().unwrap_or("unknown");
                let place = place.rsplit_once(':').map_or(place, |(place, _)| place);
                if !places.iter().any(|known| known == place) {
                    places.push(place.to_owned());
                }
            }
        }
        let ended_at = line["ended_at"].as_str().and_then(|place| place.rsplit_once(':'));
        places.extend(ended_at.map(|(place, _)| place.to_owned()));
    }
    (places, ran)
}

/// The marked line of each test of the fixture.
fn marked() -> BTreeMap<String, usize> {
    let source = fs::read_to_string(root().join(SOURCE)).unwrap();
    let mut name = String::new();
    let mut marked = BTreeMap::new();
    for (number, line) in source.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("fn ") {
            name = rest.split('(').next().unwrap().to_owned();
        }
        if line.ends_with("// HERE") {
            marked.insert(name.clone(), number + 1);
        }
    }
    marked
}

#[childproof::test]
fn are_those_that_made_it() {
    let (places, ran) = places(&[]);
    let marked = marked();
    assert_eq!(marked.len(), 16);
    for (name, line) in marked {
        let expected = format!("{SOURCE}:{line}");
        // The fork in between is a zombie that was not waited for, so it may be listed too.
        assert!(
            places[&name].contains(&expected),
            "{name}: {:?}, not {expected}\n{}",
            places[&name],
            ran.all()
        );
        if name != "fork_in_a_fork" {
            assert_eq!(places[&name].len(), 1, "{name}");
        }
    }
    let thread = "by thread `worker-3`, one of 3 (fork)\n";
    assert!(ran.stdout.contains(thread), "{}", ran.all());
    let thread = "by thread `quitter`, one of 2 (exit)\n";
    assert!(ran.stdout.contains(thread), "{}", ran.all());
    // One in the tree and in the warning, and none of other tests: they forked while they had one thread.
    assert_eq!(ran.stdout.matches(" by thread `").count(), 3, "{}", ran.all());
    // Forty pipes of one line share one entry.
    assert!(ran.stdout.contains("\u{d7}80  pipe ends: fd 3, 4, "), "{}", ran.all());
}

#[childproof::test]
fn of_an_end_are_those_that_brought_it() {
    let source = fs::read_to_string(root().join(SOURCE)).unwrap();
    let line = source.lines().position(|line| line.ends_with("// IN THE HANDLER")).unwrap() + 1;
    let (places, ran) = places(&["exit_by", "--test-threads=1"]);
    assert!(places["exit_by_a_raw_call_after_an_exec_that_failed"].is_empty(), "{}", ran.all());
    assert_eq!(places["exit_by_the_handler_of_a_signal"], [format!("{SOURCE}:{line}")], "{}", ran.all());
    assert!(ran.stdout.contains(" lines::quits (_exit)\n"), "{}", ran.all());
}

#[childproof::test]
fn say_which_fds_are_expected() {
    let (places, ran) = places(&["pipe_of_code"]);
    assert_eq!(places["pipe_of_code_that_may"], Vec::<String>::new(), "{}", ran.all());
    assert_eq!(places["pipe_of_code_that_may_not"].len(), 1, "{}", ran.all());
    assert!(ran.stdout.contains("test result: FAILED. 1 passed; 1 failed"), "{}", ran.all());
}

/// The calls at the beginning, and those just before the end.
#[childproof::test]
fn are_known_of_the_first_and_the_last_calls_of_thousands() {
    let source = fs::read_to_string(root().join(SOURCE)).unwrap();
    let line = |mark: &str| {
        let at = source.lines().position(|line| line.ends_with(mark)).unwrap() + 1;
        format!("{SOURCE}:{at}")
    };
    let (places, ran) = places(&["pipes_among_thousands"]);
    let expected = [line("// BEGUN"), "unknown".to_owned(), line("// ENDED")];
    assert_eq!(places["pipes_among_thousands"], expected, "{}", ran.all());
    assert!(ran.stdout.contains("more pipes and processes than are recorded"), "{}", ran.all());
}

/// Paths below the working directory are shown relative to it. If that is the root directory, every path is
/// below it.
#[childproof::test]
fn are_absolute_where_the_run_was_started_in_the_root_directory() {
    let fixture = Fixture::build("leaky");
    let mut command = fixture.command("lines", &["--exact", "pipe_of_code_that_may_not", "--color=never"]);
    let ran = Ran::of(command.current_dir("/"));
    let place = format!("created at {}:", root().join(SOURCE).display());
    assert!(ran.stdout.contains(&place), "{}", ran.all());
}

#[childproof::test]
fn come_with_the_whole_stack_when_asked_for() {
    let fixture = Fixture::build("leaky");
    let mut command = fixture.command("lines", &["--exact", "command", "--color=never"]);
    let ran = Ran::of(command.env("CHILDPROOF_BACKTRACE", "full"));
    let (std, own) =
        (ran.stdout.find("std::process::Command>::spawn at "), ran.stdout.find("  lines::command at "));
    assert!(std.is_some() && std < own, "{}", ran.all());
    // The stack reaches from the recorded call to the body, without frames of the harness.
    assert!(!ran.all().contains("childproof::sites") && !ran.all().contains("catch_unwind"), "{}", ran.all());
}

/// `CHILDPROOF_TRACE=fds`: the creation and the last close of each pipe, with their lines.
#[childproof::test]
fn are_traced_as_the_test_runs() {
    let source = fs::read_to_string(root().join(SOURCE)).unwrap();
    let line = |mark: &str| source.lines().position(|line| line.ends_with(mark)).unwrap() + 1;
    let fixture = Fixture::build("leaky");
    let arguments = ["--exact", "pipe_that_is_closed", "--nocapture"];
    let ran = Ran::of(fixture.command("lines", &arguments).env("CHILDPROOF_TRACE", "fds"));
    let told: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("childproof: pid ")).collect();
    let [made, closed] = told[..] else { panic!("{}", ran.all()) };
    let made_at = format!("fds 3 (read), 4 (write) created at {SOURCE}:{}:", line("// MADE"));
    assert!(made.contains(&made_at) && made.ends_with(" lines::pipe_that_is_closed (pipe2)"), "{made}");
    let closed_at = format!("last fd, 5 (write), closed at {SOURCE}:{}:", line("// LAST"));
    assert!(closed.contains(&closed_at) && closed.ends_with(" (close)"), "{closed}");
    let pipe =
        |line: &str| line.split("pipe:[").nth(1).and_then(|rest| rest.split(']').next().map(str::to_owned));
    assert_eq!(pipe(made), pipe(closed), "{}", ran.all());
    // Nothing is traced without the variable.
    let ran = fixture.run("lines", &arguments);
    assert!(!ran.stderr.contains("childproof: pid "), "{}", ran.all());
}

#[childproof::test]
fn are_traced_however_a_pipe_is_closed() {
    let source = fs::read_to_string(root().join(SOURCE)).unwrap();
    let fixture = Fixture::build("leaky");
    let arguments = ["--exact", "pipes_that_are_closed_otherwise", "--nocapture"];
    let ran = Ran::of(fixture.command("lines", &arguments).env("CHILDPROOF_TRACE", "fds"));
    let told = |what: &str| {
        let told =
            ran.stderr.lines().filter(|line| line.starts_with("childproof: pid ") && line.contains(what));
        told.map(|line| line.split_once(what).unwrap().1).collect::<Vec<_>>()
    };
    assert_eq!((told("pid ").len(), told(" created at ").len()), (7, 3), "{}", ran.all());
    let closed = told("last fd, 4 (write), closed");
    let mut expected = Vec::new();
    for (mark, call) in [("// DUP2", "dup2"), ("// DUP3", "dup3"), ("// RANGE", "close_range")] {
        let line = source.lines().position(|line| line.ends_with(mark)).unwrap();
        let column = source.lines().nth(line).unwrap().find("libc::").unwrap() + 1;
        let function = "lines::pipes_that_are_closed_otherwise";
        expected.push(format!(" at {SOURCE}:{}:{column} {function} ({call})", line + 1));
    }
    expected.insert(2, " (close)".to_owned());
    assert_eq!(closed, expected, "{}", ran.all());
}

/// A release build has no line information, unless its profile requests it: the function is named, if known,
/// and a note says once how to get lines.
#[childproof::test]
fn are_not_known_without_debug_information() {
    const HINT: &str = "  note: the test binary has no debug information: `debug = \"limited\"` in \
                        its profile, without `strip`, gives lines.\n";
    let fixture = Fixture::build("bare");
    let report = |test: &str| fixture.run("inlined", &["--exact", test, "--color=never"]).stdout;
    for (test, places) in [
        ("hangs", &["           in inlined::hangs\n"][..]),
        ("hangs_below", &["           in inlined::below < inlined::hangs_below\n"]),
        (
            "leaves_a_pipe_and_two_processes",
            &[
                "  spawned in inlined::leaves_a_pipe_and_two_processes (posix_spawnp)\n",
                "  both created in inlined::leaves_a_pipe_and_two_processes (pipe)\n",
            ],
        ),
        // Even if functions were inlined there.
        ("leaves_a_process_in_a_thread", &["  spawned by code without debug information (posix_spawnp)\n"]),
        // It only panicked: its own output explains everything.
        ("panics", &["words of the panic"]),
    ] {
        let text = report(test);
        for place in places {
            assert!(text.contains(place), "no {place:?} in\n{text}");
        }
        assert_eq!(text.matches(HINT).count(), usize::from(test != "panics"), "{text}");
        // Frames of the harness, and those that only call the body, are not given as the place.
        for other in ["childproof::testproc", "call_once", "start_main"] {
            assert!(!text.contains(other), "{other} in\n{text}");
        }
    }
    let ran = Fixture::build("leaky").run("lines", &["--color=never"]);
    assert!(!ran.stdout.contains("no debug information"), "{}", ran.all());
}

/// The linker was told to compress them: the report says why there are no lines.
#[childproof::test]
fn are_not_read_from_compressed_debug_information() {
    let fixture = Fixture::build("leaky");
    let compressed = scratch().join("harness");
    let mut objcopy = Command::new("objcopy");
    objcopy.arg("--compress-debug-sections=zlib").arg(fixture.binary("harness")).arg(&compressed);
    if !objcopy.status().is_ok_and(|status| status.success()) {
        println!("skipped: objcopy(1) is not installed");
        return;
    }
    let mut command = Command::new(&compressed);
    let ran = Ran::of(command.args(["--exact", "shapes::child_dropped"]).env("COLUMNS", "1000"));
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert!(
        ran.stdout.contains("  note: the test binary's debug information is compressed"),
        "{}",
        ran.all()
    );
    assert!(ran.stdout.contains("harness::shapes::sleep"), "{}", ran.all());
    assert!(!ran.stdout.contains("mod.rs:") && !ran.stdout.contains("has no debug"), "{}", ran.all());
}
