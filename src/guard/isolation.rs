//! Supervisors in a PID namespace of their own: `isolation = "pidns"`.
//!
//! The supervisor is the first process of its namespace, so the kernel kills everything in it with the supervisor. It has a
//! `/proc` of the namespace too: its calls, `/proc` and what its tests note of themselves all use the same numbers. Outside
//! are the fork server and the harness, which know it by its number there.
//!
//! A signal with its default effect is not delivered to the first process of a namespace, and SIGKILL not from within. A
//! supervisor needs neither: all of its signals are blocked, so SIGCHLD is queued for its signalfd.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::failure::SystemError;
use crate::config::policy::{Isolation, Settings};
use crate::proc::mounts;
use crate::sys::wire::wire_enum;
use crate::sys::{self, Fork, Inside, NamespaceFork, NamespaceStep, Pid};

wire_enum! {
    /// Why a test that asks for a namespace has none.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum NotIsolated {
        /// The kernel or the machine has refused a step.
        Refused { step: NamespaceStep, error: SystemError },
        /// What is kept is to be found by its number on the machine.
        Keeps,
    }
}

/// Whether this process is in a namespace of its supervisor.
static IS_INSIDE: AtomicBool = AtomicBool::new(false);

/// Whether this process is in a namespace of its supervisor: then no process outside can be seen.
pub(super) fn is_inside() -> bool {
    IS_INSIDE.load(Ordering::Relaxed)
}

/// Gives a subject's first process, in a namespace, its own mounts: what one test unmounts, its guard and the next test need.
pub(super) fn separate_mounts() {
    if is_inside() {
        sys::separate_mounts();
    }
}

/// What a subject with these settings is asked for; the error says why it has no namespace.
pub(super) fn wanted(settings: &Settings) -> Result<bool, NotIsolated> {
    match settings.isolation {
        Isolation::Off => Ok(false),
        Isolation::Pidns if settings.keep => Err(NotIsolated::Keeps),
        Isolation::Pidns => Ok(true),
    }
}

/// A fork, maybe in a namespace.
pub(super) enum Forked {
    Parent(Pid),
    Child(Isolated),
}

/// Where a supervisor is.
#[derive(Default)]
pub(crate) struct Isolated {
    /// The way outside, if it is in a namespace.
    pub(super) inside: Option<Inside>,
    /// Why it is in none, if one was asked for.
    pub(super) refused: Option<NotIsolated>,
}

impl Isolated {
    /// The pid of the calling process outside.
    pub(super) fn pid(&self) -> Pid {
        self.inside.as_ref().map_or_else(sys::own_pid, |inside| inside.pid)
    }

    /// The pid of a child outside.
    pub(super) fn of_child(&self, child: Pid) -> Pid {
        self.inside.as_ref().and_then(|inside| inside.outside(child)).unwrap_or(child)
    }
}

/// Forks supervisors. Whether there can be a namespace is found out once.
#[derive(Default)]
pub(super) struct Forker {
    refused: Option<NotIsolated>,
}

impl Forker {
    /// Forks a supervisor, in a namespace if that is asked for and possible.
    pub(super) fn fork(&mut self, isolated: bool) -> io::Result<Forked> {
        if isolated && self.refused.is_none() {
            match sys::fork_in_namespace() {
                Ok(NamespaceFork::Parent(pid)) => return Ok(Forked::Parent(pid)),
                Ok(NamespaceFork::First(inside)) => {
                    IS_INSIDE.store(true, Ordering::Relaxed);
                    mounts::remember_proc();
                    return Ok(Forked::Child(Isolated { inside: Some(inside), refused: None }));
                }
                Err(refusal) => {
                    let (step, error) = (refusal.step, refusal.error.into());
                    self.refused = Some(NotIsolated::Refused { step, error });
                }
            }
        }
        Ok(match sys::fork()? {
            Fork::Parent(pid) => Forked::Parent(pid),
            Fork::Child => {
                Forked::Child(Isolated { inside: None, refused: self.refused.clone().filter(|_| isolated) })
            }
        })
    }
}
