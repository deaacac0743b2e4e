//! No wait that can end is reported as endless: random processes wait on random pipes, sockets, FIFOs, file locks and
//! terminals, and the
//! report is compared with the result computed from how they were made.
//!
//! `tests/fixtures/leaky/tests/graphs.rs` makes them.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::support::{Fixture, Ran, scratch};

/// Runs these graphs and compares.
fn check(graphs: std::ops::Range<u64>) {
    let fixture = Fixture::build("leaky");
    let json = scratch().join("graphs.json");
    let mut command = fixture.command("graphs", &["--test-threads=4", "--json", json.to_str().unwrap()]);
    command.env("GRAPHS", format!("{}..{}", graphs.start, graphs.end)).env("GRAPHS_OUT", scratch());
    let ran = Ran::of(&mut command);
    let (mut stuck, mut proved, mut sockets) = (0, 0, [0; 2]);
    for line in fs::read_to_string(&json).unwrap_or_else(|_| panic!("{}", ran.all())).lines() {
        let verdict: Value = serde_json::from_str(line).unwrap();
        let number = verdict["test"].as_str().unwrap().trim_start_matches("graph_").to_owned();
        let (mut at_socket, mut joins) = (Vec::new(), Vec::new());
        let truth: BTreeMap<i64, bool> = fs::read_to_string(scratch().join(&number))
            .unwrap()
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                at_socket.extend((words[2] == "socket").then(|| words[0].parse::<i64>().unwrap()));
                joins.extend((words[3] == "true").then(|| words[0].parse::<i64>().unwrap()));
                (words[0].parse().unwrap(), words[1] == "true")
            })
            .collect();
        stuck += truth.values().filter(|stuck| **stuck).count();
        sockets[0] += at_socket.iter().filter(|pid| truth[pid]).count();
        for wait in verdict["waits"].as_array().unwrap().iter().filter(|wait| wait["proved"] == true) {
            let pid = wait["pid"].as_i64().unwrap();
            let is_first = wait["tid"] == wait["pid"];
            assert!(is_first || joins.contains(&pid), "graph {number}: the second thread sleeps: {wait}");
            assert!(truth[&pid], "graph {number}: pid {pid} can wake: {wait}\n{truth:?}");
            proved += usize::from(is_first);
            sockets[1] += usize::from(is_first && at_socket.contains(&pid));
        }
    }
    // A process that had not run yet, on a busy machine, yields no false proof, but no proof either.
    assert!(stuck as u64 * 2 >= graphs.end - graphs.start, "{stuck} stuck: the graphs are too tame");
    assert!(proved * 10 >= stuck * 8, "{proved} of {stuck} that were stuck were found");
    let [at_sockets, proved_there] = sockets;
    assert!(
        proved_there * 10 >= at_sockets * 8 && at_sockets > 0,
        "{proved_there} of {at_sockets} at sockets"
    );
    println!("{proved} of {stuck} were found, and no other; {proved_there} of {at_sockets} at sockets");
}

#[childproof::test(timeout = "120s")]
fn have_no_false_proof() {
    check(0..60);
}

#[childproof::test(timeout = "20m")]
#[ignore = "takes minutes: `cargo test --test it -- --ignored graphs`"]
fn have_no_false_proof_in_two_thousand() {
    check(1000..3000);
}
