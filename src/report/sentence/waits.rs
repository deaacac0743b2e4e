//! A hang without proof, in words: from the test to the last waiter.

use nix::libc;

use super::at;
use super::deadlock::{awaited, thread_name};
use crate::diagnosis::{
    AtSocket, DeadChild, Link, LinkOn, Lock, RuntimeWait, Verdict, WaitsFor, Way, is_stopped,
};
use crate::guard::contended::Waiter;
use crate::guard::facts::{Class, Facts, Process};
use crate::proc::fds::Fd;
use crate::proc::sockets::{Peer, Socket};
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;
use crate::report::escape;
use crate::report::words::{
    a_socket, address, and_address, enumerate, fds, not_among, only, process, process_name,
    queue_in_brackets, unknown_peer,
};

pub(super) fn sentence(verdict: &Verdict, waits: &WaitsFor) -> String {
    let facts = &verdict.facts;
    let mut sentences: String = waits.dead.iter().map(|dead| format!("{} ", died(dead))).collect();
    // That the last one sleeps or runs explains nothing, so it is left out.
    let shown = match waits.ring {
        Some(_) => waits.chain.len(),
        // That it is stopped is written after its name.
        None => {
            let says = |link: &Link| !link.on.is_vague() && link.on != LinkOn::Stopped;
            waits.chain.iter().rposition(says).map_or(1, |at| at + 1)
        }
    };
    for (at, link) in waits.chain.iter().take(shown).enumerate() {
        let is_last = at + 1 == shown;
        let before = at.checked_sub(1).and_then(|before| waits.chain.get(before));
        match waits.test.as_ref().filter(|_| at == 0) {
            Some(test) => {
                let begin = if waits.dead.is_empty() { "test" } else { "Test" };
                sentences += &format!("{begin} `{}` ", escape::text(test));
            }
            None => sentences += &subject(facts, before, link),
        }
        sentences += &Clause { verdict, waits, at, is_last }.words(link);
    }
    let head = sentences.trim_start().to_owned() + ".";
    // A sentence begins with its subject.
    match head.strip_prefix("The ").filter(|_| waits.dead.is_empty()) {
        Some(rest) => format!("the {rest}"),
        None => head,
    }
}

/// The subject of a clause, and its connection to the one before.
fn subject(facts: &Facts, before: Option<&Link>, link: &Link) -> String {
    let Some(before) = before else {
        if !process(facts, link.pid).is_some_and(|process| process.is_test) {
            let name = process_name(facts, link.pid);
            return match &link.on {
                LinkOn::Runtime { .. } => format!("the async runtime of pid {name} "),
                _ => format!("pid {name} "),
            };
        }
        return match &link.on {
            LinkOn::Runtime { .. } => "The async runtime of the test ".to_owned(),
            _ => "The test ".to_owned(),
        };
    };
    let name = process_name(facts, link.pid);
    match &before.on {
        LinkOn::Runtime { .. } if link.pid == before.pid => {
            format!(". There {} ", thread_name(facts, link.pid, link.tid))
        }
        LinkOn::Runtime { .. } | LinkOn::AnyOf { .. } => format!(". Pid {name} "),
        LinkOn::Opening { .. } => format!(", while pid {name} "),
        // It has already been named.
        LinkOn::AnyChild { pids }
        | LinkOn::FileLock { holders: pids, .. }
        | LinkOn::PipeData { writers: pids, .. }
        | LinkOn::PipeRoom { readers: pids, .. }
        | LinkOn::OwnPipe { others: pids, .. }
            if pids.len() > 1 =>
        {
            format!(". Pid {} ", link.pid)
        }
        LinkOn::Polling => format!(", while pid {name} "),
        LinkOn::Socket(AtSocket { own, .. }) if !own.is_empty() => {
            format!(". There {} ", thread_name(facts, link.pid, link.tid))
        }
        LinkOn::Socket(_) => format!(". Pid {} ", link.pid),
        _ => ", which ".to_owned(),
    }
}

/// `pid 17 ``sh``, started at tests/a.rs:3:5, had exited with 101 and was not waited for.`
fn died(dead: &DeadChild) -> String {
    let created = dead.created.as_ref().map(|created| format!(", started {},", at(created)));
    let how = match dead.status {
        Some(status) => format!("had {} and was not waited for", ended(status)),
        None => "had ended and was waited for".to_owned(),
    };
    let alone = if dead.has_failed() { "" } else { "; no other process of the test is left" };
    format!("pid {} `{}`{} {how}{alone}.", dead.pid, escape::text(&dead.name), created.unwrap_or_default())
}

/// One link of the chain.
struct Clause<'a> {
    verdict: &'a Verdict,
    waits: &'a WaitsFor,
    at: usize,
    is_last: bool,
}

impl Clause<'_> {
    fn facts(&self) -> &Facts {
        &self.verdict.facts
    }

    /// The process that the last link of a cycle waits for.
    fn target(&self) -> Option<&Process> {
        let link = self.waits.ring_link().filter(|_| self.is_last)?;
        process(self.facts(), link.pid)
    }

    fn words(&self, link: &Link) -> String {
        let facts = self.facts();
        match &link.on {
            LinkOn::Stopped => "is stopped by a signal".to_owned(),
            LinkOn::Child { pid } => format!("waits for the end of {}", self.named(&[*pid])),
            LinkOn::AnyChild { pids } => match &pids[..] {
                [] => "waits for the end of any child, and has none".to_owned(),
                [pid] => format!("waits for the end of its child {}", self.named(&[*pid])),
                pids => format!("waits for the end of any child: {}", self.named(pids)),
            },
            LinkOn::Thread { tid } => {
                format!("waits for the end of {}", thread_name(facts, link.pid, *tid))
            }
            LinkOn::Threads { .. } => self.for_threads(link),
            LinkOn::Runtime { waits } | LinkOn::AnyOf { waits } => runtime(facts, link, waits),
            LinkOn::EventLoop => {
                "idles in its event loop: nothing of the test could bring what that waits for".to_owned()
            }
            LinkOn::Connection { inode } => {
                format!("waits for a connection to {}{}", a_socket(facts, *inode), address(facts, *inode))
            }
            LinkOn::UnknownPeer { inode, why } => format!(
                "waits at {}, socket:[{inode}]; its other end is not known: {}",
                a_socket(facts, *inode),
                unknown_peer(*why)
            ),
            LinkOn::Socket(at) => self.at_socket(at),
            LinkOn::PipeRoom { inode, readers } => self.pipe_room(*inode, readers),
            LinkOn::PipeData { inodes, writers, by_mistake, part } => {
                self.pipe_data(inodes, writers, *by_mistake, *part)
            }
            LinkOn::OwnPipe { fds: own, others, .. } => match &others[..] {
                others if self.facts().outside.is_unseen => format!(
                    "waits for EOF on a pipe that it itself has open for writing, {}{}",
                    fds(own),
                    if others.is_empty() {
                        String::new()
                    } else {
                        format!(", as has {}", self.named(others))
                    }
                ),
                [] => {
                    format!("waits for EOF on a pipe that only it itself has open for writing, {}", fds(own))
                }
                others => format!(
                    "waits for EOF on a pipe whose only writers are it itself ({}) and {}",
                    fds(own),
                    self.named(others)
                ),
            },
            LinkOn::FileLock { file, holders } => {
                let by = match &holders[..] {
                    [] => "a process that was not found".to_owned(),
                    holders => self.named(holders),
                };
                format!("waits for the lock on `{}` that is held by {by}", escape::text(file))
            }
            LinkOn::Opening { path } => opening(facts, link, path),
            LinkOn::Terminal { .. } => self.at_terminal(link),
            LinkOn::Fifo { .. } => self.at_fifo(link),
            LinkOn::Datagram { inode } => {
                format!("waits for a datagram at {}{}", a_socket(facts, *inode), address(facts, *inode))
            }
            LinkOn::SharedFutex { .. } => self.in_shared_memory(link),
            LinkOn::Call { name, file } => {
                if let Some((fd, what)) = file.as_ref().and_then(|(fd, path)| Some((fd, event(path)?))) {
                    return format!("waits for {what}, fd {fd}");
                }
                let file = file.as_ref().map(|(fd, path)| format!(" (fd {fd}: `{}`)", escape::text(path)));
                format!("waits in the system call `{name}`{}", file.unwrap_or_default())
            }
            LinkOn::Polling => self.polls(link),
            LinkOn::Sleep => "sleeps".to_owned(),
            LinkOn::Signal => "waits for a signal".to_owned(),
            LinkOn::Unknown => match task(facts, link) {
                Some(thread) if thread.state != "R" => "waits".to_owned(),
                _ => "runs".to_owned(),
            },
        }
    }

    /// A futex, which other threads of the process could wake.
    fn for_threads(&self, link: &Link) -> String {
        let LinkOn::Threads { kind, function, tids } = &link.on else { return String::new() };
        let facts = self.facts();
        let lock = Lock { kind: kind.clone(), name: None, function: function.clone() };
        let next = self.waits.chain.get(self.at + 1).map(|next| thread_name(facts, next.pid, next.tid));
        let timeout = match task(facts, link).map(|thread| &thread.on) {
            Some(On::Futex { forever: false, .. }) => ", with a timeout",
            _ => "",
        };
        match next {
            Some(next) => format!("waits {}{timeout}, that is for {next}", awaited(&lock)),
            None if tids.is_empty() => format!("waits {}{timeout}", awaited(&lock)),
            // It may be locked twice.
            None if kind.as_ref().is_some_and(Awaited::is_held) => {
                let line = self.verdict.names.lines.get(&link.tid).filter(|_| self.at > 0);
                let line = line.map_or_else(String::new, |line| format!(" at {line}"));
                format!(
                    "waits {}{timeout}{line}, which another of its threads holds, or this one itself",
                    awaited(&lock)
                )
            }
            // What a semaphore or a futex of another program stands for is not known.
            None if matches!(kind, None | Some(Awaited::Semaphore))
                && !process(facts, link.pid).is_some_and(Process::runs_own_program) =>
            {
                format!("waits {}{timeout}", awaited(&lock))
            }
            None => format!("waits {}{timeout}, that is for another of its threads", awaited(&lock)),
        }
    }

    /// A named FIFO that is open.
    fn at_fifo(&self, link: &Link) -> String {
        let LinkOn::Fifo { path, writes, own, others, outside } = &link.on else { return String::new() };
        let facts = self.facts();
        let count = usize::from(!own.is_empty()) + others.len() + usize::from(*outside);
        let has = if count > 1 { "have" } else { "has" };
        let own = (!own.is_empty()).then(|| format!("it itself ({})", fds(own)));
        let others = (!others.is_empty()).then(|| self.named(others));
        let outside = outside.then(|| format!("a process that is {}", not_among(facts)));
        let holders: Vec<String> = own.into_iter().chain(others).chain(outside).collect();
        let holders = match holders.is_empty() {
            true => "no process that was found".to_owned(),
            false => enumerate(&holders),
        };
        let path = escape::text(path);
        match writes {
            true => format!(
                "writes to the FIFO `{path}`, which is full, and which {holders} {has} open for reading"
            ),
            false => format!("reads from the FIFO `{path}`, which {holders} {has} open for writing"),
        }
    }

    /// A futex that processes share.
    fn in_shared_memory(&self, link: &Link) -> String {
        let LinkOn::SharedFutex { kind, path, others, outside } = &link.on else { return String::new() };
        let lock = Lock { kind: kind.clone(), name: None, function: None };
        let memory = match path.as_str() {
            "" => "shared memory".to_owned(),
            "/dev/zero (deleted)" => "anonymous shared memory".to_owned(),
            path => format!("shared memory (`{}`)", escape::text(path)),
        };
        let by = match (&others[..], outside) {
            ([], false) => "no other process that was found".to_owned(),
            ([], true) => "another process".to_owned(),
            (others, _) => self.named(others),
        };
        let verb = if others.len() > 1 { "map" } else { "maps" };
        format!("waits {} in {memory} that {by} {verb}", awaited(&lock))
    }

    /// A wait at one side of a terminal.
    fn at_terminal(&self, link: &Link) -> String {
        let LinkOn::Terminal { fd, path, index, writes, alone, own, others, outside } = &link.on else {
            return String::new();
        };
        let is_master = path.ends_with("ptmx");
        let name = index.map_or_else(|| escape::text(path), |index| format!("/dev/pts/{index}"));
        let end = match (is_master, index) {
            (true, Some(_)) => "master of the terminal",
            (true, None) => "master of a terminal",
            (false, _) => "terminal",
        };
        let side = if is_master { "its other side" } else { "its master" };
        let own = (!own.is_empty()).then(|| format!("it itself ({})", fds(own)));
        let target = self.target().map(|target| {
            let ends = other_side(self.facts(), link, target.pid);
            format!("{} ({})", self.the(target), fds(&ends))
        });
        let have = if own.is_some() || target.is_none() && others.len() > 1 { "have" } else { "has" };
        let others = (!others.is_empty()).then(|| self.named(others));
        let holders: Vec<String> = own.into_iter().chain(target.or(others)).collect();
        let only = if *outside { "" } else { "only " };
        let does = if *writes { "writes to" } else { "reads from" };
        let begin = format!("{does} the {end} `{name}`, fd {fd}");
        match (writes, holders.is_empty()) {
            (true, true) => format!("{begin}, which is full: nothing reads {side}"),
            (true, false) => {
                format!("{begin}, which is full, and {only}{} {have} {side}", enumerate(&holders))
            }
            (false, _) if *alone => {
                let ends = other_side(self.facts(), link, link.pid);
                let ends = if ends.is_empty() { String::new() } else { format!(" ({})", fds(&ends)) };
                format!(
                    "{begin}, and no other process of the test is alive: {side} can only be open in the test itself{ends}"
                )
            }
            (false, true) => begin,
            (false, false) => format!("{begin}, and {only}{} {have} {side}", enumerate(&holders)),
        }
    }

    /// A thread that looks at something again and again, and the children that it may look for.
    fn polls(&self, link: &Link) -> String {
        /// The most children that are named.
        const CHILDREN: usize = 3;
        let facts = self.facts();
        let is_busy = task(facts, link).is_some_and(|thread| thread.on == On::Other);
        let polls =
            if is_busy { "looks again and again" } else { "sleeps again and again, and looks in between" };
        let children = facts.processes.iter().filter(|child| child.parent == link.pid);
        let alive: Vec<i32> =
            children.filter(|child| child.class != Class::Unwaited).map(|child| child.pid).collect();
        match alive.len() {
            1 if self.is_last => format!("{polls}; its living child is {}", self.named(&alive)),
            2..=CHILDREN if self.is_last => {
                format!("{polls}; its living children are {}", self.named(&alive))
            }
            _ => polls.to_owned(),
        }
    }

    fn pipe_data(&self, inodes: &[u64], writers: &[i32], by_mistake: bool, part: bool) -> String {
        let only = if by_mistake { ", because it was created without O_CLOEXEC" } else { "" };
        let is_one = |fd: &Fd| fd.writes() && fd.pipe().is_some_and(|pipe| inodes.contains(&pipe));
        if let Some(target) = self.target().filter(|_| !by_mistake) {
            let ends: Vec<i32> = target.known_fds().iter().filter(|fd| is_one(fd)).map(|fd| fd.fd).collect();
            return format!(
                "reads from a pipe that {}{} could write to: {}",
                self::only(self.facts()),
                self.the(target),
                fds(&ends)
            );
        }
        let (named, sole) = (self.named(writers), self::only(self.facts()));
        if !self.is_last {
            return match writers.len() {
                1 => format!("reads from a pipe that is open for writing {sole}in {named}{only}"),
                _ => format!("reads from a pipe that is open for writing in {named}{only}"),
            };
        }
        let what = match part {
            true => "nothing was written to it, and it was not closed",
            false => "it sees EOF only when that is closed",
        };
        match self.at > 0 && writers.len() == 1 {
            true => format!("reads from a pipe that {sole}{named} has open for writing{only}: {what}"),
            false => format!("reads from a pipe that is open for writing in {named}{only}: {what}"),
        }
    }

    fn pipe_room(&self, inode: u64, readers: &[i32]) -> String {
        let queue = queue_in_brackets(self.facts(), inode);
        match self.target() {
            Some(target) => {
                let ends = target.known_fds().iter().filter(|fd| fd.reads() && fd.pipe() == Some(inode));
                let ends: Vec<i32> = ends.map(|fd| fd.fd).collect();
                let the = self.the(target);
                format!(
                    "writes to a pipe that is full{queue}, and {}{the} could read that: {}",
                    only(self.facts()),
                    fds(&ends)
                )
            }
            None => format!(
                "writes to a pipe that is full{queue} and open for reading {}in {}",
                only(self.facts()),
                self.named(readers)
            ),
        }
    }

    fn at_socket(&self, at: &AtSocket) -> String {
        let facts = self.facts();
        let what = a_socket(facts, at.inode);
        let until = match at.way {
            Way::Data => "writes to the other end, or closes it",
            Way::Room => "reads from the other end, or closes it",
            Way::Accept => "",
        };
        let timeout = if at.timeout { ", or its timeout is over" } else { "" };
        let own = if self.at == 0 { "the test itself" } else { "it itself" };
        let itself = (!at.own.is_empty()).then(|| format!("{own} ({})", fds(&at.own)));
        let others = (!at.holders.is_empty()).then(|| self.named(&at.holders));
        let mut holders = itself.into_iter().chain(others).collect::<Vec<_>>().join(" or ");
        if at.holders.last().is_some_and(|last| is_stopped(facts, *last)) {
            holders.push(',');
        }
        if let Way::Accept = at.way {
            let has = if at.holders.len() + usize::from(!at.own.is_empty()) > 1 { "have" } else { "has" };
            let timeout = if at.timeout { ", or for its timeout" } else { "" };
            let listener = listener(facts, at.inode);
            return format!("waits for `accept` on {listener} that {holders} {has}{timeout}");
        }
        match at.full {
            true => format!("writes to {what} that is full, until {holders} {until}{timeout}"),
            false => format!("waits at {what} until {holders} {until}{timeout}"),
        }
    }

    /// A process that has been named before.
    fn the(&self, process: &Process) -> String {
        match process.is_test {
            true => "the test".to_owned(),
            false => format!("pid {}", process.pid),
        }
    }

    /// Processes, with the line of the last waiter, and a note on each stopped one.
    fn named(&self, pids: &[i32]) -> String {
        let facts = self.facts();
        let name = |pid: &i32| match process(facts, *pid).is_some_and(|process| process.is_test) {
            true => "the test".to_owned(),
            false => {
                let stopped = if is_stopped(facts, *pid) { ", which is stopped" } else { "" };
                let site = self.verdict.names.of_process(*pid).filter(|_| self.is_last && pids.len() == 1);
                let place = site.and_then(|site| site.place.as_ref());
                let started = place.map_or_else(String::new, |place| format!(" (started at {place})"));
                format!("pid {}{started}{stopped}", process_name(facts, *pid))
            }
        };
        pids.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// The socket in whose queue a connection waits: `an IPv4 stream socket (127.0.0.1:80)`.
fn listener(facts: &Facts, inode: u64) -> String {
    match facts.socket(inode).map(|socket| &socket.peer) {
        Some(Peer::Queue { ino }) => format!("{}{}", a_socket(facts, *ino), address(facts, *ino)),
        _ => "a listening socket".to_owned(),
    }
}

/// The thread of a link.
fn task<'a>(facts: &'a Facts, link: &Link) -> Option<&'a Thread> {
    process(facts, link.pid)?.tasks.iter().find(|thread| thread.tid == link.tid)
}

/// The opening of a path, which waits for the other end of a FIFO or for what else that is.
fn opening(facts: &Facts, link: &Link, path: &str) -> String {
    let is_it = |waiter: &&Waiter| waiter.tid == link.tid && waiter.fd.is_none();
    let fifo = facts.contended.fifos.iter().find_map(|fifo| Some((fifo, fifo.waiters.iter().find(is_it)?)));
    let Some((fifo, waiter)) = fifo else {
        let path = escape::text(path);
        return format!("opens `{path}`: if that is a FIFO, no process has opened its other end");
    };
    let (this, other) = match waiter.access {
        libc::O_RDONLY => ("reading", "writing"),
        _ => ("writing", "reading"),
    };
    let path = escape::text(&fifo.path);
    format!("opens the FIFO `{path}` for {this}, and no process has it open for {other}")
}

/// The fds by which a process has the other side of the terminal that a link waits at.
fn other_side(facts: &Facts, link: &Link, pid: i32) -> Vec<i32> {
    let LinkOn::Terminal { path, index, .. } = &link.on else { return Vec::new() };
    let terminal = facts.contended.terminals.iter().find(|terminal| Some(terminal.index) == *index);
    let ends = terminal.map(|known| if path.ends_with("ptmx") { &known.slaves } else { &known.masters });
    ends.into_iter().flatten().filter(|end| end.pid == pid).map(|end| end.fd).collect()
}

fn runtime(facts: &Facts, link: &Link, waits: &[RuntimeWait]) -> String {
    let entries: Vec<String> = waits.iter().map(|wait| runtime_wait(facts, link, wait)).collect();
    match &entries[..] {
        [] => "waits, with nothing in its poll set but what it created for itself".to_owned(),
        [entry] => format!("waits for {entry}"),
        entries => format!("waits for one of these: {}", entries.join("; ")),
    }
}

fn runtime_wait(facts: &Facts, link: &Link, wait: &RuntimeWait) -> String {
    let names = |pids: &[i32]| match pids {
        [] if process(facts, link.pid).is_some_and(|process| process.is_test) => "the test itself".to_owned(),
        [] => "it itself".to_owned(),
        pids => named(facts, pids),
    };
    match wait {
        RuntimeWait::Child { pid: Some(pid), fd } => {
            format!("the end of pid {} (fd {fd})", process_name(facts, *pid))
        }
        RuntimeWait::Child { pid: None, fd } => format!("the end of a process (fd {fd}, a pidfd)"),
        RuntimeWait::PipeData { fd, writers } => {
            format!("data or EOF on a pipe that is open for writing in {} (fd {fd})", names(writers))
        }
        RuntimeWait::PipeRoom { fd, readers } => {
            format!("room in a pipe that is open for reading in {} (fd {fd})", names(readers))
        }
        RuntimeWait::Socket { inode, fd, peers }
            if peers.is_empty() && facts.socket(*inode).is_some_and(Socket::is_datagram) =>
        {
            format!("a datagram at {} (fd {fd}{})", a_socket(facts, *inode), and_address(facts, *inode))
        }
        RuntimeWait::UnknownSocket { fd } => format!("a socket (fd {fd})"),
        RuntimeWait::Socket { inode, fd, peers } => {
            let what = a_socket(facts, *inode);
            let socket = facts.socket(*inode);
            let listens = socket.is_some_and(|socket| socket.listens);
            let is_queued = socket.is_some_and(|socket| matches!(socket.peer, Peer::Queue { .. }));
            match &peers[..] {
                _ if listens => format!("a connection to {what} (fd {fd}{})", and_address(facts, *inode)),
                _ if is_queued => {
                    let by =
                        if peers.is_empty() { String::new() } else { format!(" by {}", named(facts, peers)) };
                    format!("`accept`{by} on {}, of the connection at fd {fd}", listener(facts, *inode))
                }
                [] => match own_end(facts, link, socket) {
                    Some(own) => format!("{what} whose other end is its own fd {own} (fd {fd})"),
                    None => format!("{what} (fd {fd})"),
                },
                peers => format!("{what} whose other end is in {} (fd {fd})", named(facts, peers)),
            }
        }
        RuntimeWait::Other { fd, target } => match event(target) {
            Some(what) => format!("{what} (fd {fd})"),
            None => format!("`{}` (fd {fd})", escape::text(target)),
        },
        RuntimeWait::Timer => "a timer".to_owned(),
    }
}

/// The fd by which a process has the other end of its own socket.
fn own_end(facts: &Facts, link: &Link, socket: Option<&Socket>) -> Option<i32> {
    let peer = *socket?.ends().get(1)?;
    let mut fds = process(facts, link.pid)?.known_fds().iter();
    fds.find(|held| held.socket() == Some(peer)).map(|held| held.fd)
}

/// What comes from a file that the kernel writes to.
fn event(target: &str) -> Option<&'static str> {
    Some(match target {
        "anon_inode:inotify" => "an event of inotify",
        "anon_inode:[fanotify]" => "an event of fanotify",
        "anon_inode:[timerfd]" => "a timerfd",
        "anon_inode:[signalfd]" => "a signal at a signalfd",
        _ => return None,
    })
}

/// Processes, with a note on each stopped one.
fn named(facts: &Facts, pids: &[i32]) -> String {
    let name = |pid: &i32| match process(facts, *pid).is_some_and(|process| process.is_test) {
        true => "the test".to_owned(),
        false => {
            let stopped = if is_stopped(facts, *pid) { ", which is stopped" } else { "" };
            format!("pid {}{stopped}", process_name(facts, *pid))
        }
    };
    pids.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// How a process ended, from its wait status: `exited with 101`, `been ended by SIGSEGV (11)`.
fn ended(status: i32) -> String {
    match libc::WIFSIGNALED(status) {
        true => format!("been ended by {}", crate::report::words::signal_name(libc::WTERMSIG(status))),
        false => format!("exited with {}", libc::WEXITSTATUS(status)),
    }
}
