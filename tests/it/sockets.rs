//! A report names the holders of the other end of a socket that a thread waits on, and which of these waits
//! can never end; it never says so about a wait that can end.
//!
//! `tests/fixtures/leaky/tests/sockets.rs` has the shapes, `tests/it/expected/sockets` their reports.

use std::thread;

use crate::output::{assert_expected, normalise, report_in};
use crate::support::Fixture;
use crate::waits::{reasons, verdicts};

/// The shapes with proved waits, with the reasons in the JSON, sorted.
const STUCK: &[(&str, &[&str])] = &[
    ("two_crossed_over_a_socketpair", &["cycle", "cycle"]),
    ("test_that_reads_its_own_socketpair", &["own_write_end"]),
    ("keeper_of_its_own_socket", &["own_write_end", "stuck_child"]),
    ("full_socket_that_only_the_writer_could_read", &["no_reader_runs"]),
    ("datagrams_that_both_wait_for", &["cycle", "cycle"]),
    ("connection_that_a_stuck_server_leaves_waiting", &["cycle", "cycle"]),
    ("epoll_on_its_own_socketpair", &["own_write_end"]),
    // Only of its child.
    ("epoll_that_a_sleeping_thread_may_change", &["own_write_end"]),
    ("full_pair_that_only_the_test_could_read", &["no_reader_runs"]),
    ("poll_for_room_that_only_it_could_make", &["no_reader_runs"]),
    ("two_threads_crossed_over_a_socketpair", &["own_write_end", "own_write_end"]),
    ("program_that_waits_for_the_end_of_its_input", &["cycle", "cycle"]),
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
    assert_eq!(verdicts.len(), 14);
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
        "not_stuck_socket_with_a_timeout",
        "not_stuck_full_socket_with_a_timeout",
        "not_stuck_socket_of_a_stopped_child",
    ]);
    // The tests wait for their timeouts, so they run in parallel.
    let reports: Vec<_> =
        shapes.map(|shape| (shape, thread::spawn(|| report_in("sockets", shape)))).collect();
    let reports = reports.into_iter().map(|(shape, report)| (shape, report.join().unwrap()));
    assert_expected("sockets", reports);
}

/// A runtime's epoll set has an eventfd and a socket pair for signals in it, both held by the process alone.
#[childproof::test]
fn of_tasks_are_proved_too() {
    let verdicts = verdicts("compose", "hangs", &[]);
    let expected: [(&str, &[&str]); 9] = [
        ("task_that_reads_its_own_socket", &["own_write_end"]),
        // The runtime's other thread waits for work, and the first one for the task.
        ("task_among_threads_that_reads_its_own_socket", &["cycle", "cycle", "own_write_end"]),
        ("not_stuck_task_that_another_thread_may_wake", &[]),
        ("task_that_fills_its_own_socket", &["no_reader_runs"]),
        ("task_that_reads_its_own_pipe", &["own_write_end"]),
        ("task_that_is_never_woken", &["cycle"]),
        ("tasks_among_threads_that_are_never_woken", &["cycle", "cycle", "cycle"]),
        ("not_stuck_task_that_waits_for_a_connection", &[]),
        ("not_stuck_task_that_waits_for_a_child_whose_stdin_is_kept", &[]),
    ];
    for (name, expected) in expected {
        assert_eq!(reasons(&verdicts[name]), expected, "{name}: {}", verdicts[name]["waits"]);
    }
}

/// No task waits on what a runtime created for itself, and it is unknown which end of a pair is awaited.
#[childproof::test]
fn of_tasks_are_told_without_the_runtimes_own() {
    let fixture = Fixture::build("compose");
    let ran = fixture.run("hangs", &["--color=never"]);
    let reports: Vec<String> = ran.stdout.split("HUNG  ").skip(1).map(joined).collect();
    for (name, expected) in [
        (
            "task_that_reads_its_own_socket",
            &[
                "waits for data on a unix stream socket: fds 9 and 10, both ends of one pair, are in its poll set.",
                "fix: write to the one of fds 9 and 10 that is not read, from another process or thread;",
            ][..],
        ),
        (
            "task_that_fills_its_own_socket",
            &[
                "writes to a unix stream socket that is full and that only itself could read: the other end is its own fd 10.",
                "fix: read fd 10 in another task, or close it",
            ],
        ),
        (
            "task_that_reads_its_own_pipe",
            &["reads a pipe whose only writer is its own fd 10.", "drop the owner of the write end, fd 10,"],
        ),
        ("task_that_is_never_woken", &[", and none of its tasks can make progress (confirmed 50 ms later)."]),
        (
            "tasks_among_threads_that_are_never_woken",
            &[", and none of its tasks can make progress (confirmed 50 ms later)."],
        ),
        (
            "not_stuck_task_that_waits_for_a_connection",
            &["the async runtime of the test waits for a connection to an IPv4 stream socket (fd 9, #:#)."],
        ),
        (
            "not_stuck_task_that_waits_for_a_child_whose_stdin_is_kept",
            &[
                "the async runtime of the test waits for the end of pid # `cat` (fd ",
                "fix: drop what writes to the child's stdin, fd 10 ",
            ],
        ),
    ] {
        let report = reports.iter().find(|report| report.starts_with(&format!("{name} ")));
        let report = report.unwrap_or_else(|| panic!("no {name} in\n{}", ran.all()));
        for part in expected {
            assert!(report.contains(part), "no {part:?} in\n{report}");
        }
        // tokio's socket pair for signals is fds 6, 7 and 8.
        for fd in [6, 7, 8] {
            let others = [format!("own fd {fd}"), format!("# fd {fd} "), format!("(fd {fd})")];
            assert!(!others.iter().any(|other| report.contains(other)), "fd {fd} in\n{report}");
        }
        assert!(report.matches("fix: ").count() <= 1, "{report}");
    }
}

/// A report in one line.
fn joined(report: &str) -> String {
    normalise(report).split_whitespace().collect::<Vec<_>>().join(" ")
}
