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

/// Builds `tests/fixtures/sanitized` with a sanitizer; `None` where there is no nightly toolchain.
fn sanitized(sanitizer: &str) -> Option<Vec<Value>> {
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        println!("skipped: no nightly toolchain is installed");
        return None;
    }
    // The standard library is not built with it, which rustc must be told.
    let flags = format!("-Zsanitizer={sanitizer} -Cunsafe-allow-abi-mismatch=sanitizer");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let built = Command::new("rustup")
        .args(["run", "nightly", "cargo", "test", "--no-run", "--quiet", "--message-format=json"])
        .args(["--target", &host])
        .current_dir(root().join("tests/fixtures/sanitized"))
        .env("CARGO_TARGET_DIR", root().join("target/fixtures").join(sanitizer))
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let lines = String::from_utf8_lossy(&built.stdout).into_owned();
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Some(messages.filter(|message| message["executable"].is_string()).collect())
}

/// The standard library is not built with it, so ThreadSanitizer reports races of its own in libtest.
fn sanitizes(sanitizer: &str, found: &[(&str, &str)]) {
    let Some(binaries) = sanitized(sanitizer) else { return };
    let like = Fixture::build("strangers").command("stock", &[]);
    for target in ["harness", "stock"] {
        let binary = binaries.iter().find(|message| message["target"]["name"] == target).unwrap();
        let run = |test: &str| {
            let mut command = Command::new(binary["executable"].as_str().unwrap());
            for (name, _) in like.get_envs().filter(|(_, value)| value.is_none()) {
                command.env_remove(name);
            }
            Ran::of(command.args([test, "--exact", "--nocapture"]))
        };
        for (test, words) in found {
            let ran = run(test);
            assert!(ran.all().contains(words), "{target} {test}: no {words:?} in\n{}", ran.all());
            for charged in ["left 1 process", "pipe end", "without a guard left"] {
                assert!(!ran.all().contains(charged), "{target} {test}\n{}", ran.all());
            }
        }
        assert!(run("passes").stdout.contains("1 passed; 0 failed"), "{target}");
        let ran = run("leaks_a_process");
        assert!(ran.all().contains("LEAK  leaks_a_process"), "{target}\n{}", ran.all());
    }
}

#[childproof::test(timeout = "900s")]
#[ignore = "some minutes: builds all dependencies by a nightly toolchain"]
fn what_address_sanitizer_finds_fails_its_test_and_its_symbolizer_is_not_charged() {
    let found = [
        ("uses_after_free", "ERROR: AddressSanitizer: heap-use-after-free"),
        ("leaks_memory", "ERROR: LeakSanitizer: detected memory leaks"),
    ];
    sanitizes("address", &found);
}

#[childproof::test(timeout = "900s")]
#[ignore = "some minutes: builds all dependencies by a nightly toolchain"]
fn what_thread_sanitizer_finds_is_shown_and_its_symbolizer_is_not_charged() {
    sanitizes("thread", &[("races", "WARNING: ThreadSanitizer: data race")]);
}
