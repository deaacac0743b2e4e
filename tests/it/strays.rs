//! A file that a test leaves open fails it, even if no number in its fd table shows it.
//!
//! `tests/fixtures/leaky/tests/strays.rs` has the bodies.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::support::{Fixture, scratch};

/// Name, causes, what was left (by what keeps it open), and words of the report.
const STRAYS: &[(&str, &str, &str, &str)] = &[
    ("pipe_in_the_table_of_a_thread", "stray_fd", "pipe thread, pipe thread", "which has one of its own"),
    ("pipe_in_the_table_of_a_thread_where_none_may_run", "stray_fd threads", "pipe thread, pipe thread", ""),
    ("pipe_of_a_thread_that_ends_within_the_grace", "", "", ""),
    ("thread_with_a_table_of_its_own_and_no_pipe", "", "", ""),
    ("pipe_on_its_way_over_a_stream", "stray_fd", "pipe message, pipe message", "and not received"),
    ("pipe_on_its_way_over_datagrams_behind_others", "stray_fd", "pipe message, pipe message", ""),
    ("pipe_on_its_way_over_a_stream_behind_others", "stray_fd", "pipe message, pipe message", ""),
    ("pipe_on_its_way_over_a_socket_that_is", "stray_fd", "pipe message, pipe message", ""),
    ("pipe_on_its_way_to_a_listener", "stray_fd", "socket unknown", "which cannot be looked at"),
    ("file_on_its_way", "", "", ""),
    ("output_on_its_way", "", "", ""),
    ("pipe_whose_way_was_closed", "", "", ""),
    ("path_of_a_pipe", "", "", ""),
    ("path_of_a_pipe_where_all_count", "stray_fd", "pipe table", ""),
    ("path_of_a_file_where_all_count", "stray_fd", "file table", ""),
    ("path_in_place_of_its_input_where_all_count", "stray_fd", "file table", ""),
    ("nothing_where_all_count", "", "", ""),
    ("errno_is_zero", "", "", ""),
];

/// The same where io_uring is available.
const RINGS: &[(&str, &str, &str, &str)] = &[
    ("pipe_registered_with_a_ring", "stray_fd", "pipe ring", "registered with an io_uring"),
    ("pipe_registered_with_a_ring_that_is_closed", "", "", ""),
    ("ring_without_a_pipe", "", "", ""),
];

/// Whether this system allows io_uring.
fn has_uring() -> bool {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").map_or(true, |text| text.trim() == "0")
}

/// Linux 6.9 allows opening the socket of another thread's table. Before, it is reported as a stray fd that
/// was not inspected.
const OF_A_THREAD: (&str, [&str; 2]) =
    ("pipe_on_its_way_in_the_table_of_a_thread", ["pipe message, pipe message", "socket unknown"]);

#[childproof::test]
fn are_found_wherever_they_are_kept() {
    let json = scratch().join("strays.json");
    let mut arguments = vec!["--json", json.to_str().unwrap(), "--color=never"];
    if !has_uring() {
        arguments.extend(["--skip", "ring"]);
    }
    let ran = Fixture::build("leaky").run("strays", &arguments);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let lines = fs::read_to_string(json).unwrap();
    let verdicts = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let verdicts: BTreeMap<String, Value> =
        verdicts.map(|line| (line["test"].as_str().unwrap().to_owned(), line)).collect();
    let mut wrong = Vec::new();
    let rings = if has_uring() { RINGS } else { &[] };
    for (name, causes, fds, words) in STRAYS.iter().chain(rings) {
        let seen = (causes_of(&verdicts[*name]), fds_of(&verdicts[*name]));
        if seen != ((*causes).to_owned(), (*fds).to_owned()) {
            wrong.push(format!("{name}: {seen:?} in place of {:?}", (causes, fds)));
        }
        let report = ran.stdout.split("LEAK  ").find(|report| report.starts_with(&format!("{name} ")));
        if !words.is_empty() && !report.is_some_and(|report| report.contains(words)) {
            wrong.push(format!("{name}: no {words:?}"));
        }
    }
    let (name, fds) = OF_A_THREAD;
    if causes_of(&verdicts[name]) != "stray_fd" || !fds.contains(&fds_of(&verdicts[name]).as_str()) {
        wrong.push(format!("{name}: {}", verdicts[name]["fds"]));
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), ran.all());
    assert_eq!(verdicts.len(), STRAYS.len() + rings.len() + 1, "a body without a line in the table");
}

fn causes_of(verdict: &Value) -> String {
    let causes = verdict["causes"].as_array().unwrap().iter().map(|cause| cause.as_str().unwrap());
    causes.collect::<Vec<_>>().join(" ")
}

/// The stray fds, and what keeps each open.
fn fds_of(verdict: &Value) -> String {
    let fds = verdict["fds"].as_array().unwrap().iter();
    let fds = fds.map(|fd| format!("{} {}", fd["kind"].as_str().unwrap(), fd["held_by"].as_str().unwrap()));
    fds.collect::<Vec<_>>().join(", ")
}
