//! Poor conditions: a run says clearly what it lacks, or reaches the right verdict. `degraded` has those of an ordinary
//! user, of a limit on processes, of `hidepid` and of missing pidfds, `invariants` that of a child of another user.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::proof::{Held, fixture};
use crate::support::{Fixture, scratch, send, through_shell};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(60);
const TARGETS: [&str; 2] = ["harness", "stock"];

/// Runs one test through a shell script. Returns its exit code and output, once nothing of it is left.
fn run(fixture: &Fixture, target: &str, script: &str, test: &str) -> (Option<i32>, String) {
    let arguments = ["--exact", test, "--color=never"];
    let like = fixture.command(target, &arguments);
    let mut held = Held::start(&through_shell(&like, script, fixture.binary(target), &arguments));
    assert!(held.are_gone(LIMIT), "{script}: {:?}\n{}", held.run.marked(), held.run.text());
    let text = held.run.finish();
    (held.run.code(), text)
}

/// Under this script a leak never passes, and a clean test passes or is an error with words.
#[track_caller]
fn check(script: &str) {
    let fixture = fixture();
    for target in TARGETS {
        let (code, text) = run(&fixture, target, script, "guarded::leaks");
        assert!(code != Some(0) && !text.contains("leaks ... ok"), "{target}: {script}: {code:?}\n{text}");
        let (code, text) = run(&fixture, target, script, "guarded::is_clean");
        let is_error = text.contains("ERROR") || text.contains("error: ");
        let has_passed = code == Some(0) && text.contains("1 passed");
        assert!(has_passed || code != Some(0) && is_error, "{target}: {script}: {code:?}\n{text}");
        println!("{target}: a clean test {}", if has_passed { "passes" } else { "is an error" });
    }
}

/// Whether file systems can be mounted here.
fn can_mount() -> bool {
    let mounted = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    let can = mounted.is_ok_and(|output| output.status.success());
    if !can {
        println!("not checked: nothing can be mounted here");
    }
    can
}

#[childproof::test(timeout = "180s")]
fn sixteen_fds() {
    check("ulimit -n 16; exec \"$@\"");
}

#[childproof::test(timeout = "180s")]
fn ten_fds() {
    check("ulimit -n 10; exec \"$@\"");
}

#[childproof::test(timeout = "180s")]
fn a_full_directory_for_temporary_files() {
    if can_mount() {
        let fill = "mount -t tmpfs -o size=64k none /mnt; cat /dev/zero > /mnt/file 2> /dev/null";
        check(&format!("export TMPDIR=/mnt; exec unshare -m sh -c '{fill}; exec \"$@\"' sh \"$@\""));
    }
}

#[childproof::test(timeout = "180s")]
fn a_read_only_directory_for_temporary_files() {
    if can_mount() {
        let mount = "mount -t tmpfs -o ro none /mnt";
        check(&format!("export TMPDIR=/mnt; exec unshare -m sh -c '{mount}; exec \"$@\"' sh \"$@\""));
    }
}

/// Runs a program under a seccomp filter that refuses these calls.
fn filtered(calls: &[u32], errno: u32) -> String {
    let list: Vec<String> = calls.iter().map(u32::to_string).collect();
    format!(
        "exec python3 -c \"
import ctypes, os, struct, sys
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
steps = [(0x20, 0, 0, 0)]
for number in [{}]:
    steps += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | {errno})]
steps += [(0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
program = Program(len(steps), ctypes.cast(code, ctypes.c_void_p).value)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
\" \"$@\"",
        list.join(", ")
    )
}

fn has_python() -> bool {
    let found = cfg!(target_arch = "x86_64")
        && Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("not checked: python3 on x86-64 is needed");
    }
    found
}

/// The calls that Docker's default profile refuses a process without capabilities, of those that childproof makes or its
/// tests may make: mount, umount2, unshare, setns, perf_event_open, kcmp, open_by_handle_at, bpf, userfaultfd, keyctl,
/// fsopen, open_tree, move_mount, fsmount, pidfd_getfd.
#[cfg(target_arch = "x86_64")]
const DOCKER: [u32; 15] = [165, 166, 272, 308, 298, 312, 304, 321, 323, 250, 430, 428, 429, 432, 438];

#[cfg(target_arch = "x86_64")]
#[childproof::test(timeout = "180s")]
fn a_seccomp_filter_as_that_of_docker() {
    if has_python() {
        check(&filtered(&DOCKER, 1));
    }
}

/// As sandboxes have them that answer "no such call" to what is new, and refuse looking into other processes: ptrace,
/// process_vm_readv, memfd_create, openat2, close_range, clone3, pidfd_send_signal, statx, sched_setattr.
#[cfg(target_arch = "x86_64")]
#[childproof::test(timeout = "180s")]
fn a_strict_seccomp_filter() {
    if has_python() {
        let strict = [101, 310, 319, 437, 436, 435, 424, 332, 314];
        check(&filtered(&[&DOCKER[..], &strict].concat(), 38));
    }
}

/// Without pidfds childproof cannot be, and says so.
#[cfg(target_arch = "x86_64")]
#[childproof::test(timeout = "180s")]
fn a_seccomp_filter_without_pidfds() {
    if has_python() {
        check(&filtered(&[434], 38));
    }
}

#[childproof::test(timeout = "180s")]
fn closed_standard_streams() {
    let fixture = fixture();
    for target in TARGETS {
        let script = "exec \"$@\" <&- >&- 2>&-";
        assert_ne!(run(&fixture, target, script, "guarded::leaks").0, Some(0), "{target}");
        assert_eq!(run(&fixture, target, script, "guarded::is_clean").0, Some(0), "{target}");
    }
}

/// Also what the guard itself starts later.
#[childproof::test(timeout = "180s")]
fn a_binary_that_is_deleted_or_replaced_in_the_run() {
    let fixture = fixture();
    for target in TARGETS {
        for replace in [false, true] {
            let binary = scratch().join(format!("replaced-{target}-{replace}"));
            fs::copy(fixture.binary(target), &binary).unwrap();
            let arguments = ["--exact", "guarded::tree", "--color=never"];
            let like = fixture.command(target, &arguments);
            let mut held = Held::start(&through_shell(&like, "exec \"$@\"", &binary, &arguments));
            held.run.wait_for("tree");
            fs::remove_file(&binary).unwrap();
            if replace {
                fs::copy("/bin/true", &binary).unwrap();
            }
            held.run.tell("go");
            assert!(held.are_gone(LIMIT), "{target}: {:?}", held.run.marked());
            let text = held.run.finish();
            assert!(held.run.code() == Some(101) && text.contains("0 passed; 1 failed"), "{target}\n{text}");
        }
    }
}

#[childproof::test(timeout = "180s")]
fn ten_megabytes_without_a_newline() {
    let fixture = fixture();
    for target in TARGETS {
        let (code, text) = run(&fixture, target, "exec \"$@\"", "guarded::prints_ten_megabytes");
        assert!(code == Some(0) && text.contains("1 passed"), "{target}: {code:?}");
        let (code, text) = run(&fixture, target, "exec \"$@\"", "guarded::prints_ten_megabytes_and_leaks");
        assert!(code == Some(101) && text.contains("0 passed; 1 failed"), "{target}: {code:?}");
    }
}

/// A test that changes directory, umask, limits and signals: the next one of the same supervisor sees none of it.
#[childproof::test(timeout = "180s")]
fn a_test_that_changes_everything() {
    let fixture = fixture();
    for target in TARGETS {
        let arguments = ["changes_everything", "is_clean", "--test-threads=1", "--color=never"];
        let mut held = Held::start(&fixture.command(target, &arguments));
        assert!(held.are_gone(LIMIT), "{target}: {:?}", held.run.marked());
        let text = held.run.finish();
        assert!(text.contains("1 passed; 1 failed"), "{target}\n{text}");
        assert!(text.contains("changes_everything_and_leaks"), "{target}\n{text}");
    }
}

/// A tracer from outside holds what was left, also while that is stopped.
#[childproof::test(timeout = "180s")]
fn a_debugger_on_a_descendant() {
    if !Command::new("strace").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("not checked: strace is not installed");
        return;
    }
    let fixture = fixture();
    for target in TARGETS {
        let mut held = Held::start(&fixture.command(target, &["--exact", "guarded::tree"]));
        let told = held.run.wait_for("tree");
        let test = told.split_once(' ').unwrap().0.to_owned();
        let below = fs::read_to_string(format!("/proc/{test}/task/{test}/children")).unwrap();
        let pids = below.split_whitespace().flat_map(|pid| ["-p", pid]);
        let mut strace = Command::new("strace");
        let strace = strace.args(["-qq", "-o", "/dev/null"]).args(pids).stderr(Stdio::null()).spawn();
        let mut strace = strace.unwrap();
        held.run.tell("go");
        let are_gone = held.are_gone(LIMIT);
        send(strace.id() as i32, Signal::SIGKILL);
        strace.wait().unwrap();
        assert!(are_gone, "{target}: {:?}\n{}", held.run.marked(), held.run.text());
        let text = held.run.finish();
        assert!(held.run.code() == Some(101), "{target}\n{text}");
    }
}
