//! A process of the guard that is stopped is continued at once, and one that another process traces and stops is given up
//! soon: the run goes on.
//!
//! `tests/fixtures/victim` has the bodies.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::invariants::{TARGETS, is_installed, victim};
use crate::support::{Run, guard_above, send, through_shell, until};

/// How long a run may take that only goes on: longer than a harness waits before it looks after its own child.
const SOON: Duration = Duration::from_secs(5);

fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}

/// The processes of the guard, from the supervisor upwards to the harness's child.
fn guard(run: &mut Run) -> Vec<i32> {
    let sits = run.wait_for("sits");
    let supervisor: i32 = sits.split_once(' ').unwrap().1.parse().unwrap();
    let above = guard_above(supervisor, run.pid());
    [&[supervisor], &above[..]].concat()
}

/// The parent of each but the last is a process of the guard, which is told of the stop by the kernel.
#[childproof::test(timeout = "120s")]
fn a_guard_that_is_stopped_is_continued_at_once() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["--exact", "bodies::sits", "bodies::well_behaved"]);
        let guard = guard(&mut run);
        let (own, told) = guard.split_last().unwrap();
        assert!(told.len() >= 2, "{target}: {guard:?}");
        for pid in told {
            send(*pid, Signal::SIGSTOP);
            until("its continuation", || !is_stopped(*pid));
        }
        // The child of the harness, which looks after it when the run ends.
        send(*own, Signal::SIGSTOP);
        assert_goes_on(run, target, &guard);
    }
}

/// Lets the body of a run return, and checks that the run ends as if its guard had not been stopped.
fn assert_goes_on(mut run: Run, target: &str, guard: &[i32]) {
    let begin = Instant::now();
    run.tell("go");
    let text = run.finish();
    let took = begin.elapsed();
    println!("{target}: {guard:?} were stopped, and the run ended after {took:?}");
    assert!(took < SOON, "{target}: {took:?}\n{text}");
    assert_eq!(run.code(), Some(0), "{target}\n{text}");
    run.assert_nothing_left(Duration::from_secs(2));
}

/// All of them at once, from the topmost down, so that none is there to continue the others.
#[childproof::test(timeout = "120s")]
fn a_guard_that_is_stopped_as_a_whole_is_continued_at_the_end() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["--exact", "bodies::sits"]);
        let guard = guard(&mut run);
        for pid in guard.iter().rev() {
            send(*pid, Signal::SIGSTOP);
        }
        assert_goes_on(run, target, &guard);
    }
}

/// The kernel tells the tracer of its stop, and not the fork server.
#[childproof::test(timeout = "120s")]
fn a_supervisor_that_is_stopped_by_a_tracer_is_given_up_soon() {
    let fixture = victim();
    let arguments = ["bodies::traces_its_supervisor", "bodies::well_behaved", "--exact", "--test-threads=1"];
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &arguments);
        let traced = run.wait_for("traced");
        if traced.starts_with("refused") {
            println!("not checked: {traced}");
            run.finish();
            continue;
        }
        let begin = Instant::now();
        let text = run.finish();
        let took = begin.elapsed();
        println!("{target}: the run ended after {took:?}");
        assert!(took < SOON, "{target}: {took:?}\n{text}");
        assert!(text.contains("ERROR  bodies::traces_its_supervisor"), "{target}\n{text}");
        let unbroken = text.replace("\n  ", " ").replace('\n', " ");
        assert!(unbroken.contains(&format!("was stopped by process {traced} `")), "{target}\n{text}");
        assert!(text.contains("test bodies::well_behaved") && text.contains("ok"), "{target}\n{text}");
        assert_eq!(run.code(), Some(101), "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// Below strace a supervisor that is stopped looks as if the tracer had stopped it. It is not given up: nothing but its own
/// signal stops it.
#[childproof::test(timeout = "120s")]
fn a_supervisor_that_is_stopped_below_strace_is_not_given_up() {
    if !is_installed("strace") {
        return;
    }
    let fixture = victim();
    let like = fixture.command("harness", &[]);
    let script = "exec strace -f -qq -e signal=none -e trace=none -o /dev/null \"$@\"";
    let mut run =
        Run::spawn(through_shell(&like, script, fixture.binary("harness"), &["--exact", "bodies::sits"]));
    let guard = guard(&mut run);
    // Net and fork server would continue it. The net first, which would start another fork server.
    send(guard[2], Signal::SIGKILL);
    send(guard[1], Signal::SIGKILL);
    send(guard[0], Signal::SIGSTOP);
    // Longer than the harness waits for an answer. There is no event: nothing is to happen.
    thread::sleep(Duration::from_millis(3500));
    send(guard[0], Signal::SIGCONT);
    run.tell("go");
    let text = run.finish();
    assert_eq!(run.code(), Some(0), "{text}");
    run.assert_nothing_left(Duration::from_secs(2));
}
