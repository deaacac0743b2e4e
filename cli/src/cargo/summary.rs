//! What is said at the end of a call, of all runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::results::{All, GuardedRun};

/// The most tests that are named at one place.
const TESTS: usize = 8;

/// One line if nothing was left; else what was left, by the place in the code that started it. `build` is the report on
/// cargo itself.
pub(super) fn text(results: &All, build: &str) -> String {
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
        _ => writeln!(out, "childproof: {count} guarded, {what}"),
    };
    for run in &runs {
        place_by_place(&mut out, run);
    }
    for run in killed {
        let _ = writeln!(out, "  {}: its guard was killed before it could report", name(run));
    }
    of_build(&mut out, build);
    out
}

/// What a run has left, the tests of one place together.
fn place_by_place(out: &mut String, run: &GuardedRun) {
    let Some(report) = run.report.as_ref().filter(|_| run.has_left_something()) else { return };
    let mut places: BTreeMap<String, (Vec<String>, usize)> = BTreeMap::new();
    let mut add = |place: Option<&str>, what: &str, test: &Value| {
        let place = place.unwrap_or("unknown line");
        let (tests, count) = places.entry(format!("{place}  {what}")).or_default();
        *count += 1;
        if let Some(test) = test.as_str()
            && !tests.iter().any(|known| known == test)
        {
            tests.push(test.to_owned());
        }
    };
    let no_list = Vec::new();
    let list = |name: &str| report[name].as_array().unwrap_or(&no_list);
    for process in list("processes") {
        if process["class"] != "leaked" || process["pid"] == report["pid"] {
            continue;
        }
        let place = process["spawned_at"].as_str();
        let place = place.or_else(|| process["ended_parent"]["spawned_at"].as_str());
        add(place, &format!("`{}`", words(process)), &process["test"]);
    }
    for fd in list("fds") {
        let kind = fd["kind"].as_str().unwrap_or("fd");
        add(fd["created_at"].as_str(), &format!("a {kind} that was open at the end"), &fd["test"]);
    }
    let _ = writeln!(out, "  {}", name(run));
    for (place, (tests, count)) in places {
        let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
        let _ = writeln!(out, "    {place}{times}{}", of_tests(&tests));
    }
    let causes = super::call::texts(&report["causes"]).unwrap_or_default();
    let others = causes.iter().filter(|cause| !matches!(cause.as_str(), "leaked_process" | "stray_fd"));
    let others: Vec<String> = others.map(|cause| cause.replace('_', " ")).collect();
    if !others.is_empty() {
        let _ = writeln!(out, "    {}", others.join(", "));
    }
}

/// The command line of a process, its program without the folder; or the name that the kernel has for it.
fn words(process: &Value) -> String {
    let words = super::call::texts(&process["cmdline"]).unwrap_or_default();
    match words.split_first() {
        Some((program, rest)) => {
            let name = Path::new(program).file_name().map_or(program.into(), |name| name.to_string_lossy());
            std::iter::once(name.into_owned()).chain(rest.iter().cloned()).collect::<Vec<_>>().join(" ")
        }
        None => process["comm"].as_str().unwrap_or_default().to_owned(),
    }
}

fn of_tests(tests: &[String]) -> String {
    match tests {
        [] => String::new(),
        [test] => format!(", test {test}"),
        tests => {
            let named = tests.iter().take(TESTS).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = tests.len().saturating_sub(TESTS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!(", {} tests: {named}{more}", tests.len())
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
