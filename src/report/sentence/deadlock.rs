//! Threads that can never make progress, in words.

use crate::diagnosis::{Deadlock, Doubt, LeftBehind, Lock, OwnEnd, Shape, Verdict, Wait, WaitsOn};
use crate::guard::facts::{Facts, Process, UnseenFds};
use crate::proc::process::UnseenWaker;
use crate::recorder::awaited::Awaited;
use crate::report::escape;
use crate::report::words::{
    a_socket, brief, fds, list, only, plural, process, process_name, queue_in_brackets, signal_word,
};

/// The most waits in one sentence.
const CLAUSES: usize = 6;

pub(super) fn sentence(verdict: &Verdict, deadlock: &Deadlock) -> String {
    let facts = &verdict.facts;
    let never = never(&deadlock.doubts);
    let can_never = |what: &str| match deadlock.proved() {
        true => format!("It can never {what} {never}."),
        false => format!("{never}."),
    };
    let pid = deadlock.pid;
    let first = deadlock.chain.first();
    let awaited = || first.map(|wait| does(facts, wait)).unwrap_or_default();
    let mut sentence = match &deadlock.shape {
        Shape::InheritedLock { forked_by, forked } => {
            let (can, never) = match deadlock.proved() {
                true => ("can never make progress: it ", format!(" {never}.")),
                false => ("", format!(". {never}.")),
            };
            format!(
                "pid {pid} {can}{} that a thread of {} held when {} was forked. That thread does not exist in \
                 {pid}{never}",
                awaited(),
                forker(*forked_by),
                fork(pid, *forked)
            )
        }
        Shape::MaybeInheritedLock { forked_by, forked, threads } => format!(
            "pid {pid} {}, and {}. {} {}",
            awaited(),
            alone(*threads, first),
            can_never("make progress"),
            may_be_inherited(pid, *forked_by, *forked, kind_of(first))
        ),
        Shape::Alone { threads, left_behind } => {
            let left = left_behind.map(|left| format!(" {}", left_out(left, kind_of(first))));
            format!(
                "pid {pid} {}, and {}. {}{}",
                awaited(),
                alone(*threads, first),
                can_never("make progress"),
                left.unwrap_or_default()
            )
        }
        Shape::OwnEnd(own) => own_end(facts, deadlock, own, &can_never),
        Shape::OwnReader { ends, threads } => {
            let socket = first.and_then(|wait| wait.on.inode()).unwrap_or_default();
            let all = match threads {
                1 => String::new(),
                count => format!(", and all its {count} threads wait"),
            };
            format!(
                "{} writes to {} that is full and that {}itself could read: the other end is its own {}{all}. {}",
                subject(facts, pid),
                a_socket(facts, socket),
                only(facts),
                fds(ends),
                can_never("make progress")
            )
        }
        Shape::Threads { threads, joining } => group(facts, deadlock, *threads, joining, &never),
        Shape::Ring { any_could_wake } => ring(facts, deadlock, *any_could_wake, &never),
        Shape::Single => {
            let clause = first.map(|wait| clause(facts, wait)).unwrap_or_default();
            let head = if clause.starts_with(|c: char| c.is_ascii_digit()) { "pid " } else { "" };
            format!("{head}{clause}. {}", can_never("make progress"))
        }
    };
    if let [first, ..] = &deadlock.also[..] {
        let same = deadlock.also.iter().all(|other| other == first) && *first == pid;
        let noun = if same { "more thread" } else { "more process" };
        sentence += &format!(" The same holds for {}.", plural(deadlock.also.len(), noun));
    }
    sentence
}

/// How certain it is.
fn never(doubts: &[Doubt]) -> String {
    if doubts.is_empty() {
        return "(confirmed 50 ms later)".to_owned();
    }
    let doubts: Vec<String> = doubts.iter().map(doubt).collect();
    format!("Probable deadlock (unproven: {})", doubts.join("; "))
}

/// What may wake a process besides its fds, in words.
fn unseen_waker(waker: &UnseenWaker) -> String {
    /// The most signals that are named.
    const NAMED: usize = 3;
    match waker {
        UnseenWaker::Handlers { signals } => {
            let names: Vec<String> = signals.iter().take(NAMED).map(|signal| signal_word(*signal)).collect();
            let more = if signals.len() > NAMED { ", .." } else { "" };
            format!("it handles {}{more}", names.join(", "))
        }
        UnseenWaker::Timers => "it has timers".to_owned(),
        UnseenWaker::Traced => "it is traced".to_owned(),
        UnseenWaker::Traces => "it traces another process".to_owned(),
        UnseenWaker::NotRead => "not everything was read in time".to_owned(),
    }
}

/// Where a process may hold files besides its fd table, in words.
fn unseen_fds(place: UnseenFds) -> &'static str {
    match place {
        UnseenFds::IoUring => "it uses io_uring",
        UnseenFds::Aio => "it uses AIO",
        UnseenFds::ThreadTable => "a thread of it has a table of fds of its own",
        UnseenFds::InFlight => "fds are on their way to it over a socket",
    }
}

/// What prevents the proof of a deadlock, in words.
pub(in crate::report) fn doubt(doubt: &Doubt) -> String {
    match doubt {
        Doubt::Ran { pid } => format!("pid {pid} ran between two looks"),
        Doubt::UnseenWaker { pid, waker } => format!("pid {pid}: {}", unseen_waker(waker)),
        Doubt::UnseenFds { pid, place } => format!("pid {pid}: {}", unseen_fds(*place)),
        Doubt::KernelMayWrite { pid, driver } => {
            format!("pid {pid}: it uses `{driver}`, which may write to an eventfd")
        }
        Doubt::CgroupMayWrite => {
            "an eventfd may have been given to a cgroup (cgroup.event_control), which writes to it".to_owned()
        }
        Doubt::NoHolder { read, unreadable } => format!(
            "no holder of the other end was found in the fds of {}; those of {unreadable} may not be read",
            plural(*read, "process")
        ),
        Doubt::ProcessAppeared => "a process appeared between two looks".to_owned(),
        Doubt::FdTransferred => "an fd was transferred between two looks".to_owned(),
        Doubt::HiddenProcesses => "/proc does not show the processes of other users (hidepid)".to_owned(),
        Doubt::OutsideNamespace => {
            "processes outside of the test's PID namespace are not seen, and may have it open".to_owned()
        }
        Doubt::EpollMayHaveLeft => "an epoll instance may have left the test over a socket".to_owned(),
        Doubt::FdsOnTheirWayOut { pid } => {
            format!("fds are on their way to pid {pid}, outside of the test, over a socket")
        }
        Doubt::UnreadableFds { processes } => {
            format!("the fds of {} may not be read", plural(*processes as usize, "other process"))
        }
    }
}

/// The sentence for a process that holds the other end of what it reads.
fn own_end(facts: &Facts, deadlock: &Deadlock, own: &OwnEnd, can_never: &dyn Fn(&str) -> String) -> String {
    let Some(wait) = deadlock.chain.first() else { return String::new() };
    let inode = wait.on.inode().unwrap_or_default();
    let pid = deadlock.pid;
    if !matches!(wait.on, WaitsOn::PipeData { .. }) {
        let others = match &own.others[..] {
            [] => String::new(),
            [other] => format!(" and also in {other}, which is stuck as well"),
            others => format!(" and also in {}, which are stuck as well", list(others)),
        };
        let (reader, what) = (subject(facts, pid), a_socket(facts, inode));
        let ends = fds(&own.ends);
        let never = can_never("get data or EOF");
        return match (own.both_ends, own.threads) {
            (true, _) => format!(
                "{reader} waits for data on {what}: {ends}, both ends of one pair{others}, are in its poll set. \
                 {never}"
            ),
            (_, Some(threads)) => format!(
                "{reader} reads {what} whose other end is its own {ends}{others}, and all its {threads} threads \
                 wait. {never}"
            ),
            (_, None) if own.others.is_empty() && deadlock.proved() => format!(
                "{reader} deadlocks on itself: it reads {what} whose other end is its own {ends}. {never}"
            ),
            (_, None) => format!("{reader} reads {what} whose other end is its own {ends}{others}. {never}"),
        };
    }
    let mut held = match (&own.ends[..], &own.others[..]) {
        (ends, []) if facts.outside.is_unseen => format!("whose write end it has itself: {}", fds(ends)),
        ([end], []) => format!("whose only writer is its own fd {end}"),
        (ends, []) => format!("whose only writers are its own fds {}", list(ends)),
        (ends, [other]) => {
            format!("whose writers are its own {} and pid {other}, which is stuck as well", fds(ends))
        }
        (ends, others) => format!(
            "whose writers are its own {} and pids {}, which are stuck as well",
            fds(ends),
            list(others)
        ),
    };
    if own.by_mistake {
        held += ", which it has because it was created without O_CLOEXEC";
    }
    let reader = match process(facts, pid) {
        Some(process) if process.runs_own_program() => subject(facts, pid),
        _ => format!("pid {}", process_name(facts, pid)),
    };
    match own.threads {
        Some(threads) => {
            format!(
                "{reader} reads a pipe {held}, and all its {threads} threads wait. {}",
                can_never("see EOF")
            )
        }
        None if own.crossed => {
            format!("{reader} waits for data or EOF of a pipe {held}. {}", can_never("get either"))
        }
        None if deadlock.proved() => {
            format!("{reader} deadlocks on itself: it reads a pipe {held}. {}", can_never("see EOF"))
        }
        None => format!("{reader} reads a pipe {held}. {}", can_never("see EOF")),
    }
}

/// Why no thread of the process wakes the waiter.
fn alone(threads: usize, wait: Option<&Wait>) -> String {
    match threads {
        1 => format!("it has no other thread that could {}", ended_by(kind_of(wait))),
        count => format!("all its {count} threads wait"),
    }
}

/// How a lock was probably taken: an inference.
fn may_be_inherited(pid: i32, forked_by: i32, forked: i32, kind: Option<&Awaited>) -> String {
    let (forker, fork) = (forker(forked_by), fork(pid, forked));
    match kind {
        Some(Awaited::Once) => format!(
            "A thread of {forker} that does not exist in {pid} may have been initialising it when {fork} was forked; or \
             the thread that waits does so itself."
        ),
        _ => format!(
            "A thread of {forker} that does not exist in {pid} may have held it when {fork} was forked; or a \
             thread of {pid} holds it itself, taken before the fork or after."
        ),
    }
}

/// The process whose fork left the lock behind: the waiter itself, or an ancestor of it.
fn fork(pid: i32, forked: i32) -> String {
    if forked == pid { pid.to_string() } else { format!("{forked}, which {pid} is a fork of,") }
}

/// The process that forked another, which is 0 if it is not known.
fn forker(pid: i32) -> String {
    if pid == 0 { "the process that forked it".to_owned() } else { format!("pid {pid}") }
}

/// The sentence for a fork with one thread that does not wait for a lock, or for an unknown one.
fn left_out(left: LeftBehind, kind: Option<&Awaited>) -> String {
    let others = match left.sure {
        true => format!("the other threads of {}", forker(left.forked_by)),
        false => format!("if {} had others, they", forker(left.forked_by)),
    };
    match kind {
        Some(kind) if !kind.is_held() => format!(
            "A fork copies only the thread that calls it: {others} cannot {} here.",
            ended_by(Some(kind))
        ),
        _ => format!("A fork copies only the thread that calls it: {others} may have held it."),
    }
}

/// Threads that wait for each other, in that order.
fn ring(facts: &Facts, deadlock: &Deadlock, any_could_wake: bool, never: &str) -> String {
    let mut pids: Vec<i32> = Vec::new();
    for wait in &deadlock.chain {
        if !pids.contains(&wait.pid) {
            pids.push(wait.pid);
        }
    }
    let how = match (any_could_wake, pids.len()) {
        // A thread that could wake a futex may have nothing to do with it.
        (true, _) => "all wait",
        (false, 1 | 2) => "wait for each other",
        (false, _) => "wait for each other in a ring",
    };
    let members = match &pids[..] {
        [pid] => format!("{} of pid {pid} {how}", plural(deadlock.chain.len(), "thread")),
        _ => format!("pids {} {how}", list(&pids)),
    };
    let clauses = deadlock.chain.iter().map(|wait| clause(facts, wait)).collect();
    let ending = match (deadlock.proved(), deadlock.chain.len()) {
        (true, 2) => format!("Neither can ever make progress {never}."),
        (true, _) => format!("None can ever make progress {never}."),
        (false, _) => format!("{never}."),
    };
    format!("{members}: {}. {ending}", cut(clauses).join("; "))
}

fn cut(mut clauses: Vec<String>) -> Vec<String> {
    if clauses.len() > CLAUSES {
        clauses.truncate(CLAUSES);
        clauses.push("and so on".to_owned());
    }
    clauses
}

/// The threads of one process, each with what it waits for.
fn group(facts: &Facts, deadlock: &Deadlock, threads: usize, joining: &[i32], never: &str) -> String {
    let (pid, proved) = (deadlock.pid, deadlock.proved());
    let ending = match proved {
        true => format!("It can never make progress {never}."),
        false => format!("{never}."),
    };
    match &deadlock.chain[..] {
        [] => {
            let tasks = match proved {
                true => format!(", and none of its tasks can make progress {never}."),
                false => format!(", and nothing was found that wakes one of its tasks. {never}."),
            };
            format!("the async runtime of pid {pid} waits{tasks}")
        }
        [only] if only.on == WaitsOn::Child => {
            let name = thread_name(facts, pid, only.tid);
            format!("{name} of pid {pid} {}. {ending}", does(facts, only))
        }
        [cause, join] if joining == [join.tid] && cause.on == WaitsOn::BlockOn => format!(
            "{} of pid {pid} waits in `block_on` for what its runtime would do, and {}, which runs that, waits for \
             the end of this thread: they wait for each other. {ending}",
            thread_name(facts, pid, cause.tid),
            thread_name(facts, pid, join.tid),
        ),
        [cause, join] if joining == [join.tid] => {
            let all = if threads == 2 { "both threads".to_owned() } else { format!("all {threads} threads") };
            format!(
                "{} of pid {pid} {}, and {all} of the process wait: {} only for this one's end. {ending}",
                thread_name(facts, pid, cause.tid),
                does(facts, cause),
                thread_name(facts, pid, join.tid),
            )
        }
        [only] => format!(
            "{} of pid {pid} {}, and all its {threads} threads wait. {ending}",
            thread_name(facts, pid, only.tid),
            does(facts, only),
        ),
        chain => {
            let mut clauses: Vec<(&Wait, Vec<i32>)> = Vec::new();
            for wait in chain {
                let same =
                    |(known, _): &&mut (&Wait, Vec<i32>)| known.on == wait.on && known.wakers == wait.wakers;
                match clauses.iter_mut().find(same) {
                    Some((_, tids)) => tids.push(wait.tid),
                    None => clauses.push((wait, vec![wait.tid])),
                }
            }
            let clauses = clauses.into_iter().map(|(wait, tids)| match &tids[..] {
                [tid] => format!("{} {}", thread_name(facts, pid, *tid), does(facts, wait)),
                tids => format!("each of threads {} {}", list(tids), does(facts, wait)),
            });
            let ending = match proved {
                true => format!("None can ever make progress {never}."),
                false => format!("{never}."),
            };
            let count = plural(chain.len(), "thread");
            format!("{count} of pid {pid} all wait: {}. {ending}", cut(clauses.collect()).join("; "))
        }
    }
}

/// What one thread waits for, and the processes that could end the wait.
fn clause(facts: &Facts, wait: &Wait) -> String {
    let threads = process(facts, wait.pid).map_or(1, |process| process.tasks.len());
    let thread = match threads {
        1 => wait.pid.to_string(),
        _ if wait.tid == wait.pid => format!("the main thread of {}", wait.pid),
        _ => format!("thread {} of {}", wait.tid, wait.pid),
    };
    format!("{thread} {}", does(facts, wait))
}

/// The same without the name of the thread: `waits ..`.
fn does(facts: &Facts, wait: &Wait) -> String {
    let (only, holders) = match &wait.wakers[..] {
        [] => ("", "no process that was found".to_owned()),
        [waker] if *waker == wait.pid => (only(facts), "itself".to_owned()),
        wakers => (only(facts), list(wakers)),
    };
    let brief = brief_wait(wait);
    match &wait.on {
        WaitsOn::Child => format!("waits for the end of {holders}"),
        WaitsOn::Thread { .. } | WaitsOn::Lock(_) | WaitsOn::BlockOn => brief,
        WaitsOn::FileLock { .. } => {
            let holds = if wait.wakers.len() > 1 { "hold" } else { "holds" };
            let holders = if wait.wakers == [wait.pid] { "it itself" } else { &holders };
            format!("{brief} that {holders} {holds}")
        }
        WaitsOn::PipeRoom { inode } => {
            let full = queue_in_brackets(facts, *inode);
            format!("{brief}, which is full{full} and which {only}{holders} can read")
        }
        WaitsOn::PipeData { by_mistake, .. } => {
            let mistake = match &by_mistake[..] {
                [] => String::new(),
                ends => format!(", which has {} only because no O_CLOEXEC was set", fds(ends)),
            };
            format!("{brief}, to which {only}{holders} can write{mistake}")
        }
        WaitsOn::SocketRoom { .. } => {
            let only = if facts.outside.is_unseen { "" } else { " only" };
            format!("{brief}, which is full and read by {holders}{only}")
        }
        WaitsOn::SocketAccept { .. } => format!("{brief}, whose connection {holders} would have to accept"),
        WaitsOn::SocketData { .. } | WaitsOn::Eventfd => {
            format!("{brief}, to which {only}{holders} can write")
        }
    }
}

/// The same without the processes that could end the wait.
pub(in crate::report) fn brief_wait(wait: &Wait) -> String {
    match &wait.on {
        WaitsOn::Child => format!("waits for the end of {}", list(&wait.wakers)),
        WaitsOn::Thread { tid } => format!("waits for the end of thread {tid}"),
        WaitsOn::Lock(lock) => format!("waits {}", awaited(lock)),
        WaitsOn::BlockOn => "waits in `block_on` for what a runtime would do".to_owned(),
        WaitsOn::FileLock { file } => format!("waits for the lock on `{}`", escape::text(file)),
        WaitsOn::PipeRoom { inode } => format!("writes to pipe:[{inode}]"),
        WaitsOn::PipeData { inode, .. } => format!("reads from pipe:[{inode}]"),
        WaitsOn::SocketRoom { inode } => format!("writes to socket:[{inode}]"),
        WaitsOn::SocketAccept { inode } | WaitsOn::SocketData { inode } => {
            format!("reads from socket:[{inode}]")
        }
        WaitsOn::Eventfd => "waits for an eventfd".to_owned(),
    }
}

/// What a futex is, after the word `waits`.
pub(super) fn awaited(lock: &Lock) -> String {
    let name = match (&lock.name, &lock.function) {
        (Some(name), _) => format!(" ({name})"),
        (None, Some(function)) => format!(" (in `{}`)", brief(function)),
        (None, None) => String::new(),
    };
    let of_std = lock.name.as_deref().and_then(lock_of_std);
    match &lock.kind {
        Some(Awaited::Message) => format!("for a message on a channel{name}"),
        Some(Awaited::Room) => format!("for room in a channel{name}"),
        Some(Awaited::Condvar) => format!("for a condition variable{name}"),
        Some(Awaited::Unpark) => "to be unparked".to_owned(),
        Some(Awaited::Barrier) => format!("for others at a barrier{name}"),
        Some(Awaited::Once) => {
            format!("for a `Once`, `OnceLock` or `LazyLock`{name} that is being initialised")
        }
        Some(Awaited::Semaphore) => format!("for a semaphore{name}"),
        Some(Awaited::Scope) => "for the end of the threads of a `thread::scope`".to_owned(),
        Some(Awaited::Lock) => format!("for {}{name}", of_std.unwrap_or("a lock")),
        Some(Awaited::CLibrary) => format!("for a lock of the C library{name}"),
        None => format!("for {}{name}", of_std.unwrap_or("a futex")),
    }
}

/// What a lock of std is for, by the path of its static.
fn lock_of_std(path: &str) -> Option<&'static str> {
    let known = [
        ("std::panicking::HOOK", "the lock of std's panic hook"),
        ("std::sys::backtrace::lock", "the lock under which std's panic hook prints"),
        // Every thread of std enters itself there when it starts, and removes itself when it ends.
        ("std::sys::pal::unix::stack_overflow::", "the lock of std's stack-overflow table"),
        ("std::io::stdio::STDOUT", "the lock of std's stdout"),
        ("std::io::stdio::stderr", "the lock of std's stderr"),
    ];
    known.into_iter().find(|(begin, _)| path.starts_with(begin)).map(|(_, what)| what)
}

/// What ends the wait: another thread `that could ..`.
fn ended_by(kind: Option<&Awaited>) -> &'static str {
    match kind {
        Some(Awaited::Message) => "send one",
        Some(Awaited::Room) => "make some",
        Some(Awaited::Condvar) => "notify it",
        Some(Awaited::Unpark) => "unpark it",
        Some(Awaited::Barrier) => "come to it",
        Some(Awaited::Once) => "finish that",
        Some(Awaited::Semaphore) => "post to it",
        Some(Awaited::Lock | Awaited::CLibrary) => "release it",
        Some(Awaited::Scope) | None => "wake it",
    }
}

fn kind_of(wait: Option<&Wait>) -> Option<&Awaited> {
    match &wait?.on {
        WaitsOn::Lock(lock) => lock.kind.as_ref(),
        _ => None,
    }
}

/// A process at the beginning of a sentence.
fn subject(facts: &Facts, pid: i32) -> String {
    match process(facts, pid).is_some_and(|process| process.is_test) {
        true => format!("the test, pid {pid},"),
        false => format!("pid {pid}"),
    }
}

/// `the main thread`, `thread 17 \`writer\``.
pub(in crate::report) fn thread_name(facts: &Facts, pid: i32, tid: i32) -> String {
    if tid == pid {
        return "the main thread".to_owned();
    }
    let of = |process: &Process| {
        let thread = process.tasks.iter().find(|thread| thread.tid == tid)?;
        (thread.name != process.comm).then(|| thread.name.clone())
    };
    match process(facts, pid).and_then(of) {
        Some(name) => format!("thread {tid} `{name}`"),
        None => format!("thread {tid}"),
    }
}
