//! Remedies of deadlocks.

use super::{Before, Remedy};
use crate::diagnosis::deadlock::{Deadlock, LeftBehind, OwnEnd, Shape, WaitsOn};
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::finding::CodePlace;
use crate::diagnosis::stuck::{Because, Stuck};
use crate::guard::facts::Process;
use crate::proc::fds::Fd;
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;

/// What a member of a cycle does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    WaitsForChild,
    Reads,
    Writes,
    WaitsForThread,
}

impl Does {
    fn of(on: &On) -> Does {
        match on {
            On::Child { .. } => Does::WaitsForChild,
            On::Write { .. } => Does::Writes,
            On::Futex { .. } | On::Thread { .. } => Does::WaitsForThread,
            _ => Does::Reads,
        }
    }
}

impl Evidence<'_> {
    pub(super) fn remedy_of_deadlock(&self, deadlock: &Deadlock) -> Option<Remedy> {
        // If a runtime waits for itself, there is no thread to name.
        if let Shape::Threads { joining, .. } = &deadlock.shape {
            return self.remedy_of_threads(deadlock, joining);
        }
        let first = deadlock.chain.first()?;
        let (process, thread) = self.thread(first.tid)?;
        let stuck = self.stuck_at(first.tid)?;
        let locking = || self.called(thread).map(str::to_owned);
        match &deadlock.shape {
            Shape::InheritedLock { .. } => Some(Remedy::ExecAfterFork { locking: locking(), or_own: false }),
            Shape::MaybeInheritedLock { .. } => {
                Some(Remedy::ExecAfterFork { locking: locking(), or_own: true })
            }
            Shape::OwnEnd(own) => Some(self.remedy_of_own_end(own, stuck, process, thread)),
            Shape::OwnReader { ends, .. } => {
                Some(Remedy::ReadElsewhere { fds: ends.clone(), in_task: self.in_runtime(thread) })
            }
            // How many threads the process had that forked it is not known.
            Shape::Alone { left_behind: Some(LeftBehind { sure: false, .. }), .. }
                if self.names.awaited.get(&thread.tid).is_some_and(Awaited::is_held) =>
            {
                Some(Remedy::ExecAfterFork { locking: locking(), or_own: true })
            }
            Shape::Alone { .. } if self.executes(thread.tid) => Some(Remedy::FindAwait),
            Shape::Alone { .. } if self.names.in_task.contains(&thread.tid) => {
                Some(Remedy::AwaitInTask(self.names.awaited.get(&thread.tid).cloned()))
            }
            Shape::Alone { .. } => Some(Remedy::EndWait(self.names.awaited.get(&thread.tid).cloned())),
            Shape::Threads { .. } => None,
            Shape::Ring { .. } => self.remedy_of_ring(&stuck.ring),
            Shape::Single => match self.mistake(stuck) {
                Some(mistake) => Some(mistake.remedy()),
                None if stuck.because == Because::NoReaderRuns && stuck.wakers == [stuck.pid] => {
                    Some(Remedy::CloseOwnReadEnd { fds: self.ends(process, stuck.pipe?, Fd::reads) })
                }
                None if stuck.wakers == [stuck.pid] => match &first.on {
                    WaitsOn::FileLock { file } => {
                        let opened = self.opened(file, stuck.pid, None);
                        Some(Remedy::ReleaseOwnFileLock { file: file.clone(), opened })
                    }
                    _ => None,
                },
                None => None,
            },
        }
    }

    fn remedy_of_own_end(&self, own: &OwnEnd, stuck: &Stuck, process: &Process, thread: &Thread) -> Remedy {
        let fds = own.ends.clone();
        let in_fork = process.forked_without_exec && !process.is_test;
        if own.both_ends {
            return Remedy::WriteToOtherOfPair { fds };
        }
        if own.threads.is_some() {
            return self.look_at_writers(process, thread, fds);
        }
        let Some(pipe) = stuck.pipe else { return Remedy::WriteElsewhere { fds, in_fork } };
        if own.crossed {
            let mut pids = [&[stuck.pid], &own.others[..]].concat();
            pids.sort_unstable();
            return Remedy::WriteFirst { pids };
        }
        if in_fork {
            return Remedy::CloseInChild { fds };
        }
        if process.is_test {
            return Remedy::DropOwnWriteEnd { fds, only: own.others.is_empty() && stuck.proved() };
        }
        // An exec would have closed it; and what no call of the test created, siblings have from the fork of a program.
        let has_cloexec = fds.iter().any(|fd| process.fd(*fd).is_some_and(|fd| fd.cloexec));
        let of_siblings = self.names.of_inode(pipe).is_none() && !own.others.is_empty();
        let in_readers = || self.close_in_readers(process.pid, &own.others, pipe);
        if let Some(remedy) = (has_cloexec || of_siblings).then(in_readers).flatten() {
            return remedy;
        }
        Remedy::CreateWithCloexec { fds, created: self.place_of(pipe).cloned() }
    }

    /// The remedy for a process that holds the other end of what one of its threads waits on, and has other
    /// threads that might use it.
    fn look_at_writers(&self, process: &Process, thread: &Thread, ends: Vec<i32>) -> Remedy {
        let is_users = |other: &&Thread| other.tid != thread.tid && !self.in_runtime(other);
        let others: Vec<&Thread> = process.tasks.iter().filter(is_users).collect();
        let thread = match others[..] {
            [other] => {
                let stuck = self.stuck_at(other.tid);
                Some((other.tid, stuck.and_then(|stuck| self.wait(stuck))))
            }
            _ => None,
        };
        Remedy::LookAtWriters { pid: process.pid, thread, ends }
    }

    /// Whether a thread waits for a future in an executor without a runtime, as `futures` and `futures_lite` have one. It
    /// parks the thread by any means.
    fn executes(&self, tid: i32) -> bool {
        let called = self.thread(tid).and_then(|(_, thread)| self.called(thread));
        called.is_some_and(|called| called.ends_with("::block_on"))
    }

    /// The remedy for threads that wait for each other; `joining` only wait for others to end.
    fn remedy_of_threads(&self, deadlock: &Deadlock, joining: &[i32]) -> Option<Remedy> {
        if let [only] = &deadlock.chain[..]
            && only.on == WaitsOn::Child
        {
            // The child is at fault.
            return None;
        }
        if deadlock.chain.iter().any(|wait| wait.on == WaitsOn::BlockOn) {
            return Some(Remedy::LeaveRuntime);
        }
        if deadlock.chain.is_empty() || matches!(&deadlock.chain[..], [only] if self.executes(only.tid)) {
            return Some(Remedy::FindAwait);
        }
        let mut tids: Vec<i32> = deadlock.chain.iter().map(|wait| wait.tid).collect();
        if joining.len() < tids.len() {
            tids.retain(|tid| !joining.contains(tid));
        }
        let kinds = || tids.iter().filter_map(|tid| self.names.awaited.get(tid));
        // A thread that holds no lock may be the reason why the lock is not released.
        let other = kinds().filter(|kind| !kind.is_held()).min();
        let lock = |tid: &i32| match self.thread(*tid)?.1.on {
            On::Futex { address, .. } if self.names.awaited.get(tid) == Some(&Awaited::Lock) => {
                Some((self.names.locks.get(tid), address))
            }
            _ => None,
        };
        let locks: Vec<(Option<&String>, u64)> = tids.iter().filter_map(lock).collect();
        let in_task = |tid: &&i32| self.names.in_task.contains(tid) && self.names.awaited.contains_key(tid);
        if let Some(tid) = tids.iter().find(in_task) {
            return Some(Remedy::AwaitInTask(self.names.awaited.get(tid).cloned()));
        }
        // Readers and writers of one lock wait for two words, and parking_lot's threads each for one of their own.
        let words_differ = |tid: &i32| {
            let called = self.thread(*tid).and_then(|(_, thread)| self.called(thread)).unwrap_or_default();
            called.contains("RwLock") || called.contains("<R,T>") || called.contains("lock_api")
        };
        let is_one = locks.iter().all(|lock| lock.0.is_some() && Some(lock) == locks.first());
        Some(match other {
            None if locks.len() > 1 && !is_one && tids.iter().any(words_differ) => Remedy::OneLockOrSeveral,
            None if locks.iter().any(|lock| Some(lock) != locks.first()) => Remedy::LockOrder,
            None if !joining.is_empty() && kinds().any(|kind| *kind == Awaited::Lock) => {
                Remedy::ReleaseBeforeJoin
            }
            None => Remedy::EndWait(kinds().min().cloned()),
            Some(kind) => Remedy::EndWait(Some(kind.clone())),
        })
    }

    fn remedy_of_ring(&self, ring: &[i32]) -> Option<Remedy> {
        let members: Vec<&Stuck> = ring.iter().filter_map(|tid| self.stuck_at(*tid)).collect();
        // Its own cycle may be shorter: that it could wake itself is not why it waits.
        let next = |member: &Stuck| {
            let at = ring.iter().position(|tid| *tid == member.tid)?;
            ring.get((at + 1) % ring.len()).copied()
        };
        if let Some(mistake) = members.iter().find_map(|member| self.mistake(member)) {
            return Some(mistake.remedy());
        }
        if let Some(release) = members.iter().find_map(|member| self.release_lock(member, next(member))) {
            return Some(release);
        }
        if let Some(mistake) = members.iter().find_map(|member| {
            let peer = self.facts.socket(member.socket?)?.other_end()?;
            let (holder, _) = next(member).and_then(|tid| self.thread(tid))?;
            self.socket_by_mistake(peer, holder)
        }) {
            return Some(mistake);
        }
        let does: Vec<Does> =
            ring.iter().filter_map(|tid| Some(Does::of(&self.thread(*tid)?.1.on))).collect();
        let all = |one: Does| does.iter().all(|other| *other == one);
        let any = |one: Does| does.contains(&one);
        let either = |one: Does, two: Does| does.iter().all(|other| *other == one || *other == two);
        let found =
            if any(Does::WaitsForChild) && any(Does::Reads) && either(Does::WaitsForChild, Does::Reads) {
                // An end that the test itself can close comes before one that another program holds.
                let is_own = |tid: Option<i32>| {
                    let writer = tid.and_then(|tid| self.thread(tid));
                    writer.is_some_and(|(process, _)| process.runs_own_program())
                };
                let own = members.iter().filter(|member| is_own(next(member)));
                return own
                    .chain(&members)
                    .find_map(|member| self.let_member_go(member, next(member), Before::Waiting));
            } else if either(Does::Reads, Does::WaitsForThread) {
                members.iter().find_map(|member| self.let_child_go(member, next(member)))
            } else if any(Does::Writes) && !all(Does::Writes) {
                members.iter().find_map(|member| self.read_for_member(member, next(member)))
            } else {
                None
            };
        let kinds = ring.iter().filter_map(|tid| self.names.awaited.get(tid));
        let first = kinds.min().filter(|kind| !kind.is_held());
        let same = does.first().is_some_and(|first| all(*first));
        found.or_else(|| {
            Some(match first {
                Some(first) if same => Remedy::EndWait(Some(first.clone())),
                _ if any(Does::WaitsForChild) => Remedy::CloseBeforeWait,
                _ if all(Does::Writes) => Remedy::ReadWhileWriting,
                _ => Remedy::OneSideFirst,
            })
        })
    }

    /// The remedy if a member waits for a file lock that the next one holds.
    fn release_lock(&self, waiter: &Stuck, next: Option<i32>) -> Option<Remedy> {
        let (process, thread) = self.thread(waiter.tid)?;
        let On::Lock { fd } = thread.on else { return None };
        let (holder, _) = next.and_then(|tid| self.thread(tid))?;
        let file = process.fd(fd)?.target.clone();
        (holder.pid != process.pid).then_some(Remedy::ReleaseFileLock {
            file,
            pid: holder.pid,
            waiter: process.pid,
        })
    }

    /// The remedy if a program has inherited a socket by mistake: another process created it without
    /// close-on-exec, and it is none of the program's standard streams.
    pub(super) fn socket_by_mistake(&self, socket: u64, holder: &Process) -> Option<Remedy> {
        let site = self.names.of_inode(socket).filter(|site| site.creator != holder.pid && !site.cloexec)?;
        let fds = self.socket_fds(socket, holder);
        let by_mistake = |fd: &i32| *fd > 2 && holder.fd(*fd).is_some_and(|fd| !fd.cloexec);
        (!holder.runs_own_program() && !fds.is_empty() && fds.iter().all(by_mistake))
            .then(|| Remedy::CreateSocketWithCloexec { pid: holder.pid, fds, created: CodePlace::of(site) })
    }

    /// The remedy if a member writes to a full pipe, and its reader waits for something else.
    fn read_for_member(&self, writer: &Stuck, next: Option<i32>) -> Option<Remedy> {
        let pipe = writer.pipe.filter(|_| writer.writes)?;
        let (reader, thread) = next.and_then(|tid| self.thread(tid))?;
        self.read_full(pipe, reader, &thread.on)
    }

    /// The remedy if a member reads a pipe that is open in a process that waits for the member to exit.
    fn let_member_go(&self, reader: &Stuck, next: Option<i32>, before: Before) -> Option<Remedy> {
        let (process, _) = self.thread(reader.tid)?;
        let (writer, _) = next.and_then(|tid| self.thread(tid))?;
        match reader.socket {
            Some(socket) => self.shut_down(socket, writer, before),
            None => self.let_reader_go(process, reader.pipe?, writer, before),
        }
    }

    /// The same for a child that waits on its stdin while its parent reads the child's output.
    fn let_child_go(&self, reader: &Stuck, next: Option<i32>) -> Option<Remedy> {
        let (process, _) = self.thread(reader.tid)?;
        let (writer, _) = next.and_then(|tid| self.thread(tid))?;
        if process.runs_own_program() || process.lineage.first() != Some(&writer.pid) {
            return None;
        }
        self.let_member_go(reader, next, Before::Reading)
    }
}
