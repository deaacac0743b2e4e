//! A report says who is at the other end of a socket that somebody waits at, and which of these waits
//! can never end; and never says so of one that can.
//!
//! `tests/fixtures/leaky/tests/sockets.rs` has the shapes, `tests/it/expected/sockets` their reports.

use std::thread;

use crate::output::{assert_expected, report_in};
use crate::waits::{reasons, verdicts};

/// The shapes whose waits are proved, with the reasons that the JSON gives, sorted.
const STUCK: &[(&str, &[&str])] = &[
    ("two_crossed_over_a_socketpair", &["cycle", "cycle"]),
    ("test_that_reads_its_own_socketpair", &["own_write_end"]),
    ("keeper_of_its_own_socket", &["own_write_end", "stuck_child"]),
    ("full_socket_that_only_the_writer_could_read", &["no_reader_runs"]),
    ("datagrams_that_both_wait_for", &["cycle", "cycle"]),
    ("connection_that_a_stuck_server_leaves_waiting", &["cycle", "cycle"]),
    ("epoll_on_its_own_socketpair", &["own_write_end"]),
    // Of its child only.
    ("epoll_that_a_sleeping_thread_may_change", &["own_write_end"]),
];

#[childproof::test]
fn that_nobody_can_write_to_are_told_with_the_reason() {
    let verdicts = verdicts("leaky", "sockets", &["--skip", "not_"]);
    assert_eq!(verdicts.len(), STUCK.len());
    for (name, expected) in STUCK {
        assert_eq!(reasons(&verdicts[*name]), *expected, "{name}: {}", verdicts[*name]["waits"]);
    }
}

#[childproof::test]
fn that_may_bring_something_are_never_called_proved() {
    let verdicts = verdicts("leaky", "sockets", &["not_"]);
    assert_eq!(verdicts.len(), 13);
    for (name, verdict) in verdicts {
        let waits = verdict["waits"].as_array().unwrap();
        assert!(!waits.is_empty(), "{name} was not looked at");
        assert!(waits.iter().all(|wait| wait["proved"] == false), "{name}: {waits:?}");
    }
}

#[childproof::test]
fn are_reported_with_who_is_at_the_other_end() {
    let shapes = STUCK.iter().map(|(name, _)| *name).chain([
        "not_stuck_socket_of_a_running_child",
        "not_stuck_socket_of_the_internet",
        "not_stuck_pipe_whose_other_end_is_on_its_way",
        "not_stuck_connection_that_a_running_server_may_accept",
        "not_stuck_datagrams_to_a_name",
    ]);
    // Each waits for its time to be over: side by side.
    let reports: Vec<_> =
        shapes.map(|shape| (shape, thread::spawn(|| report_in("sockets", shape)))).collect();
    let reports = reports.into_iter().map(|(shape, report)| (shape, report.join().unwrap()));
    assert_expected("sockets", reports);
}

/// A runtime's epoll set has an eventfd and a socket pair for signals in it, all the process's own.
#[childproof::test]
fn of_tasks_are_proved_too() {
    let verdicts = verdicts("compose", "hangs", &[]);
    let expected: [(&str, &[&str]); 3] = [
        ("task_that_reads_its_own_socket", &["own_write_end"]),
        // The runtime's other thread waits for work, and the first one for the task.
        ("task_among_threads_that_reads_its_own_socket", &["cycle", "cycle", "own_write_end"]),
        ("not_stuck_task_that_another_thread_may_wake", &[]),
    ];
    for (name, expected) in expected {
        assert_eq!(reasons(&verdicts[name]), expected, "{name}: {}", verdicts[name]["waits"]);
    }
}
