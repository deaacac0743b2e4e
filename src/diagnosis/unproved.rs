//! What is to be said of a test that waits for what somebody else could still bring.

use super::explain::{READING, Scene, fds};
use super::{Finding, Strayed, is_of_runtime};
use crate::facts::Process;
use crate::proc::fds::Fd;
use crate::proc::waits::{On, Thread};
use crate::report::escape;

/// What stops a process without anybody who means to.
const TERMINAL: &str = "SIGTTIN and SIGTTOU, which a terminal sends to whoever uses it in the background";

impl Scene<'_> {
    /// What the test's own first thread waits for, if somebody else could still end that.
    pub(super) fn waits_for(&self) -> Option<Finding> {
        let test = self.facts.processes.iter().find(|process| process.is_test)?;
        let first = test.tasks.first()?;
        // A runtime with several threads waits in one of them.
        let polls = |thread: &&Thread| matches!(thread.on, On::Epoll { .. }) && self.in_runtime(thread);
        let thread = match self.in_runtime(first) {
            true => test.tasks.iter().find(polls).unwrap_or(first),
            false => first,
        };
        let (mut sentence, mut fix) = match &thread.on {
            On::Stopped if thread.state == "T" => (
                "the test is stopped by a signal.".to_owned(),
                Some(format!(
                    "look who sent it: SIGSTOP, SIGTSTP, or {TERMINAL}. SIGCONT would let it go on."
                )),
            ),
            On::Child { pid } if *pid > 0 => {
                let unwatched = self.unwatched(&[*pid]);
                let fix = self.fix_of_stopped(&[*pid]);
                let stopped = if fix.is_some() { ", which is stopped" } else { "" };
                (format!("the test waits for the end of pid {}{stopped}.{unwatched}", self.name(*pid)), fix)
            }
            On::Epoll { .. } if self.in_runtime(thread) => self.runtime_waits(test, thread),
            _ if thread.fds().iter().any(|fd| self.socket(test, *fd).is_some()) => {
                let is_set = thread.on.is_set();
                let is_users = |fd: &i32| {
                    let socket = self.socket(test, *fd);
                    socket.is_some_and(|socket| !(is_set && is_of_runtime(&self.names.origins, socket.ino)))
                };
                let fd = thread.fds().into_iter().find(is_users)?;
                self.waits_at(self.socket(test, fd)?, test, thread)?
            }
            On::Write { fd } => {
                let pipe = test.pipe(*fd)?;
                let readers = self.holders_of(test, |fd: &Fd| fd.reads() && fd.pipe() == Some(pipe));
                let queue = self.facts.queue_of(pipe);
                let sentence = format!(
                    "the test writes to a pipe that is full{queue} and open for reading only in {}.",
                    self.named(&readers)?
                );
                (sentence, self.fix_of_stopped(&readers))
            }
            On::Read { .. } | On::Poll { .. } | On::Epoll { .. } => self.reads_from(test, thread)?,
            _ => return None,
        };
        if let Some((more, mends)) = self.waits_for_test(test, thread) {
            sentence += &more;
            fix = fix.or(mends);
        }
        Some(Finding { cause: None, sentence, fix, allow: Vec::new() })
    }

    /// Who waits for the test meanwhile, at a pipe: whatever the test waits for, that comes first.
    fn waits_for_test(&self, test: &Process, thread: &Thread) -> Option<(String, Option<String>)> {
        let others = self.facts.processes.iter().filter(|process| process.pid != test.pid);
        let mut tasks = others.flat_map(|process| process.tasks.iter().map(move |task| (process, task)));
        tasks.find_map(|(process, task)| match task.on {
            On::Write { fd } => {
                let pipe = process.pipe(fd)?;
                let ends = self.ends(test, pipe, Fd::reads);
                let readers = self.holders_of(process, |fd| fd.reads() && fd.pipe() == Some(pipe));
                let queue = self.facts.queue_of(pipe);
                (readers == [test.pid]).then(|| {
                    let sentence = format!(
                        " Pid {} writes to a pipe that is full{queue}, and only the test could read that: {}.",
                        self.name(process.pid),
                        fds(&ends)
                    );
                    (sentence, self.fix_of_full(pipe, test, &thread.on))
                })
            }
            On::Read { fd } => {
                let pipe = process.pipe(fd)?;
                let writers = self.holders_of(process, |fd| fd.writes() && fd.pipe() == Some(pipe));
                let name = self.name(process.pid);
                if writers == [test.pid] {
                    let ends = fds(&self.ends(test, pipe, Fd::writes));
                    let sentence = format!(" Pid {name} reads from a pipe that only the test could write to: {ends}.");
                    return Some((sentence, self.fix_of_pipe(process, pipe, test, READING)));
                }
                let mistake = self.open_by_mistake(pipe).filter(|_| thread.on == On::Child { pid: process.pid })?;
                let sentence = format!(
                    " It reads from a pipe that is open for writing in pid {}, only because no O_CLOEXEC kept it back.",
                    self.name(mistake.process.pid)
                );
                self.told.borrow_mut().push(mistake.ino);
                Some((sentence, Some(mistake.fix())))
            }
            _ => None,
        })
    }

    /// Of pipes that somebody else has open for writing.
    fn reads_from(&self, test: &Process, thread: &Thread) -> Option<(String, Option<String>)> {
        let pipes: Vec<u64> = thread.fds().into_iter().filter_map(|fd| test.pipe(fd)).collect();
        let writes = |fd: &Fd| fd.writes() && fd.pipe().is_some_and(|pipe| pipes.contains(&pipe));
        let holders = self.holders_of(test, writes);
        let names = self.named(&holders)?;
        let mistake = match pipes[..] {
            [pipe] => self.open_by_mistake(pipe),
            _ => None,
        };
        let only = mistake.map_or("", |_| ", only because no O_CLOEXEC kept it back");
        self.told.borrow_mut().extend(mistake.map(|mistake| mistake.ino));
        let unwatched = self.unwatched(&holders);
        let part = self.reads_a_part(test) && mistake.is_none();
        let what = if part {
            "nothing was written to it, nor has it ended"
        } else {
            "it sees EOF only when that is closed"
        };
        let sentence = format!(
            "the test reads from a pipe that is open for writing in {names}{only}: {what}.{unwatched}"
        );
        let fix = mistake.map(Strayed::fix).or_else(|| self.fix_of_stopped(&holders));
        let fix = fix.or_else(|| {
            // With one `read` a lifeline is watched, too.
            let is_data = part && !self.calls(test, &["::read"]);
            is_data.then(|| {
                "look why it writes nothing: what a program writes to a pipe, it may keep until its buffer is full."
                    .to_owned()
            })
        });
        let fix = fix.unwrap_or_else(|| {
            let close = self.fix_of_fork_that_writes(&pipes, &holders);
            let watch = if unwatched.is_empty() {
                ""
            } else {
                " One that is to end with its parent has to read its lifeline, in a thread of its own."
            };
            let background = "a program that stays in the background keeps what it inherited: redirect its output, \
                              or end it before reading to the end.";
            format!("{}{watch}", close.as_deref().unwrap_or(background))
        });
        Some((sentence, Some(fix)))
    }

    /// What is to be closed in the only process that has one of these pipes open for writing, a fork.
    fn fix_of_fork_that_writes(&self, pipes: &[u64], holders: &[i32]) -> Option<String> {
        let [pid] = holders else { return None };
        let mut processes = self.facts.processes.iter();
        let fork = processes.find(|process| process.pid == *pid && process.forked_without_exec)?;
        let ends = pipes.iter().map(|pipe| (*pipe, self.ends(fork, *pipe, Fd::writes)));
        let (pipe, ends) = ends.into_iter().find(|(_, ends)| !ends.is_empty())?;
        let ends = self.ends_of(fork, &ends, pipe)?;
        Some(format!("close {ends}, right after the fork if it is not to write there; or end it before."))
    }

    /// Of an async runtime: what its tasks may wait for.
    fn runtime_waits(&self, test: &Process, thread: &Thread) -> (String, Option<String>) {
        let children: Vec<&Process> = self
            .facts
            .processes
            .iter()
            .filter(|process| process.lineage.first() == Some(&test.pid))
            .collect();
        let mut waits_for_child = false;
        let mut entries: Vec<String> = Vec::new();
        let mut fds: Vec<&Fd> = thread.fds().into_iter().filter_map(|fd| test.fd(fd)).collect();
        fds.retain(|fd| fd.event == 0 && !fd.is_epoll());
        for fd in fds {
            let number = fd.fd;
            if fd.target == "anon_inode:[pidfd]" {
                waits_for_child = true;
                entries.push(match &children[..] {
                    [child] => format!("the end of pid {} (fd {number})", self.name(child.pid)),
                    _ => format!("the end of a process (fd {number}, a pidfd)"),
                });
            } else if let Some(pipe) = fd.pipe() {
                let queued = self.facts.pipe(pipe).and_then(|state| state.queued);
                // What has data is not waited for to be read, and what is empty has room.
                if fd.reads() && queued.is_none_or(|count| count == 0) {
                    let writers = self.holders_of(test, |held| held.writes() && held.pipe() == Some(pipe));
                    let writers = self.named(&writers).unwrap_or_else(|| "the test itself".to_owned());
                    entries.push(format!(
                        "data or EOF on a pipe that is open for writing in {writers} (fd {number})"
                    ));
                } else if fd.writes() && queued.is_none_or(|count| count > 0) {
                    let readers = self.holders_of(test, |held| held.reads() && held.pipe() == Some(pipe));
                    let readers = self.named(&readers).unwrap_or_else(|| "the test itself".to_owned());
                    entries
                        .push(format!("room in a pipe that is open for reading in {readers} (fd {number})"));
                }
            } else if let Some(ino) = fd.socket() {
                if is_of_runtime(&self.names.origins, ino) {
                    continue;
                }
                let Some(socket) = self.facts.socket(ino) else {
                    entries.push(format!("a socket (fd {number})"));
                    continue;
                };
                let peers = socket.ends().get(1).and_then(|peer| {
                    let holders = self.holders_of(test, |held| held.socket() == Some(*peer));
                    self.named(&holders)
                });
                let what = socket.with_article();
                entries.push(match peers {
                    _ if socket.listens => format!("a connection to {what} (fd {number})"),
                    Some(peers) => format!("{what} whose other end is in {peers} (fd {number})"),
                    None => format!("{what} (fd {number})"),
                });
            } else {
                entries.push(format!("`{}` (fd {number})", escape::text(&fd.target)));
            }
        }
        if matches!(thread.on, On::Epoll { forever: false, .. }) {
            entries.push("a timer".to_owned());
        }
        let sentence = match &entries[..] {
            [] => "the runtime of the test waits, with nothing in its poll set but what it made for itself."
                .to_owned(),
            [entry] => format!("the runtime of the test waits for {entry}."),
            entries => format!("the runtime of the test waits for one of these: {}.", entries.join("; ")),
        };
        let fix =
            children.iter().filter(|_| waits_for_child).find_map(|child| self.fix_of_awaited(test, child));
        (sentence, fix)
    }

    /// What ends a child that its parent waits for, if it waits for its parent.
    fn fix_of_awaited(&self, test: &Process, child: &Process) -> Option<String> {
        let waits_at = |fd: i32| child.pipe(fd).filter(|pipe| self.holders_but(child, *pipe) == [test.pid]);
        child.tasks.iter().find_map(|thread| match thread.on {
            On::Stopped => self.fix_of_stopped(&[child.pid]),
            On::Write { fd } => self.fix_of_full(waits_at(fd)?, test, &On::Child { pid: child.pid }),
            On::Read { fd } => self.fix_of_pipe(child, waits_at(fd)?, test, "waiting for its end"),
            _ => None,
        })
    }

    /// Who has an end of a pipe, but for one process.
    fn holders_but(&self, process: &Process, pipe: u64) -> Vec<i32> {
        self.holders_of(process, |fd| fd.pipe() == Some(pipe))
    }

    /// Those that have such an fd, but for one process.
    pub(super) fn holders_of(&self, process: &Process, is: impl Fn(&Fd) -> bool) -> Vec<i32> {
        let others = self.facts.processes.iter().filter(|other| other.pid != process.pid);
        let holders = others.filter(|other| other.known_fds().iter().any(&is));
        holders.take(4).map(|other| other.pid).collect()
    }

    /// A process with its program.
    fn name(&self, pid: i32) -> String {
        let process = self.facts.processes.iter().find(|process| process.pid == pid);
        process.map_or_else(|| pid.to_string(), |process| format!("{pid} `{}`", escape::command(process)))
    }

    /// Processes, each with whether it is stopped; `None` if there are none.
    pub(super) fn named(&self, pids: &[i32]) -> Option<String> {
        let name = |pid: &i32| {
            let stopped = if self.is_stopped(*pid) { ", which is stopped" } else { "" };
            format!("pid {}{stopped}", self.name(*pid))
        };
        let names: Vec<String> = pids.iter().map(name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    fn is_stopped(&self, pid: i32) -> bool {
        let mut processes = self.facts.processes.iter();
        processes
            .any(|process| process.pid == pid && process.tasks.iter().any(|thread| thread.on == On::Stopped))
    }

    /// What lets those go on that something waits for, if all of them are stopped.
    pub(super) fn fix_of_stopped(&self, pids: &[i32]) -> Option<String> {
        if pids.is_empty() || !pids.iter().all(|pid| self.is_stopped(*pid)) {
            return None;
        }
        let it = if pids.len() == 1 { "it" } else { "them" };
        let (ends, verb) =
            if pids.len() == 1 { ("ends it", "stopped it") } else { ("ends them", "stopped them") };
        Some(format!(
            "send {it} SIGCONT, or SIGKILL, which {ends} all the same; and look who {verb}: SIGSTOP, \
             SIGTSTP, or {TERMINAL}."
        ))
    }
}
