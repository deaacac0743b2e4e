//! The sentences of findings, the same for text, JSON, JUnit XML and annotations.

mod deadlock;
mod hang;
mod waits;

use super::words::{
    a_kind_of_socket, a_socket, address, duration, enumerate, fds, for_subject, list, pipe_end, plural,
    process, process_name, rough, signal_name,
};
use super::{allow, escape, failure};
use crate::diagnosis::{
    Allowance, Child, CodePlace, CreatedBy, Creator, Ending, Finding, InheritedEnd, Kind, Note, SocketRole,
    StrayNumber, StraySocket, ThreadedFork, Verdict,
};
use crate::guard::facts::{EvidenceLimit, Facts, LeftMount, Unkillable, Unrecorded};
use crate::guard::report_page::HeldBy;
use crate::proc::mounts::PROC_PATH;
use crate::proc::threads::Running;
use crate::recorder::call_site::SourceLocation;

/// The most fds that are named in a sentence.
const NAMED: usize = 8;

/// The finding in one or more sentences. Safe to print.
#[allow(clippy::too_many_lines, reason = "one sentence a kind")]
pub(super) fn of(verdict: &Verdict, finding: &Finding) -> String {
    let facts = &verdict.facts;
    let sentence = match &finding.kind {
        Kind::Deadlock(found) => deadlock::sentence(verdict, found),
        Kind::MoreDeadlocks { count: 1 } => {
            "1 more thread never makes progress, for another reason.".to_owned()
        }
        Kind::MoreDeadlocks { count } => {
            format!("{count} more threads never make progress, for other reasons.")
        }
        Kind::WaitsFor(found) => waits::sentence(verdict, found),
        Kind::OwnBinary { pid, filters, created } => own_binary(verdict, *pid, filters, created.as_ref()),
        Kind::Blocked { pid, signals, created } => blocked(facts, *pid, signals, created.as_ref()),
        Kind::InheritedByMistake { pid, pipe, is_socket: true, ends, created, others } => {
            inherited_socket(facts, *pid, *pipe, ends, created, *others)
        }
        Kind::InheritedByMistake { pid, pipe, is_socket: false, ends, created, others } => {
            inherited(facts, *pid, *pipe, ends, created, *others)
        }
        Kind::UnwatchedLifeline { pid, fds } => unwatched(*pid, fds),
        Kind::Panicked { message, place } => panicked(message, place.as_ref()),
        Kind::DidNotPanic => "the body did not panic, although `#[should_panic]` expects it to.".to_owned(),
        Kind::PanickedOtherwise { message } => {
            let what = match message.as_str() {
                "" => "a payload that is no string, and so".to_owned(),
                message => format!("{message:?}, which"),
            };
            format!(
                "the body panicked with {what} does not contain what `#[should_panic(expected = ..)]` says."
            )
        }
        Kind::ReturnedError { message: None } => "the body returned an error.".to_owned(),
        Kind::ReturnedError { message: Some(message) } => {
            format!("the body returned an error: {}", first_line(message))
        }
        Kind::EndedEarly { code, when, call, called } => {
            ended_early(*code, *when, call.as_deref(), called.as_ref())
        }
        Kind::ChildReturned { pid, more, created } => {
            let at = created.as_ref().map_or_else(String::new, |created| format!(" {}", at(created)));
            let more = match more {
                0 => String::new(),
                more => format!(" So did {more} more."),
            };
            format!(
                "pid {pid}, which the body forked{at}, returned from the body, as if it were the test.{more}"
            )
        }
        Kind::Signalled { signal, body_returned: true, called } => format!(
            "the body returned, and then {} ended the test process while it exited{}.",
            signal_name(*signal),
            comma_at(called.as_ref())
        ),
        Kind::Signalled { signal, called, .. } => {
            format!("the test process was ended by {}{}.", signal_name(*signal), comma_at(called.as_ref()))
        }
        Kind::TimedOut { limit, body_returned: true, .. } => format!(
            "the body returned, but the test process did not exit within the timeout of {}.",
            duration(*limit)
        ),
        Kind::TimedOut { limit, hangs, tests, .. } => hang::timed_out(*limit, hangs.as_ref(), tests),
        Kind::Cut { ran, body_returned: true, .. } => format!(
            "the run was cut {} after the test began: its body had returned, and what it left was still given time to end.",
            rough(*ran)
        ),
        Kind::Cut { ran, hangs, tests, .. } => hang::cut(*ran, hangs.as_ref(), tests),
        Kind::NotGuarded { failure } => {
            format!("the test could not be guarded: {}.", failure::words(failure))
        }
        Kind::LeakedProcess { pid, others, grace, created } => {
            let (more, were) = match others.len() {
                0 => (String::new(), "was"),
                count => (format!(" and {}", plural(count, "more process")), "were"),
            };
            let name = process_name(facts, *pid);
            let created = created
                .as_ref()
                .map_or_else(String::new, |by| created_by(verdict, *pid, others.is_empty(), by));
            format!(
                "pid {name}{more} {were} still running {} after the test ended.{created}{}",
                duration(*grace),
                of_test(verdict, *pid)
            )
        }
        Kind::ElusiveProcess { grace } => format!(
            "a descendant was still running {} after the test ended, and had exited whenever it was looked at: \
             each leaves another behind and exits, again and again. They were killed.",
            duration(*grace)
        ),
        Kind::StrayFd { count, fds, threads, running, created } => {
            let created = created.as_ref().map(|created| created_fds(verdict, fds, created));
            let threads =
                if *threads > 0 { owners(verdict, *count, *threads, running) } else { String::new() };
            stray(*count, fds, &threads, &created.unwrap_or_default())
        }
        Kind::UnlistedFds { count } => format!(
            "the body left {} open beyond those that were recorded, which are all allowed: what they are \
             is not known.",
            plural(*count, "fd")
        ),
        Kind::Unwaited { children, .. } => unwaited(children),
        Kind::Threads { count, running, at: _ } => format!(
            "{} still running when the body returned{}.",
            were(*count as usize, "thread"),
            names_of(verdict, *count, running)
        ),
        Kind::ThreadedFork { fork, more } => threaded_fork(facts, fork, *more),
        Kind::LeftMounts { mounts } => left_mounts(mounts),
        Kind::UnusedAllowances { unused } => unused_allowances(unused),
        Kind::Unkillable { because: because @ Unkillable::Unlisted {}, .. } => {
            format!("a process that the test left could not be killed: {}.", failure::unkillable(because))
        }
        Kind::Unkillable { pid, name, because, .. } => {
            format!("pid {pid} `{name}` could not be killed: {}.", failure::unkillable(because))
        }
    };
    escape::text(&for_subject(facts, sentence))
}

/// A note at the end of a report.
pub(super) fn note(note: &Note) -> String {
    match note {
        Note::TooManyThreads { count } => {
            format!("{count} threads were left: which of them wait for each other was not looked for")
        }
        Note::NoDebugInformation => "the test binary has no debug information: `debug = \"limited\"` in its \
                                     profile, without `strip`, gives lines."
            .to_owned(),
        Note::CompressedLines => "the test binary's debug information is compressed, and only plain debug information is read: \
                                  without `--compress-debug-sections` for the linker there are lines."
            .to_owned(),
        Note::UnrecordedCalls => {
            "the test made more pipes and processes than are recorded, the first and the last \
                                  of them: where a line is not known, that may be why"
                .to_owned()
        }
        Note::FileSizeLimit { limit: None } => {
            "the run has no `RLIMIT_FSIZE`: the test has set its own".to_owned()
        }
        Note::FileSizeLimit { limit: Some(limit) } => {
            format!("the run has an `RLIMIT_FSIZE` of {limit} bytes")
        }
        Note::NeedsArguments { glob, line } => format!(
            "`allow_process = \"{glob}\"` must match the whole command line, `{line}`: \"{glob} *\" does"
        ),
        Note::SharedFixture { at } => format!("`Harness::shared` starts it, at {at}"),
        Note::PanicUnseen => "the message of the panic is not in its output: the body has a panic hook of its own, has \
                              closed or redirected stderr, or could not write: it has set `RLIMIT_FSIZE`, or has \
                              filled the file system of the run's `TMPDIR`, and its output is caught in a file \
                              there. `--nocapture` shows it."
            .to_owned(),
        Note::Overridden { argument } => format!(
            "`{argument}` is set by `CHILDPROOF_{}` or on the command line, which win over the test's own argument.",
            argument.to_uppercase()
        ),
    }
}

/// What the guard could not read or clean.
fn limit(limit: &EvidenceLimit) -> String {
    match limit {
        EvidenceLimit::OutOfTime { processes, tree, outside, pipes_or_sockets, stacks } => {
            let details =
                format!("what {processes} of the processes that were left wait in, run and have open");
            let parts: [(bool, &str); 5] = [
                (*processes > 0, &details),
                (*tree, "all of the processes that were left: more kept coming"),
                (*outside, "what processes outside of the test have open"),
                (*pipes_or_sockets, "the state of every pipe and socket"),
                (*stacks, "the stack of every thread"),
            ];
            let parts: Vec<&str> = parts.iter().filter(|(cut, _)| *cut).map(|(_, what)| *what).collect();
            format!(
                "the look at what was left was ended after its time, and has not read {}",
                parts.join("; nor ")
            )
        }
        EvidenceLimit::NotRecorded { why } => unrecorded(why),
        EvidenceLimit::ScratchNotEmptied { failure } => {
            format!("cannot empty the scratch directory: {}", failure::scratch(failure))
        }
        EvidenceLimit::Isolated {} => failure::ISOLATED.to_owned(),
        EvidenceLimit::NotIsolated { why } => failure::not_isolated(why),
    }
}

fn unrecorded(why: &Unrecorded) -> String {
    let why = match why {
        Unrecorded::WithoutFeature => "childproof was built without its feature `sites`",
        Unrecorded::OtherLibc => "the program is linked statically, or with another libc than glibc",
        Unrecorded::Command { why } => return format!("lines of code are not known: {why}"),
    };
    format!("which lines of code made these is not known: {why}")
}

/// Every note of a test.
pub(super) fn notes(verdict: &Verdict) -> Vec<String> {
    let notes = verdict.facts.limits.iter().map(limit).chain(verdict.notes.iter().map(note));
    notes.map(|note| for_subject(&verdict.facts, note)).collect()
}

pub(super) fn at(code: &CodePlace) -> String {
    code_place(code.place.as_ref(), code.function.as_deref())
}

/// A line of code, as all output writes it: `at src/server.rs:88:20 Server::start`.
pub(super) fn code_place(place: Option<&SourceLocation>, function: Option<&str>) -> String {
    match (place, function) {
        (Some(place), Some(function)) => format!("at {place} {function}"),
        (Some(place), None) => format!("at {place}"),
        (None, Some(function)) => format!("in {function}"),
        (None, None) => "by code without debug information".to_owned(),
    }
}

/// The place alone, or else what is known.
pub(super) fn place(code: &CodePlace) -> String {
    let place = code.place.as_ref().map(ToString::to_string).or_else(|| code.function.clone());
    place.unwrap_or_else(|| "code without debug information".to_owned())
}

/// `, at tests/a.rs:3:5 a::f`, or nothing.
fn comma_at(code: Option<&CodePlace>) -> String {
    code.map_or_else(String::new, |code| format!(", {}", at(code)))
}

/// For use after a comma: `, started at tests/a.rs:3:5 a::f,`, or nothing.
fn started(created: Option<&CodePlace>) -> String {
    created.map_or_else(String::new, |created| format!(", started {},", at(created)))
}

fn own_binary(verdict: &Verdict, pid: i32, filters: &[String], created: Option<&CodePlace>) -> String {
    let again = filters.is_empty() || filters.iter().any(|filter| verdict.name.contains(filter));
    let runs = if again { "it runs this test again" } else { "it runs tests" };
    let filters: Vec<String> = filters.iter().map(|filter| format!("`{filter}`")).collect();
    let taken = match &filters[..] {
        [] => "without arguments that are a filter it runs every test".to_owned(),
        [filter] => format!("its argument {filter} is taken as a filter"),
        filters => format!("its arguments {} are taken as filters", enumerate(filters)),
    };
    format!("pid {pid}{} is this test binary itself: {runs}; {taken}.", started(created))
}

fn blocked(facts: &Facts, pid: i32, signals: &[i32], created: Option<&CodePlace>) -> String {
    let signals: Vec<String> = signals.iter().map(|signal| signal_name(*signal)).collect();
    format!(
        "pid {}{} was sent {}, which it blocks: a program inherits the signal mask of the thread that starts it.",
        process_name(facts, pid),
        started(created),
        enumerate(&signals)
    )
}

fn inherited(
    facts: &Facts,
    pid: i32,
    pipe: u64,
    ends: &[InheritedEnd],
    created: &CodePlace,
    others: usize,
) -> String {
    let ends: Vec<String> =
        ends.iter().map(|held| format!("{} ({} end)", held.fd, pipe_end(held.access))).collect();
    let more = have_it_too(others);
    format!(
        "pid {} has pipe:[{pipe}] as fd {} because it was created without O_CLOEXEC, {}.{more}",
        process_name(facts, pid),
        ends.join(" and fd "),
        at(created)
    )
}

fn inherited_socket(
    facts: &Facts,
    pid: i32,
    inode: u64,
    ends: &[InheritedEnd],
    created: &CodePlace,
    others: usize,
) -> String {
    let numbers: Vec<i32> = ends.iter().map(|held| held.fd).collect();
    let listening = match facts.socket(inode) {
        Some(socket) if socket.listens => format!(" that listens{}", address(facts, inode)),
        _ => String::new(),
    };
    format!(
        "pid {} has {}{listening} as {} because it was created without SOCK_CLOEXEC, {}.{}",
        process_name(facts, pid),
        a_socket(facts, inode),
        fds(&numbers),
        at(created),
        have_it_too(others)
    )
}

fn have_it_too(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " 1 more process has it too.".to_owned(),
        count => format!(" {count} more processes have it too."),
    }
}

fn unwatched(pid: i32, ends: &[i32]) -> String {
    match ends {
        [fd] => format!(
            "pid {pid} does not read its fd {fd}, a read end at EOF: if that is its lifeline, it should have exited."
        ),
        ends => format!(
            "pid {pid} does not read its fds {}, which are read ends at EOF: if one of them is its lifeline, it \
             should have exited.",
            list(ends)
        ),
    }
}

fn ended_early(code: i32, when: Ending, call: Option<&str>, called: Option<&CodePlace>) -> String {
    match when {
        Ending::Unchecked => format!(
            "the body returned, and then another thread ended the test process with code {code} before it was known \
             what the body had left."
        ),
        Ending::AtExit => format!("the body returned, and then the test process exited with code {code}."),
        Ending::InBody => {
            let call =
                call.map_or_else(|| "`exit`, `_exit` or `exec`".to_owned(), |call| format!("`{call}`"));
            let at = called.map_or_else(String::new, |called| format!(" {}", at(called)));
            format!(
                "the test process exited with code {code} before its body returned: it called {call}{at}."
            )
        }
    }
}

fn stray(count: usize, strays: &[StrayNumber], threads: &str, created: &str) -> String {
    let noun = if strays.iter().all(|stray| stray.is_pipe) { "pipe end" } else { "fd" };
    let mut numbers: Vec<i32> = strays.iter().take(NAMED).map(|stray| stray.fd).collect();
    // Several fds may be in flight in one socket.
    numbers.dedup();
    let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
    let more = if count > NAMED.min(strays.len()) { ", .." } else { "" };
    let what = |stray: &StrayNumber| {
        let fifo = stray.fifo.as_ref().map(|path| format!("the FIFO `{path}`"));
        Some((stray.fd, stray.socket.as_ref().map(socket).or(fifo)?))
    };
    let sockets: Vec<(i32, String)> = strays.iter().filter_map(what).collect();
    let (is_one, more_than_one) = match (&sockets[..], strays.len()) {
        ([(_, socket)], 1) => (format!(", {socket}"), String::new()),
        _ => (String::new(), each_socket(&sockets)),
    };
    let mut sentence = format!(
        "the body left {} open: fd {}{more}{is_one}{created}.{more_than_one}",
        plural(count, noun),
        numbers.join(", ")
    );
    let kept = strays.iter().find_map(|stray| Some((stray.fd, keeper(&stray.held_by, stray.fd)?)));
    if let Some((fd, keeper)) = kept {
        sentence += &match strays.first().map(|stray| &stray.held_by) {
            Some(HeldBy::Message | HeldBy::Ring) => format!(" It is {keeper}."),
            Some(HeldBy::Thread { .. }) => format!(" Fd {fd} is {keeper}."),
            _ => format!(" Fd {fd}: {keeper}."),
        };
    }
    sentence + threads
}

/// ` 1 thread was still running, and may own it: ..`.
fn owners(verdict: &Verdict, count: usize, threads: u32, running: &[Running]) -> String {
    let them = if count == 1 { "it" } else { "them" };
    let running = names_of(verdict, threads, running);
    format!(" {} still running, and may own {them}{running}.", were(threads as usize, "thread"))
}

/// ` Fd 7 is an IPv4 stream socket listening at 127.0.0.1:80; fd 8 is ..`, or nothing.
fn each_socket(sockets: &[(i32, String)]) -> String {
    /// The most that are described.
    const MOST: usize = 4;
    let mut each: Vec<String> =
        sockets.iter().take(MOST).map(|(fd, socket)| format!("fd {fd} is {socket}")).collect();
    if sockets.len() > MOST {
        each.push(format!("{} more are sockets or FIFOs", sockets.len() - MOST));
    }
    let joined = each.join("; ");
    joined.strip_prefix("fd").map_or_else(String::new, |rest| format!(" Fd{rest}."))
}

/// `a unix stream socket accepted at /run/a.sock`, `an IPv4 datagram socket at 127.0.0.1:53`.
pub(super) fn socket(socket: &StraySocket) -> String {
    let address =
        |before: &str| socket.address.as_ref().map_or_else(String::new, |at| format!("{before}{at}"));
    let remote = |before: &str| socket.remote.as_ref().map_or_else(String::new, |at| format!("{before}{at}"));
    let what = a_kind_of_socket(&socket.what);
    match socket.role {
        SocketRole::Listening => format!("{what} listening{}", address(" at ")),
        SocketRole::Accepted => format!("{what} accepted{}{}", address(" at "), remote(" from ")),
        SocketRole::Connected => format!("{what}{} connected{}", address(" at "), remote(" to ")),
        SocketRole::Paired => format!("{what} of a pair"),
        SocketRole::Unconnected => match &socket.address {
            Some(address) => format!("{what} at {address}, not connected"),
            None => format!("{what}, not connected"),
        },
    }
}

/// `1 thread was`, `2 threads were`.
fn were(count: usize, noun: &str) -> String {
    format!("{} {}", plural(count, noun), if count == 1 { "was" } else { "were" })
}

/// `panicked at tests/server.rs:31:10: no such file`.
fn panicked(message: &str, place: Option<&SourceLocation>) -> String {
    let at = place.map_or_else(String::new, |place| format!(" at {place}"));
    match first_line(message) {
        line if line.is_empty() => format!("panicked{at}."),
        line => format!("panicked{at}: {line}"),
    }
}

/// The first line of a message, with a mark if there are more.
fn first_line(message: &str) -> String {
    let mut lines = message.lines();
    match (lines.next().unwrap_or_default(), lines.next()) {
        (line, Some(_)) if !line.is_empty() => format!("{line} .."),
        (line, _) => line.to_owned(),
    }
}

/// Which test of a command started a process, with a leading space.
fn of_test(verdict: &Verdict, pid: i32) -> String {
    verdict.test_of(pid).map_or_else(String::new, |test| format!(" The test `{test}` started it."))
}

/// Which line created a leaked process, with a leading space.
fn created_by(verdict: &Verdict, pid: i32, is_alone: bool, by: &CreatedBy) -> String {
    let it = if is_alone { "It".to_owned() } else { format!("Pid {pid}") };
    let forked = |pid: i32| process(&verdict.facts, pid).is_some_and(|process| process.forked_without_exec);
    let how = |pid: i32| if forked(pid) { "forked" } else { "spawned" };
    let site = at(&by.site);
    match by.creator {
        Creator::Itself => format!(" {it} was {} {site}.", how(pid)),
        Creator::Ancestor { pid } => format!(
            " {it} was started below pid {}, which was {} {site}.",
            process_name(&verdict.facts, pid),
            how(pid)
        ),
        Creator::ExitedParent { pid: parent, sure } => {
            let site_of = verdict.names.of_process(parent);
            let program = site_of.map(|site| escape::words(&site.command_line)).unwrap_or_default();
            let probably = if sure { "" } else { "probably " };
            format!(" {it} {probably}comes from `{program}`, which was spawned {site} and has exited.")
        }
    }
}

/// Which line created stray fds, after a comma or semicolon.
fn created_fds(verdict: &Verdict, fds: &[StrayNumber], created: &CodePlace) -> String {
    let place = |key: u64| verdict.names.of_fd(key).and_then(|site| site.place.as_ref());
    let all = fds.iter().all(|stray| place(stray.key) == created.place.as_ref());
    let first = fds.iter().find(|stray| place(stray.key) == created.place.as_ref());
    let verb = first.and_then(|first| verdict.names.of_fd(first.key)).map_or("created", |site| site.verb());
    match first {
        Some(first) if !all => format!("; fd {} was {verb} {}", first.fd, at(created)),
        _ => format!(", {verb} {}", at(created)),
    }
}

/// The line that opened a file with a path.
pub(super) fn opened<'a>(verdict: &'a Verdict, keys: &[u64]) -> Option<&'a SourceLocation> {
    verdict.names.of_open(keys).and_then(|site| site.place.as_ref())
}

/// What keeps an fd open, if it is not an entry in the process's fd table.
pub(super) fn keeper(held_by: &HeldBy, fd: i32) -> Option<String> {
    match held_by {
        HeldBy::Table => None,
        HeldBy::Thread { tid } => Some(format!("in the fd table of thread {tid}, which has one of its own")),
        HeldBy::Message => Some(format!("sent over a socket, fd {fd}, and not received")),
        HeldBy::Ring => Some(format!("registered with an io_uring, fd {fd}")),
        HeldBy::Opaque => Some("keeps other files open, which cannot be looked at".to_owned()),
    }
}

fn left_mounts(mounts: &[LeftMount]) -> String {
    /// The most that are named.
    const MOST: usize = 4;
    let mut named: Vec<String> = mounts.iter().take(MOST).map(mount).collect();
    if mounts.len() > MOST {
        named.push(format!("{} more", mounts.len() - MOST));
    }
    let is_one = mounts.len() == 1;
    let left = if is_one { "a mount".to_owned() } else { plural(mounts.len(), "mount") };
    let end = match (mounts.iter().all(|mount| mount.why.is_none()), is_one) {
        (true, true) => "It was detached, and nothing behind it was removed.",
        (true, false) => "They were detached, and nothing behind them was removed.",
        (false, true) => "Nothing behind it was removed.",
        (false, false) => "Nothing behind them was removed.",
    };
    if is_one && mounts[0].at == PROC_PATH {
        // Any process of the mount namespace may have mounted it.
        return format!("a mount was over `{PROC_PATH}` when the test ended. {end}");
    }
    format!("the test left {left} in its `TMPDIR`: {}. {end}", enumerate(&named))
}

fn unused_allowances(unused: &[Allowance]) -> String {
    let arguments: Vec<String> = unused.iter().map(|allow| format!("`{}`", allow::argument(allow))).collect();
    let (allow, it) = if unused.len() == 1 { ("allows", "it") } else { ("allow", "them") };
    format!("{} {allow} what the test did not leave: remove {it}.", enumerate(&arguments))
}

/// `` `/tmp/childproof-a/1/x`, where `/home/x` is mounted ``.
fn mount(mount: &LeftMount) -> String {
    let LeftMount { at, what, why } = mount;
    let what = if what.is_empty() { String::new() } else { format!(", where `{what}` is mounted") };
    let why = why.as_ref().map_or_else(String::new, |why| format!(" (it cannot be detached: {why})"));
    format!("`{at}`{what}{why}")
}

fn unwaited(children: &[Child]) -> String {
    let names: Vec<String> = children.iter().map(|child| format!("{} `{}`", child.pid, child.name)).collect();
    let was = if children.len() == 1 { "was" } else { "were" };
    format!(
        "{} had exited and {was} not waited for: pid {}.",
        plural(children.len(), "child"),
        names.join(", ")
    )
}

/// `: `worker-3` (tid 3391, at src/a.rs:3:5), tid 3392 (no name so far)`.
fn names_of(verdict: &Verdict, count: u32, running: &[Running]) -> String {
    let named = |thread: &Running| {
        let at = verdict.names.lines.get(&thread.tid).map_or_else(String::new, |line| format!(", at {line}"));
        match thread.name.as_str() {
            // It may have just been started: threads of std set their own names.
            "" => format!("tid {} (no name so far{at})", thread.tid),
            name => format!("`{name}` (tid {}{at})", thread.tid),
        }
    };
    let mut names: Vec<String> = running.iter().map(named).collect();
    // A thread may have ended between the count and the list of names.
    let more = (count as usize).saturating_sub(names.len());
    if names.is_empty() {
        return String::new();
    }
    if more > 0 {
        names.push(format!("{more} more"));
    }
    format!(": {}", names.join(", "))
}

fn threaded_fork(facts: &Facts, fork: &ThreadedFork, more: usize) -> String {
    let ThreadedFork { pid, creator, thread, threads, site } = fork;
    let of = if *creator == facts.pid { String::new() } else { format!(" of pid {creator}") };
    let more = match more {
        0 => String::new(),
        1 => " So was 1 more there.".to_owned(),
        more => format!(" So were {more} more there."),
    };
    format!(
        "pid {pid} was forked {} by thread `{thread}`, one of {threads}{of}, and did not go straight on to exec: a \
         lock that another thread held at that moment stays locked in it forever.{more}",
        at(site)
    )
}

#[cfg(feature = "json")]
pub(super) use deadlock::doubt;
pub(super) use deadlock::{brief_wait, thread_name};
