//! What tests without a guard have left at the end of a stock target.
//!
//! Their process has no guard and keeps its orphans nowhere: so what is found is only what descends from it, or what it
//! is known to have started. Nothing is killed.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::policy::{self, Level};
use crate::config::registry;
use crate::diagnosis::{allows, test_of_call};
use crate::proc::fds::{self, Fd};
use crate::proc::process::{SYMBOLIZER, Stat, command_line};
use crate::proc::tree::Tree;
use crate::recorder::call_site::Names;
#[cfg(feature = "sites")]
use crate::recorder::call_site::ResourceKind;
use crate::recorder::hooks::{Log, Recorder};
#[cfg(feature = "sites")]
use crate::recorder::symbols::{self, Threads};
use crate::report::leftovers::{self, Leftover};
use crate::sys::{self, Mark};

/// How often it is checked whether what is left has ended.
const AGAIN: Duration = Duration::from_millis(10);

/// The process in which libtest runs tests, before `main`.
struct Run {
    process: Stat,
    /// What constructors have started.
    before: Vec<Stat>,
    log: Option<Recorder>,
}

static RUN: OnceLock<Run> = OnceLock::new();
/// Set in that process, and not in its forks.
static BEGUN: Mark = Mark::new();

/// Records what this process starts, and checks at its end what is left. Runs before `main`.
pub(crate) fn begin() {
    if !registry::has_libtest() {
        return;
    }
    let level = policy::unguarded(registry::target_unguarded(), |name| std::env::var_os(name));
    let Some(process) = Stat::of_self().filter(|_| level != Level::Allow) else { return };
    let before = if sys::has_no_child() { Vec::new() } else { descendants(&process, &Tree::read()) };
    let run = Run { process, before, log: Log::install(0).ok() };
    if RUN.set(run).is_ok() {
        BEGUN.prepare();
        BEGUN.set();
        sys::at_exit(end);
    }
}

fn descendants(process: &Stat, tree: &Tree) -> Vec<Stat> {
    tree.below(process.pid, &[])
        .into_iter()
        .filter(|stat| stat.pid != process.pid && !stat.is_zombie())
        .cloned()
        .collect()
}

extern "C" fn end() {
    let Some(run) = RUN.get().filter(|_| BEGUN.get().is_some()) else { return };
    let started = run.log.as_ref().map(|log| log.created()).unwrap_or_default();
    if started.is_empty() && sys::has_no_child() {
        return;
    }
    let get = |name: &str| std::env::var_os(name);
    // An invalid value of a variable has failed each guarded test.
    let settings =
        policy::from_environment(get).unwrap_or_default().over(&registry::target_policy()).settle();
    let until = Instant::now() + settings.grace;
    let left = loop {
        let left = run.left(&started, &settings.allow_process);
        if left.is_empty() {
            return;
        }
        if Instant::now() >= until {
            break left;
        }
        thread::sleep(AGAIN);
    };
    // The guard above reports it with the test that has started this program.
    if Stat::has_own_guard_above() {
        return;
    }
    let names = run.names(&left);
    let left: Vec<Leftover<'_>> = left
        .iter()
        .map(|(stat, command_line)| Leftover {
            pid: stat.pid,
            comm: &stat.comm,
            command_line,
            site: names.of_process(stat.pid),
            test: names.of_process(stat.pid).and_then(test_of_call),
            outputs: outputs(stat.pid),
        })
        .collect();
    let level = policy::unguarded(registry::target_unguarded(), get);
    sys::print_to(2, &leftovers::text(&left, level == Level::Deny, super::libtest::layout_on_stderr()));
    if level == Level::Deny {
        sys::exit_now(101);
    }
}

/// Which outputs of this process, of those that are pipes or sockets, another one has open for writing.
fn outputs(pid: i32) -> Vec<&'static str> {
    let (own, its) = (fds::read(sys::own_pid()).unwrap_or_default(), fds::read(pid).unwrap_or_default());
    let is_open = |fd: i32| {
        let own = own.iter().find(|own| own.fd == fd).and_then(Fd::pipe_or_socket);
        own.is_some() && its.iter().any(|fd| fd.writes() && fd.pipe_or_socket() == own)
    };
    [(1, "stdout"), (2, "stderr")].into_iter().filter(|(fd, _)| is_open(*fd)).map(|(_, name)| name).collect()
}

impl Run {
    /// The live processes that were left, with their command lines.
    fn left(&self, started: &[i32], allowed: &[String]) -> Vec<(Stat, Vec<String>)> {
        let tree = Tree::read();
        let below: Vec<i32> = descendants(&self.process, &tree).iter().map(|stat| stat.pid).collect();
        let is_before = |stat: &Stat| {
            self.before.iter().any(|known| (known.pid, known.start_ticks) == (stat.pid, stat.start_ticks))
        };
        let is_own = |stat: &Stat| {
            below.contains(&stat.pid)
                || [stat.pid, stat.pgid, stat.sid].iter().any(|pid| started.contains(pid))
                    && stat.start_ticks >= self.process.start_ticks
                    // Its number, or its group's, may have been reused by a stranger.
                    && (stat.sid == self.process.sid || stat.sid == stat.pid || started.contains(&stat.sid))
        };
        let left = tree.processes().filter(|stat| stat.pid != self.process.pid && !stat.is_zombie());
        // A sanitizer keeps its symbolizer to the end.
        let is_sanitizers = |stat: &Stat| stat.comm == SYMBOLIZER && !started.contains(&stat.pid);
        let left = left.filter(|stat| is_own(stat) && !is_before(stat) && !is_sanitizers(stat));
        let with_lines = left.map(|stat| (stat.clone(), command_line(stat.pid)));
        let is_denied = |(stat, line): &(Stat, Vec<String>)| {
            let line = if line.is_empty() { stat.comm.clone() } else { line.join(" ") };
            !allowed.iter().any(|glob| allows(glob, &line))
        };
        let mut left: Vec<_> = with_lines.filter(is_denied).collect();
        left.sort_by_key(|(stat, _)| (stat.start_ticks, stat.pid));
        left
    }

    /// The lines that started what was left.
    #[cfg(feature = "sites")]
    fn names(&self, left: &[(Stat, Vec<String>)]) -> Names {
        let keys: Vec<_> = left.iter().map(|(stat, _)| (ResourceKind::Process, stat.pid as u64)).collect();
        let sites = self.log.as_ref().map(|log| log.sites(&keys, false)).unwrap_or_default();
        symbols::names(&sites, &Threads::default(), || None)
    }

    #[cfg(not(feature = "sites"))]
    fn names(&self, _: &[(Stat, Vec<String>)]) -> Names {
        Names::default()
    }
}
