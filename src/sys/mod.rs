//! System calls, and what is built on nothing else: message encoding, channel, lifeline.
//!
//! Every unsafe call of the library is here, in `recorder/hooks` or in `startup`, each with the reason why it
//! is sound. Functions are documented by the system call that they make; their callers document the purpose.
//! Nothing in here allocates after a fork unless its documentation says so. This room uses no other.

#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod argv;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod baseline;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod channel;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod directory;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod entrance;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod fault;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod fd;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod keeper;
#[cfg(unix)]
pub(crate) mod lifeline;
pub(crate) mod lock;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod memory;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod mounts;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod namespace;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod peek;
#[cfg(unix)]
pub(crate) mod poll;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod priority;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod process;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod signal;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod socket;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) mod stack;
pub(crate) mod static_list;
pub(crate) mod wire;

#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use argv::{Argv, remove_env, set_env};
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use baseline::{
    BaselineFds, baseline_fds, fds_are_as, only_standard_streams_are_open, update_baseline,
};
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use directory::*;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use entrance::{ProcessEntry, Words};
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use fault::{report_fault_to, watch_faults};
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use fd::*;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use memory::*;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use mounts::{change_mode, detach_mount, mount_at_proc, shows_own_processes, uncover_proc};
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use namespace::{Inside, NamespaceFork, NamespaceStep, fork_in_namespace, separate_mounts};
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use peek::peek_fds;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use poll::{any_readable, poll_timeout, readable};
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use priority::*;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use process::*;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use signal::*;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use socket::*;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use stack::watch_stack;
