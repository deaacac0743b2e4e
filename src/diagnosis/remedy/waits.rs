//! Remedies of waits that may still end, and of waits on pipes and sockets in general.

use nix::libc;

use super::{Before, Ends, Remedy};
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::waits_for::{AtSocket, Link, LinkOn, RuntimeWait, WaitsFor, Way};
use crate::guard::contended::FileLock;
use crate::guard::facts::Process;
use crate::proc::fds::Fd;
use crate::proc::waits::On;
use crate::recorder::awaited::Awaited;
use crate::recorder::call_site::SourceLocation;

impl Evidence<'_> {
    pub(super) fn remedy_of_wait(&self, waits: &WaitsFor) -> Option<Remedy> {
        if let Some(dead) = waits.dead.first() {
            return Some(Remedy::CheckChild { pid: dead.pid, was_waited_for: dead.status.is_none() });
        }
        // Two threads each hold one end of a connection.
        if let [first, second, ..] = &waits.chain[..]
            && let Some(either) = self.shut_down_either(first, second)
        {
            return Some(either);
        }
        if let (Some(last), Some(target)) = (waits.chain.last(), waits.ring_link()) {
            return self.remedy_of_last(last, target);
        }
        // The last waiter comes first.
        waits.chain.iter().rev().find_map(|link| self.remedy_of_link(link))
    }

    /// The remedy for the last member of a cycle, depending on what it needs from `target`.
    fn remedy_of_last(&self, last: &Link, target: &Link) -> Option<Remedy> {
        let (process, _) = self.thread(last.tid)?;
        let (other, thread) = self.thread(target.tid)?;
        let waits =
            matches!(target.on, LinkOn::Polling | LinkOn::Thread { .. }) || target.on.waits_for_child();
        let before = if waits { Before::Waiting } else { Before::Reading };
        match &last.on {
            LinkOn::PipeRoom { inode, .. } => {
                let waits = matches!(target.on, LinkOn::Polling) || target.on.waits_for_child();
                let on = if waits { On::Child { pid: last.pid } } else { thread.on.clone() };
                self.read_full(*inode, other, &on)
            }
            LinkOn::PipeData { by_mistake: true, inodes, .. } => {
                Some(self.open_by_mistake(*inodes.first()?)?.remedy())
            }
            LinkOn::PipeData { inodes, .. } => {
                inodes.iter().find_map(|pipe| self.let_reader_go(process, *pipe, other, before))
            }
            LinkOn::Socket(AtSocket { inode, way: Way::Data, .. }) => self.shut_down(*inode, other, before),
            LinkOn::AnyOf { waits } => waits.iter().find_map(|wait| match wait {
                RuntimeWait::PipeData { fd, .. } => {
                    self.let_reader_go(process, process.pipe(*fd)?, other, before)
                }
                RuntimeWait::Socket { inode, .. } => self.shut_down(*inode, other, before),
                _ => None,
            }),
            LinkOn::Opening { .. } => Some(Remedy::OpenInOneOrder),
            LinkOn::Fifo { .. } => self.close_own_fifo(last),
            LinkOn::Terminal { writes: true, .. } => Some(Remedy::ReadTerminal),
            LinkOn::Terminal { index, .. } => {
                let terminals = &self.facts.contended.terminals;
                let terminal = terminals.iter().find(|terminal| Some(terminal.index) == *index)?;
                let ends = terminal.masters.iter().filter(|end| end.pid == other.pid);
                let fds: Vec<i32> = ends.map(|end| end.fd).collect();
                (!fds.is_empty()).then_some(Remedy::AnswerAtTerminal { pid: last.pid, fds })
            }
            LinkOn::FileLock { file, .. } => {
                Some(Remedy::ReleaseFileLock { file: file.clone(), pid: other.pid, waiter: process.pid })
            }
            _ => None,
        }
    }

    /// The remedy for a wait outside of a cycle.
    fn remedy_of_link(&self, link: &Link) -> Option<Remedy> {
        let (process, _) = self.thread(link.tid)?;
        match &link.on {
            LinkOn::Stopped if process.is_test => Some(Remedy::FindStopSignal),
            LinkOn::Stopped => self.continue_stopped(&[link.pid]),
            LinkOn::Child { pid } => self.continue_stopped(&[*pid]),
            LinkOn::Socket(AtSocket { inode, own, holders, way, .. }) if own.is_empty() => {
                self.continue_stopped(holders).or_else(|| match way {
                    Way::Data => self.close_inherited_socket(*inode, holders),
                    _ => None,
                })
            }
            LinkOn::PipeRoom { readers, .. } => self.continue_stopped(readers),
            LinkOn::PipeData { inodes, writers, part, .. } => {
                Some(self.remedy_of_reader(process, inodes, writers, *part))
            }
            LinkOn::OwnPipe { inode, others, .. } => self.close_in_readers(process.pid, others, *inode),
            LinkOn::FileLock { file, holders } => self.release_by_holder(link, file, holders),
            LinkOn::Threads { kind: Some(kind @ (Awaited::Lock | Awaited::Once)), .. } => {
                Some(Remedy::EndWait(Some(kind.clone())))
            }
            LinkOn::Fifo { .. } => self.close_own_fifo(link),
            LinkOn::Terminal { writes: true, .. } => Some(Remedy::ReadTerminal),
            LinkOn::Terminal { fd, alone: true, .. } => Some(Remedy::CloseSlave { fd: *fd }),
            LinkOn::Opening { path } => Some(Remedy::OpenOtherEnd { path: path.clone() }),
            _ => None,
        }
    }

    /// Of a lock that is held by others: by one that took it and runs on, or by one that inherited it.
    fn release_by_holder(&self, link: &Link, file: &str, holders: &[i32]) -> Option<Remedy> {
        let of_file = |lock: &&FileLock| lock.path == file;
        let mut takers = self.facts.contended.locks.iter().filter(of_file).filter_map(|lock| lock.taken_by);
        if let Some(pid) = takers.find(|taker| holders.contains(taker) && *taker != link.pid) {
            return Some(Remedy::EndLockHolder { pid, file: file.to_owned() });
        }
        let holder = self.process(*holders.first()?)?;
        let thread = self.thread(link.tid)?.1;
        let holds = |fd: &&Fd| fd.held.iter().any(|lock| thread.behind.contains(lock));
        let fd = holder.known_fds().iter().find(holds)?;
        let is_inherited = holder.forked_without_exec || !fd.cloexec;
        is_inherited.then(|| Remedy::CloseLockInChild {
            pid: holder.pid,
            fd: fd.fd,
            file: file.to_owned(),
            opened: self.opened(file, holder.pid, Some(fd.fd)),
        })
    }

    /// Of a process that reads a FIFO which it has open for writing itself.
    fn close_own_fifo(&self, link: &Link) -> Option<Remedy> {
        let LinkOn::Fifo { writes: false, own, outside: false, .. } = &link.on else { return None };
        let On::Read { fd } = self.thread(link.tid)?.1.on else { return None };
        (!own.is_empty()).then(|| Remedy::CloseOwnFifo { pid: link.pid, fds: own.clone(), reads: fd })
    }

    /// Of two threads of one process that each read from one end of a connection.
    fn shut_down_either(&self, first: &Link, second: &Link) -> Option<Remedy> {
        let read = |link: &Link| match &link.on {
            LinkOn::Socket(AtSocket { inode, own, holders, way: Way::Data, full: false, .. })
                if holders.is_empty() && !own.is_empty() =>
            {
                Some((*inode, own.clone()))
            }
            _ => None,
        };
        let ((inode, own), (peer, others)) = (read(first)?, read(second)?);
        let process = self.process(first.pid).filter(|process| process.pid == second.pid)?;
        let is_pair = self.facts.socket(inode)?.ends().get(1) == Some(&peer);
        let (one, other) = (self.ends_of(process, others, inode)?, self.ends_of(process, own, peer)?);
        is_pair.then_some(Remedy::ShutdownEither { one, other })
    }

    /// Which line opened the file by which a process holds a lock on it.
    pub(super) fn opened(&self, file: &str, pid: i32, fd: Option<i32>) -> Option<SourceLocation> {
        let locks = self.facts.contended.locks.iter().filter(|lock| lock.path == file);
        let mut holders = locks.flat_map(|lock| &lock.holders);
        let holder = holders.find(|holder| holder.pid == pid && fd.is_none_or(|fd| fd == holder.fd))?;
        self.names.of_open(&holder.keys)?.place.clone()
    }

    /// Of a process that waits at a socket whose other end only programs have that inherited it.
    fn close_inherited_socket(&self, socket: u64, holders: &[i32]) -> Option<Remedy> {
        let [holder] = holders else { return None };
        let holder = self.process(*holder)?;
        let peer = *self.facts.socket(socket)?.ends().get(1)?;
        if let Some(mistake) = self.socket_by_mistake(peer, holder) {
            return Some(mistake);
        }
        // A program that stays in the background; one with a parent may have been given the socket.
        let fds = self.socket_fds(peer, holder);
        (holder.adopted && !holder.runs_own_program() && fds.iter().all(|fd| *fd > 2))
            .then(|| self.ends_of(holder, fds, peer))
            .flatten()
            .map(|ends| Remedy::CloseInProgram { ends })
    }

    /// Of a process that reads pipes which others have open for writing.
    fn remedy_of_reader(&self, reader: &Process, pipes: &[u64], writers: &[i32], part: bool) -> Remedy {
        let mistake = match pipes {
            [pipe] => self.open_by_mistake(*pipe),
            _ => None,
        };
        if let Some(mistake) = mistake {
            return mistake.remedy();
        }
        if let Some(stopped) = self.continue_stopped(writers) {
            return stopped;
        }
        // With a single `read` a lifeline is watched, too.
        if part && !self.calls(reader, &["::read"]) {
            return Remedy::FindWhyNothingIsWritten;
        }
        let watch = self.unwatched.iter().any(|unwatched| writers.contains(&unwatched.pid));
        if let Some(ends) = self.writing_fork(pipes, writers) {
            return Remedy::CloseInFork { ends, watch };
        }
        let writers: Vec<&Process> = writers.iter().filter_map(|pid| self.process(*pid)).collect();
        let ends_of = |writer: &Process| {
            let ends = pipes.iter().flat_map(|pipe| self.ends(writer, *pipe, Fd::writes));
            ends.collect::<Vec<i32>>()
        };
        // The pipe is its output if it is fd 1 or 2.
        let other = writers.iter().find_map(|writer| {
            let fds = ends_of(writer);
            fds.iter().all(|fd| *fd > 2).then_some((writer.pid, fds))
        });
        if let Some((pid, fds)) = other.filter(|(_, fds)| !fds.is_empty()) {
            let created = pipes.first().and_then(|pipe| self.place_of(*pipe)).cloned();
            return Remedy::CloseInProgram { ends: Ends { pid, fds, created } };
        }
        if let [writer] = writers[..]
            && writer.parent == self.facts.pid
            && !writer.adopted
        {
            return Remedy::EndWriter { pid: writer.pid };
        }
        let is_orphan = |writer: &&Process| writer.adopted && !writer.runs_own_program();
        Remedy::RedirectBackground {
            watch,
            orphan: writers.iter().find(|writer| is_orphan(writer)).map(|one| one.pid),
        }
    }

    /// The same for each of the processes that read a pipe which only they have open for writing.
    pub(super) fn close_in_readers(&self, reader: i32, others: &[i32], pipe: u64) -> Option<Remedy> {
        let mut pids: Vec<i32> = [reader].into_iter().chain(others.iter().copied()).collect();
        pids.sort_unstable();
        let first = self.process(*pids.first()?)?;
        let ends = self.ends_of(first, self.ends(first, pipe, Fd::writes), pipe)?;
        Some(Remedy::CloseInReaders { pids, ends })
    }

    /// The write ends of the only process that holds one of these pipes open for writing, if that is a fork.
    fn writing_fork(&self, pipes: &[u64], writers: &[i32]) -> Option<Ends> {
        let [pid] = writers else { return None };
        let fork = self.process(*pid).filter(|process| process.forked_without_exec)?;
        let mut ends = pipes.iter().map(|pipe| (*pipe, self.ends(fork, *pipe, Fd::writes)));
        let (pipe, fds) = ends.find(|(_, fds)| !fds.is_empty())?;
        self.ends_of(fork, fds, pipe)
    }

    /// The remedy if all processes that are waited for are stopped.
    fn continue_stopped(&self, pids: &[i32]) -> Option<Remedy> {
        let all = !pids.is_empty() && pids.iter().all(|pid| self.is_stopped(*pid));
        // SIGCONT alone would have it stopped again.
        let used_terminal = |pid: &i32| {
            let signal = self.process(*pid)?.signals.stopped_by.filter(|signal| is_of_terminal(*signal))?;
            Some(Remedy::BringToForeground { pid: *pid, signal })
        };
        if let Some(remedy) = pids.iter().find_map(used_terminal).filter(|_| all) {
            return Some(remedy);
        }
        all.then(|| Remedy::ContinueStopped { pids: pids.to_vec() })
    }

    /// The remedy for a writer to a full pipe, depending on what the pipe's reader waits for.
    pub(super) fn read_full(&self, pipe: u64, reader: &Process, on: &On) -> Option<Remedy> {
        let ends = self.ends_of(reader, self.ends(reader, pipe, Fd::reads), pipe)?;
        Some(match on {
            On::Child { .. } => Remedy::ReadBeforeWait { ends },
            On::Read { fd } if reader.pipe(*fd).is_some() => Remedy::ReadBoth { ends, reads: *fd },
            _ => Remedy::ReadAllTheWhile { ends },
        })
    }

    /// The remedy for the reader of a pipe without EOF, if the writer waits for something that the reader
    /// does afterwards.
    pub(super) fn let_reader_go(
        &self,
        reader: &Process,
        pipe: u64,
        writer: &Process,
        before: Before,
    ) -> Option<Remedy> {
        let ends = self.ends_of(writer, self.ends(writer, pipe, Fd::writes), pipe)?;
        let is_stdin = reader.fd(0).and_then(Fd::pipe) == Some(pipe);
        Some(match before {
            _ if !is_stdin => Remedy::CloseWriteEnd { reader: reader.pid, ends, before },
            Before::Reading if self.reads_a_part(writer) => Remedy::WriteToChild { ends },
            Before::Reading => Remedy::DropStdin { ends },
            Before::Waiting => Remedy::DropStdinBeforeWait { ends },
        })
    }

    /// The same for a socket.
    pub(super) fn shut_down(&self, socket: u64, writer: &Process, before: Before) -> Option<Remedy> {
        let known = self.facts.socket(socket).filter(|socket| !socket.is_datagram())?;
        let peer = *known.ends().get(1)?;
        let ends = self.ends_of(writer, self.socket_fds(peer, writer), peer)?;
        Some(Remedy::ShutdownSocket { ends, before })
    }

    /// `None` if there are no fds.
    fn ends_of(&self, process: &Process, fds: Vec<i32>, inode: u64) -> Option<Ends> {
        let created = self.place_of(inode).cloned();
        (!fds.is_empty()).then_some(Ends { pid: process.pid, fds, created })
    }
}

impl LinkOn {
    /// Whether it waits for a child to exit.
    fn waits_for_child(&self) -> bool {
        match self {
            LinkOn::Child { .. } | LinkOn::AnyChild { .. } => true,
            LinkOn::Runtime { waits } | LinkOn::AnyOf { waits } => {
                waits.iter().any(|wait| matches!(wait, RuntimeWait::Child { .. }))
            }
            _ => false,
        }
    }
}

/// Whether a terminal sends this signal to a background process that uses it.
pub(super) fn is_of_terminal(signal: i32) -> bool {
    matches!(signal, libc::SIGTTIN | libc::SIGTTOU)
}
