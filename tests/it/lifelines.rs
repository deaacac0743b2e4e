//! [`childproof::lifeline::Command`]: a process tree that dies with its owner.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use childproof::lifeline::{Command, Guarded};
use nix::libc;
use nix::sys::signal::Signal;

use crate::support::{parent, send};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pipe that each process of a tree inherits: at EOF once all of them are gone.
struct Tree {
    read: std::io::PipeReader,
    guarded: Guarded,
}

/// Starts a shell script that has the write end of the pipe as its stdout, and waits for its first byte.
fn tree(script: &str) -> Tree {
    let (mut read, write) = std::io::pipe().unwrap();
    let guarded = Command::new("sh").args(["-c", script]).stdout(write).spawn().unwrap();
    let mut byte = [0];
    assert_eq!(read.read(&mut byte).unwrap(), 1, "the script has not begun");
    Tree { read, guarded }
}

/// A plain child, one in another session, and one that ignores SIGTERM and SIGHUP, each with a child.
const MIXED: &str = "sleep 3137 & setsid sh -c 'sleep 3137 & sleep 3137' & \
                     sh -c 'trap \"\" TERM HUP; sleep 3137 & wait' & echo; wait";

/// Whether a pipe reaches EOF in time: all holders of its write end are gone.
fn is_over(read: std::io::PipeReader) -> bool {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut read = read;
        let _ = sender.send(read.read_to_end(&mut Vec::new()));
    });
    receiver.recv_timeout(PATIENCE).is_ok()
}

#[childproof::test(timeout = "180s")]
fn a_command_has_its_streams_status_environment_and_directory() {
    let mut command = Command::new("sh");
    command.args(["-c", "pwd; echo \"$A$CHILDPROOF_GUARD.$HOME\"; cat; exit 7"]);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("A", "b").current_dir("/");
    let mut guarded = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    guarded.stdin.take().unwrap().write_all(b"c").unwrap();
    let mut text = String::new();
    guarded.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "/\nb.\nc");
    let ended = guarded.wait().unwrap();
    assert_eq!((ended.status.code(), ended.left), (Some(7), vec![]));
    // Asked again, it says the same.
    assert_eq!(guarded.wait().unwrap().status.code(), Some(7));
}

#[childproof::test(timeout = "180s")]
fn what_a_command_has_left_is_killed_and_named() {
    let Tree { read, mut guarded } = tree("setsid sleep 3137 & echo; exit 0");
    let ended = guarded.wait().unwrap();
    let left: Vec<String> = ended.left.iter().map(|left| left.command.join(" ")).collect();
    // The shell's fork may not have called exec yet.
    assert!(ended.status.success() && matches!(&left[..], [one] if one.contains("sleep 3137")), "{ended:?}");
    assert!(is_over(read));
}

#[childproof::test(timeout = "180s")]
fn a_drop_kills_the_whole_tree() {
    let Tree { read, guarded } = tree(MIXED);
    drop(guarded);
    assert!(is_over(read));
}

#[childproof::test(timeout = "180s")]
fn a_kill_kills_the_whole_tree_and_says_so() {
    let Tree { read, mut guarded } = tree(MIXED);
    assert!(guarded.wait_timeout(Duration::from_millis(1)).unwrap().is_none());
    assert_eq!(guarded.kill().unwrap().status.signal(), Some(libc::SIGKILL));
    assert!(is_over(read));
}

#[childproof::test(timeout = "180s")]
fn the_death_of_the_owner_kills_the_whole_tree() {
    let (mut read, write) = std::io::pipe().unwrap();
    // SAFETY: this process has one thread.
    #[allow(unsafe_code)]
    let owner = unsafe { nix::unistd::fork() }.unwrap();
    if owner.is_child() {
        let guarded = Command::new("sh").args(["-c", MIXED]).stdout(write).spawn().unwrap();
        std::mem::forget(guarded);
        loop {
            nix::unistd::pause();
        }
    }
    drop(write);
    assert_eq!(read.read(&mut [0]).unwrap(), 1);
    let nix::unistd::ForkResult::Parent { child } = owner else { unreachable!() };
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    nix::sys::wait::waitpid(child, None).unwrap();
    assert!(is_over(read));
}

#[childproof::test(timeout = "180s")]
fn many_threads_may_start_commands_at_once() {
    let begin = Instant::now();
    let threads: Vec<_> = (0..8)
        .map(|number: i32| {
            std::thread::spawn(move || {
                let script = format!("exit {number}");
                let mut guarded = Command::new("sh").args(["-c", &script]).spawn().unwrap();
                assert_eq!(guarded.wait().unwrap().status.code(), Some(number));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(begin.elapsed() < PATIENCE);
}

/// The sockets that a process has open.
fn sockets(pid: i32) -> HashSet<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    files.filter(|file| file.to_string_lossy().starts_with("socket:")).collect()
}

/// Starts a guarded command while another thread forks without exec. Returns it with the forks.
#[allow(unsafe_code)]
fn guarded_among_forks() -> (Guarded, Vec<nix::unistd::Pid>) {
    let is_started = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_started);
    let forking = std::thread::spawn(move || {
        let mut forks = Vec::new();
        while !over.load(Ordering::Relaxed) && forks.len() < 200 {
            // SAFETY: the child makes one system call, which is async-signal-safe, until it is killed.
            match unsafe { nix::unistd::fork() }.unwrap() {
                nix::unistd::ForkResult::Child => loop {
                    // SAFETY: takes nothing.
                    unsafe { libc::pause() };
                },
                nix::unistd::ForkResult::Parent { child } => forks.push(child),
            }
        }
        forks
    });
    let guarded = Command::new("sleep").arg("3137").spawn().unwrap();
    is_started.store(true, Ordering::Relaxed);
    (guarded, forking.join().unwrap())
}

#[childproof::test(timeout = "180s", threaded_fork = "allow")]
fn the_death_of_the_guard_is_noticed_also_if_a_fork_holds_its_socket() {
    let begin = Instant::now();
    loop {
        let (mut guarded, forks) = guarded_among_forks();
        let own = sockets(std::process::id() as i32);
        // The guard's end of the socket: the owner has closed it.
        let holds_one = forks.iter().any(|fork| !sockets(fork.as_raw()).is_subset(&own));
        send(parent(guarded.id() as i32), Signal::SIGKILL);
        let ended = guarded.wait_timeout(PATIENCE);
        for fork in forks {
            nix::sys::signal::kill(fork, Signal::SIGKILL).unwrap();
            nix::sys::wait::waitpid(fork, None).unwrap();
        }
        assert!(ended.is_err(), "{ended:?}");
        if holds_one {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "no fork has the socket");
    }
}

#[childproof::test(timeout = "180s")]
fn a_program_that_is_not_there_is_an_error() {
    let error = Command::new("/nonexistent/program").spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let mut command = Command::new("true");
    command.spawn().unwrap().wait().unwrap();
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// A library of the owner's program starts a process wherever it is loaded: one in the guard, and one in the command.
const STARTS_A_PROCESS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const char *of;
__attribute__((constructor)) static void start(void) {
    int ends[2];
    char path[4096];
    of = getenv("CHILDPROOF_GUARD") ? "guard" : "command";
    if (pipe(ends) || fork()) {
        // Until it has written its number.
        close(ends[1]);
        (void)!read(ends[0], path, 1);
        close(ends[0]);
        return;
    }
    snprintf(path, sizeof path, "%s/%s", getenv("TMPDIR"), of);
    FILE *file = fopen(path, "w");
    fprintf(file, "%d", getpid());
    fclose(file);
    for (int fd = 0; fd < 64; fd++) close(fd);
    for (;;) pause();
}
"#;

#[childproof::test(timeout = "180s")]
fn what_a_library_has_started_in_the_guard_is_left_alone() {
    let (source, library) = (std::env::temp_dir().join("starts.c"), std::env::temp_dir().join("starts.so"));
    std::fs::write(&source, STARTS_A_PROCESS).unwrap();
    let built =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output();
    match built {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => return println!("skipped: cc is not installed"),
    }
    let begin = Instant::now();
    let mut guarded = Command::new("true").env("LD_PRELOAD", &library).spawn().unwrap();
    let ended = guarded.wait().unwrap();
    drop(guarded);
    let pid = |of| std::fs::read_to_string(std::env::temp_dir().join(of)).unwrap().parse::<i32>().unwrap();
    let lives = crate::support::alive(pid("guard"));
    let _ =
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid("guard")), nix::sys::signal::Signal::SIGKILL);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.left.iter().map(|left| left.pid as i32).collect::<Vec<_>>(), [pid("command")]);
    assert!(!crate::support::alive(pid("command")));
    assert!(lives, "the library's process was killed");
    assert!(begin.elapsed() < PATIENCE);
}
