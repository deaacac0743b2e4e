//! Says why a wait never ends, and what usually mends it.

use std::cell::RefCell;
use std::collections::HashSet;

use super::ends::{Strayed, Unread};
use super::stuck::{Because, Stuck, has_crowd_behind};
use super::{Awaited, Finding, Names, enumerate, origin_of_inode, plural};
use crate::facts::{Facts, Process};
use crate::outcome::End;
use crate::proc::fds::Fd;
use crate::proc::sockets::Socket;
use crate::proc::waits::{On, Thread};
use crate::report::escape;

/// What a parent does that waits for a child's output.
pub(super) const READING: &str = "reading to the end";

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
    let mut told: Vec<(Finding, Vec<i32>, Vec<u64>)> = Vec::new();
    let mut rings: Vec<HashSet<i32>> = Vec::new();
    let is_root = |stuck: &Stuck| is_root(stuck) || scene.mistake(stuck).is_some();
    let mut roots: Vec<&Stuck> = stuck.iter().filter(|stuck| is_root(stuck)).collect();
    // The wait for a futex may have to do with any other thread: told last.
    // Of rings that overlap the shortest is told.
    roots
        .sort_by_key(|stuck| (!stuck.proved(), stuck.because, scene.in_futex(&stuck.ring), stuck.ring.len()));
    let mut crowds: Vec<i32> = Vec::new();
    let mut pairs: Vec<(i32, Option<u64>)> = Vec::new();
    for root in roots {
        if root.because == Because::Cycle {
            let ring: HashSet<i32> = root.ring.iter().copied().collect();
            // Somebody of the ring would wait without the others too.
            let told = stuck
                .iter()
                .any(|other| other.because != Because::Cycle && is_root(other) && ring.contains(&other.tid));
            if told || rings.iter().any(|told| !told.is_disjoint(&ring)) {
                continue;
            }
            // A futex of a thread that waits for others, which do not wait for it: they are told.
            if ring.is_empty() && !root.wakers.is_empty() {
                continue;
            }
            // What it could do itself is not what it waits for, if others could end it too.
            if ring.len() == 1 && root.wakers.len() > 1 {
                continue;
            }
            // All threads of a process that could wake each other are one story.
            if scene.is_crowd(root) {
                let told = stuck
                    .iter()
                    .any(|other| other.pid == root.pid && other.because != Because::Cycle && is_root(other));
                if told || crowds.contains(&root.pid) {
                    continue;
                }
                crowds.push(root.pid);
            }
            rings.push(ring);
        }
        // Two threads of one process at the two ends of a pair are one story.
        let peer = root.socket.and_then(|ino| facts.socket(ino)).and_then(Socket::other_end);
        if root.because == Because::OwnWriteEnd && peer.is_some() {
            if pairs.contains(&(root.pid, peer)) {
                continue;
            }
            pairs.push((root.pid, root.socket));
        }
        let finding = scene.explain(root);
        let pipes = scene.told.take();
        let Some(finding) = finding else { continue };
        // Eighty children that hang on one lock are one story.
        match told.iter_mut().find(|(known, ..)| known.fix == finding.fix && same_story(known, &finding)) {
            Some((_, pids, known)) => {
                pids.push(root.pid);
                known.extend(pipes);
            }
            None => told.push((finding, vec![root.pid], pipes)),
        }
    }
    if told.is_empty() && facts.end == End::TimedOut {
        findings.extend(scene.waits_for());
    }
    let more = told.len().saturating_sub(EXPLAINED);
    for (mut finding, pids, pipes) in told.into_iter().take(EXPLAINED) {
        if let [first, others @ ..] = &pids[..]
            && !others.is_empty()
        {
            let same = others.iter().all(|other| other == first);
            let noun = if same { "more thread" } else { "more process" };
            finding.sentence += &format!(" The same holds for {}.", plural(others.len(), noun));
        }
        // Two waits with one fix have one.
        finding.fix = finding.fix.filter(|fix| findings.iter().all(|known| known.fix.as_ref() != Some(fix)));
        findings.push(finding);
        scene.told.borrow_mut().extend(pipes);
    }
    if more > 0 {
        let sentence = match more {
            1 => "1 more wait never ends, for another reason.".to_owned(),
            more => format!("{more} more waits never end, for other reasons."),
        };
        findings.push(Finding { cause: None, sentence, fix: None, allow: Vec::new() });
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
    pub(super) stuck: &'a [Stuck],
    pub(super) names: &'a Names,
    strayed: &'a [Strayed<'a>],
    unread: &'a [Unread],
    /// The pipes of which it was told that an end was inherited by mistake.
    pub(super) told: RefCell<Vec<u64>>,
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
                self.own_socket(stuck, process, thread, &can_never("get any, nor see EOF"))?
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
            Because::NoReaderRuns if stuck.socket.is_some() && stuck.wakers == [pid] => {
                self.full_socket(stuck, process, thread, &can_never("go on"))?
            }
            Because::OwnWriteEnd => {
                let ends = self.ends(process, stuck.pipe?, Fd::writes);
                let mut others = self.writers(stuck.pipe?);
                let wakers: HashSet<i32> = stuck.wakers.iter().copied().collect();
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
                match self.writer_among_threads(process, thread, &fds(&ends)) {
                    Some((crowd, fix)) => (
                        format!("{who} waits at a pipe {held}, {crowd}. {}", can_never("see EOF")),
                        Some(fix),
                    ),
                    None if self.wait_elsewhere(&others, stuck.pipe?) => {
                        let sentence = format!(
                            "pid {pid} waits for data or EOF on a pipe {held}. {}",
                            can_never("get either")
                        );
                        let mut all = [&[pid], &others[..]].concat();
                        all.sort_unstable();
                        let fix = format!(
                            "have one of pids {} write before it reads. And close, in each, its own write end of the \
                             pipe that it reads: with that open it sees no EOF even then.",
                            list(&all)
                        );
                        (sentence, Some(fix))
                    }
                    None => {
                        let sentence =
                            format!("{who} waits for EOF on a pipe {held}. {}", can_never("see EOF"));
                        (sentence, Some(self.fix_of_own_end(process, stuck.pipe?, &ends)))
                    }
                }
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
            Because::Cycle if self.is_crowd(stuck) => self.crowd(stuck, process, &never)?,
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
        Some(Finding { cause: None, sentence, fix, allow: Vec::new() })
    }

    /// Whether one of these processes waits at another pipe than this.
    fn wait_elsewhere(&self, pids: &[i32], pipe: u64) -> bool {
        let mut others = self.stuck.iter().filter(|stuck| pids.contains(&stuck.pid));
        others.any(|stuck| stuck.pipe.is_some_and(|other| other != pipe))
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
                "A thread of pid {maker} that does not exist in {pid} may have held it when {pid} was forked; or a \
                 thread of {pid} holds it itself, taken before the fork or after."
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
        let mut kinds: Vec<Kind> = Vec::new();
        let mut awaited: Vec<&Awaited> = Vec::new();
        for tid in &stuck.ring {
            let member = self.stuck.iter().find(|member| member.tid == *tid)?;
            clauses.push(self.clause(member)?);
            if !pids.contains(&member.pid) {
                pids.push(member.pid);
            }
            let (_, thread) = self.find(*tid)?;
            awaited.extend(self.names.awaited.get(tid));
            let kind = match thread.on {
                On::Child { .. } => Kind::Child,
                On::Write { .. } => Kind::Write,
                On::Futex { .. } | On::Thread { .. } => Kind::Thread,
                _ => Kind::Read,
            };
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let how = match (self.in_futex(&stuck.ring), pids.len()) {
            // Whoever could wake a futex may have nothing to do with it.
            (true, _) => "all wait",
            (false, 1 | 2) => "wait for each other",
            (false, _) => "wait for each other in a ring",
        };
        let who = match &pids[..] {
            [pid] => format!("{} of pid {pid} {how}", plural(stuck.ring.len(), "thread")),
            _ => format!("pids {} {how}", list(&pids)),
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
        if kinds.len() == 2 && kinds.contains(&Kind::Child) && kinds.contains(&Kind::Read) {
            // What the test itself can close comes before what some program has open.
            let is_own = |tid: Option<&i32>| {
                let writer = tid.and_then(|tid| self.find(*tid));
                writer.is_some_and(|(process, _)| process.runs_own_program())
            };
            let own = members().filter(|member| is_own(member.ring.get(1)));
            let fix =
                own.chain(members()).find_map(|member| self.fix_of_reader(member, "waiting for its end"));
            return Some((sentence, fix));
        }
        if kinds.iter().all(|kind| matches!(kind, Kind::Read | Kind::Thread)) {
            let fix = members().find_map(|member| self.fix_of_child(member));
            if fix.is_some() {
                return Some((sentence, fix));
            }
        }
        if kinds.contains(&Kind::Write) && kinds.len() > 1 {
            let fix = members().find_map(|member| self.fix_of_writer(member));
            if fix.is_some() {
                return Some((sentence, fix));
            }
        }
        let fix = if let (Some(first), 1) = (awaited.iter().min().filter(|kind| !kind.is_held()), kinds.len())
        {
            Awaited::fix(Some(first))
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
        let (process, _) = self.find(stuck.tid)?;
        let who = match process.tasks.len() {
            1 => stuck.pid.to_string(),
            _ if stuck.tid == stuck.pid => format!("the main thread of {}", stuck.pid),
            _ => format!("thread {} of {}", stuck.tid, stuck.pid),
        };
        Some(format!("{who} {}", self.does(stuck)?))
    }

    /// The same without the name of the thread: `waits ..`.
    pub(super) fn does(&self, stuck: &Stuck) -> Option<String> {
        let (process, thread) = self.find(stuck.tid)?;
        // Of a set of fds, the pipe is one; others may be woken through the rest.
        let waits_on = |is: fn(&Fd) -> bool| {
            let pipe = stuck.pipe.filter(|_| thread.on.is_set())?;
            let fds = || thread.fds().into_iter().filter_map(|fd| process.fd(fd));
            fds().any(|fd| fd.pipe() == Some(pipe) && is(fd)).then_some(pipe)
        };
        let mut wakers = stuck.wakers.clone();
        let reads = waits_on(Fd::reads);
        if let Some(pipe) = reads {
            let writers = self.writers(pipe);
            wakers.retain(|waker| writers.contains(waker));
        }
        let (only, holders) = match &wakers[..] {
            [] => ("", "nobody that was found".to_owned()),
            [waker] if *waker == stuck.pid => ("only ", "itself".to_owned()),
            wakers => ("only ", list(wakers)),
        };
        Some(match &thread.on {
            On::Child { .. } => format!("waits for the end of {holders}"),
            On::Thread { tid } => format!("waits for the end of thread {tid}"),
            On::Futex { .. } => format!("waits {}", self.awaited(thread)),
            On::Lock { fd } => {
                let file = process.fd(*fd).map_or_else(String::new, |file| escape::text(&file.target));
                let holds = if stuck.wakers.len() > 1 { "hold" } else { "holds" };
                format!("waits for the lock on `{file}` that {holders} {holds}")
            }
            _ if stuck.socket.is_some() => self.clause_of_socket(stuck, only, &holders)?,
            On::Write { .. } | On::Poll { .. } | On::Epoll { .. }
                if stuck.pipe.is_some() && reads.is_none() =>
            {
                let full = self.facts.queue_of(stuck.pipe?);
                format!(
                    "writes to pipe:[{}], which is full{full} and which {only}{holders} can read",
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
                        format!("reads from pipe:[{pipe}], to which {only}{holders} can write{mistake}")
                    }
                    None => format!("waits for an eventfd, to which {only}{holders} can write"),
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
    pub(super) fn open_by_mistake(&self, pipe: u64) -> Option<&Strayed<'_>> {
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
        let reads = matches!(thread.on, On::Read { .. }) || thread.on.is_set();
        self.open_by_mistake(stuck.pipe.filter(|_| reads)?)
    }

    /// What is to be said of processes that did not see the end of somebody whom they watch.
    pub(super) fn unwatched(&self, pids: &[i32]) -> String {
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

    /// What lets a writer go on whose pipe is full, and whose reader waits for something else.
    fn fix_of_writer(&self, writer: &Stuck) -> Option<String> {
        let pipe = writer.pipe.filter(|_| writer.writes)?;
        let (reader, thread) = writer.ring.get(1).and_then(|tid| self.find(*tid))?;
        self.fix_of_full(pipe, reader, &thread.on)
    }

    /// The same, by what the reader of the pipe waits on.
    pub(super) fn fix_of_full(&self, pipe: u64, reader: &Process, on: &On) -> Option<String> {
        let ends = self.ends_of(reader, &self.ends(reader, pipe, Fd::reads), pipe)?;
        Some(match on {
            On::Child { .. } => format!(
                "read {ends} to its end before waiting for the child: `Child::wait_with_output` or `Command::output` \
                 do both."
            ),
            On::Read { fd } if reader.pipe(*fd).is_some() => format!(
                "read {ends} while fd {fd} is read, in a thread of its own: `Child::wait_with_output` and \
                 `Command::output` read both at once."
            ),
            _ => format!(
                "read {ends} all the while, in a thread of its own or with `poll`; or have it write to a file, or \
                 to `Stdio::null()`."
            ),
        })
    }

    /// What ends the wait of a reader whose pipe is open in somebody who waits for its end.
    fn fix_of_reader(&self, reader: &Stuck, before: &str) -> Option<String> {
        let pipe = reader.pipe?;
        let (process, _) = self.find(reader.tid)?;
        let writer = reader.ring.get(1).and_then(|tid| self.find(*tid))?.0;
        self.fix_of_pipe(process, pipe, writer, before)
    }

    /// The same for a child that waits at its stdin while its parent reads what it is to write.
    fn fix_of_child(&self, reader: &Stuck) -> Option<String> {
        let (process, _) = self.find(reader.tid)?;
        let writer = reader.ring.get(1).and_then(|tid| self.find(*tid))?.0;
        if process.runs_own_program() || process.lineage.first() != Some(&writer.pid) {
            return None;
        }
        match reader.socket {
            Some(socket) => self.fix_of_socket(socket, writer),
            None => self.fix_of_reader(reader, READING),
        }
    }

    /// What gives the reader of a pipe its EOF, if the writer waits for what it does then.
    pub(super) fn fix_of_pipe(
        &self,
        process: &Process,
        pipe: u64,
        writer: &Process,
        before: &str,
    ) -> Option<String> {
        let ends = self.ends(writer, pipe, Fd::writes);
        let ends = self.ends_of(writer, &ends, pipe)?;
        Some(match process.fd(0).and_then(Fd::pipe) == Some(pipe) {
            true if before == READING && self.reads_a_part(writer) => format!(
                "write to the child's stdin, {ends}, all that it waits for: the end of the line too, and flush what \
                 buffers it; or drop it, so that the child sees its end. What a program writes to a pipe, it may keep \
                 until its buffer is full."
            ),
            true if before == READING => {
                format!("drop `child.stdin`, {ends}, before {before}; or write to it first.")
            }
            true => format!(
                "drop what writes to the child's stdin, {ends}, before {before} or for the end of its output. \
                 (`Child::wait` drops only a `child.stdin` that was not taken out.)"
            ),
            false => format!(
                "close the write end that pid {} waits on, {ends}, before {before}: drop the owner.",
                process.pid
            ),
        })
    }

    /// Whether a thread of a process reads a line or a number of bytes, or whatever comes first: it need not
    /// wait for EOF.
    pub(super) fn reads_a_part(&self, process: &Process) -> bool {
        self.calls(process, &["read_line", "read_until", "read_exact", "::read"])
    }

    /// Whether a thread of a process is in one of these functions.
    pub(super) fn calls(&self, process: &Process, functions: &[&str]) -> bool {
        let called = |thread: &Thread| self.names.called.get(&thread.tid);
        let mut calls = process.tasks.iter().filter_map(called);
        calls.any(|called| functions.iter().any(|function| called.ends_with(function)))
    }

    /// `fd 4 of the test (made at src/a.rs:1:2)`; `None` if there is no such fd.
    pub(super) fn ends_of(&self, process: &Process, ends: &[i32], inode: u64) -> Option<String> {
        let who = if process.is_test { "the test".to_owned() } else { format!("pid {}", process.pid) };
        let place = self.place_of(inode).map_or_else(String::new, |place| format!(" (made at {place})"));
        (!ends.is_empty()).then(|| format!("{} of {who}{place}", fds(ends)))
    }

    /// The line that made a pipe or a socket.
    fn place_of(&self, inode: u64) -> Option<&str> {
        origin_of_inode(&self.names.origins, inode)?.place.as_deref()
    }

    /// What a thread waits for in a futex, behind the word `waits`.
    pub(super) fn awaited(&self, thread: &Thread) -> String {
        let name = match (self.names.locks.get(&thread.tid), self.names.called.get(&thread.tid)) {
            (Some(name), _) => format!(" ({name})"),
            (None, Some(function)) => format!(" (in `{}`)", brief(function)),
            (None, None) => String::new(),
        };
        Awaited::words(self.names.awaited.get(&thread.tid), &name)
    }

    /// The fds of one process that are ends of a pipe.
    pub(super) fn ends(&self, process: &Process, pipe: u64, is: impl Fn(&Fd) -> bool) -> Vec<i32> {
        let ends = process.known_fds().iter().filter(|fd| fd.pipe() == Some(pipe) && is(fd));
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
        let place = self.place_of(pipe).map_or_else(String::new, |place| format!(" ({place})"));
        format!("create the write end, fd {fds}, with O_CLOEXEC{place}, so that the program never gets it.")
    }

    pub(super) fn find(&self, tid: i32) -> Option<(&Process, &Thread)> {
        self.facts.tasks().find(|(_, thread)| thread.tid == tid)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
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
    // Those in angle brackets part no function from its type.
    let mut depth = 0;
    let parts: Vec<usize> = path
        .char_indices()
        .filter(|(at, c)| {
            depth += i32::from(*c == '<') - i32::from(*c == '>');
            depth == 0 && path[*at..].starts_with("::")
        })
        .map(|(at, _)| at)
        .collect();
    match parts[..] {
        [.., at, _] => path[at + 2..].to_owned(),
        _ => path.to_owned(),
    }
}

/// `fd 3`, `fds 3 and 4`.
pub(super) fn fds(numbers: &[i32]) -> String {
    format!("{} {}", if numbers.len() == 1 { "fd" } else { "fds" }, list(numbers))
}

/// `3`, `3 and 4`, `3, 4 and 5`.
pub(super) fn list(numbers: &[i32]) -> String {
    /// How many are told.
    const MOST: usize = 12;
    let mut words: Vec<String> = numbers.iter().take(MOST).map(i32::to_string).collect();
    if numbers.len() > MOST {
        words.push(format!("{} more", numbers.len() - MOST));
    }
    enumerate(&words)
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
