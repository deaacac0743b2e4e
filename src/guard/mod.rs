//! Runs one subject in a guarded process tree, observes it, kills what is left, and returns the facts.
//!
//! Uses `recorder`, `proc`, `config` and `sys`. Draws no conclusions and prints nothing.

pub(crate) mod call_sites;
pub(crate) mod client;
pub(crate) mod command;
pub(crate) mod contended;
#[cfg(feature = "__engine")]
pub(crate) mod end;
mod events;
pub(crate) mod facts;
pub(crate) mod failure;
#[cfg(all(feature = "__engine", target_env = "gnu", not(target_feature = "crt-static")))]
mod fds_of_command;
pub(crate) mod guarded;
mod guarded_run;
#[cfg(feature = "__engine")]
pub(crate) mod inspect;
pub(crate) mod isolation;
mod keep;
pub(crate) mod kill;
pub(crate) mod messages;
mod net;
pub(crate) mod origin;
#[cfg(feature = "__engine")]
pub(crate) mod orphans;
pub(crate) mod panics;
mod phases;
pub(crate) mod report_page;
pub(crate) mod scratch;
pub(crate) mod server;
pub(crate) mod snapshot;
#[cfg(feature = "sites")]
mod stacks;
pub(crate) mod stop;
pub(crate) mod strays;
mod subject;
pub(crate) mod suite;
pub(crate) mod supervisor;
pub(crate) mod takeover;
pub(crate) mod test_process;
