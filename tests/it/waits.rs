//! A report says which waits can never end, and why; it never says so about a wait that can end.
//!
//! `tests/fixtures/leaky/tests/waits.rs` has the shapes, `tests/it/expected/waits` their reports.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::output::{assert_expected, normalise, report_in};
use crate::support::{Fixture, Ran, scratch};

/// The shapes with proved waits, with the reasons in the JSON, sorted.
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
    ("channel_whose_sender_is_kept", &["cycle"]),
    ("channel_that_nobody_empties", &["cycle"]),
    ("park_that_nobody_ends", &["cycle"]),
    ("barrier_for_one_more", &["cycle"]),
    ("semaphore_without_a_post", &["cycle"]),
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
    ("shell_whose_pipeline_fills_its_output", &["cycle", "cycle", "cycle", "cycle"]),
];

/// The shapes in which only the waits of some processes are proved.
const PARTLY: &[(&str, &[&str])] = &[
    ("any_child_that_a_thread_may_start", &["own_write_end"]),
    ("any_child_that_a_subreaper_may_get", &["own_write_end"]),
    ("any_child_of_a_tracer", &["own_write_end"]),
    ("any_child_that_a_subreaper_got_within_the_grace", &["own_write_end"]),
    ("any_child_while_a_dead_one_is_traced", &["own_write_end"]),
    // A thread of the test sleeps, and may kill the child when it wakes.
    ("fork_that_takes_a_lock_twice", &["inherited_lock"]),
    ("fork_while_a_static_is_initialised", &["inherited_lock"]),
    ("fork_that_is_never_notified", &["cycle"]),
    ("join_of_a_thread_that_another_may_cancel", &["own_write_end"]),
    ("wait_for_a_child_that_another_thread_may_kill", &["own_write_end"]),
];

/// The shapes that are not proved where a cgroup may write to an eventfd: version 1 of the memory controller.
const NOT_BESIDE_CGROUPS_OF_VERSION_1: [&str; 2] =
    ["eventfd_that_nobody_else_has", "poll_of_its_eventfd_and_the_pipe_of_a_stuck_child"];

/// The shapes with waits that are proved here.
fn stuck() -> impl Iterator<Item = &'static (&'static str, &'static [&'static str])> {
    STUCK.iter().filter(|(name, _)| !(cgroups_notify() && NOT_BESIDE_CGROUPS_OF_VERSION_1.contains(name)))
}

fn cgroups_notify() -> bool {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default().contains(":memory:")
}

/// Every reason that a shape has.
pub(crate) fn all_reasons() -> impl Iterator<Item = &'static str> {
    STUCK.iter().flat_map(|(_, reasons)| reasons.iter().copied())
}

/// The JSON of each test of a target.
pub(crate) fn verdicts(fixture: &str, target: &str, filter: &[&str]) -> BTreeMap<String, Value> {
    let json = scratch().join("waits.json");
    let arguments = [&["--json", json.to_str().unwrap()], filter].concat();
    let ran = Fixture::build(fixture).run(target, &arguments);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let lines = fs::read_to_string(json).unwrap();
    let verdicts = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    verdicts.map(|line| (line["test"].as_str().unwrap().to_owned(), line)).collect()
}

/// Why its threads can never make progress, sorted.
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
    for (name, expected) in stuck().chain(PARTLY) {
        assert_eq!(reasons(&verdicts[*name]), *expected, "{name}: {}", verdicts[*name]["waits"]);
    }
    for name in NOT_BESIDE_CGROUPS_OF_VERSION_1.into_iter().filter(|_| cgroups_notify()) {
        let doubts = verdicts[name]["waits"][0]["doubts"].to_string();
        assert!(doubts.contains("cgroup.event_control"), "{name}: {doubts}");
    }
    // The processes below it are stuck, and it is not: something else may wake it.
    for (name, _) in PARTLY {
        let waits = verdicts[*name]["waits"].as_array().unwrap();
        let test = &verdicts[*name]["pid"];
        assert!(
            waits.iter().all(|wait| wait["pid"] != *test || wait["proved"] == false),
            "{name}: {waits:?}"
        );
    }
}

/// The holders of a pipe end are computed once, and not for each waiter.
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
    assert_eq!(verdicts.len(), 58);
    if File::open("/dev/kvm").is_ok() {
        let waits = verdicts["not_stuck_eventfd_that_a_virtual_machine_may_have"]["waits"].to_string();
        assert!(waits.contains("it uses `/dev/kvm`, which may write to an eventfd"), "{waits}");
    }
    // It runs now and then, so its report is not the same each time.
    let polls = verdicts["not_stuck_polling_for_a_child_whose_stdin_is_kept"]["findings"].to_string();
    assert!(polls.contains("reads from a pipe that only the test could write to"), "{polls}");
    assert!(!polls.contains("600s"), "{polls}");
    for (name, verdict) in verdicts {
        let waits = verdict["waits"].as_array().unwrap();
        assert!(!waits.is_empty(), "{name} was not looked at");
        assert!(waits.iter().all(|wait| wait["proved"] == false), "{name}: {waits:?}");
    }
}

#[childproof::test]
fn are_reported_as_a_reader_needs_them() {
    let shapes = stuck().map(|(name, _)| *name).chain([
        "fork_that_takes_a_lock_twice",
        "fork_while_a_static_is_initialised",
        "fork_that_is_never_notified",
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
        "not_stuck_join_of_a_thread_that_reads_from_a_job",
        "not_stuck_scope_of_a_thread_that_reads_from_a_job",
        "not_stuck_wait_for_a_child_whose_stdin_a_fork_keeps",
        "not_stuck_wait_for_a_shell_that_waits_for_its_job",
        "not_stuck_accept_of_a_child_that_has_failed",
        "not_stuck_accept_of_a_child_that_has_ended",
        "not_stuck_accept_of_a_child_that_was_waited_for",
        "not_stuck_datagram_of_a_child_that_has_ended",
        "not_stuck_semaphore_with_a_timeout",
        "not_stuck_child_that_blocks_what_was_sent_to_end_it",
        "not_stuck_pipe_that_a_job_keeps_under_another_number",
        "threads_that_still_run",
        "forks_that_wait_for_one_lock",
    ]);
    // The tests wait for their timeouts, so they run in parallel.
    let reports: Vec<_> = shapes.map(|shape| (shape, thread::spawn(|| report_in("waits", shape)))).collect();
    let reports = reports.into_iter().map(|(shape, report)| (shape, report.join().unwrap()));
    assert_expected("waits", reports);
}

/// No stored report names something that cannot be the cause, or gives advice that does not fit its own
/// facts.
#[childproof::test]
fn in_stored_reports_have_no_advice_that_does_not_fit() {
    let expected = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/expected");
    let mut seen = 0;
    for directory in fs::read_dir(expected).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for entry in fs::read_dir(directory.path()).unwrap().flatten() {
            let name = entry.path();
            let text = fs::read_to_string(&name).unwrap();
            seen += 1;
            // More time does not help if the test waits for itself, or for something that has failed.
            if text.contains("wait longer:") {
                for word in
                    ["blocked forever", "only the test could", "was not waited for", "which it blocks"]
                {
                    assert!(!text.contains(word), "{}: {word}", name.display());
                }
            }
            // Only an output can be redirected.
            if text.contains("redirect its output") {
                assert!(text.contains(" 1  pipe:[") || text.contains(" 2  pipe:["), "{}", name.display());
            }
            if text.contains("`daemon`") {
                assert!(!text.contains("pid file"), "{}", name.display());
            }
            // The set of an event loop contains other fds, and those are the cause.
            let loops = text.contains("epoll_wait(fd") && text.contains("anon_inode:[eventfd]");
            assert!(!loops || !text.contains("its own fd"), "{}", name.display());
        }
    }
    assert!(seen > 100, "{seen}");
}

/// A lock for the start and end of threads is held only for a moment: which process hangs on it, and where,
/// differs from run to run, but the explanation does not.
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
            "can never make progress: it waits for the lock of std's stack-overflow table (std::sys::pal::unix::stack_overflow::thread_info::LOCK) \
             that a thread of pid # held when # was forked. That thread does not exist in # (confirmed",
            "forked at tests/fixtures/leaky/tests/waits.rs:22:20 waits::fork by thread `main`, one of ",
            "fix: exec after the fork",
        ],
    );
    seen(
        &ran("bare_fork_while_threads_allocate"),
        &[
            // Which function of malloc it is differs.
            "can never make progress: it waits for a lock of the C library (in `",
            "`) that a thread of pid # held when # was forked. That thread does not exist in # (confirmed",
            " < tests/fixtures/leaky/tests/waits.rs:339:19 waits::leak_one_that_hangs",
            "started by another program, by a raw system call or within the C library: its line is not known",
        ],
    );
}

/// For a thread that has no name yet, the report contains nothing that will soon be wrong.
#[childproof::test]
fn of_a_thread_that_has_only_started_are_told_with_its_name() {
    let arguments = ["--exact", "thread_that_has_only_started", "--repeat=20"];
    let text = Fixture::build("leaky").run("waits", &arguments).stdout;
    let told = text.matches("1 thread was still running when the body returned: ").count();
    let named = text.matches("body returned: `worker-1` (tid ").count();
    // A thread gets some time to set its name, and may need more on a busy machine.
    assert_eq!(named + text.matches(" (no name so far).").count(), told, "{text}");
    assert!(told == 20 && named >= 15, "{named} of {told}\n{text}");
}
