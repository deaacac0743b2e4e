//! A test that leaves nothing is never said to leave something.

use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use crate::proof::{fixture, trials};
use crate::support::Run;

/// It has ended by itself, and the kernel frees its memory.
#[childproof::test]
fn an_exit_that_began_within_the_grace_is_waited_for() {
    let fixture = fixture();
    for target in ["harness", "stock"] {
        let ran = fixture.run(target, &["exits_slowly", "--test-threads=1"]);
        assert!(ran.stdout.contains("2 passed; 0 failed"), "{}", ran.all());
    }
}

/// Runs clean tests on a machine with as many more processes that use its CPUs.
fn check(count: usize, load: usize) {
    let fixture = fixture();
    let spin = || Killed(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap());
    let _load: Vec<Killed> = (0..load).map(|_| spin()).collect();
    let mut command = fixture.command("harness", &["clean_", "--quiet"]);
    command.env("PROOF_CLEAN", format!("0..{count}"));
    let mut run = Run::spawn(command);
    let text = run.finish_within(Duration::from_secs(7200));
    assert!(text.contains(&format!("{count} passed; 0 failed")), "{text}");
    println!("{count} clean tests beside {load} busy processes: no false alarm, in {:.0?}", run.took());
}

/// A child that is killed at the end of a test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[childproof::test(timeout = "180s")]
fn of_clean_tests_are_none() {
    check(60, 0);
}

#[childproof::test(timeout = "130m")]
#[ignore = "takes every processor from the tests beside it: \
            `PROOF_TRIALS=10000 cargo test --test it -- --ignored --nocapture proof::alarms`"]
fn of_clean_tests_on_busy_cpus_are_none() {
    check(trials(10_000), 8 * thread::available_parallelism().map_or(1, usize::from));
}
