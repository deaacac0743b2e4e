//! A test binary without childproof: three tests on threads of one process.

use std::process::Command;
use std::sync::Barrier;

/// Each test waits for the others, so that there are several threads.
static TOGETHER: Barrier = Barrier::new(3);

#[test]
fn leaves_nothing() {
    TOGETHER.wait();
    assert!(Command::new("true").status().unwrap().success());
}

#[test]
fn leaks_a_sleep() {
    TOGETHER.wait();
    std::mem::forget(Command::new("sleep").arg("3137").spawn().unwrap()); // MARK spawned
}

#[test]
fn forks_among_threads() {
    unsafe extern "C" {
        fn fork() -> i32;
        fn pause() -> i32;
    }
    TOGETHER.wait();
    if unsafe { fork() } == 0 { // MARK forked
        loop {
            unsafe { pause() };
        }
    }
}
