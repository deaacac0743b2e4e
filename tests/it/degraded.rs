//! If something may not be read, the report says so, and draws no wrong conclusion from it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::invariants::is_installed;
use crate::support::{Fixture, Ran, Run, as_nobody, scratch, through_shell};

fn leaky() -> Fixture {
    Fixture::build("leaky")
}

/// Whether tests can change the user here. Prints a note if not.
fn can_be_nobody() -> bool {
    let setpriv = Command::new("setpriv").arg("--version").output().is_ok();
    let can = nix::unistd::geteuid().is_root() && setpriv;
    if !can {
        println!("not checked: it needs root and `setpriv`");
    }
    can
}

#[track_caller]
fn assert_says(ran: &Ran, parts: &[&str]) {
    let text = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{}", ran.all());
    }
}

#[childproof::test]
fn an_ordinary_user_gets_the_same_proof() {
    if !can_be_nobody() {
        return;
    }
    let arguments = ["--exact", "keeper_of_its_own_lifeline", "--color=never"];
    let ran = Ran::of(&mut as_nobody(&leaky(), "waits", &arguments));
    assert_says(
        &ran,
        &["It can never see EOF (confirmed 50 ms later).", "<- the only one: the reader itself"],
    );
    // Neither end is outside of the tree: what root's daemons hold does not matter.
    let ran = Ran::of(&mut as_nobody(&leaky(), "sockets", &["--exact", "two_crossed_over_a_socketpair"]));
    assert_says(&ran, &["Neither can ever make progress (confirmed 50 ms later)."]);
}

#[childproof::test]
fn a_process_that_may_not_be_read_proves_nothing() {
    if !can_be_nobody() {
        return;
    }
    let arguments = ["--exact", "undumpable_keeper_of_its_own_lifeline", "--color=never"];
    let ran = Ran::of(&mut as_nobody(&leaky(), "waits", &arguments));
    assert_says(&ran, &["its fds may not be read", "what it waits in may not be read"]);
    assert!(!ran.stdout.contains("never"), "{}", ran.all());
    // Root may read the process.
    let ran = leaky().run("waits", &arguments);
    assert_says(&ran, &["It can never see EOF ("]);
}

/// With `hidepid` the processes of other users are not listed in `/proc`.
#[childproof::test]
fn a_proc_that_hides_others_is_enough() {
    if !can_be_nobody() {
        return;
    }
    let fixture = leaky();
    let hidden = "mount -t proc -o hidepid=2 proc /proc";
    if !Command::new("unshare").args(["-m", "sh", "-c", hidden]).status().is_ok_and(|status| status.success())
    {
        println!("not checked: `/proc` cannot be mounted here");
        return;
    }
    let arguments = ["--exact", "keeper_of_its_own_lifeline", "child_with_a_very_long_command_line"];
    let unprivileged = as_nobody(&fixture, "waits", &arguments);
    let script = format!(
        "exec unshare -m sh -c '{hidden}; cd /; exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"' sh \"$@\""
    );
    let binary = std::env::temp_dir().join("user-65534-waits");
    let ran = Ran::of(&mut through_shell(
        &unprivileged,
        &script,
        &binary,
        &[&arguments[..], &["--color=never"]].concat(),
    ));
    assert_says(
        &ran,
        &[
            "Probable deadlock (unproven: ",
            "(hidepid)",
            "still running 200 ms after the test ended",
            "0 passed; 2 failed",
        ],
    );
}

/// An otherwise unused user with a limit on processes: the kernel counts them per user.
struct Limited {
    user: u64,
    fixture: Fixture,
}

impl Limited {
    fn new() -> Limited {
        Limited { user: 4_000_000_000 + u64::from(std::process::id()), fixture: Fixture::build("victim") }
    }

    fn run(&self, target: &str, limit: u32, tests: &str) -> Ran {
        Ran::of(&mut self.command(target, limit, tests))
    }

    fn command(&self, target: &str, limit: u32, tests: &str) -> Command {
        let binary = scratch().join(target);
        if !binary.exists() {
            fs::copy(self.fixture.binary(target), &binary).unwrap();
        }
        let script = format!(
            "cd / && exec prlimit --nproc={limit} setpriv --reuid={} --regid=65534 --clear-groups \"$@\"",
            self.user
        );
        let arguments = [tests, "--test-threads=1", "--color=never"];
        through_shell(&self.fixture.command(target, &[]), &script, &binary, &arguments)
    }
}

/// The targets, and how many processes one test needs: harness, its signal thread, net, fork server,
/// supervisor and test. libtest has a second thread, and its net is forked by an exec'ed process with a
/// keeper.
const LEAST: [(&str, u32); 2] = [("harness", 6), ("stock", 9)];

/// A process that a test starts counts too, so preforked processes must not use up the limit.
#[childproof::test(timeout = "120s")]
fn under_a_limit_on_processes_none_is_taken_that_a_test_may_need() {
    if !can_be_nobody() {
        return;
    }
    let limited = Limited::new();
    for (target, least) in LEAST {
        for more in 0..5 {
            let ran = limited.run(target, least + more, "bodies::nothing");
            assert!(ran.stdout.contains("16 passed; 0 failed"), "{target}, +{more}:\n{}", ran.all());
            let ran = limited.run(target, least + 1 + more, "bodies::one_child");
            assert!(ran.stdout.contains("8 passed; 0 failed"), "{target}, 1+{more}:\n{}", ran.all());
        }
        let ran = limited.run(target, least - 1, "bodies::nothing");
        assert_says(&ran, &["0 passed; 16 failed", "raise the limit (`ulimit -u`"]);
    }
}

/// With a high limit that is nearly reached, preforked processes must not prevent the next test.
#[childproof::test(timeout = "120s")]
fn as_many_processes_as_one_test_needs_are_enough_for_all() {
    if !can_be_nobody() {
        return;
    }
    let limited = Limited::new();
    let crowd = limited.command("harness", 2048, "bodies::is_a_crowd");
    let mut crowd = Run::spawn(crowd);
    crowd.wait_for("crowd");
    // The threads of the other process, and the processes of a test.
    let taken = 1024 + 6;
    for (target, least) in LEAST {
        let run = |more| limited.run(target, taken + least + more, "bodies::nothing");
        for more in (0..4).cycle().take(40) {
            let ran = run(more);
            assert!(ran.stdout.contains("16 passed; 0 failed"), "{target}, +{more}:\n{}", ran.all());
        }
        // The threads count.
        let ran = limited.run(target, taken + least - 1, "bodies::nothing");
        assert_says(&ran, &["0 passed; 16 failed"]);
    }
    crowd.tell("go");
    let text = crowd.finish();
    assert_eq!(crowd.code(), Some(0), "{text}");
}

#[childproof::test]
fn a_command_line_of_100_kb_is_cut() {
    let ran = leaky().run("waits", &["--exact", "child_with_a_very_long_command_line", "--color=never"]);
    assert!(ran.stdout.len() < 20_000, "{} bytes", ran.stdout.len());
    assert_says(&ran, &[r"\u{1b}[2J\nxxxx"]);
    assert!(!ran.stdout.contains('\x1b'), "{}", ran.all());
}

#[childproof::test]
fn a_hundred_leaked_processes_are_a_report_that_can_be_read() {
    let ran = leaky().run("waits", &["--exact", "hundred_children", "--color=never"]);
    let lines = ran.stdout.lines().count();
    assert!(lines < 120, "{lines} lines\n{}", ran.all());
    assert_says(&ran, &["left 100 processes", "and 99 more processes were still running", "\u{d7}100"]);
}

#[childproof::test]
fn a_chain_that_nobody_can_catch_is_a_leak_all_the_same() {
    let ran = leaky().run("waits", &["--exact", "chain_that_nobody_can_catch", "--repeat", "20"]);
    assert_eq!(ran.stdout.matches("0 passed; 1 failed").count(), 20, "{}", ran.all());
}

/// In a new PID namespace the old `/proc` shows unrelated processes under each pid.
#[childproof::test]
fn a_proc_of_another_namespace_is_refused() {
    let fixture = leaky();
    let arguments = ["--exact", "shapes::child_dropped"];
    for target in ["harness", "stock"] {
        let like = fixture.command(target, &[]);
        let script = "exec unshare -pf \"$@\"";
        let ran = Ran::of(&mut through_shell(&like, script, fixture.binary(target), &arguments));
        if ran.stderr.contains("unshare failed") {
            println!("not checked: it needs a PID namespace");
            return;
        }
        assert!(ran.all().contains("`/proc` belongs to another PID namespace"), "{target}: {}", ran.all());
        assert_ne!(ran.code, Some(0), "{target}: {}", ran.all());
    }
}

/// The kernel then reaps children itself, so supervisors and fork server cannot be waited for.
#[childproof::test]
fn where_sigchld_is_ignored_a_run_ends_as_soon_as_elsewhere() {
    let victim = Fixture::build("victim");
    for target in ["harness", "stock", "threaded"] {
        let script = "exec env --ignore-signal=CHLD \"$@\"";
        let like = victim.command(target, &[]);
        let arguments = ["--exact", "bodies::well_behaved"];
        let mut run = Run::spawn(through_shell(&like, script, victim.binary(target), &arguments));
        let text = run.finish();
        assert_eq!(run.code(), Some(0), "{target}\n{text}");
        // A process that does not answer is given up after seven.
        assert!(run.took() < Duration::from_secs(5), "{target}: {:?}", run.took());
    }
}

/// Runs a program under a seccomp filter that refuses `pidfd_send_signal` with EPERM.
const WITHOUT_PIDFD_SEND_SIGNAL: &str = "
import ctypes, os, struct, sys
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
number, refuse, allow = 424, 0x00050001, 0x7fff0000
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
program = Program(len(steps), ctypes.cast(code, ctypes.c_void_p).value)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
";

#[childproof::test]
fn where_pidfds_may_not_be_signalled_all_is_killed_the_same() {
    if !is_installed("python3") {
        return;
    }
    let victim = Fixture::build("victim");
    for target in ["harness", "stock"] {
        let like = victim.command(target, &[]);
        let script = format!("exec python3 -c \"{WITHOUT_PIDFD_SEND_SIGNAL}\" \"$@\"");
        let arguments = ["--exact", "bodies::leaves_a_subreaper"];
        let mut run = Run::spawn(through_shell(&like, &script, victim.binary(target), &arguments));
        let text = run.finish();
        assert!(text.contains("left 2 processes") && text.contains("killed: "), "{target}\n{text}");
        assert!(!text.contains("could not be killed"), "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}
