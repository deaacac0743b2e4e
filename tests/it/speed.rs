//! The cost of a clean test, in units that can be counted exactly: syscalls, forks and execs.
//!
//! Times are measured by `cargo bench`. A slow path in every test shows here, on a machine of any speed and
//! load.

use std::collections::BTreeMap;

use crate::invariants::{by_process, is_installed, traced, victim};

/// The maximal depth of the process tree in a run of a clean test.
const MOST: usize = 7;

/// The parts of a run from the top of its tree downwards, and the most syscalls that each may make for one
/// clean test. Measured are 7, 0, 0, 16 and 32, some of which a release build does not make; in a stock
/// target the harness makes 33, all but 4 of them for libtest's thread. There the net is forked by an exec'ed
/// process that is not a direct child of the harness: two processes more.
const BUDGETS: [(&str, &[(&str, usize)]); 2] = [
    ("harness", &[("harness", 8), ("net", 0), ("fork server", 0), ("supervisor", 18), ("test process", 32)]),
    (
        "stock",
        &[
            ("harness", 34),
            ("keeper", 0),
            ("process that is taken over", 0),
            ("net", 0),
            ("fork server", 0),
            ("supervisor", 18),
            ("test process", 32),
        ],
    ),
];

/// The calls at the end of a run vary with the order of exits: a wait may find one exited process or two.
/// Less than one call per test.
const SLACK: usize = 6;

/// Sixteen clean tests against eight: the difference is eight times the cost of a clean test.
#[childproof::test(timeout = "120s")]
fn a_clean_test_costs_one_fork_no_exec_and_few_syscalls() {
    if !is_installed("strace") {
        return;
    }
    let fixture = victim();
    for (target, budgets) in BUDGETS {
        let count = |filter: &str, below: [usize; 2]| {
            // One process of each part, and as many supervisors and test processes as needed.
            let mut processes = [0; MOST];
            processes[..budgets.len()].fill(1);
            processes[budgets.len() - 2..budgets.len()].copy_from_slice(&below);
            let mut count = Count::default();
            // On a busy machine a run may be over before a supervisor has preforked.
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
        let one = count("bodies::nothing::a", [1, 1]);
        // Supervisors take turns, and each has preforked a process when there are no more tests.
        let eight = count("bodies::nothing::", [2, 8 + 2]);
        let sixteen = count("bodies::nothing", [2, 16 + 2]);
        assert_eq!([eight.execs, sixteen.execs], [one.execs; 2], "{target}: {sixteen:#?}");
        for (depth, &(part, budget)) in budgets.iter().enumerate() {
            let calls = sixteen.calls_beyond(&eight, depth);
            let total: usize = calls.values().sum();
            assert!(
                total <= 8 * budget + SLACK,
                "{target}: 8 clean tests cost the {part} {total} calls: {calls:?}"
            );
        }
    }
}

/// The most page faults that the processes of one clean test may take together, in an unoptimised build: each
/// maps up to 16 pages or copies one, and costs some 2 us. Measured are 61 to 74, depending on the layout of
/// functions and libraries: 11 in its supervisor, the rest in the test process. A few additional functions in
/// the fast path add as many.
const PAGE_FAULTS: u64 = 80;

/// Sixteen clean tests against eight, by the kernel's counter for children that were waited for.
#[childproof::test(timeout = "120s")]
fn a_clean_test_takes_few_page_faults() {
    let fixture = victim();
    let faults = |filter: &str| {
        let before = faults_of_children();
        let ran = fixture.run("harness", &[filter, "--test-threads=1"]);
        assert!(ran.all().contains("test result: ok"), "{}", ran.all());
        faults_of_children() - before
    };
    // A disturbance adds to the count, in either run.
    let least = |filter: &str| (0..10).map(|_| faults(filter)).min().unwrap();
    let (eight, sixteen) = (least("bodies::nothing::"), least("bodies::nothing"));
    let each = sixteen.saturating_sub(eight) / 8;
    assert!(each <= PAGE_FAULTS, "a clean test takes {each} page faults: {eight} for 8, {sixteen} for 16");
}

/// `cminflt` of this process (proc_pid_stat(5)).
fn faults_of_children() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(8).unwrap().parse().unwrap()
}

/// The calls of a trace, by depth in the process tree.
#[derive(Debug, Default)]
struct Count {
    processes: [usize; MOST],
    calls: [BTreeMap<String, usize>; MOST],
    execs: usize,
}

impl Count {
    fn of(trace: &str) -> Count {
        let by_process = by_process(trace);
        // The creator of each process, and whether it is a thread of that process.
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
            assert!(depth < MOST, "a clean test starts no process: {calls:?}");
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
