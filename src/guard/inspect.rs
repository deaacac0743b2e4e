//! Looks at processes that no guard is above: the evidence of a report, without an end.
//!
//! No signal is sent, and what is looked at goes on as if it had not been. Only to read a stack is a thread stopped, for
//! some 0.1 ms, and only in a call that does not notice it (`proc/unwind/unharmed.rs`).

use std::time::{Duration, Instant};

use super::facts::Facts;
use super::orphans::{Root, Survey};
use super::report_page::{Body, End};
use super::snapshot::{Snapshot, SubjectStart};
use super::stop::Stopped;
use crate::proc::process::{self, are_hidden};
use crate::proc::sockets::Socket;
use crate::proc::started;
use crate::proc::tree::Tree;
use crate::sys::{self, Pid};

/// How long a look may take.
const LOOK: Duration = Duration::from_secs(10);
/// How long after a first look at blocked threads a second one is taken.
const AGAIN: Duration = Duration::from_millis(50);

/// What was seen, and what was not.
pub(crate) struct Inspected {
    pub(crate) facts: Facts,
    pub(crate) limits: Limits,
}

/// What this process may not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The user that this process runs as.
    pub(crate) user: u32,
    /// The processes whose fds, or what whose threads wait in, may not be read, each with the user that it runs as.
    pub(crate) unread: Vec<(Pid, Option<u32>)>,
    /// The processes of which no stack could be read.
    pub(crate) stackless: Vec<Pid>,
    /// The threads of which no stack was read because they ran: to stop one might cut short a call that it begins.
    pub(crate) running: Vec<Pid>,
    /// `kernel.yama.ptrace_scope`, where it keeps this process from others of the same user.
    pub(crate) yama: Option<u8>,
}

/// Looks at the trees below `roots`, and at their stacks if these are wanted.
pub(crate) fn look(survey: &Survey, roots: &[Root], with_stacks: bool) -> Inspected {
    let until = Instant::now() + LOOK;
    let own = sys::own_pid();
    let start = SubjectStart {
        supervisor: own,
        // There is none: no process has this number.
        test: 0,
        begin: Instant::now(),
        before: &[],
        command_line: &[],
    };
    let mut now =
        Snapshot::of_waits(&start, below_this_process(survey, roots, own), &Stopped::default(), until);
    now.take_for_inspected(|pid| roots.iter().find(|root| root.stat.pid == pid));
    let again = Instant::now() + AGAIN;
    let mut facts = Facts::clean(0, 0, None, Duration::ZERO);
    facts.end = End::TimedOut;
    facts.body = Body::Inspected;
    facts.pipes = now.pipes_unharmed();
    facts.sockets = now.all_sockets();
    let mut targets: Vec<String> = facts.pipes.iter().map(|pipe| format!("pipe:[{}]", pipe.ino)).collect();
    targets.extend(facts.sockets.iter().flat_map(Socket::ends).map(|ino| format!("socket:[{ino}]")));
    facts.outside = now.outside(&targets);
    if now.waits_forever() && !now.is_late() {
        std::thread::sleep(again.saturating_duration_since(Instant::now()));
        facts.outside.process_appeared = now.look_again();
        facts.outside.fd_transferred = now.has_fd_moved();
    }
    facts.outside.hides = are_hidden();
    facts.contended = now.contended();
    if with_stacks {
        facts.mapped = now.read_stacks_unharmed(&facts.sockets);
    }
    now.close(&mut facts.limits);
    facts.processes = now.into_parts().1;
    let limits = limits(&facts, with_stacks);
    Inspected { facts, limits }
}

/// The processes of the machine, with the roots as children of this process: what a snapshot looks at is below one process.
fn below_this_process(survey: &Survey, roots: &[Root], own: Pid) -> Tree {
    let is_root = |pid: Pid| roots.iter().any(|root| root.stat.pid == pid);
    survey.tree().with_parents(|stat| match stat {
        _ if is_root(stat.pid) => own,
        // Nothing else is below it.
        _ if stat.ppid == own => 0,
        _ => stat.ppid,
    })
}

fn limits(facts: &Facts, with_stacks: bool) -> Limits {
    let user = nix::unistd::geteuid().as_raw();
    let mut limits = Limits { user, ..Limits::default() };
    for process in facts.processes.iter().filter(|process| !process.tasks.is_empty()) {
        if process.fds.is_none() || process.tasks.iter().any(|thread| thread.syscall.is_empty()) {
            limits.unread.push((process.pid, process::effective_uid(process.pid)));
        } else if with_stacks {
            let stackless = || process.tasks.iter().filter(|thread| thread.frames.is_empty());
            limits.running.extend(stackless().filter(|thread| thread.is_running()).map(|thread| thread.tid));
            if stackless().count() == process.tasks.len() {
                limits.stackless.push(process.pid);
            }
        }
    }
    if limits.unread.iter().any(|(_, owner)| *owner == Some(user)) {
        limits.yama = started::yama_scope().filter(|scope| *scope > 0);
    }
    limits
}
