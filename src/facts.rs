//! What a supervisor saw of one test, as it sends it to the harness. Facts only: what they mean
//! is concluded in `diagnosis`.

use std::collections::HashMap;
use std::time::Duration;

use crate::outcome::{Body, End, StrayFd};
use crate::proc::fds::{self, Fd};
use crate::proc::maps::Address;
use crate::proc::process::{self, Stat};
use crate::proc::tree::Tree;
use crate::proc::waits::{self, Wait};
use crate::sys::Pid;
use crate::wire::{wire_enum, wire_struct};

wire_enum! {
    /// What became of a descendant that the test did not take down itself.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Class {
        /// Alive after the grace, or at the timeout. Killed.
        Leaked,
        /// Alive at the end of the body, and gone by itself within the grace.
        Straggler,
        /// Dead at the end of the body, and never waited for: a zombie.
        Unwaited,
    }
}

wire_struct! {
    /// One process that was there at the end of a test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Process {
        pub(crate) pid: i32,
        pub(crate) class: Class,
        /// The ancestors up to the test process, nearest first, as far as they were seen.
        pub(crate) lineage: Vec<i32>,
        /// Whether its parent exited before it did.
        pub(crate) adopted: bool,
        pub(crate) is_test: bool,
        pub(crate) comm: String,
        /// Empty for a zombie.
        pub(crate) command_line: Vec<String>,
        pub(crate) state: String,
        pub(crate) pgid: i32,
        pub(crate) sid: i32,
        pub(crate) threads: u32,
        /// A fork of the test that has not called exec since: it runs the test's own program.
        pub(crate) forked_without_exec: bool,
        pub(crate) age: Option<Duration>,
        pub(crate) wait: Option<Wait>,
        /// The test's pipes that it holds; `None` if they may not be read.
        pub(crate) fds: Option<Vec<Fd>>,
        pub(crate) killed: bool,
    }
}

wire_struct! {
    /// A process that could not be killed, and why.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Survivor {
        pub(crate) pid: i32,
        pub(crate) name: String,
        pub(crate) why: String,
    }
}

wire_struct! {
    /// A call that made a process or a pair of fds.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Site {
        /// The function: `pipe2`, `fork`, `posix_spawnp`.
        pub(crate) call: String,
        pub(crate) is_process: bool,
        /// The pid of the process that called it.
        pub(crate) maker: i32,
        /// Inodes of the fds, or the pid of the process that was made.
        pub(crate) keys: [u64; 2],
        /// Of a fork: how many threads the caller had, 0 if that is not known.
        pub(crate) threads: u32,
        /// Of a fork: the name of the thread that called; `main` for the first one.
        pub(crate) thread: String,
        /// Of a fork: the child has called an `exec`, whatever came of it.
        pub(crate) execed: bool,
        /// The return addresses of the call, the innermost first.
        pub(crate) frames: Vec<Address>,
    }
}

wire_struct! {
    /// Everything a supervisor tells of one test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Facts {
        pub(crate) pid: i32,
        /// The session that the test was started in: the supervisor's. 0 if there was none.
        pub(crate) session: i32,
        pub(crate) body: Body,
        pub(crate) body_time: Option<Duration>,
        pub(crate) end: End,
        /// From the request to the verdict.
        pub(crate) time: Duration,
        pub(crate) processes: Vec<Process>,
        pub(crate) strays: Vec<StrayFd>,
        /// More than `strays` lists when there were too many to keep.
        pub(crate) stray_count: u32,
        pub(crate) threads: u32,
        pub(crate) returned_children: u32,
        pub(crate) survivors: Vec<Survivor>,
        /// Who made what was left.
        pub(crate) sites: Vec<Site>,
        /// What could not be read or cleaned, in words.
        pub(crate) notes: Vec<String>,
    }
}

impl Facts {
    /// Facts of a test that could not be run or followed.
    pub(crate) fn lost(why: String) -> Facts {
        Facts {
            pid: 0,
            session: 0,
            body: Body::Unfinished,
            body_time: None,
            end: End::Lost { why },
            time: Duration::ZERO,
            processes: Vec::new(),
            strays: Vec::new(),
            stray_count: 0,
            threads: 0,
            returned_children: 0,
            survivors: Vec::new(),
            sites: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// The descendants of a supervisor at one moment.
#[derive(Default)]
pub(crate) struct Snapshot {
    tree: Tree,
    processes: Vec<Process>,
}

/// What is known of a test before anybody looks.
pub(crate) struct Scene<'a> {
    pub(crate) supervisor: Pid,
    /// The test process, dead or alive.
    pub(crate) test: Pid,
    /// The inodes of pipes that were there before the test, and are none of its doing.
    pub(crate) foreign: Vec<u64>,
    /// The test binary's arguments.
    pub(crate) command_line: &'a [String],
}

impl Snapshot {
    /// Looks at everything below the supervisor.
    pub(crate) fn take(scene: &Scene<'_>) -> Snapshot {
        let Scene { supervisor, test, .. } = *scene;
        let tree = Tree::read();
        let uptime = uptime();
        let processes = tree
            .below(supervisor, &[])
            .into_iter()
            // A zombie below another descendant is that parent's business, and it may still wait.
            .filter(|stat| !stat.is_zombie() || stat.ppid == test || stat.pid == test)
            .map(|stat| Process { fds: pipes_of(stat, &scene.foreign), ..look(stat, &tree, scene, uptime) })
            .collect();
        Snapshot { tree, processes }
    }

    /// The processes besides the test process itself, as they were.
    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Keeps of a later look what only the earlier one could know: who the parents were.
    pub(crate) fn remember(&mut self, earlier: &Snapshot) {
        let known: HashMap<Pid, &Process> =
            earlier.processes.iter().map(|process| (process.pid, process)).collect();
        for process in &mut self.processes {
            let Some(before) = known.get(&process.pid) else {
                continue;
            };
            let same = earlier.tree.get(process.pid).map(|stat| stat.start_ticks)
                == self.tree.get(process.pid).map(|stat| stat.start_ticks);
            if same && before.lineage.len() > process.lineage.len() {
                process.lineage.clone_from(&before.lineage);
                // That its parent ended with the test, on our word, is no news.
                process.adopted = before.adopted;
            }
        }
    }

    pub(crate) fn into_processes(self) -> Vec<Process> {
        self.processes
    }
}

fn look(stat: &Stat, tree: &Tree, scene: &Scene<'_>, uptime: Option<Duration>) -> Process {
    let Scene { supervisor, test, .. } = *scene;
    let zombie = stat.is_zombie();
    let mut lineage = Vec::new();
    let mut parent = stat.ppid;
    while parent != supervisor && lineage.len() < 64 {
        lineage.push(parent);
        match tree.get(parent) {
            Some(stat) => parent = stat.ppid,
            None => break,
        }
    }
    let command_line = if zombie { Vec::new() } else { process::command_line(stat.pid) };
    Process {
        pid: stat.pid,
        class: if zombie { Class::Unwaited } else { Class::Leaked },
        adopted: stat.ppid == supervisor && stat.pid != test,
        is_test: stat.pid == test,
        lineage,
        comm: stat.comm.clone(),
        state: stat.state.to_string(),
        pgid: stat.pgid,
        sid: stat.sid,
        threads: stat.threads,
        // The flag is set for forks of other programs too.
        forked_without_exec: stat.forked_without_exec && command_line == scene.command_line,
        command_line,
        age: uptime.and_then(|now| now.checked_sub(since_boot(stat.start_ticks))),
        wait: if zombie { None } else { waits::read(stat.pid) },
        fds: None,
        killed: false,
    }
}

/// The pipes that a process holds, but for the foreign ones; `None` if it may not be read.
fn pipes_of(stat: &Stat, foreign: &[u64]) -> Option<Vec<Fd>> {
    if stat.is_zombie() {
        return Some(Vec::new());
    }
    let mut fds = fds::read(stat.pid).ok()?;
    fds.retain(|fd| fd.pipe().is_some_and(|ino| !foreign.contains(&ino)));
    Some(fds)
}

fn since_boot(ticks: u64) -> Duration {
    // USER_HZ has been 100 on every Linux architecture but alpha and ia64, which are gone.
    Duration::from_millis(ticks.saturating_mul(10))
}

fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}
