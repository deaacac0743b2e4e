//! Every shape of a leak, and of code that resembles one, gets the right verdict, also among many parallel
//! tests and on a busy machine.
//!
//! `tests/fixtures/leaky` has the bodies.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Fixture, Run, root};

/// Name, outcome, causes, and what was left: processes by class except stragglers, fds.
const SHAPES: &[(&str, &str, &str, &str)] = &[
    ("nothing_at_all", "passed", "", ""),
    ("child_waited_for", "passed", "", ""),
    ("child_killed_and_waited_for", "passed", "", ""),
    ("pipeline_waited_for", "passed", "", ""),
    ("group_killed_whole", "passed", "", ""),
    ("straggler_within_the_grace", "passed", "", ""),
    ("child_that_takes_its_time", "passed", "", ""),
    ("child_that_may_only_end", "passed", "", ""),
    ("orphan_that_ends_within_the_grace", "passed", "", ""),
    ("pipe_made_and_closed", "passed", "", ""),
    ("table_grown_and_left_empty", "passed", "", ""),
    ("every_fd_closed", "passed", "", ""),
    ("its_own_output_closed", "passed", "", ""),
    ("second_number_for_its_output", "passed", "", ""),
    ("file_left_open", "passed", "", ""),
    ("socketpair_left_open", "passed", "", ""),
    ("thread_left_running", "passed", "", ""),
    ("thread_that_closes_its_pipe_within_the_grace", "passed", "", ""),
    ("thread_that_reads_from_a_child_that_ends_within_the_grace", "passed", "", ""),
    ("directory_and_environment_changed", "passed", "", ""),
    ("scratch_left_dirty", "passed", "", ""),
    ("much_output", "passed", "", ""),
    ("zombie", "passed", "", "unwaited=1"),
    ("returns_ok", "passed", "", ""),
    ("panics_as_it_should", "passed", "", ""),
    ("panics_with_the_words_it_should", "passed", "", ""),
    ("stray_pipe_that_is_off", "passed", "", ""),
    ("process_that_is_allowed", "passed", "", "leaked=1"),
    ("process_that_is_allowed_by_name", "passed", "", "leaked=1"),
    ("threaded_spawn", "passed", "", ""),
    ("signals_its_own_group", "passed", "", ""),
    ("ignored", "ignored", "", ""),
    ("child_dropped", "failed", "leaked_process", "leaked=1"),
    ("three_children_dropped", "failed", "leaked_process", "leaked=3"),
    ("background_job_of_a_shell", "failed", "leaked_process", "leaked=1"),
    ("job_of_the_first_of_two_shells", "failed", "leaked_process", "leaked=1"),
    ("job_of_a_shell_with_a_group_of_its_own", "failed", "leaked_process", "leaked=2"),
    ("jobs_of_twelve_shells", "failed", "leaked_process", "leaked=12"),
    ("output_of_a_job_that_stays", "failed", "timed_out", "leaked=2 unwaited=1"),
    ("exits_with_a_child_of_its_own", "failed", "ended_early leaked_process", "leaked=1"),
    ("pipeline_in_the_background", "failed", "leaked_process", "leaked=2"),
    ("end_of_a_child_that_ends_in_the_grace", "failed", "stray_fd", "fds=2"),
    ("four_files_left_open_where_all_count", "failed", "stray_fd", "fds=4"),
    ("traced_by_its_parent", "passed", "", ""),
    ("traced_by_its_parent_and_leaks", "failed", "leaked_process", "leaked=1"),
    ("thread_where_it_is_denied_and_not_seen", "failed", "threads", ""),
    ("pipe_let_through_on_purpose", "failed", "leaked_process", "leaked=1"),
    ("second_number_for_its_output_in_a_shell", "failed", "leaked_process", "leaked=1"),
    ("shell_killed_and_its_child_not", "failed", "leaked_process", "leaked=1"),
    ("daemon_forked_twice", "failed", "leaked_process", "leaked=1"),
    ("group_of_its_own", "failed", "leaked_process", "leaked=1"),
    ("three_groups_of_their_own", "failed", "leaked_process", "leaked=3"),
    ("session_of_its_own", "failed", "leaked_process", "leaked=1"),
    ("child_that_leaves_the_session", "failed", "leaked_process", "leaked=1"),
    ("fork_that_leaves_the_session", "failed", "leaked_process", "leaked=1"),
    ("session_of_two", "failed", "leaked_process", "leaked=2"),
    ("fork_without_exec", "failed", "leaked_process", "leaked=1"),
    ("fork_of_a_fork_that_has_ended", "failed", "leaked_process", "leaked=1"),
    ("two_shells_with_a_child_each", "failed", "leaked_process", "leaked=4"),
    ("child_deaf_to_sigterm", "failed", "leaked_process", "leaked=2"),
    ("child_that_is_stopped", "failed", "leaked_process", "leaked=1"),
    ("child_with_another_exit_signal", "failed", "leaked_process", "leaked=1"),
    ("child_whose_first_thread_has_exited", "failed", "leaked_process", "leaked=1"),
    ("chain_of_five", "failed", "leaked_process", "leaked=5"),
    ("forty_children", "failed", "leaked_process", "leaked=40"),
    ("child_with_a_long_command_line", "failed", "leaked_process", "leaked=2"),
    ("child_with_a_nasty_name", "failed", "leaked_process", "leaked=1"),
    ("child_of_another_user", "failed", "leaked_process", "leaked=1"),
    ("process_of_another_name_than_allowed", "failed", "leaked_process", "leaked=1"),
    ("one_allowed_and_one_not", "failed", "leaked_process", "leaked=2"),
    ("child_that_holds_a_pipe", "failed", "stray_fd", "fds=1"),
    ("both_ends_left_open", "failed", "stray_fd", "fds=2"),
    ("read_end_left_open", "failed", "stray_fd", "fds=1"),
    ("thread_that_keeps_a_pipe", "failed", "stray_fd", "fds=2"),
    ("write_end_left_open", "failed", "stray_fd", "fds=1"),
    ("fifo_left_open", "failed", "stray_fd", "fds=1"),
    ("fifo_closed", "passed", "", ""),
    ("second_number_for_an_end", "failed", "stray_fd", "fds=1"),
    ("forty_pipes", "failed", "stray_fd", "fds=80"),
    ("three_hundred_pipe_ends", "failed", "stray_fd", "fds=256"),
    ("more_allowed_pipe_ends_than_are_written_down", "failed", "stray_fd", ""),
    ("pipe_in_place_of_its_stdin", "failed", "stray_fd", "fds=1"),
    ("pipe_end_last_in_the_first_table", "failed", "stray_fd", "fds=1"),
    ("pipe_end_first_in_the_second_table", "failed", "stray_fd", "fds=1"),
    ("pipe_end_among_a_full_word", "failed", "stray_fd", "fds=128"),
    ("pipe_end_far_up", "failed", "stray_fd", "fds=1"),
    ("file_left_open_where_all_count", "failed", "stray_fd", "fds=1"),
    ("socketpair_left_open_where_all_count", "failed", "stray_fd", "fds=2"),
    ("zombie_where_it_is_denied", "failed", "unwaited", "unwaited=1"),
    ("thread_where_it_is_denied", "failed", "threads", ""),
    ("chain_of_threads_where_they_are_denied", "failed", "threads", ""),
    ("thread_that_exits_where_it_is_denied", "failed", "ended_early", ""),
    ("thread_where_it_is_denied_and_time_is_nearly_over", "failed", "threads", ""),
    ("thread_joined_where_it_is_denied", "passed", "", ""),
    ("threads_of_a_scope_where_they_are_denied", "passed", "", ""),
    ("exits_with_a_code_of_a_handlers", "failed", "ended_early", ""),
    ("panics", "failed", "panicked", ""),
    ("panics_and_leaks", "failed", "panicked leaked_process stray_fd", "leaked=1 fds=2"),
    ("returns_an_error", "failed", "error", ""),
    ("returns_an_error_and_leaks", "failed", "error leaked_process", "leaked=1"),
    ("does_not_panic_as_it_should", "failed", "panicked", ""),
    ("panics_with_other_words_than_it_should", "failed", "panicked", ""),
    ("panics_as_it_should_and_leaks", "failed", "leaked_process", "leaked=1"),
    ("exits_in_the_middle", "failed", "ended_early", ""),
    ("exits_in_the_middle_and_leaks", "failed", "ended_early leaked_process", "leaked=1"),
    ("becomes_another_program", "failed", "ended_early", ""),
    ("becomes_another_program_that_stays", "failed", "ended_early leaked_process", "leaked=1"),
    ("aborts", "failed", "signal", ""),
    ("kills_itself", "failed", "signal", ""),
    ("kills_itself_by_a_real_time_signal", "failed", "signal", ""),
    ("overflows_its_stack", "failed", "signal", ""),
    ("fault_of_the_body", "failed", "signal", ""),
    ("fault_of_a_thread", "failed", "signal", ""),
    ("fault_behind_the_end_of_a_file", "failed", "signal", ""),
    ("fault_of_a_child", "passed", "", ""),
    ("fault_that_the_body_handles", "passed", "", ""),
    ("fault_that_was_sent", "failed", "signal", ""),
    ("child_comes_back_through_the_body", "failed", "ended_early", ""),
    ("fork_among_threads", "passed", "", ""),
    ("fork_among_threads_where_it_is_denied", "failed", "threaded_fork", ""),
    ("fork_among_threads_that_is_allowed", "passed", "", ""),
    ("fork_among_threads_that_leaks", "failed", "leaked_process", "leaked=1"),
    ("fork_among_threads_that_is_killed", "failed", "threaded_fork", ""),
    ("fork_among_threads_of_a_fork", "failed", "threaded_fork", ""),
    ("fork_among_threads_then_exec", "passed", "", ""),
    ("command_among_threads", "passed", "", ""),
    ("forks_after_every_thread_was_joined", "passed", "", ""),
    ("fork_of_a_fork_from_before_the_threads", "passed", "", ""),
    ("sleeps_too_long", "failed", "timed_out", "leaked=1"),
    ("spins_too_long", "failed", "timed_out", "leaked=1"),
    ("waits_for_a_child_that_never_ends", "failed", "timed_out", "leaked=2"),
    ("stops_itself", "failed", "timed_out", "leaked=1"),
    ("never_exits", "failed", "timed_out", "leaked=1"),
];

/// Every cause that a shape has.
pub(crate) fn causes() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().flat_map(|(_, _, causes, _)| causes.split_whitespace())
}

/// The JSON of one test, in the notation of [`SHAPES`].
fn seen(line: &Value) -> [String; 3] {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    // Without stragglers: a process that exits at the end of a test may or may not be in the snapshot.
    for class in line["processes"].as_array().unwrap().iter().map(|process| text(&process["class"])) {
        if class != "straggler" {
            *left.entry(class).or_default() += 1;
        }
    }
    let fds = line["fds"].as_array().unwrap().len();
    let mut left: Vec<String> = left.into_iter().map(|(class, count)| format!("{class}={count}")).collect();
    left.extend((fds > 0).then(|| format!("fds={fds}")));
    let causes: Vec<String> = line["causes"].as_array().unwrap().iter().map(text).collect();
    [text(&line["outcome"]), causes.join(" "), left.join(" ")]
}

fn report(run: &Run) -> BTreeMap<String, Value> {
    let lines = run.told("report.json").unwrap_or_default();
    let parsed = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    parsed.map(|line| (line["test"].as_str().unwrap().to_owned(), line)).collect()
}

/// Runs every shape in the `harness = false` target and compares.
#[track_caller]
fn assert_every_verdict(fixture: &Fixture, arguments: &[&str]) {
    let mut run = Run::start(fixture, "harness", arguments);
    let text = run.finish();
    let report = report(&run);
    let mut wrong = Vec::new();
    for (name, outcome, causes, left) in SHAPES {
        let Some(line) = report.get(&format!("shapes::{name}")) else {
            wrong.push(format!("{name}: no line"));
            continue;
        };
        let seen = seen(line);
        if seen != [*outcome, *causes, *left] {
            wrong.push(format!("{name}: {seen:?} in place of {:?}", [outcome, causes, left]));
        }
    }
    assert!(wrong.is_empty(), "{}\n{text}", wrong.join("\n"));
    assert_eq!(report.len(), SHAPES.len(), "a shape without a line in the table");
    assert_eq!(run.code(), Some(101));
    run.assert_nothing_left(Duration::from_secs(5));
}

fn leaky() -> Fixture {
    Fixture::build("leaky")
}

#[childproof::test]
fn get_the_right_verdict() {
    assert_every_verdict(&leaky(), &["--test-threads=8"]);
}

#[childproof::test]
fn get_the_same_verdict_in_a_stock_target() {
    let fixture = leaky();
    let mut run = Run::start(&fixture, "stock", &["--test-threads=8"]);
    let text = run.finish();
    for (name, outcome, ..) in SHAPES {
        let prefix = format!("test shapes::{name} ");
        let line = text.lines().find(|line| line.starts_with(&prefix));
        let line = line.unwrap_or_else(|| panic!("no line of {name} in\n{text}"));
        let expected = match *outcome {
            "passed" => "ok",
            "failed" => "FAILED",
            _ => "ignored, not today",
        };
        assert!(line.ends_with(&format!("... {expected}")), "{line}\n{text}");
    }
    assert_eq!(run.code(), Some(101), "{text}");
    run.assert_nothing_left(Duration::from_secs(5));
}

#[childproof::test]
fn of_a_crowd_are_charged_to_the_test_that_made_them() {
    let fixture = leaky();
    let mut command = fixture.command("harness", &["crowd::", "--test-threads=64"]);
    let json = crate::support::scratch().join("crowd.json");
    command.arg("--json").arg(&json).env("LEAKY_CROWD", "256");
    let mut run = Run::spawn(command);
    let text = run.finish();
    let lines = fs::read_to_string(json).unwrap();
    let mut count = 0;
    for line in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let name = line["test"].as_str().unwrap();
        let number: usize = name.strip_prefix("crowd::").unwrap().parse().unwrap();
        let left: Vec<String> = line["processes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|process| process["cmdline"][1].as_str().unwrap_or_default().to_owned())
            .collect();
        if number % 2 == 1 {
            assert_eq!(line["outcome"], "failed", "{name}\n{text}");
            assert_eq!(left, [format!("86399.{number:03}")], "{name}\n{text}");
        } else {
            assert_eq!(line["outcome"], "passed", "{name}\n{text}");
            assert!(left.is_empty(), "{name} {left:?}\n{text}");
        }
        count += 1;
    }
    assert_eq!(count, 256, "{text}");
    run.assert_nothing_left(Duration::from_secs(5));
}

#[childproof::test(timeout = "1h")]
#[ignore = "takes minutes: run it by name"]
fn get_the_right_verdict_fifty_times_on_a_loaded_machine() {
    struct Load(Vec<Child>);
    impl Drop for Load {
        fn drop(&mut self) {
            for child in &mut self.0 {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
    let fixture = leaky();
    for _ in 0..50 {
        assert_every_verdict(&fixture, &["--test-threads=8"]);
    }
    let busy =
        || Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
    let load = Load((0..8).map(|_| busy()).collect());
    for _ in 0..50 {
        assert_every_verdict(&fixture, &["--test-threads=8"]);
    }
    drop(load);
}

/// A `main` with threads runs again in every test process, and so does everything that it starts.
#[childproof::test]
fn of_main_itself_are_not_charged_to_tests() {
    let ran = leaky().run("prepared", &["--color=never"]);
    assert!(
        ran.stdout.contains("test clean ... ok") && ran.stdout.contains("test leaks ... FAILED"),
        "{}",
        ran.all()
    );
    assert!(ran.stdout.contains("left 1 process\n") && ran.stdout.contains("`sleep 86398`"), "{}", ran.all());
    assert!(!ran.stdout.contains("`sleep 86399`"), "{}", ran.all());
    // Rust's start-up has installed its handlers after the fork.
    let source = fs::read_to_string(root().join("tests/fixtures/leaky/tests/prepared.rs")).unwrap();
    let line = source.lines().position(|line| line.ends_with("// FAULT")).unwrap() + 1;
    let place = format!("ended by SIGSEGV (11), at tests/fixtures/leaky/tests/prepared.rs:{line}:");
    assert!(ran.stdout.contains(&place), "{}", ran.all());
}
