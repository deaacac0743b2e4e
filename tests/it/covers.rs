//! What is mounted over `/proc`, or over a test's directory, keeps the guard from nothing, and nothing is detached that
//! does no harm.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::invariants::{TARGETS, victim};
use crate::scratch::{Detached, may_mount, mounted_below};
use crate::support::{Run, scratch, through_shell};

/// Says what `/proc` shows after the run. The run has a mount namespace of its own.
const SCRIPT: &str = "exec unshare --mount sh -c '\"$@\"; code=$?; \
                      if test -e /proc/self/stat; then echo \"proc shows processes\"; fi; \
                      if test -e /proc/meminfo; then echo \"proc shows the machine\"; fi; \
                      exit $code' sh \"$@\"";

/// Runs a body to its end, within this time.
fn run(target: &str, body: &str, limit: Duration) -> (Run, String) {
    let fixture = victim();
    let name = format!("bodies::covers::{body}");
    let like = fixture.command(target, &[]);
    let begin = Instant::now();
    let mut run = Run::spawn(through_shell(&like, SCRIPT, fixture.binary(target), &[&name, "--exact"]));
    let text = run.finish();
    assert!(begin.elapsed() < limit, "{target} {body}: it took {:?}\n{text}", begin.elapsed());
    (run, text)
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How long a run may take on a busy machine if nothing waits for a limit.
const SOON: Duration = Duration::from_secs(20);

#[childproof::test(timeout = "120s")]
fn a_proc_with_the_same_processes_stays_mounted() {
    if !may_mount() {
        return;
    }
    for target in TARGETS {
        for (body, shows_machine) in [("replaces_proc", true), ("mounts_a_proc_of_processes_alone", false)] {
            let (run, text) = run(target, body, SOON);
            let found = words(&text);
            assert!(found.contains(&format!("{body} ... FAILED")), "{target}\n{text}");
            assert!(found.contains("left 1 process"), "{target} {body}\n{text}");
            assert!(!found.contains("mount over") && !found.contains("mount was"), "{target} {body}\n{text}");
            assert!(found.contains("proc shows processes"), "{target} {body}\n{text}");
            assert_eq!(found.contains("proc shows the machine"), shows_machine, "{target} {body}\n{text}");
            run.assert_nothing_left(Duration::from_secs(2));
        }
        let body = "mounts_a_proc_of_processes_alone_and_leaves_nothing";
        let (run, text) = run(target, body, SOON);
        assert_eq!(run.code(), Some(0), "{target}\n{text}");
        assert!(!words(&text).contains("proc shows the machine"), "{target}\n{text}");
    }
}

/// Also if the test has left nothing else.
#[childproof::test(timeout = "120s")]
fn what_hides_the_processes_is_detached() {
    if !may_mount() {
        return;
    }
    for target in TARGETS {
        for body in ["covers_proc_with_a_tmpfs", "covers_proc_with_that_of_another_namespace"] {
            let (run, text) = run(target, body, SOON);
            let found = words(&text);
            assert!(found.contains(&format!("{body} ... FAILED")), "{target}\n{text}");
            let sentence = "a mount was over `/proc` when the test ended. It was detached";
            assert!(found.contains(sentence), "{target} {body}\n{text}");
            assert!(found.contains("proc shows the machine"), "{target} {body}\n{text}");
            run.assert_nothing_left(Duration::from_secs(2));
        }
    }
}

#[childproof::test(timeout = "120s")]
fn a_proc_made_of_links_leads_to_nothing() {
    if !may_mount() {
        return;
    }
    let fixture = victim();
    for target in TARGETS {
        let like = fixture.command(target, &[]);
        let script = format!("mkdir -m 700 \"$VICTIM_OUT/precious\"; {SCRIPT}");
        let arguments = ["bodies::covers::covers_proc_with_links", "--exact"];
        let mut run = Run::spawn(through_shell(&like, &script, fixture.binary(target), &arguments));
        let text = run.finish();
        let mode = fs::metadata(run.out().join("precious")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{target}\n{text}");
        assert!(words(&text).contains("a mount was over `/proc` when the test ended"), "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// The kernel says that a child is left, and there is no list of the processes.
#[childproof::test(timeout = "180s")]
fn a_run_without_proc_ends_and_says_why() {
    if !may_mount() {
        return;
    }
    for target in ["harness", "stock"] {
        let (run, text) = run(target, "removes_proc", Duration::from_secs(60));
        let found = words(&text);
        for pid in run.marked() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        assert!(found.contains("removes_proc ... FAILED"), "{target}\n{text}");
        let sentence = "a process that the test left could not be killed: `/proc` does not list it";
        assert!(found.contains(sentence), "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// A file system whose server never answers: it is no process of a test, and reads nothing.
struct Stuck {
    device: File,
    at: CString,
}

impl Stuck {
    /// `None` on a machine without FUSE.
    #[allow(unsafe_code)]
    fn mount(at: &Path) -> Option<Stuck> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let [at, options] = [at.to_str().unwrap(), &options].map(|text| CString::new(text).unwrap());
        let (kind, data) = (c"fuse".as_ptr(), options.as_ptr().cast());
        // SAFETY: the strings are NUL-terminated.
        let mounted = unsafe { libc::mount(kind, at.as_ptr(), kind, 0, data) };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
        Some(Stuck { device, at })
    }

    /// Whatever still waits for an answer gets an error.
    #[allow(unsafe_code)]
    fn end(self) {
        drop(self.device);
        // SAFETY: the path is NUL-terminated.
        let _ = unsafe { libc::umount2(self.at.as_ptr(), libc::MNT_DETACH) };
    }
}

#[childproof::test(timeout = "240s")]
fn a_stuck_file_system_is_detached_and_keeps_no_guard_waiting() {
    if !may_mount() {
        return;
    }
    let _detached = Detached;
    let fixture = victim();
    for (body, sentence, limit) in [
        ("covers_its_directory_with_a_stuck_file_system", "the test left a mount in its `TMPDIR`", 10),
        ("covers_proc_with_a_stuck_file_system", "a mount was over `/proc` when the test ended", 20),
    ] {
        for target in TARGETS {
            let like = fixture.command(target, &[]);
            let script = format!("while ! test -e \"$VICTIM_OUT/ready\"; do sleep 0.01; done; {SCRIPT}");
            // The former must be detached in the mount namespace of all.
            let script =
                if body.contains("directory") { script.replace("unshare --mount ", "") } else { script };
            let arguments = [&format!("bodies::covers::{body}"), "--exact"];
            let mut run = Run::spawn(through_shell(&like, &script, fixture.binary(target), &arguments));
            let at = run.out().join("stuck");
            fs::create_dir(&at).unwrap();
            let stuck = Stuck::mount(&at);
            let begin = Instant::now();
            run.tell("ready");
            let text = run.finish();
            let took = begin.elapsed();
            let Some(stuck) = stuck else {
                println!("not checked: this machine has no FUSE");
                return;
            };
            stuck.end();
            assert!(took < Duration::from_secs(limit), "{target} {body}: it took {took:?}\n{text}");
            assert!(words(&text).contains(sentence), "{target} {body}\n{text}");
            assert!(words(&text).contains("proc shows processes"), "{target} {body}\n{text}");
            assert_eq!(mounted_below(&scratch()), Vec::<PathBuf>::new(), "{target} {body}\n{text}");
            run.assert_nothing_left(Duration::from_secs(2));
        }
    }
}
