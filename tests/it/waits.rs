//! A report says which wait can never end, and why; and never says so of one that can.
//!
//! `tests/fixtures/leaky/tests/waits.rs` has the shapes, `tests/it/expected/waits` their reports.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::output::{assert_expected, normalise, report_in};
use crate::support::{Fixture, Ran, scratch};

/// The shapes whose waits are proved, with the reasons that the JSON gives, sorted.
const STUCK: &[(&str, &[&str])] = &[
    ("keeper_of_its_own_lifeline", &["own_write_end", "stuck_child"]),
    ("test_that_reads_what_only_it_can_write", &["own_write_end"]),
    ("wait_before_reading_a_full_pipe", &["cycle", "cycle"]),
    ("two_crossed_over_two_pipes", &["cycle", "cycle", "stuck_child"]),
    ("three_in_a_ring", &["cycle", "cycle", "cycle", "stuck_child"]),
    ("parent_of_a_stuck_child", &["cycle", "own_write_end", "stuck_child"]),
    ("full_pipe_that_only_the_writer_could_read", &["no_reader_runs"]),
    ("epoll_on_its_own_pipe", &["own_write_end"]),
    ("fork_while_a_panic_is_told", &["inherited_lock"]),
    ("fork_while_a_thread_holds_a_mutex", &["inherited_lock", "stuck_child"]),
    ("mutex_locked_twice", &["cycle"]),
    ("two_locks_in_two_orders", &["cycle", "cycle"]),
    ("join_of_a_stuck_thread", &["cycle", "cycle"]),
    ("lock_of_a_file_that_a_stuck_child_holds", &["own_write_end", "stuck_holder"]),
    ("fork_that_takes_a_lock_twice", &["inherited_lock", "stuck_child"]),
    ("fork_while_a_static_is_initialised", &["inherited_lock", "stuck_child"]),
    ("fork_that_is_never_notified", &["cycle", "stuck_child"]),
    ("channel_whose_sender_is_kept", &["cycle"]),
    ("channel_that_nobody_empties", &["cycle"]),
    ("park_that_nobody_ends", &["cycle"]),
    ("barrier_for_one_more", &["cycle"]),
    ("scope_of_a_thread_that_parks", &["cycle", "cycle"]),
    ("child_whose_stdin_is_kept", &["cycle", "cycle"]),
    ("child_that_is_written_to_and_never_read", &["cycle", "cycle"]),
    ("program_that_inherits_the_other_end_of_its_stdin", &["own_write_end", "stuck_child"]),
    ("sibling_that_inherits_the_end_of_a_pipe", &["cycle", "cycle", "cycle"]),
    ("eventfd_that_nobody_else_has", &["cycle"]),
    ("poll_of_its_eventfd_and_the_pipe_of_a_stuck_child", &["cycle", "cycle"]),
    ("join_of_a_thread_that_takes_a_lock_twice", &["cycle", "cycle"]),
    ("three_locks_in_a_ring", &["cycle", "cycle", "cycle", "cycle"]),
    ("pipe_whose_writer_is_a_stuck_thread", &["cycle", "own_write_end"]),
    ("output_of_a_child_that_waits_for_input", &["cycle", "cycle"]),
    ("reader_of_one_output_while_the_other_is_full", &["cycle", "cycle"]),
    ("two_crossed_forks_that_keep_all_ends", &["own_write_end", "own_write_end", "stuck_child"]),
    ("lock_held_over_a_join", &["cycle", "cycle"]),
    ("request_of_half_a_line", &["cycle", "cycle"]),
    ("thread_that_reads_the_output_of_a_child_whose_stdin_is_kept", &["cycle", "cycle", "cycle"]),
    ("child_that_fills_its_output_and_has_it_twice", &["cycle", "cycle"]),
    ("message_of_a_thread_that_waits_for_a_stuck_child", &["cycle", "own_write_end", "stuck_child"]),
    ("join_of_a_thread_that_reads_the_output_of_a_child_that_waits_for_input", &["cycle", "cycle", "cycle"]),
];

/// The shapes of which only what some of their processes wait for is proved.
const PARTLY: &[(&str, &[&str])] = &[
    ("any_child_that_a_thread_may_start", &["own_write_end"]),
    ("any_child_that_a_subreaper_may_get", &["own_write_end"]),
    ("any_child_of_a_tracer", &["own_write_end"]),
    ("any_child_that_a_subreaper_got_within_the_grace", &["own_write_end"]),
    ("any_child_while_a_dead_one_is_traced", &["own_write_end"]),
];

/// Every reason that a shape has.
pub(crate) fn all_reasons() -> impl Iterator<Item = &'static str> {
    STUCK.iter().flat_map(|(_, reasons)| reasons.iter().copied())
}

/// What the JSON of each test of a target says.
pub(crate) fn verdicts(fixture: &str, target: &str, filter: &[&str]) -> BTreeMap<String, Value> {
    let json = scratch().join("waits.json");
    let arguments = [&["--json", json.to_str().unwrap()], filter].concat();
    let ran = Fixture::build(fixture).run(target, &arguments);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let lines = fs::read_to_string(json).unwrap();
    let verdicts = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    verdicts.map(|line| (line["test"].as_str().unwrap().to_owned(), line)).collect()
}

/// Why its threads never go on, sorted.
pub(crate) fn reasons(verdict: &Value) -> Vec<&str> {
    let waits = verdict["waits"].as_array().unwrap();
    let mut reasons: Vec<&str> = waits.iter().filter_map(|wait| wait["because"].as_str()).collect();
    reasons.sort_unstable();
    reasons
}

#[childproof::test]
fn that_never_end_are_told_with_the_reason() {
    let verdicts = verdicts(
        "leaky",
        "waits",
        &["--skip", "not_", "--skip", "come_and_go", "--skip", "bare_fork", "--skip", "hundred"],
    );
    for (name, expected) in STUCK.iter().chain(PARTLY) {
        assert_eq!(reasons(&verdicts[*name]), *expected, "{name}: {}", verdicts[*name]["waits"]);
    }
    // Those below it are, and it is not: something else may wake it.
    for (name, _) in PARTLY {
        let waits = verdicts[*name]["waits"].as_array().unwrap();
        let test = &verdicts[*name]["pid"];
        assert!(
            waits.iter().all(|wait| wait["pid"] != *test || wait["proved"] == false),
            "{name}: {waits:?}"
        );
    }
}

/// What is known of one end of a pipe is found once, and not for each that waits there.
#[childproof::test(timeout = "120s")]
fn of_hundreds_are_found_in_time() {
    let begin = Instant::now();
    let verdicts = verdicts("leaky", "waits", &["--exact", "three_hundred_at_one_pipe"]);
    let time = begin.elapsed();
    let reasons = reasons(&verdicts["three_hundred_at_one_pipe"]);
    assert_eq!(reasons.iter().filter(|because| **because == "own_write_end").count(), 300);
    assert!(time < Duration::from_secs(3 + 20), "{time:?}");
}

#[childproof::test]
fn that_may_end_are_never_called_proved() {
    let verdicts = verdicts("leaky", "waits", &["not_"]);
    assert_eq!(verdicts.len(), 37);
    for (name, verdict) in verdicts {
        let waits = verdict["waits"].as_array().unwrap();
        assert!(!waits.is_empty(), "{name} was not looked at");
        assert!(waits.iter().all(|wait| wait["proved"] == false), "{name}: {waits:?}");
    }
}

#[childproof::test]
fn are_reported_as_a_reader_needs_them() {
    let shapes = STUCK.iter().map(|(name, _)| *name).chain([
        "not_proved_self_pipe_of_a_signal_handler",
        "not_stuck_wake_pipe",
        "not_stuck_poll_with_one_live_end",
        "lifelines_that_nobody_watches",
        "write_end_inherited_by_mistake",
        "not_stuck_reader_of_an_end_inherited_by_mistake",
        "not_stuck_wait_for_a_child_that_reads_no_lifeline",
        "not_stuck_wait_for_a_child_that_is_stopped",
        "not_stuck_test_that_stops_itself",
        "not_stuck_reader_of_a_writer_that_is_stopped",
        "not_stuck_writer_to_a_reader_that_is_stopped",
        "not_stuck_client_of_a_server_whose_output_is_full",
        "threads_that_still_run",
        "forks_that_wait_for_one_lock",
    ]);
    // Each waits for its time to be over: side by side.
    let reports: Vec<_> = shapes.map(|shape| (shape, thread::spawn(|| report_in("waits", shape)))).collect();
    let reports = reports.into_iter().map(|(shape, report)| (shape, report.join().unwrap()));
    assert_expected("waits", reports);
}

/// The lock of a thread that comes or goes is held for a moment only: who hangs on it, and where,
/// differs from run to run, the story does not.
#[childproof::test(timeout = "120s")]
fn for_locks_that_are_held_for_a_moment_are_told_too() {
    let fixture = Fixture::build("leaky");
    let ran = |name: &str| fixture.run("waits", &["--exact", name, "--color=never"]);
    let seen = |ran: &Ran, parts: &[&str]| {
        let text = normalise(&ran.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(text.contains(part), "no {part:?} in\n{}", ran.all());
        }
    };
    seen(
        &ran("fork_while_threads_come_and_go"),
        &[
            "can never run again: it waits for a lock (std::sys::pal::unix::stack_overflow::thread_info::LOCK) \
             that some thread of pid # held when # was forked. That thread does not exist in #.",
            "forked at tests/fixtures/leaky/tests/waits.rs:22:20 waits::fork by thread `main`, one of ",
            "fix: exec after the fork",
        ],
    );
    seen(
        &ran("bare_fork_while_threads_allocate"),
        &[
            // Which of malloc's functions differs.
            "can never run again: it waits for a lock of the C library (in `",
            "`) that some thread of pid # held when # was forked. That thread does not exist in #.",
            " < tests/fixtures/leaky/tests/waits.rs:339:19 waits::leak_one_that_hangs",
            "started by another program, by a raw system call or within the C library: its line is not known",
        ],
    );
}

/// Where a thread has no name so far, nothing is said that will be wrong in a moment.
#[childproof::test]
fn of_a_thread_that_has_only_started_are_told_with_its_name() {
    let arguments = ["--exact", "thread_that_has_only_started", "--repeat=20"];
    let text = Fixture::build("leaky").run("waits", &arguments).stdout;
    let told = text.matches("1 thread still ran when the body came back: ").count();
    let named = text.matches("came back: `worker-1` (tid ").count();
    // It gets some time for it, and may need more on a loaded machine.
    assert_eq!(named + text.matches(" (no name so far).").count(), told, "{text}");
    assert!(told == 20 && named >= 15, "{named} of {told}\n{text}");
}
