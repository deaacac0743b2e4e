//! Reads the log of a test: turns its entries into call sites, and addresses into positions in files.

use std::sync::atomic::Ordering;

use super::hooks::Log;
use super::hooks::log::{Call, Entry, Kind};
use crate::proc::maps::{Address, Maps};
use crate::recorder::call_site::{CallSite, ResourceKind};
use crate::sys::Pid;

impl Log {
    /// Empties the log for the next test.
    pub(crate) fn reset(&self) {
        fn forget<'a>(entries: impl Iterator<Item = &'a Entry>) {
            entries.for_each(|entry| entry.call.store(0, Ordering::Relaxed));
        }
        let Log { processes, pipes, others, files, .. } = self;
        if processes.calls.load(Ordering::Acquire) > 0 {
            forget(processes.kept());
            processes.calls.store(0, Ordering::Release);
        }
        if pipes.calls.load(Ordering::Acquire) > 0 {
            forget(pipes.kept());
            pipes.calls.store(0, Ordering::Release);
        }
        if others.calls.load(Ordering::Acquire) > 0 {
            forget(others.kept());
            others.calls.store(0, Ordering::Release);
        }
        if files.calls.load(Ordering::Acquire) > 0 {
            forget(files.kept());
            files.calls.store(0, Ordering::Release);
        }
    }

    /// The entries of all kinds that are kept; within a kind, in the order of the calls.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Entry> {
        let fds = self.pipes.kept().chain(self.others.kept()).chain(self.files.kept());
        self.processes.kept().chain(fds)
    }

    /// Whether there was room for every call of the test.
    pub(crate) fn is_complete(&self) -> bool {
        self.processes.is_complete() && self.pipes.is_complete() && self.others.is_complete()
    }

    /// The calls that created one of `keys` (kind, and pid or inode). With `forks`, also the forks of
    /// threaded processes whose child did not call exec.
    pub(crate) fn sites(&self, keys: &[(ResourceKind, u64)], forks: bool) -> Vec<CallSite> {
        if keys.is_empty() && !forks {
            return Vec::new();
        }
        self.entries(|call, entry| {
            has_made(call, entry, keys) || forks && call == Call::Fork && entry.is_threaded_fork()
        })
    }

    /// The processes that were created, by their pids.
    pub(crate) fn created(&self) -> Vec<Pid> {
        let of = |entry: &Entry| {
            let call = entry.call().filter(|call| call.kind() == Kind::Process);
            call.and_then(|_| Pid::try_from(entry.keys()[0]).ok()).filter(|pid| *pid > 0)
        };
        self.processes.kept().filter_map(of).collect()
    }

    /// The last `most` programs that were started, except those in `but`.
    pub(crate) fn programs(&self, but: &[(ResourceKind, u64)], most: usize) -> Vec<CallSite> {
        let mut programs = self.entries(|call, entry| is_other_program(call, entry, but));
        programs.split_off(programs.len().saturating_sub(most))
    }

    /// The creation of the last process.
    pub(crate) fn last_process(&self) -> Option<CallSite> {
        let created = |entry: &&Entry| {
            entry.call().is_some_and(|call| call.kind() == Kind::Process) && entry.keys()[0] != 0
        };
        let last = self.processes.kept().rev().find(created)?.keys()[0];
        self.entries(|call, entry| has_made(call, entry, &[(ResourceKind::Process, last)])).pop()
    }

    /// Every complete entry that `wanted` accepts.
    fn entries(&self, wanted: impl Fn(Call, &Entry) -> bool) -> Vec<CallSite> {
        // The test was a fork of this process, so both have the same mappings.
        let mut maps = None;
        let entries = self.kept().filter_map(|entry| {
            let call = entry.call().filter(|call| wanted(*call, entry))?;
            let maps = maps.get_or_insert_with(|| Maps::read(std::process::id() as Pid).unwrap_or_default());
            let test = entry.program.load(Ordering::Relaxed);
            Some(CallSite { test, ..entry.site(call, |address| maps.locate(address)) })
        });
        entries.collect()
    }
}

/// Whether a call created one of `keys`.
pub(super) fn has_made(call: Call, entry: &Entry, keys: &[(ResourceKind, u64)]) -> bool {
    entry.keys().iter().any(|key| *key != 0 && keys.contains(&(resource_kind(call), *key)))
}

/// Whether a call started a program that is not in `but`.
pub(super) fn is_other_program(call: Call, entry: &Entry, but: &[(ResourceKind, u64)]) -> bool {
    let [pid, _] = entry.keys();
    let starts = resource_kind(call) == ResourceKind::Process && (call != Call::Fork || entry.has_execed());
    // The pid of the shell of `system` is not known.
    starts && (pid != 0 || call == Call::System) && !but.contains(&(ResourceKind::Process, pid))
}

fn resource_kind(call: Call) -> ResourceKind {
    match call.kind() {
        Kind::Fds => ResourceKind::Fds,
        Kind::Process => ResourceKind::Process,
        Kind::End => ResourceKind::End,
    }
}

impl Entry {
    pub(super) fn command_line(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.command.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        let words = bytes.split(|byte| *byte == 0).take_while(|word| !word.is_empty());
        words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    pub(super) fn has_execed(&self) -> bool {
        self.execed.load(Ordering::Acquire) != 0
    }

    fn is_threaded_fork(&self) -> bool {
        self.threads.load(Ordering::Relaxed) > 1 && !self.has_execed()
    }

    /// Converts an entry. `locate` finds the file that an address is in.
    pub(super) fn site(&self, call: Call, locate: impl Fn(u64) -> Option<Address>) -> CallSite {
        let frames = self.frames.iter().map(|frame| frame.load(Ordering::Relaxed));
        let thread = self.thread.iter().map(|byte| byte.load(Ordering::Relaxed));
        let thread: Vec<u8> = thread.take_while(|byte| *byte != 0).collect();
        CallSite {
            call: call.name().to_owned(),
            kind: resource_kind(call),
            creator: self.creator.load(Ordering::Relaxed) as Pid,
            keys: self.keys(),
            threads: self.threads.load(Ordering::Relaxed),
            thread: String::from_utf8_lossy(&thread).into_owned(),
            test: 0,
            execed: self.has_execed(),
            cloexec: self.cloexec.load(Ordering::Relaxed) != 0,
            command_line: self.command_line(),
            frames: frames.take_while(|frame| *frame != 0).filter_map(locate).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::proc::fds;
    use crate::recorder::hooks::log;

    /// [`Fd::event`](crate::proc::fds::Fd::event) is the id of an eventfd plus one, since 0 stands for none.
    #[test]
    fn an_eventfd_is_known_by_what_a_look_at_it_tells() {
        assert_eq!(log::event_key(41), fds::event_key(42));
    }

    #[test]
    fn an_fd_without_an_inode_is_known_by_its_number() {
        let key = log::fd_key(5, 4_000_000, 1023);
        assert_eq!(fds::creation_key("/memfd:cache (deleted)", 4_000_000, 1023), Some(key));
        assert_ne!(fds::creation_key("anon_inode:[timerfd]", 4_000_000, 1023), Some(key));
        assert!(key < log::event_key(0) && key > u64::from(u32::MAX));
        assert_eq!(fds::creation_key("socket:[17]", 2, 3), Some(17));
        assert_eq!(fds::creation_key("/etc/passwd", 2, 3), None);
    }

    #[test]
    fn a_file_with_a_path_is_known_by_its_number_and_what_it_is() {
        let key = log::open_key(4_000_000, 1023, 0x803, 17);
        assert_eq!(fds::open_key(4_000_000, 1023, 0x803, 17), key);
        assert!(key < log::event_key(0) && key > u64::from(u32::MAX));
        assert_eq!(log::closed_key(key), fds::closed_key(key));
        for other in [(4_000_000, 1022, 0x803, 17), (4, 1023, 0x803, 17), (4_000_000, 1023, 0x803, 18)] {
            let (pid, fd, dev, ino) = other;
            assert_ne!(log::open_key(pid, fd, dev, ino), key);
        }
    }
}
