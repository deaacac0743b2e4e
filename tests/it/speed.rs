//! What a clean test may cost, in what can be counted exactly: syscalls, forks and execs.
//!
//! Times are for `cargo bench`. A slow path that creeps into every test shows here, on a machine
//! of any speed and load.

use std::collections::BTreeMap;

use crate::invariants::{by_process, is_installed, traced, victim};

/// The parts of a run from the top of its tree downwards.
const PARTS: [&str; 4] = ["harness", "fork server", "supervisor", "test process"];

/// The most syscalls that each part may make for one clean test. Measured are 6, 0, 16 and 29, some
/// of which a release build does not make; in a stock target the harness makes 29, all but 4 of
/// them for libtest's thread.
const BUDGETS: [(&str, [usize; 4]); 2] = [("harness", [8, 0, 18, 32]), ("stock", [34, 0, 18, 32])];

/// What the end of a run may cost more or less, by who comes first: whoever looks finds one process
/// ended or two. Less than one call a test.
const SLACK: usize = 6;

/// Sixteen clean tests against eight: eight times the cost of a clean test.
#[childproof::test(timeout = "120s")]
fn a_clean_test_costs_one_fork_no_exec_and_few_syscalls() {
    if !is_installed("strace") {
        return;
    }
    let fixture = victim();
    // Whoever runs this may have left fds open, and each is looked at.
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let found: Vec<usize> = open.filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect();
    let for_found = 2 * (found.len() - 3) + found.iter().max().unwrap() / 64;
    for (target, budgets) in BUDGETS {
        let count = |filter: &str, processes: [usize; 4]| {
            let mut count = Count::default();
            // On a loaded machine a run may be over before a supervisor has forked ahead.
            for _ in 0..20 {
                let (text, trace) = traced(&fixture, target, &[filter, "--test-threads=1"], "trace=all");
                assert!(text.contains("test result: ok"), "{target}\n{text}");
                count = Count::of(&trace);
                if count.processes == processes {
                    return count;
                }
            }
            panic!("{target}: {processes:?} were expected for {filter}, and not {count:#?}");
        };
        let one = count("bodies::nothing::a", [1, 1, 1, 1]);
        // Supervisors take turns, and each has forked the process of a next test when there are no more.
        let eight = count("bodies::nothing::", [1, 1, 2, 8 + 2]);
        let sixteen = count("bodies::nothing", [1, 1, 2, 16 + 2]);
        assert_eq!([eight.execs, sixteen.execs], [one.execs; 2], "{target}: {sixteen:#?}");
        for (depth, (part, budget)) in PARTS.into_iter().zip(budgets).enumerate() {
            let calls = sixteen.calls_beyond(&eight, depth);
            let total: usize = calls.values().sum();
            let budget = if part == "test process" { budget + for_found } else { budget };
            assert!(
                total <= 8 * budget + SLACK,
                "{target}: 8 clean tests cost the {part} {total} calls: {calls:?}"
            );
        }
    }
}

/// What a trace has, by depth in the tree of processes.
#[derive(Debug, Default)]
struct Count {
    processes: [usize; PARTS.len()],
    calls: [BTreeMap<String, usize>; PARTS.len()],
    execs: usize,
}

impl Count {
    fn of(trace: &str) -> Count {
        let by_process = by_process(trace);
        // Who made it, and whether it is a thread of that process and no process.
        let mut makers: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
        for (pid, calls) in &by_process {
            let made = calls.iter().filter(|call| {
                let name = name(call);
                name.starts_with("clone") || name.ends_with("fork")
            });
            for call in made {
                let child = call.rsplit("= ").next().unwrap_or_default();
                makers.insert(child, (pid, call.contains("CLONE_THREAD")));
            }
        }
        let is_thread = |pid: &str| makers.get(pid).is_some_and(|(_, is_thread)| *is_thread);
        let depth = |pid: &str| {
            let line = std::iter::successors(Some(pid), |pid| makers.get(*pid).map(|(maker, _)| *maker));
            line.filter(|pid| !is_thread(pid)).count() - 1
        };
        let mut count = Count::default();
        for (pid, calls) in &by_process {
            let depth = depth(pid);
            assert!(depth < PARTS.len(), "a clean test starts no process: {calls:?}");
            count.processes[depth] += usize::from(!is_thread(pid));
            for call in calls {
                let name = name(call);
                count.execs += usize::from(name.starts_with("exec"));
                *count.calls[depth].entry(name.to_owned()).or_default() += 1;
            }
        }
        count
    }

    /// The calls at one depth that the other run did not make.
    fn calls_beyond(&self, other: &Count, depth: usize) -> BTreeMap<String, usize> {
        let other = &other.calls[depth];
        let beyond = |(name, count): (&String, &usize)| {
            (name.clone(), count.saturating_sub(*other.get(name).unwrap_or(&0)))
        };
        self.calls[depth].iter().map(beyond).filter(|(_, count)| *count > 0).collect()
    }
}

fn name(call: &str) -> &str {
    call.split('(').next().unwrap_or_default()
}
