//! Reads signal dispositions and exit statuses: `/proc/PID/status` and the last field of `/proc/PID/stat`.

use std::fs;

use nix::libc;

use super::process;
use crate::sys::Pid;
use crate::sys::wire::wire_struct;

wire_struct! {
    /// The signals of a process, by number. Of sets that each thread has for itself, the first thread's.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Signals {
        pub(crate) blocked: Vec<i32>,
        pub(crate) ignored: Vec<i32>,
        /// Signals that are pending and blocked.
        pub(crate) pending: Vec<i32>,
        /// Signals with a handler, as in [`process::caught`].
        pub(crate) handled: Vec<i32>,
        /// The outermost ancestor in the tree with the same blocked and ignored signals: fork and exec keep
        /// both sets.
        pub(crate) inherited_from: Option<i32>,
        /// The signal that stopped the process.
        pub(crate) stopped_by: Option<i32>,
    }
}

wire_struct! {
    /// A zombie: a process that has exited and is not reaped.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Ended {
        pub(crate) pid: i32,
        pub(crate) comm: String,
        /// Its exit code, or the signal that killed it; neither if the kernel does not show them.
        pub(crate) code: Option<i32>,
        pub(crate) signal: Option<i32>,
    }
}

impl Signals {
    /// Reads the signals of a live process; empty if it may not be read.
    pub(crate) fn read(pid: Pid, is_stopped: bool) -> Signals {
        let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
        let stopped_by = is_stopped.then(|| wait_status(pid)).flatten().map(|status| status & 0x7f);
        Signals {
            stopped_by: stopped_by.filter(|signal| *signal != 0),
            ..parse(&String::from_utf8_lossy(&status))
        }
    }

    /// Whether both have the same blocked and ignored signals, as after a fork or an exec.
    pub(crate) fn is_like(&self, other: &Signals) -> bool {
        (&self.blocked, &self.ignored) == (&other.blocked, &other.ignored)
    }

    /// Whether it blocks or ignores no signal.
    pub(crate) fn takes_all(&self) -> bool {
        self.blocked.is_empty() && self.ignored.is_empty()
    }
}

impl Ended {
    /// Reads the exit status of a zombie.
    pub(crate) fn read(pid: Pid, comm: &str) -> Ended {
        // The kernel shows 0 to a process without permission.
        let status = wait_status(pid).filter(|status| *status != 0 || may_be_told(pid));
        let (code, signal) = match status {
            None => (None, None),
            Some(status) if libc::WIFSIGNALED(status) => (None, Some(libc::WTERMSIG(status))),
            Some(status) => (Some(libc::WEXITSTATUS(status)), None),
        };
        Ended { pid, comm: comm.to_owned(), code, signal }
    }
}

/// The last field of `/proc/PID/stat`: the wait status of a zombie, or the stop signal of a stopped process.
fn wait_status(pid: Pid) -> Option<i32> {
    process::field(pid, 52)?.parse().ok()
}

/// Whether the kernel shows this process the exit status of another: it needs the same user or the superuser.
fn may_be_told(pid: Pid) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    own == 0 || process::effective_uid(pid) == Some(own)
}

/// Whether a thread is killed as soon as it runs again. The kernel marks each thread of a process that a signal kills.
pub(super) fn has_pending_kill(tid: Pid) -> bool {
    let status = fs::read(format!("/proc/{tid}/status")).unwrap_or_default();
    set(&String::from_utf8_lossy(&status), "SigPnd") >> (libc::SIGKILL - 1) & 1 == 1
}

/// One signal set of a `/proc/PID/status`.
fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Parses the signal sets of a `/proc/PID/status`.
fn parse(status: &str) -> Signals {
    let set = |name: &str| set(status, name);
    // glibc reserves signals 32 and 33.
    let signals = |set: u64| {
        (1..=64).filter(|signal| set >> (signal - 1) & 1 == 1 && !matches!(signal, 32 | 33)).collect()
    };
    let blocked = set("SigBlk");
    Signals {
        blocked: signals(blocked),
        ignored: signals(set("SigIgn")),
        pending: signals((set("SigPnd") | set("ShdPnd")) & blocked),
        handled: process::caught(status).collect(),
        inherited_from: None,
        stopped_by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_status_tells_what_is_blocked_ignored_and_pending() {
        let status = "Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000004200\n\
                      SigBlk:\t0000000100004000\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000000202\n";
        let signals = parse(status);
        // A signal that is pending and not blocked is about to be delivered.
        assert_eq!((signals.blocked, signals.ignored, signals.pending), (vec![15], vec![1], vec![15]));
        assert_eq!(signals.handled, [2, 10]);
        assert!(parse("").takes_all());
    }
}
