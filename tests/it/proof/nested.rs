//! Guarded children of guarded children: whichever dies, the others end too, whatever was forked beside.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::proof::{Held, each, fixture, trials};
use crate::support::{Fixture, send};

/// Sufficient for a busy machine, and shorter than a guard waits for a request. The longest time is printed.
const LIMIT: Duration = Duration::from_secs(20);

/// Kills the parent, the child or the grandchild, and returns how long it takes until all are gone.
fn kill_one(fixture: &Fixture, victim: u32) -> Duration {
    let mut held = Held::start(&fixture.command("lifelined", &["0"]));
    for role in 0..3 {
        held.run.wait_for(&format!("lifelined-{role}"));
    }
    let victim = held.run.wait_for(&format!("lifelined-{victim}"));
    let begin = Instant::now();
    send(victim.parse().unwrap(), Signal::SIGKILL);
    assert!(held.are_gone(LIMIT), "{:?}\n{}", held.run.marked(), held.run.text());
    begin.elapsed()
}

fn check(count: usize) {
    let fixture = fixture();
    let victims = (0..3).flat_map(|victim| std::iter::repeat_n(victim, count)).collect();
    let longest = each(victims, |victim| kill_one(&fixture, victim)).into_iter().max().unwrap();
    println!("{count} times each of parent, child and grandchild: nothing left after {longest:.2?} at most");
}

#[childproof::test(timeout = "120s")]
fn children_end_with_any_of_them() {
    check(2);
}

#[childproof::test(timeout = "60m")]
#[ignore = "takes minutes: `cargo test --test it -- --ignored --nocapture proof::nested`"]
fn children_end_with_any_of_them_in_many_trials() {
    check(trials(100));
}

/// The owner is killed at any moment, from its start to the start of the grandchild.
#[childproof::test(timeout = "300s")]
fn lifeline_zero_orphans_across_100_trials() {
    let fixture = fixture();
    let moments = (0..100).map(|trial| Duration::from_micros(600) * trial).collect();
    let longest = each(moments, |moment| {
        let held = Held::start(&fixture.command("lifelined", &["0"]));
        thread::sleep(moment);
        let begin = Instant::now();
        send(held.run.pid(), Signal::SIGKILL);
        assert!(held.are_gone(LIMIT), "after {moment:?}: {:?}\n{}", held.run.marked(), held.run.text());
        begin.elapsed()
    });
    println!("no orphan in 100 trials, the last after {:.2?}", longest.into_iter().max().unwrap());
}
