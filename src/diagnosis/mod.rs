//! Draws conclusions from facts: typed findings, each with its remedies and the arguments that allow it.
//!
//! Uses `guard`, `recorder`, `proc`, `config` and `sys`. Reads no files and writes no sentences.

mod allowance;
mod charged;
mod children;
mod deadlock;
mod endings;
mod evidence;
mod finding;
mod forks;
mod glob;
mod groups;
mod hang;
mod inherited;
mod leaked;
mod parents;
mod remedy;
mod running;
mod stray;
mod stray_socket;
mod stuck;
pub(crate) mod suite;
#[cfg(test)]
mod tests;
mod thread_group;
mod verdict;
mod waits_for;
mod wake_channel;

pub(crate) use allowance::Allowance;
pub(crate) use charged::test_of_call;
pub(crate) use deadlock::{Deadlock, LeftBehind, Lock, OwnEnd, Shape, Wait, WaitsOn};
pub(crate) use evidence::is_stopped;
pub(crate) use finding::{
    Cause, Child, CodePlace, CreatedBy, Creator, Ending, Finding, Kind, StrayNumber, ThreadedFork,
};
pub(crate) use glob::allows;
#[cfg(feature = "__engine")]
pub(crate) use glob::names_process;
pub(crate) use groups::{At, Group, Groups, What};
pub(crate) use inherited::{InheritedEnd, UnwatchedLifeline};
pub(crate) use leaked::is_daemon;
pub(crate) use parents::{ExitedParent, Relation};
pub(crate) use remedy::{Before, CloseFds, Ends, Remedy};
pub(crate) use running::{Hang, RunningTest};
pub(crate) use stray::{Holder, Pipe, Stray};
pub(crate) use stray_socket::{SocketRole, StraySocket};
pub(crate) use stuck::{Doubt, Stuck};
pub(crate) use verdict::{Note, Verdict, conclude};
pub(crate) use waits_for::{AtSocket, DeadChild, Link, LinkOn, RuntimeWait, WaitsFor, Way};
