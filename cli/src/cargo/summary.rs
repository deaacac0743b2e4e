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
    for run in &runs {
        place_by_place(&mut out, run);
    }
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

/// What a run has left, the tests of one place together.
fn place_by_place(out: &mut String, run: &GuardedRun) {
    let Some(report) = run.report.as_ref().filter(|_| run.has_left_something()) else { return };
    let mut places = Places::default();
    places.add(report);
    let _ = writeln!(out, "  {}", name(run));
    for line in places.lines() {
        let _ = writeln!(out, "    {line}");
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
