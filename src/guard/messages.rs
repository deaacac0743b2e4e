//! The messages between harness, fork server, supervisor and test process.

use std::time::Duration;

use crate::config::policy::{Fds, Settings};
use crate::guard::failure::GuardFailure;
use crate::guard::isolation::NotIsolated;
use crate::sys::Words;
use crate::sys::wire::{wire_enum, wire_struct};

wire_enum! {
    /// A request of the harness to the fork server.
    pub(crate) enum Request {
        /// The first message. It carries the read end of the lifeline, a pidfd of the harness, and one of the
        /// cargo or nextest that started it, if any.
        Watch,
        /// Fork a supervisor that serves the channel with the attached end, in a PID namespace if that is possible and
        /// asked for.
        Slot { isolated: bool },
        /// Kill a supervisor that no longer responds.
        Kill { pid: i32 },
        /// Close the attached fd once this supervisor has exited and is reaped.
        Reaped { pid: i32 },
        /// The run is cut: the harness will report it and exit, even if the process that started it exits
        /// first.
        Cut,
        /// The run is over.
        End,
    }
}

wire_struct! {
    /// The first message of a new supervisor: its pid as the fork server and the harness know it, or the error that
    /// prevented it. Also reports an error of the fork server.
    pub(crate) struct Hello {
        pub(crate) pid: i32,
        pub(crate) error: Option<GuardFailure>,
        /// Why it is in no namespace, if that was asked for.
        pub(crate) not_isolated: Option<NotIsolated>,
    }
}

wire_struct! {
    /// A test to run, and its policy.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Job {
        /// The index in the harness's list, which is the same in every process of a run.
        pub(crate) index: u64,
        pub(crate) name: String,
        pub(crate) settings: Settings,
    }
}

wire_enum! {
    /// A request of the harness to a supervisor.
    pub(crate) enum SlotRequest {
        /// Run a test. The message carries the fds of its output, and the lock of its serial key if it has
        /// one.
        Run { job: Job },
        /// The run is cut: inspect the running processes, kill them and report.
        Cut,
        /// A test of the suite has exceeded its timeout.
        TimeOut,
        /// Inspect the running processes and report, without changing anything.
        Inspect,
        /// Send [`Answer::Responds`](super::facts::Answer::Responds), if a test is running.
        Respond,
        /// Send a signal to the command.
        Signal { signal: i32 },
        /// Keep what was stopped, until it has ended: the harness is about to exit. May carry fds that are held open
        /// meanwhile.
        Keep,
        /// Kill what was stopped.
        Kill,
    }
}

/// The data of a job that a test process needs.
pub(crate) struct BodyRequest {
    /// The index of its body in the list of all.
    pub(crate) index: u64,
    /// FNV-1a hash of the test's name.
    pub(crate) name_hash: u64,
    pub(crate) fds: Fds,
    pub(crate) deny_threads: bool,
    pub(crate) grace: Duration,
}

/// Encodes a grace that is too long for the field.
const FOR_EVER: u64 = u64::MAX;

impl BodyRequest {
    /// The encoding on the socket.
    pub(crate) fn words(&self) -> Words {
        let fds = match self.fds {
            Fds::Off => 0,
            Fds::Pipes => 1,
            Fds::All => 2,
        };
        let grace = u64::try_from(self.grace.as_nanos()).unwrap_or(FOR_EVER);
        [self.index, self.name_hash, fds | u64::from(self.deny_threads) << 8, grace]
    }

    /// Decodes which fds are checked. Calls no function, see [`crate::sys::entrance`].
    #[inline(always)]
    pub(crate) fn fds(words: &Words) -> Fds {
        match words[2] & 0xff {
            0 => Fds::Off,
            1 => Fds::Pipes,
            _ => Fds::All,
        }
    }

    /// Decodes whether running threads fail the test. Calls no function either.
    #[inline(always)]
    pub(crate) fn deny_threads(words: &Words) -> bool {
        words[2] >> 8 != 0
    }

    /// Decodes the grace.
    pub(crate) fn grace(words: &Words) -> Duration {
        Duration::from_nanos(words[3])
    }
}
