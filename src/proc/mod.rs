//! Reads `/proc` and the memory of processes. Knows no policy and draws no conclusions.
//!
//! Uses `sys` alone.

#[cfg(feature = "sites")]
pub(crate) mod elf;
pub(crate) mod fds;
#[cfg(test)]
mod fuzz;
pub(crate) mod mapped;
pub(crate) mod maps;
pub(crate) mod mounts;
pub(crate) mod process;
#[cfg(feature = "__engine")]
pub(crate) mod runner_kinds;
pub(crate) mod runners;
pub(crate) mod signals;
pub(crate) mod sockets;
#[cfg(feature = "__engine")]
pub(crate) mod started;
pub(crate) mod threads;
pub(crate) mod tree;
#[cfg(feature = "sites")]
pub(crate) mod unwind;
pub(crate) mod waits;
