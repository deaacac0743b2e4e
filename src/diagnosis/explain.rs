//! Says why a wait never ends, and what usually mends it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::ends::{Strayed, Unread};
use super::stuck::{Because, Stuck, has_crowd_behind};
use super::{Awaited, Finding, Names, origin_of_inode, plural};
use crate::facts::{Facts, PipeState, Process};
use crate::outcome::End;
use crate::proc::fds::Fd;
use crate::proc::waits::{On, Thread};
use crate::report::escape;

/// What stops a process without anybody who means to.
const TERMINAL: &str = "SIGTTIN and SIGTTOU, which a terminal sends to whoever uses it in the background";

/// The most waits that are explained one by one.
const EXPLAINED: usize = 4;

/// Adds a finding for each wait that is the reason of others, and of none for those others. Gives
/// the pipes of which it told that an end was inherited by mistake.
pub(super) fn find(
    facts: &Facts,
    stuck: &[Stuck],
    names: &Names,
    strayed: &[Strayed<'_>],
    unread: &[Unread],
    findings: &mut Vec<Finding>,
) -> Vec<u64> {
    let scene = Scene { facts, stuck, names, strayed, unread, told: RefCell::default() };
    let mut told: Vec<(Finding, usize, Vec<u64>)> = Vec::new();
    let mut rings: Vec<BTreeSet<i32>> = Vec::new();
    let is_root = |stuck: &Stuck| is_root(stuck) || scene.mistake(stuck).is_some();
    let mut roots: Vec<&Stuck> = stuck.iter().filter(|stuck| is_root(stuck)).collect();
    roots.sort_by_key(|stuck| (!stuck.proved(), stuck.because));
    for root in roots {
        if root.because == Because::Cycle {
            let ring: BTreeSet<i32> = root.ring.iter().copied().collect();
            // Somebody of the ring would wait without the others too.
            let told = stuck
                .iter()
                .any(|other| other.because != Because::Cycle && is_root(other) && ring.contains(&other.tid));
            if told || rings.contains(&ring) {
                continue;
            }
            // What it could do itself is not what it waits for, if others could end it too.
            if ring.len() == 1 && root.wakers.len() > 1 {
                continue;
            }
            rings.push(ring);
        }
        let finding = scene.explain(root);
        let pipes = scene.told.take();
        let Some(finding) = finding else { continue };
        // Eighty children that hang on one lock are one story.
        match told.iter_mut().find(|(known, ..)| known.fix == finding.fix && same_story(known, &finding)) {
            Some((_, count, known)) => {
                *count += 1;
                known.extend(pipes);
            }
            None => told.push((finding, 1, pipes)),
        }
    }
    if told.is_empty() && facts.end == End::TimedOut {
        findings.extend(scene.waits_for());
    }
    let more = told.len().saturating_sub(EXPLAINED);
    for (mut finding, count, pipes) in told.into_iter().take(EXPLAINED) {
        if count > 1 {
            finding.sentence += &format!(" The same holds for {}.", plural(count - 1, "more process"));
        }
        findings.push(finding);
        scene.told.borrow_mut().extend(pipes);
    }
    if more > 0 {
        let sentence = match more {
            1 => "1 more wait never ends, for another reason.".to_owned(),
            more => format!("{more} more waits never end, for other reasons."),
        };
        findings.push(Finding { cause: None, sentence, fix: None, allow: None });
    }
    scene.told.into_inner()
}

/// Whether a wait is the reason of others: it waits for itself, or for what does not exist.
fn is_root(stuck: &Stuck) -> bool {
    match stuck.because {
        Because::InheritedLock | Because::MaybeInheritedLock | Because::OwnWriteEnd | Because::Cycle => true,
        _ => stuck.wakers.is_empty() || stuck.wakers == [stuck.pid],
    }
}

/// Whether two sentences differ in nothing but numbers.
fn same_story(one: &Finding, other: &Finding) -> bool {
    let words =
        |finding: &Finding| -> String { finding.sentence.chars().filter(|c| !c.is_ascii_digit()).collect() };
    words(one) == words(other)
}

pub(super) struct Scene<'a> {
    pub(super) facts: &'a Facts,
    stuck: &'a [Stuck],
    names: &'a Names,
    strayed: &'a [Strayed<'a>],
    unread: &'a [Unread],
    /// The pipes of which it was told that an end was inherited by mistake.
    told: RefCell<Vec<u64>>,
}

impl Scene<'_> {
    fn explain(&self, stuck: &Stuck) -> Option<Finding> {
        let (process, thread) = self.find(stuck.tid)?;
        let pid = stuck.pid;
        let never = match &stuck.doubts[..] {
            [] => "(same in 2 snapshots)".to_owned(),
            doubts => format!("(not proved: {})", doubts.join("; ")),
        };
        let can_never = |what: &str| match stuck.proved() {
            true => format!("It can never {what}. {never}"),
            false => format!("Nothing was found that will let it {what}. {never}"),
        };
        let (sentence, fix) = match stuck.because {
            Because::InheritedLock => self.inherited_lock(stuck, process, thread, &never),
            Because::OwnWriteEnd if stuck.socket.is_some() => {
                self.own_socket(stuck, process, &can_never("get any, nor see EOF"))?
            }
            Because::MaybeInheritedLock => {
                let sentence = format!(
                    "{} {}",
                    self.alone(stuck, process, thread, &can_never("go on")),
                    self.may_be_inherited(process, thread)
                );
                let fix = format!(
                    "{} If the process itself has it already, let go of it before it is taken again.",
                    self.fix_of_fork(thread)
                );
                (sentence, Some(fix))
            }
            Because::OwnWriteEnd => {
                let ends = self.ends(process, stuck.pipe?, Fd::writes);
                let mut others = self.writers(stuck.pipe?);
                let wakers: BTreeSet<i32> = stuck.wakers.iter().copied().collect();
                others.retain(|other| *other != pid && wakers.contains(other));
                let mut held = match (&ends[..], &others[..]) {
                    ([end], []) => format!("whose only write end is its own fd {end}"),
                    (ends, []) => format!("whose only write ends are its own fds {}", list(ends)),
                    (ends, others) => format!(
                        "whose write ends are its own {} and those of {}, which {} stuck too",
                        fds(ends),
                        list(others),
                        if others.len() == 1 { "is" } else { "are" }
                    ),
                };
                if self.mistake(stuck).is_some() {
                    held += ", which no O_CLOEXEC kept back when it was started";
                    self.told.borrow_mut().extend(stuck.pipe);
                }
                let who = if process.is_test {
                    format!("the test, pid {pid},")
                } else if process.forked_without_exec {
                    format!("pid {pid} is its own lifeline keeper: it")
                } else {
                    format!("pid {pid} `{}`", escape::command(process))
                };
                let sentence = format!("{who} waits for EOF on a pipe {held}. {}", can_never("see EOF"));
                (sentence, Some(self.fix_of_own_end(process, stuck.pipe?, &ends)))
            }
            Because::Cycle if matches!(thread.on, On::Futex { .. }) && stuck.ring.len() <= 1 => {
                let kind = self.names.awaited.get(&thread.tid);
                let mut sentence = self.alone(stuck, process, thread, &can_never("go on"));
                let crowd = has_crowd_behind(self.facts, self.names, process);
                if process.tasks.len() == 1 && crowd != Some(false) {
                    sentence += " ";
                    sentence += &self.left_behind(process, kind, crowd);
                }
                (sentence, Some(Awaited::fix(kind).to_owned()))
            }
            Because::Cycle if stuck.ring.len() > 1 => self.ring(stuck, &never)?,
            _ => {
                let clause = self.clause(stuck)?;
                let pid = if stuck.tid == pid && process.tasks.len() == 1 { "pid " } else { "" };
                let unwatched = self.unwatched(&stuck.wakers);
                let fix = match self.mistake(stuck) {
                    Some(mistake) => Some(mistake.fix()),
                    None if stuck.because == Because::NoReaderRuns && stuck.wakers == [stuck.pid] => {
                        Some(format!(
                            "close the read end that it does not use, {}: then writing fails with EPIPE. Or read from it \
                         in another thread.",
                            fds(&self.ends(process, stuck.pipe?, Fd::reads))
                        ))
                    }
                    None => None,
                };
                (format!("{pid}{clause}. {}{unwatched}", can_never("go on")), fix)
            }
        };
        Some(Finding { cause: None, sentence, fix, allow: None })
    }

    fn inherited_lock(
        &self,
        stuck: &Stuck,
        process: &Process,
        thread: &Thread,
        never: &str,
    ) -> (String, Option<String>) {
        let pid = stuck.pid;
        let can =
            if stuck.proved() { "can never run again" } else { "waits, and nothing was found that wakes it" };
        let sentence = format!(
            "pid {pid} {can}: it waits {} that some thread of pid {} held when {pid} was forked. That thread does \
             not exist in {pid}. {never}",
            self.awaited(thread),
            self.maker(process),
        );
        (sentence, Some(self.fix_of_fork(thread)))
    }

    /// Who forked a process.
    fn maker(&self, process: &Process) -> i32 {
        super::origin_of_process(&self.names.origins, process.pid)
            .map(|origin| origin.maker)
            .or_else(|| process.lineage.first().copied())
            .unwrap_or(self.facts.pid)
    }

    fn fix_of_fork(&self, thread: &Thread) -> String {
        let called = self.names.called.get(&thread.tid);
        let called = called.map_or_else(String::new, |function| format!(": `{}` locks", brief(function)));
        format!(
            "exec after the fork (`Command`), or fork while there is one thread. Between fork and exec only \
             async-signal-safe calls are sound{called}."
        )
    }

    /// A futex that no thread of its process is left to wake.
    fn alone(&self, stuck: &Stuck, process: &Process, thread: &Thread, never: &str) -> String {
        let kind = self.names.awaited.get(&thread.tid);
        let others = match process.tasks.len() {
            1 => format!("it has no other thread that could {}", Awaited::ended_by(kind)),
            count => format!("all its {count} threads wait"),
        };
        format!("pid {} waits {}, and {others}. {never}", stuck.pid, self.awaited(thread))
    }

    /// How a lock may have come to be taken: an inference.
    fn may_be_inherited(&self, process: &Process, thread: &Thread) -> String {
        let (pid, maker) = (process.pid, self.maker(process));
        match self.names.awaited.get(&thread.tid) {
            Some(Awaited::Once) => format!(
                "A thread of pid {maker} that does not exist in {pid} may have been at it when {pid} was forked; or the \
                 thread that waits is at it itself."
            ),
            _ => format!(
                "A thread of pid {maker} that does not exist in {pid} may have held it when {pid} was forked; or the \
                 thread that waits holds it itself, taken before the fork or after."
            ),
        }
    }

    /// What is to be said of a fork whose only thread waits for what no lock is, or for nobody
    /// knows what.
    fn left_behind(&self, process: &Process, kind: Option<&Awaited>, crowd: Option<bool>) -> String {
        let maker = self.maker(process);
        let others = match crowd {
            Some(_) => format!("the other threads of pid {maker}"),
            None => format!("if pid {maker} had others, they"),
        };
        match kind {
            Some(kind) if !kind.is_held() => format!(
                "A fork copies only the thread that calls it: {others} cannot {} here.",
                Awaited::ended_by(Some(kind))
            ),
            _ => format!("A fork copies only the thread that calls it: {others} may have held it."),
        }
    }

    /// Those that wait for each other, in the order in which they wait.
    fn ring(&self, stuck: &Stuck, never: &str) -> Option<(String, Option<String>)> {
        let mut clauses = Vec::new();
        let mut pids: Vec<i32> = Vec::new();
        let mut kinds = BTreeSet::new();
        let mut awaited: BTreeSet<&Awaited> = BTreeSet::new();
        for tid in &stuck.ring {
            let member = self.stuck.iter().find(|member| member.tid == *tid)?;
            clauses.push(self.clause(member)?);
            if !pids.contains(&member.pid) {
                pids.push(member.pid);
            }
            let (_, thread) = self.find(*tid)?;
            awaited.extend(self.names.awaited.get(tid));
            kinds.insert(match thread.on {
                On::Child { .. } => Kind::Child,
                On::Write { .. } => Kind::Write,
                On::Futex { .. } | On::Thread { .. } => Kind::Thread,
                _ => Kind::Read,
            });
        }
        let who = match &pids[..] {
            [pid] => format!("{} of pid {pid} wait for each other", plural(stuck.ring.len(), "thread")),
            [_, _] => format!("pids {} wait for each other", list(&pids)),
            _ => format!("pids {} wait for each other in a ring", list(&pids)),
        };
        if clauses.len() > 6 {
            clauses.truncate(6);
            clauses.push("and so on".to_owned());
        }
        let ending = match (stuck.proved(), stuck.ring.len()) {
            (true, 2) => "Neither can ever go on.",
            (true, _) => "None can ever go on.",
            (false, _) => "Nothing was found that will let them go on.",
        };
        let unwatched = self.unwatched(&pids);
        let sentence = format!("{who}: {}. {ending} {never}{unwatched}", clauses.join("; "));
        let members =
            || stuck.ring.iter().filter_map(|tid| self.stuck.iter().find(|member| member.tid == *tid));
        if let Some(mistake) = members().find_map(|member| self.mistake(member)) {
            return Some((sentence, Some(mistake.fix())));
        }
        if kinds == BTreeSet::from([Kind::Child, Kind::Read]) {
            let fix = members().find_map(|member| self.fix_of_reader(member));
            return Some((sentence, fix));
        }
        let fix = if kinds.contains(&Kind::Child) && kinds.contains(&Kind::Write) {
            "read what the child writes to its end before waiting for the child: `Child::wait_with_output` or \
             `Command::output` do both."
        } else if let (Some(first), 1) = (awaited.first().filter(|kind| !kind.is_held()), kinds.len()) {
            Awaited::fix(Some(first))
        } else if kinds.contains(&Kind::Thread) && kinds.len() == 1 {
            "take locks in the same order everywhere, and join no thread while holding what it needs."
        } else if kinds.contains(&Kind::Child) {
            "close the end that the child waits on before waiting for the child: drop its owner."
        } else if kinds.len() == 1 && kinds.contains(&Kind::Write) {
            "read the output while writing, one of the two in a thread of its own: give `child.stdin` to a thread \
             that writes and drops it, and call `wait_with_output`."
        } else {
            "let one side write first, or close the ends that it does not use right after the fork."
        };
        Some((sentence, Some(fix.to_owned())))
    }

    /// What one thread waits for, and who has it.
    fn clause(&self, stuck: &Stuck) -> Option<String> {
        let (process, thread) = self.find(stuck.tid)?;
        let who = match process.tasks.len() {
            1 => stuck.pid.to_string(),
            _ if stuck.tid == stuck.pid => format!("the main thread of {}", stuck.pid),
            _ => format!("thread {} of {}", stuck.tid, stuck.pid),
        };
        // Of a set of fds, the pipe is one; others may be woken through the rest.
        let waits_on = |is: fn(&Fd) -> bool| {
            let pipe = stuck.pipe.filter(|_| matches!(thread.on, On::Poll { .. } | On::Epoll { .. }))?;
            let fds = || thread.fds().into_iter().filter_map(|fd| process.fd(fd));
            fds().any(|fd| fd.pipe() == Some(pipe) && is(fd)).then_some(pipe)
        };
        let mut wakers = stuck.wakers.clone();
        if let Some(pipe) = waits_on(Fd::reads) {
            let writers = self.writers(pipe);
            wakers.retain(|waker| writers.contains(waker));
        }
        let reads = waits_on(Fd::reads).is_some();
        let (only, holders) = match &wakers[..] {
            [] => ("", "nobody that was found".to_owned()),
            [waker] if *waker == stuck.pid => ("only ", "it itself".to_owned()),
            wakers => ("only ", list(wakers)),
        };
        Some(match &thread.on {
            On::Child { .. } => format!("{who} waits for the end of {holders}"),
            On::Thread { tid } => format!("{who} waits for the end of thread {tid}"),
            On::Futex { .. } => format!("{who} waits {}", self.awaited(thread)),
            On::Lock { fd } => {
                let file = process.fd(*fd).map_or_else(String::new, |file| escape::text(&file.target));
                let holds = if stuck.wakers.len() > 1 { "hold" } else { "holds" };
                format!("{who} waits for the lock on `{file}` that {holders} {holds}")
            }
            _ if stuck.socket.is_some() => format!("{who} {}", self.clause_of_socket(stuck, thread)?),
            On::Write { .. } | On::Poll { .. } | On::Epoll { .. } if stuck.pipe.is_some() && !reads => {
                let full = self.facts.pipe(stuck.pipe?).and_then(PipeState::queue);
                let full = full.map_or_else(String::new, |queue| format!(" ({queue})"));
                format!(
                    "{who} writes to pipe:[{}], which is full{full} and which {only}{holders} can read",
                    stuck.pipe?
                )
            }
            _ => {
                let mistake = self.mistake(stuck).map_or_else(String::new, |mistake| {
                    self.told.borrow_mut().push(mistake.ino);
                    let fds: Vec<i32> = mistake.fds.iter().map(|fd| fd.fd).collect();
                    format!(", and that only because no O_CLOEXEC kept {} back", self::fds(&fds))
                });
                match stuck.pipe {
                    Some(pipe) => {
                        format!("{who} reads from pipe:[{pipe}], to which {only}{holders} can write{mistake}")
                    }
                    None => format!("{who} waits for an eventfd, to which {only}{holders} can write"),
                }
            }
        })
    }

    /// The processes that have a write end of a pipe, or may have one.
    fn writers(&self, pipe: u64) -> Vec<i32> {
        let writes = |fd: &Fd| fd.pipe() == Some(pipe) && fd.writes();
        let processes = self.facts.processes.iter();
        processes
            .filter(|process| process.fds.as_ref().is_none_or(|fds| fds.iter().any(writes)))
            .map(|process| process.pid)
            .collect()
    }

    /// What keeps a pipe open for writing, if that is nothing but ends that were inherited by
    /// mistake.
    fn open_by_mistake(&self, pipe: u64) -> Option<&Strayed<'_>> {
        let strayed = |pid: i32| {
            let process = self.facts.processes.iter().find(|process| process.pid == pid)?;
            let ends = self.ends(process, pipe, Fd::writes);
            let known =
                self.strayed.iter().find(|strayed| strayed.ino == pipe && strayed.process.pid == pid)?;
            let all = ends.iter().all(|end| known.fds.iter().any(|fd| fd.fd == *end));
            (all && !ends.is_empty()).then_some(known)
        };
        let writes = |fd: &Fd| fd.pipe() == Some(pipe) && fd.writes();
        if self.facts.outside.holders.iter().any(|holder| holder.fds.iter().any(writes)) {
            return None;
        }
        let found: Option<Vec<&Strayed<'_>>> = self.writers(pipe).into_iter().map(strayed).collect();
        found?.into_iter().next()
    }

    /// The same for the pipe that a thread waits on to read.
    fn mistake(&self, stuck: &Stuck) -> Option<&Strayed<'_>> {
        let (_, thread) = self.find(stuck.tid)?;
        let reads = matches!(thread.on, On::Read { .. } | On::Poll { .. } | On::Epoll { .. });
        self.open_by_mistake(stuck.pipe.filter(|_| reads)?)
    }

    /// What is to be said of processes that did not see the end of somebody whom they watch.
    fn unwatched(&self, pids: &[i32]) -> String {
        let unread = self.unread.iter().filter(|unread| pids.contains(&unread.pid));
        unread
            .map(|Unread { pid, fds }| match &fds[..] {
                [fd] => format!(
                    " Fd {fd} of pid {pid} is a read end at EOF that nobody reads: if that is its lifeline, it should \
                     have ended."
                ),
                fds => format!(
                    " Fds {} of pid {pid} are read ends at EOF that nobody reads: if one of them is its lifeline, it \
                     should have ended.",
                    list(fds)
                ),
            })
            .collect()
    }

    /// What ends the wait of a reader whose pipe is open in somebody who waits for its end.
    fn fix_of_reader(&self, reader: &Stuck) -> Option<String> {
        let pipe = reader.pipe?;
        let (process, _) = self.find(reader.tid)?;
        let writer = reader.ring.get(1).and_then(|tid| self.find(*tid))?.0;
        let ends = self.ends(writer, pipe, Fd::writes);
        let who = if writer.is_test { "the test".to_owned() } else { format!("pid {}", writer.pid) };
        let place = origin_of_inode(&self.names.origins, pipe).and_then(|origin| origin.place.as_deref());
        let place = place.map_or_else(String::new, |place| format!(" (made at {place})"));
        let ends = fds(&ends);
        Some(match process.fd(0).and_then(Fd::pipe) == Some(pipe) {
            true => format!(
                "drop the child's stdin, {ends} of {who}{place}, before `wait()`: that closes only a `child.stdin` \
                 which was not taken out."
            ),
            false => format!(
                "close the write end that pid {} waits on, {ends} of {who}{place}, before waiting for its end: drop \
                 the owner.",
                process.pid
            ),
        })
    }

    /// What the test's own first thread waits for, if somebody else could still end that.
    fn waits_for(&self) -> Option<Finding> {
        let test = self.facts.processes.iter().find(|process| process.is_test)?;
        let thread = test.tasks.first()?;
        let name = |pid: i32| {
            let process = self.facts.processes.iter().find(|process| process.pid == pid);
            process.map_or_else(|| pid.to_string(), |process| format!("{pid} `{}`", escape::command(process)))
        };
        let (sentence, fix) = match &thread.on {
            On::Stopped if thread.state == "T" => (
                "the test is stopped by a signal.".to_owned(),
                Some(format!(
                    "look who sent it: SIGSTOP, SIGTSTP, or {TERMINAL}. SIGCONT would let it go on."
                )),
            ),
            On::Child { pid } if *pid > 0 => {
                let is_stopped = |process: &&Process| {
                    process.pid == *pid && process.tasks.iter().any(|thread| thread.on == On::Stopped)
                };
                match self.facts.processes.iter().find(is_stopped) {
                    Some(_) => (
                        format!("the test waits for the end of pid {}, which is stopped.", name(*pid)),
                        Some(format!(
                            "send it SIGCONT, or SIGKILL, which ends it all the same; and look who stopped it: SIGSTOP, \
                             SIGTSTP, or {TERMINAL}."
                        )),
                    ),
                    None => {
                        let unwatched = self.unwatched(&[*pid]);
                        (format!("the test waits for the end of pid {}.{unwatched}", name(*pid)), None)
                    }
                }
            }
            _ if thread.fds().iter().any(|fd| self.socket(test, *fd).is_some()) => {
                let socket = thread.fds().into_iter().find_map(|fd| self.socket(test, fd))?;
                (self.waits_at(socket, test, name)?, None)
            }
            On::Read { .. } | On::Poll { .. } => {
                let pipes: Vec<u64> = thread.fds().into_iter().filter_map(|fd| test.pipe(fd)).collect();
                let writes = |fd: &Fd| fd.writes() && fd.pipe().is_some_and(|pipe| pipes.contains(&pipe));
                let holders: Vec<i32> = self
                    .facts
                    .processes
                    .iter()
                    .filter(|process| !process.is_test && process.fds.iter().flatten().any(writes))
                    .take(4)
                    .map(|process| process.pid)
                    .collect();
                if holders.is_empty() {
                    return None;
                }
                let mistake = match pipes[..] {
                    [pipe] => self.open_by_mistake(pipe),
                    _ => None,
                };
                let only = mistake.map_or("", |_| ", only because no O_CLOEXEC kept it back");
                self.told.borrow_mut().extend(mistake.map(|mistake| mistake.ino));
                let names: Vec<String> = holders.iter().copied().map(name).collect();
                let unwatched = self.unwatched(&holders);
                (
                    format!(
                        "the test reads from a pipe that is open for writing in pid {}{only}: it sees EOF only when \
                         that is closed.{}",
                        names.join(", pid "),
                        unwatched
                    ),
                    Some(mistake.map_or_else(
                        || {
                            let background = "a program that stays in the background keeps what it inherited: redirect its \
                                              output, or end it before reading to the end.";
                            let watch = if unwatched.is_empty() {
                                ""
                            } else {
                                " One that is to end with its parent has to read its lifeline, in a thread of its own."
                            };
                            format!("{background}{watch}")
                        },
                        Strayed::fix,
                    )),
                )
            }
            _ => return None,
        };
        Some(Finding { cause: None, sentence, fix, allow: None })
    }

    /// What a thread waits for in a futex, behind the word `waits`.
    fn awaited(&self, thread: &Thread) -> String {
        let name = match (self.names.locks.get(&thread.tid), self.names.called.get(&thread.tid)) {
            (Some(name), _) => format!(" ({name})"),
            (None, Some(function)) => format!(" (in `{}`)", brief(function)),
            (None, None) => String::new(),
        };
        Awaited::words(self.names.awaited.get(&thread.tid), &name)
    }

    /// The fds of one process that are ends of a pipe.
    fn ends(&self, process: &Process, pipe: u64, is: impl Fn(&Fd) -> bool) -> Vec<i32> {
        let ends = process.fds.iter().flatten().filter(|fd| fd.pipe() == Some(pipe) && is(fd));
        ends.map(|fd| fd.fd).collect()
    }

    fn fix_of_own_end(&self, process: &Process, pipe: u64, ends: &[i32]) -> String {
        let fds = list(ends);
        if process.forked_without_exec && !process.is_test {
            return format!(
                "in the child, close fd {fds} between the fork and the read. O_CLOEXEC would not help: the \
                 child never execs."
            );
        }
        if process.is_test {
            return format!("drop the owner of the write end, fd {fds}, before reading to the end.");
        }
        let place = origin_of_inode(&self.names.origins, pipe).and_then(|origin| origin.place.as_deref());
        let place = place.map_or_else(String::new, |place| format!(" ({place})"));
        format!("create the write end, fd {fds}, with O_CLOEXEC{place}, so that the program never gets it.")
    }

    fn find(&self, tid: i32) -> Option<(&Process, &Thread)> {
        self.facts.tasks().find(|(_, thread)| thread.tid == tid)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Child,
    Read,
    Write,
    Thread,
}

/// The type and the name of a function: `Mutex<T>::lock`, also of `<a::Mutex<T> as Trait>::lock`.
fn brief(path: &str) -> String {
    if let Some((of, name)) = path.strip_prefix('<').and_then(|rest| rest.rsplit_once(">::")) {
        let of = of.split(" as ").next().unwrap_or(of);
        let head = of.split('<').next().unwrap_or(of);
        let begin = head.rfind("::").map_or(0, |at| at + 2);
        return format!("{}::{name}", of.get(begin..).unwrap_or(of));
    }
    let mut parts = path.rmatch_indices("::");
    match (parts.next(), parts.next()) {
        (Some(_), Some((at, _))) => path[at + 2..].to_owned(),
        _ => path.to_owned(),
    }
}

/// `fd 3`, `fds 3 and 4`.
fn fds(numbers: &[i32]) -> String {
    format!("{} {}", if numbers.len() == 1 { "fd" } else { "fds" }, list(numbers))
}

/// `3`, `3 and 4`, `3, 4 and 5`.
pub(super) fn list(numbers: &[i32]) -> String {
    let mut text = String::new();
    for (at, number) in numbers.iter().enumerate() {
        if at > 0 {
            text += if at + 1 == numbers.len() { " and " } else { ", " };
        }
        text += &number.to_string();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::brief;

    #[test]
    fn a_function_is_named_with_its_type() {
        for (path, expected) in [
            ("std::sync::poison::mutex::Mutex<T>::lock", "Mutex<T>::lock"),
            ("<std::sync::barrier::Barrier>::wait", "Barrier::wait"),
            (
                "<std::sync::lazy_lock::LazyLock<T,F> as core::ops::deref::Deref>::deref",
                "LazyLock<T,F>::deref",
            ),
            ("<a::B<c::D> as e::F<g::H>>::i", "B<c::D>::i"),
            ("malloc", "malloc"),
            ("<", "<"),
        ] {
            assert_eq!(brief(path), expected);
        }
    }
}
