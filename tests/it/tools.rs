//! Tools that watch a program from within: coverage, and libraries that are loaded before all others.
//!
//! `tests/fixtures/team` has the tests.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Fixture, Ran, root, scratch};

/// A test process writes what it has covered at its exit.
#[childproof::test(timeout = "600s")]
fn coverage_is_written_by_each_test() {
    let built = Command::new(env!("CARGO"))
        .args(["test", "--no-run", "--quiet", "--message-format=json", "--package=a"])
        .current_dir(root().join("tests/fixtures/team"))
        .env("CARGO_TARGET_DIR", root().join("target/fixtures/coverage"))
        .env("RUSTFLAGS", "-Cinstrument-coverage")
        // It is built for this test alone.
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        // Of build scripts and macros.
        .env("LLVM_PROFILE_FILE", scratch().join("build-%p.profraw"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let lines = String::from_utf8_lossy(&built.stdout).into_owned();
    let binaries = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let binaries: Vec<Value> = binaries.filter(|message| message["executable"].is_string()).collect();
    for target in ["whole", "stock"] {
        let binary = binaries.iter().find(|message| message["target"]["name"] == target).unwrap();
        let like = Fixture::build("team").command(target, &[]);
        let directory = scratch().join(target);
        fs::create_dir(&directory).unwrap();
        let mut command = Command::new(binary["executable"].as_str().unwrap());
        for (name, _) in like.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        // As cargo-llvm-cov sets it: all processes with the same code merge what they have covered into one file.
        command.env("LLVM_PROFILE_FILE", directory.join("%p-%4m.profraw"));
        // The harness writes at its exit, when the hanging test was ended.
        command.args(["passes", "hangs_first", "--test-threads=2"]);
        command
            .current_dir(root().join("tests/fixtures/team/crates/a"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let is_full = |file: fs::DirEntry| file.metadata().is_ok_and(|data| data.len() > 0);
        let mut is_written = false;
        while !is_written && child.try_wait().unwrap().is_none() {
            is_written = fs::read_dir(&directory).unwrap().flatten().any(is_full);
            thread::sleep(Duration::from_millis(5));
        }
        let runs_on = child.try_wait().unwrap().is_none();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("1 passed; 1 failed"), "{text}");
        assert!(is_written && runs_on, "{target}: nothing was written before the harness ended\n{text}");
    }
}

/// A library that stands before libc in the look-up of `fork` and `posix_spawn`, as many tools do.
#[childproof::test]
fn a_preloaded_library_is_called_and_changes_no_verdict() {
    let (source, library, log) = (scratch().join("tool.c"), scratch().join("tool.so"), scratch().join("log"));
    let code = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <unistd.h>
static void note(void) {
    int fd = open(getenv("TOOL_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) { (void)!write(fd, "spawn\n", 6); close(fd); }
}
int posix_spawnp(pid_t *p, const char *f, const posix_spawn_file_actions_t *a, const posix_spawnattr_t *t,
                 char *const v[], char *const e[]) {
    int (*next)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],
                char *const[]) = dlsym(RTLD_NEXT, "posix_spawnp");
    note();
    return next(p, f, a, t, v, e);
}
"#;
    fs::write(&source, code).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").output();
    match built {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => return println!("skipped: cc is not installed"),
    }
    for target in ["whole", "stock"] {
        let _ = fs::remove_file(&log);
        let mut command = Fixture::build("team").command(target, &["passes", "leaks_first", "hangs_first"]);
        command.env("LD_PRELOAD", &library).env("TOOL_LOG", &log);
        let ran = Ran::of(command.current_dir(root().join("tests/fixtures/team/crates/a")));
        assert!(ran.stdout.contains("1 passed; 2 failed"), "{}", ran.all());
        let place = "It was spawned at crates/b/src/lib.rs:7:57 b::start";
        assert!(ran.stdout.contains(place), "{}", ran.all());
        let calls = fs::read_to_string(&log).unwrap_or_default().lines().count();
        assert_eq!(calls, 2, "{}", ran.all());
    }
}
