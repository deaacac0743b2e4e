//! Whether the parent of a process is one that has adopted it, which the kernel does not show.
//!
//! It is accepted only where it is shown, and only of parents that are known to adopt: the first process of the PID
//! namespace, and the service manager of a user (`systemd --user`). Any other may be the process that started it.

use crate::proc::process::Stat;
use crate::proc::started::{self, Unit};

use super::Survey;

/// What may be the first process of a container, and starts programs with the environment that it has.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "zsh", "busybox"];
/// First processes of containers that start one program, and end with it.
const INITS: [&str; 4] = ["tini", "dumb-init", "docker-init", "catatonit"];
const MANAGER: &str = "systemd";

impl Survey {
    /// Whether the parent of a process is not the one that started it.
    pub(super) fn is_adopted(&self, stat: &Stat) -> bool {
        let Some(parent) = self.tree.get(stat.ppid).filter(|parent| self.adopts(parent)) else {
            return false;
        };
        // It is in a session that neither it nor its parent has founded: a process has that from the one that forked
        // it. 0 is a session of another PID namespace, and all of those are 0.
        let has_session_of_other = stat.sid != stat.pid && stat.sid != parent.sid && stat.sid != 0;
        has_session_of_other
            || self.is_of_scope(stat, parent)
            || self.is_not_the_one_below_init(stat, parent)
            || self.is_not_a_shells(stat, parent)
    }

    /// Whether orphans become the children of a process.
    pub(super) fn adopts(&self, parent: &Stat) -> bool {
        let is_users = || {
            let line = &self.started(parent.pid).command_line;
            parent.comm == MANAGER && parent.ppid == 1 && line.iter().any(|argument| argument == "--user")
        };
        parent.pid == 1 || is_users()
    }

    /// Whether it is in a scope: a service manager starts nothing there.
    fn is_of_scope(&self, stat: &Stat, parent: &Stat) -> bool {
        let (own, parents) = (&self.started(stat.pid).unit, &self.started(parent.pid).unit);
        parent.comm == MANAGER && matches!(own, Unit::Scope(_)) && own != parents
    }

    /// Whether its parent has started another process, and starts only one.
    fn is_not_the_one_below_init(&self, stat: &Stat, parent: &Stat) -> bool {
        let is_older = |other: &Stat| (other.start_ticks, other.pid) < (stat.start_ticks, stat.pid);
        parent.pid == 1
            && INITS.contains(&parent.comm.as_str())
            && self.tree.processes().any(|other| other.ppid == parent.pid && is_older(other))
    }

    /// Whether a shell did not start it: that sets no variable of a runner, and what it has forked runs its program until
    /// an exec. Only `cargo run` replaces itself by a program with cargo's variables, in a target folder.
    fn is_not_a_shells(&self, stat: &Stat, parent: &Stat) -> bool {
        let own = self.started(stat.pid);
        if parent.pid != 1 || !SHELLS.contains(&parent.comm.as_str()) {
            return false;
        }
        let programs = (&own.program, &self.started(parent.pid).program);
        let is_forked = stat.forked_without_exec && matches!(programs, (Some(a), Some(b)) if a != b);
        let variable = own.environment.as_ref().and_then(started::runner);
        let may_be_run_by_cargo = own.program.as_ref().is_none_or(|it| started::target_folder(it).is_some());
        variable.is_some_and(|(name, _)| is_forked || !name.starts_with("CARGO_") || !may_be_run_by_cargo)
    }

    /// The service that a process is in, unless it is the one that this process is in too: that runs tests.
    pub(super) fn other_service(&self, stat: &Stat) -> Option<&str> {
        match &self.started(stat.pid).unit {
            unit if *unit == self.started(crate::sys::own_pid()).unit => None,
            Unit::Service(service) => Some(service),
            _ => None,
        }
    }
}
