//! What is said at the end of a call, of all runs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use childproof::__engine::signal_name;
use serde_json::Value;

use super::results::{All, GuardedRun};
use crate::places::{Places, words};

/// One line if nothing was left; else what was left, by the place in the code that started it. `build` is the report on
/// cargo itself, and `cut` the signal that ended the call.
pub(super) fn text(results: &All, build: &str, cut: Option<i32>) -> String {
    let runs: Vec<&GuardedRun> =
        results.0.iter().filter(|run| !run.is_list() || run.has_left_something()).collect();
    let mut out = String::new();
    let left = runs.iter().filter(|run| run.has_left_something()).count();
    let killed: Vec<&&GuardedRun> = runs.iter().filter(|run| run.report.is_none()).collect();
    let what = match left {
        0 => "nothing was left".to_owned(),
        left => format!("{left} left something"),
    };
    let count = match runs.len() {
        1 => "1 program ran".to_owned(),
        count => format!("{count} programs ran"),
    };
    let _ = match runs.len() {
        0 => writeln!(out, "childproof: cargo ran no program"),
        _ => match ended_by(&runs, cut) {
            Some(ended) if runs.len() == 1 && left == 1 => {
                writeln!(out, "childproof: {count} guarded; {ended}, and it left something")
            }
            Some(ended) => writeln!(out, "childproof: {count} guarded; {ended}, and {what}"),
            None => writeln!(out, "childproof: {count} guarded, {what}"),
        },
    };
    for run in runs.iter().filter(|_| runs.len() > 1) {
        if let Some(signal) = run.signal {
            let _ = writeln!(out, "  {}: ended by {}", name(run), signal_name(signal));
        }
    }
    place_by_place(&mut out, &runs);
    for run in killed {
        let _ = match cut {
            Some(signal) => {
                writeln!(out, "  {}: killed, as it still ran after {}", name(run), signal_name(signal))
            }
            None => writeln!(out, "  {}: its guard was killed before it could report", name(run)),
        };
    }
    of_build(&mut out, build);
    out
}

/// `it was ended by SIGINT`, `2 were ended by SIGINT or SIGTERM`; `None` if no program was ended by a signal. `cut` is the
/// signal that ended the call: it has ended those that could not report, too.
fn ended_by(runs: &[&GuardedRun], cut: Option<i32>) -> Option<String> {
    let ended = |run: &&GuardedRun| run.signal.or(cut.filter(|_| run.report.is_none()));
    let signals: Vec<i32> = runs.iter().filter_map(ended).collect();
    let each: BTreeSet<i32> = signals.iter().copied().collect();
    let each: Vec<String> = each.into_iter().map(signal_name).collect();
    let by = each.join(" or ");
    match (signals.len(), runs.len()) {
        (0, _) => None,
        (1, 1) => Some(format!("it was ended by {by}")),
        (1, _) => Some(format!("1 was ended by {by}")),
        (count, _) => Some(format!("{count} were ended by {by}")),
    }
}

/// What the programs have left: one line for a place, with the tests of all runs, since nextest runs each by itself.
fn place_by_place(out: &mut String, runs: &[&GuardedRun]) {
    let mut places = Places::default();
    for run in runs.iter().filter(|run| run.has_left_something()) {
        if let Some(report) = &run.report {
            places.add_of(report, &name(run));
        }
    }
    for (programs, lines) in places.by_programs() {
        let _ = writeln!(out, "  {programs}");
        for line in lines {
            let _ = writeln!(out, "    {line}");
        }
    }
}

/// What is left of cargo's own work, such as the server of a compiler's cache: reported, and no failure.
fn of_build(out: &mut String, report: &str) {
    let Ok(report) = serde_json::from_str::<Value>(report) else { return };
    let no_list = Vec::new();
    let processes = report["processes"].as_array().unwrap_or(&no_list).iter();
    let left = processes.filter(|process| process["killed"] == true && process["pid"] != report["pid"]);
    for process in left {
        let words = words(process);
        let _ = writeln!(out, "  the build left pid {} `{words}`, which was killed", process["pid"]);
    }
}

/// The target's name and its package, or the command.
fn name(run: &GuardedRun) -> String {
    let Some(program) = run.command.first() else { return "a program".to_owned() };
    let file =
        Path::new(program).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = if super::is_doctest(program.as_ref()) { "documentation tests".to_owned() } else { file };
    // Cargo adds a hash.
    let target = match file.rsplit_once('-') {
        Some((target, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            target.to_owned()
        }
        _ => file,
    };
    match &run.package {
        Some(package) if *package != target => format!("{target} ({package})"),
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{All, GuardedRun, text};

    fn run(program: &str, test: &str, fds: Value) -> GuardedRun {
        let process = json!({
            "pid": 2, "class": "leaked", "cmdline": ["/bin/sleep", "9"], "spawned_at": "src/a.rs:8:20", "test": test,
        });
        let report = json!({
            "pid": 1, "outcome": "failed", "causes": ["leaked_process"], "processes": [process], "fds": fds,
        });
        GuardedRun { command: vec![program.to_owned()], package: None, signal: None, report: Some(report) }
    }

    #[test]
    fn a_line_is_there_once_with_the_tests_of_all_runs() {
        let of_one = All(vec![run("unit", "a", json!([])), run("unit", "b", json!([]))]);
        let lines = "childproof: 2 programs ran guarded, 2 left something\n  unit\n    \
                     src/a.rs:8:20  `sleep 9` (2 times), 2 tests: a, b\n";
        assert_eq!(text(&of_one, "", None), lines);
        let of_two = All(vec![run("unit", "a", json!([])), run("tour", "b", json!([]))]);
        assert!(
            text(&of_two, "", None)
                .ends_with("  tour, unit\n    src/a.rs:8:20  `sleep 9` (2 times), 2 tests: a, b\n")
        );
    }

    #[test]
    fn a_pipe_with_two_open_ends_is_one() {
        let end =
            |inode: u64| json!({ "kind": "pipe", "inode": inode, "created_at": "src/b.rs:1:1", "test": "a" });
        let one = All(vec![run("unit", "a", json!([end(7), end(7)]))]);
        assert!(text(&one, "", None).contains("src/b.rs:1:1  a pipe that was open at the end, test a\n"));
        let two = All(vec![run("unit", "a", json!([end(7), end(7), end(8)]))]);
        assert!(
            text(&two, "", None)
                .contains("src/b.rs:1:1  a pipe that was open at the end (2 times), test a\n")
        );
    }
}
