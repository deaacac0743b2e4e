//! Every value of the policy, from each place where it can be set, the strongest first: command line,
//! environment, attribute, harness.

use crate::support::{Fixture, Ran};

/// Runs one shape with this environment and these arguments; returns whether it passed.
#[track_caller]
fn passes(environment: &[(&str, &str)], shape: &str, arguments: &[&str]) -> bool {
    let fixture = Fixture::build("leaky");
    let name = format!("shapes::{shape}");
    let mut command = fixture.command("harness", &[&["--exact", &name], arguments].concat());
    let output = Ran::of(command.envs(environment.iter().copied()));
    let (passed, failed) =
        (output.stdout.contains(" 1 passed; 0 failed"), output.stdout.contains(" 0 passed; 1 failed"));
    assert!(passed != failed, "{}", output.all());
    assert_eq!(output.code, Some(if passed { 0 } else { 101 }));
    passed
}

#[childproof::test]
fn of_the_environment_wins_over_the_attribute_and_the_default() {
    for (name, value, shape, before, after) in [
        ("CHILDPROOF_FDS", "off", "both_ends_left_open", false, true),
        ("CHILDPROOF_FDS", "all", "file_left_open", true, false),
        ("CHILDPROOF_FDS", "pipes", "file_left_open_where_all_count", false, true),
        ("CHILDPROOF_PROCESSES", "allow", "child_dropped", false, true),
        ("CHILDPROOF_PROCESSES", "deny", "process_that_is_allowed", true, false),
        ("CHILDPROOF_UNWAITED", "deny", "zombie", true, false),
        ("CHILDPROOF_UNWAITED", "allow", "zombie_where_it_is_denied", false, true),
        ("CHILDPROOF_THREADS", "deny", "thread_left_running", true, false),
        ("CHILDPROOF_THREADS", "allow", "thread_where_it_is_denied", false, true),
        ("CHILDPROOF_THREADED_FORK", "deny", "fork_among_threads", true, false),
        ("CHILDPROOF_THREADED_FORK", "allow", "fork_among_threads_where_it_is_denied", false, true),
        ("CHILDPROOF_THREADED_FORK", "warn", "fork_among_threads_where_it_is_denied", false, true),
        ("CHILDPROOF_GRACE", "0ms", "straggler_within_the_grace", true, false),
        ("CHILDPROOF_TIMEOUT", "100ms", "child_that_takes_its_time", true, false),
    ] {
        assert_eq!(passes(&[], shape, &[]), before, "{shape}");
        assert_eq!(passes(&[(name, value)], shape, &[]), after, "{shape} with {name}={value}");
    }
}

#[childproof::test]
fn of_the_command_line_wins_over_the_environment() {
    let shape = "straggler_within_the_grace";
    assert!(!passes(&[("CHILDPROOF_GRACE", "20s")], shape, &["--grace", "0ms"]));
    assert!(passes(&[("CHILDPROOF_GRACE", "0ms")], shape, &["--grace", "20s"]));
    let shape = "child_that_takes_its_time";
    assert!(!passes(&[("CHILDPROOF_TIMEOUT", "none")], shape, &["--timeout", "100ms"]));
    assert!(passes(&[("CHILDPROOF_TIMEOUT", "100ms")], shape, &["--timeout", "none"]));
}

#[childproof::test]
fn of_the_attribute_wins_over_the_harness_and_that_over_the_default() {
    let all = [("LEAKY_ALL_FDS", "yes")];
    assert!(!passes(&all, "file_left_open", &[]));
    assert!(passes(&all, "stray_pipe_that_is_off", &[]));
}

/// An argument that would change nothing is not suggested.
#[childproof::test]
fn of_the_environment_is_told_where_it_lets_no_attribute_help() {
    let fixture = Fixture::build("leaky");
    let allow = "unwaited = \"allow\")]";
    let note = "note: `unwaited` is set by `CHILDPROOF_UNWAITED` or on the command line";
    for (target, shape, environment, told, not_told) in [
        ("harness", "zombie", Some("deny"), note, allow),
        ("stock", "zombie", Some("deny"), note, allow),
        ("harness", "zombie_where_it_is_denied", None, allow, note),
    ] {
        let mut command = fixture.command(target, &["--exact", &format!("shapes::{shape}"), "--color=never"]);
        let ran = Ran::of(command.envs(environment.map(|value| ("CHILDPROOF_UNWAITED", value))));
        let text = ran.all();
        assert!(text.contains(told) && !text.contains(not_told), "{target} {shape}\n{text}");
    }
}

/// All arguments that would make a test pass are suggested together, in the syntax of the place: with them it
/// passes.
#[childproof::test]
fn of_a_test_that_was_made_by_hand_is_proposed_as_it_is_written() {
    let fixture = Fixture::build("leaky");
    let mut command = fixture.command("harness", &["made::", "--color=never"]);
    let ran = Ran::of(command.env("LEAKY_MADE", "yes"));
    let text = ran.all();
    let allow = "  allow: test_with(.., Policy::new().allow_process(\"sleep *\")\
                 .allow_created_by(\"harness::shapes::leaves_several_kinds\").allow_unwaited(), ..)\n";
    assert!(text.contains(allow), "{text}");
    assert!(text.contains("test made::leaks           ... FAILED"), "{text}");
    assert!(text.contains("test made::leaks_as_it_may ... ok"), "{text}");
}
