//! The harnesses of both kinds of target, `harness = false` and libtest: arguments, scheduling, printing.
//!
//! Uses every other room; none uses it.

mod bazel;
mod builder;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod capture;
mod entries;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod failures;
mod fixtures;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod leftovers;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod libtest;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded), not(feature = "junit")))]
mod no_junit;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod outputs;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod run;
mod say;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod serial;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod shared;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod signals;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod stock_cut;
#[cfg(not(all(target_os = "linux", not(miri), not(childproof_unguarded))))]
mod unguarded;

pub use builder::Harness;
pub use fixtures::shared;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(crate) use leftovers::begin as begin_leftovers;
use say::say;
