//! What mends a finding, in words.

mod locks;
mod signals;

use nix::libc;

use super::escape;
use super::sentence::{brief_wait, place, thread_name};
use super::words::{fds, for_subject, in_brackets, list, process, signal_name};
use crate::diagnosis::{Before, CloseFds, Ends, Finding, Remedy, Verdict, Wait};
use crate::guard::facts::Facts;
use crate::guard::report_page::HeldBy;

/// What stops a process unintentionally.
const TERMINAL: &str = "SIGTTIN and SIGTTOU, which a terminal sends to a background process that uses it";

/// The most fds that are named in a sentence.
const NAMED: usize = 8;

/// The remedies of a finding; `None` if there are none. Safe to print.
pub(super) fn of(verdict: &Verdict, finding: &Finding) -> Option<String> {
    let words: Vec<String> = finding
        .remedies
        .iter()
        .map(|remedy| escape::text(&for_subject(&verdict.facts, words(&verdict.facts, remedy))))
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// One remedy in words.
fn words(facts: &Facts, remedy: &Remedy) -> String {
    locks::of(facts, remedy)
        .or_else(|| of_own_ends(facts, remedy))
        .or_else(|| of_rings(facts, remedy))
        .or_else(|| of_waits(facts, remedy))
        .or_else(|| signals::of(facts, remedy))
        .or_else(|| of_library(remedy))
        .or_else(|| of_processes(remedy))
        .unwrap_or_else(|| of_endings(remedy))
}

fn look_at_writers(facts: &Facts, pid: i32, thread: Option<&(i32, Option<Wait>)>, ends: &str) -> String {
    let look = match thread {
        None => format!("find why none of the other threads writes to {ends}"),
        Some((tid, wait)) => {
            let does = wait.as_ref().map(|wait| format!(", which {},", brief_wait(wait)));
            let name = thread_name(facts, pid, *tid);
            format!("find why {name}{} does not write to {ends}", does.unwrap_or_default())
        }
    };
    format!("{look}; to see EOF, close it first.")
}

fn of_own_ends(facts: &Facts, remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::CloseInChild { fds } => format!(
            "in the child, close fd {} between the fork and the read. O_CLOEXEC would not help: the \
             child never execs.",
            list(fds)
        ),
        Remedy::DropOwnWriteEnd { fds: own, only: true } if own.len() == 1 => format!(
            "drop the owner of the write end, {0}, before reading to the end: the only write end is its own {0}, which a \
             `Command` that was given it keeps until it is dropped.",
            fds(own)
        ),
        Remedy::DropOwnWriteEnd { fds, .. } => {
            format!("drop the owner of the write end, fd {}, before reading to the end.", list(fds))
        }
        Remedy::CreateWithCloexec { fds, created } => format!(
            "create the write end, fd {}, with O_CLOEXEC{}, so that the program never gets it.",
            list(fds),
            in_brackets("", created.as_ref())
        ),
        Remedy::WriteFirst { pids } => format!(
            "have one of pids {} write before it reads. And close, in each, its own write end of the \
             pipe that it reads: with that open it sees no EOF even then.",
            list(pids)
        ),
        Remedy::WriteToOtherOfPair { fds: both } => format!(
            "write to the one of {} that is not read, from another process or thread; to see EOF, close that one before reading \
             to the end.",
            fds(both)
        ),
        Remedy::WriteElsewhere { fds: ends, in_fork } => format!(
            "write to {0} from another thread or process while this one waits; to see EOF, close {0} before reading to the \
             end{1}.",
            fds(ends),
            if *in_fork { ", in a fork right after it" } else { "" }
        ),
        Remedy::ReadElsewhere { fds: ends, in_task } => {
            let reader = if *in_task { "task" } else { "thread" };
            format!("read {} in another {reader}, or close it: then writing fails with EPIPE.", fds(ends))
        }
        Remedy::CloseOwnReadEnd { fds: ends } => format!(
            "close the read end that it does not use, {}: then writing fails with EPIPE. Or read from it \
             in another thread.",
            fds(ends)
        ),
        Remedy::CreateSocketWithCloexec { pid, fds: ends, created } => {
            let holder = process(facts, *pid);
            let socket =
                ends.first().and_then(|fd| holder?.fd(*fd)?.socket()).and_then(|ino| facts.socket(ino));
            let effect = match socket {
                Some(socket) if socket.listens => ", which keeps its address taken",
                Some(socket) if socket.ends().len() < 2 => "",
                _ => ", which keeps its other end from EOF",
            };
            format!(
                "make that socket with SOCK_CLOEXEC ({}), as std does: pid {pid} inherited it as {}{effect}.",
                place(created),
                fds(ends)
            )
        }
        Remedy::CreatePipeWithCloexec { created } => format!(
            "make that pipe with O_CLOEXEC ({}): `std::io::pipe` and `pipe2(O_CLOEXEC)` do.",
            place(created)
        ),
        _ => return None,
    })
}

/// Fds with their process and the line that created them.
fn ends_of(facts: &Facts, ends: &Ends) -> String {
    let owner = if ends.pid == facts.pid { "the test".to_owned() } else { format!("pid {}", ends.pid) };
    format!("{} of {owner}{}", fds(&ends.fds), in_brackets("created at ", ends.created.as_ref()))
}

fn of_rings(facts: &Facts, remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::WriteToChild { ends } => format!(
            "write to the child's stdin, {}, all that it waits for: the end of the line too, and flush what \
             buffers it; or drop it, so that the child sees its end. What a program writes to a pipe, it may keep \
             until its buffer is full.",
            ends_of(facts, ends)
        ),
        Remedy::DropStdin { ends } => format!(
            "drop `child.stdin`, {}, before {}; or write to it first.",
            ends_of(facts, ends),
            before(Before::Reading)
        ),
        Remedy::DropStdinBeforeWait { ends } => format!(
            "drop what writes to the child's stdin, {}, before {} or for the end of its output. \
             (`Child::wait` drops only a `child.stdin` that was not taken out.)",
            ends_of(facts, ends),
            before(Before::Waiting)
        ),
        Remedy::CloseWriteEnd { reader, ends, before: when } => format!(
            "close the write end that pid {reader} waits on, {}, before {}: drop the owner.",
            ends_of(facts, ends),
            before(*when)
        ),
        Remedy::ShutdownSocket { ends, before: Before::Reading } => format!(
            "call `shutdown(Shutdown::Write)` on {} before reading to the end; or write to it first.",
            ends_of(facts, ends)
        ),
        Remedy::ShutdownSocket { ends, before: Before::Waiting } => format!(
            "drop {}, or call `shutdown` on it, before waiting for the end of the process that reads the other end; or \
             write there first what that waits for.",
            ends_of(facts, ends)
        ),
        Remedy::ShutdownEither { one, other } => format!(
            "these are the two ends of one connection, and each is read to its end: what has written all that it has to write \
             calls `shutdown(Shutdown::Write)` before it reads, on {} or on {}.",
            ends_of(facts, one),
            ends_of(facts, other)
        ),
        Remedy::ReadBeforeWait { ends } => format!(
            "read {} to its end before waiting for the child: `Child::wait_with_output` or `Command::output` \
             do both.",
            ends_of(facts, ends)
        ),
        Remedy::ReadBoth { ends, reads } => format!(
            "read {} while fd {reads} is read, in a thread of its own: `Child::wait_with_output` and \
             `Command::output` read both at once.",
            ends_of(facts, ends)
        ),
        Remedy::ReadAllTheWhile { ends } => format!(
            "read {} all the while, in a thread of its own or with `poll`; or have it write to a file, or \
             to `Stdio::null()`.",
            ends_of(facts, ends)
        ),
        Remedy::CloseBeforeWait => {
            "close the end that the child waits on before waiting for the child: drop its owner.".to_owned()
        }
        Remedy::ReadWhileWriting => {
            "read the output while writing, one of the two in a thread of its own: give `child.stdin` to a thread \
             that writes and drops it, and call `wait_with_output`."
                .to_owned()
        }
        Remedy::OneSideFirst => {
            "let one side write first, or close the ends that it does not use right after the fork.".to_owned()
        }
        _ => return None,
    })
}

/// The remedies of waits that may still end.
#[allow(clippy::too_many_lines, reason = "one sentence a remedy")]
fn of_waits(facts: &Facts, remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::FindStopSignal => {
            format!("find what sent it: SIGSTOP, SIGTSTP, or {TERMINAL}. SIGCONT would continue it.")
        }
        Remedy::ContinueStopped { pids } => {
            let it = if pids.len() == 1 { "it" } else { "them" };
            format!(
                "send {it} SIGCONT, or SIGKILL, which ends {it} all the same; and find what stopped {it}: SIGSTOP, \
                 SIGTSTP, or {TERMINAL}."
            )
        }
        Remedy::BringToForeground { pid, signal } => format!(
            "pid {pid} used its terminal from the background, which stopped it by {}, and would again: make its process \
             group the foreground one (`tcsetpgrp`), or start it without that terminal as its {}.",
            signal_name(*signal),
            if *signal == libc::SIGTTIN { "stdin" } else { "output" }
        ),
        Remedy::FindWhyNothingIsWritten => {
            "find why it writes nothing: what a program writes to a pipe, it may keep until its buffer is full."
                .to_owned()
        }
        Remedy::CloseInFork { ends, watch } => format!(
            "close {}, right after the fork if it is not to write there; or end it before.{}",
            ends_of(facts, ends),
            watch_lifeline(*watch)
        ),
        Remedy::EndWriter { pid } => format!(
            "pid {pid} still runs, and keeps its output open until it ends: end it (`kill`) before waiting for the end of \
             its output, or wait with a timeout for what it should write."
        ),
        Remedy::CloseOwnFifo { pid, fds: own, reads } if own == &[*reads] => format!(
            "open it for reading only: {} of pid {pid} is open for both, and so the FIFO never ends; or write to it first.",
            fds(own)
        ),
        Remedy::CloseOwnFifo { pid, fds: own, .. } => {
            let is_fork = process(facts, *pid).is_some_and(|process| process.forked_without_exec);
            let shell = own.iter().map(|fd| format!("`{fd}>&-`")).collect::<Vec<_>>().join(" ");
            let how = if is_fork { "right after the fork".to_owned() } else { format!("{shell} in a shell") };
            format!(
                "close {} in pid {pid}, which only reads ({how}), and in what waits for it: a FIFO ends when its last writer \
                 has closed it. Or write to it first.",
                fds(own)
            )
        }
        Remedy::OpenInOneOrder => {
            "opening a FIFO waits for the other side to open it: if the two sides open these FIFOs in different orders, \
             have both open them in the same one."
                .to_owned()
        }
        Remedy::RedirectBackground { watch, orphan } => {
            let end = match orphan {
                None => "end it".to_owned(),
                Some(_) => "start its parent with `process_group(0)` and kill the whole group".to_owned(),
            };
            format!(
                "a program that stays in the background keeps what it inherited: redirect its output, \
                 or {end} before reading to the end.{}",
                watch_lifeline(*watch)
            )
        }
        Remedy::CloseInReaders { pids, ends } => {
            let whose = match &pids[..] {
                [_] => "its own write end".to_owned(),
                pids => format!("the write end in each of pids {}", list(pids)),
            };
            format!(
                "close {whose}, right after the fork, where it only reads ({}): then it sees EOF when the process that \
                 writes there has ended, and exits.",
                ends_of(facts, ends)
            )
        }
        Remedy::CloseInProgram { ends } => {
            let shell = ends.fds.iter().map(|fd| format!("`{fd}>&-`")).collect::<Vec<_>>().join(" ");
            let is_socket = |fd: &i32| {
                process(facts, ends.pid).and_then(|process| process.fd(*fd)?.socket()).is_some()
            };
            let end = if ends.fds.iter().all(is_socket) { "other end" } else { "write end" };
            format!(
                "pid {} keeps the {end}, {}, that it inherited: close it where the program is started ({shell} in a \
                 shell), or end the program before reading to the end.",
                ends.pid,
                ends_of(facts, ends).replace(&format!(" of pid {}", ends.pid), "")
            )
        }
        Remedy::CheckChild { pid, was_waited_for: true } => format!(
            "look at what pid {pid} printed, and at what it should have done before it ended. Wait for that with a timeout."
        ),
        Remedy::CheckChild { pid, .. } => format!(
            "look at what pid {pid} printed. While waiting for what a child does, look with `try_wait` whether it has \
             ended, or wait with a timeout."
        ),
        Remedy::CloseSlave { fd } => format!(
            "drop the slave of the terminal in the test as soon as the child has it: fd {fd} is read until the last slave is \
             closed."
        ),
        Remedy::ReadTerminal => {
            "read the master of the terminal all the while, in a thread of its own, until the child has ended."
                .to_owned()
        }
        Remedy::AnswerAtTerminal { pid, fds: masters } => format!(
            "write to the terminal's master, {}, what pid {pid} reads, before waiting for its end; or close the master, \
             which hangs the terminal up.",
            fds(masters)
        ),
        Remedy::OpenOtherEnd { .. } => {
            "start what opens the other end of the FIFO before this one, and keep it open as long as this one is opened \
             again; or open it with O_NONBLOCK or for reading and writing."
                .to_owned()
        }
        Remedy::UnblockSignal { signal } => format!(
            "unblock {0} before the exec (`pre_exec` with `pthread_sigmask`), or block it only in threads that start \
             no program; SIGKILL cannot be blocked.",
            signal_name(*signal)
        ),
        Remedy::StartOtherProgram => {
            "start another program: a binary of the package by `env!(\"CARGO_BIN_EXE_NAME\")`. What starts \
             `current_exe` starts the test harness, where a test runs."
                .to_owned()
        }
        _ => return None,
    })
}

fn before(before: Before) -> &'static str {
    match before {
        Before::Reading => "reading to the end",
        Before::Waiting => "waiting for its end",
    }
}

fn watch_lifeline(watch: bool) -> &'static str {
    match watch {
        true => " A process that is to end with its parent has to read its lifeline, in a thread of its own.",
        false => "",
    }
}

/// The remedies for what a function of the C library has started.
fn of_library(remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::NoDaemonInBody { pid } => format!(
            "`daemon` forked the test itself, which runs on as pid {pid}: call it in a child process, never in the body, \
             and end that process before the test ends."
        ),
        Remedy::ClosePopen => {
            "call `pclose` on what `popen` returned, before the test ends: it closes the pipe and waits for the \
             command."
                .to_owned()
        }
        Remedy::EndJobsOfSystem => {
            "`system` waits only for the shell: let the command wait for its jobs (`wait`), or start it with \
             `process_group(0)` and kill the whole group."
                .to_owned()
        }
        Remedy::EndSystem { pid } => format!(
            "a thread still waits in `system` for this command: join that thread before the test ends, or start the command \
             with `Command` and `process_group(0)`, and kill that whole group. `system` gives no handle on pid {pid}."
        ),
        Remedy::EndForkpty { pid } => format!(
            "close the terminal's master, or `kill({pid}, SIGKILL)`; and `waitpid({pid})` before the test ends."
        ),
        _ => return None,
    })
}

fn of_processes(remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::StopDaemon { pid } => format!(
            "pid {pid} made itself a daemon (it left the session): stop it the way it is meant to be stopped, \
             by its command or its pid file, and wait until it is gone."
        ),
        Remedy::KillGroup { pid, signal } => format!(
            "pid {pid} leads its own process group: `killpg({pid}, {})`, then wait for it.",
            name_only(*signal)
        ),
        Remedy::KillParentsGroup { pgid, signal } => format!(
            "orphaned: its parent exited first. Kill the whole group that its parent led, `killpg({pgid}, {})`, and wait \
             until it is gone.",
            name_only(*signal)
        ),
        Remedy::EndForkWithParent => {
            "orphaned: its parent exited first. Let the parent wait for it, or have it end with its parent, by \
             `prctl(PR_SET_PDEATHSIG, SIGKILL)` after the fork."
                .to_owned()
        }
        Remedy::StartParentInGroup { parent, exec } => format!(
            "orphaned: its parent exited first. Start the parent{} with `process_group(0)` and kill the whole \
             group{}.",
            in_brackets("", parent.as_ref()),
            if *exec { ", or let the parent `exec` it" } else { "" }
        ),
        Remedy::WaitInCommand => "orphaned: the command has left it behind. Run it in the foreground, by `exec` in a shell, \
                                  or let the command end it and `wait` for it, also after SIGTERM.".to_owned(),
        Remedy::KillAndWaitpid { pid } => format!(
            "`kill({pid}, SIGKILL)` and `waitpid({pid})` before the test ends, also when it panics."
        ),
        Remedy::KillTokioChild => {
            "call `kill().await` on its `Child` before the test ends, or start it with `kill_on_drop(true)`: \
             otherwise dropping a `Child` does not end it."
                .to_owned()
        }
        Remedy::EndBeforeCommand => "end it, or wait for it, before the command ends.".to_owned(),
        Remedy::KillAndWait => {
            "call `kill` and `wait` on its `Child` before the test ends, also when the test panics: \
             dropping a `Child` does neither."
                .to_owned()
        }
        Remedy::KillAllOfChild { pid } => format!(
            "start it with `process_group(0)`, and before the test ends, also when it panics, kill the whole group \
             (`kill(-{pid}, SIGKILL)`) and call `wait` on its `Child`: `Child::kill` would not end what it has started. \
             `childproof::lifeline::Command` ends all of it."
        ),
        Remedy::StopWithParent => "stop it where its parent is stopped, and wait for both.".to_owned(),
        Remedy::EndForker => "end the one that forks, or its whole process group.".to_owned(),
        Remedy::Unmount { at } => format!(
            "unmount it before the test ends (`umount {at}`), by a value whose `drop` does so also after a panic."
        ),
        Remedy::EndByHand { pid } => {
            format!("it still runs: end it by hand (`kill -9 {pid}`), as a user who may.")
        }
        Remedy::WaitForChildren => {
            "call `wait` on every `Child`, also after `kill`: a `Child` that is dropped is not waited for."
                .to_owned()
        }
        Remedy::CloseFds(close) => close_fds(close),
        Remedy::CloseAllowedToo => "close what is allowed too, and see what is left.".to_owned(),
        _ => return None,
    })
}

/// SIGKILL or SIGTERM.
fn name_only(signal: i32) -> &'static str {
    if signal == libc::SIGKILL { "SIGKILL" } else { "SIGTERM" }
}

/// What to close, and a note that this applies to others too.
fn close_fds(close: &CloseFds) -> String {
    let fd = close.fd;
    let first = match (close.access, close.other) {
        _ if close.held_by != HeldBy::Table => close_elsewhere(fd, &close.held_by),
        (None, _) => {
            format!("close fd {fd} before the test ends: drop its owner, or do not `forget` or `leak` it.")
        }
        (_, Some(other)) => format!(
            "close fd {fd} and fd {other}, the ends of one pipe, before the test ends: drop their owners."
        ),
        (Some(libc::O_RDWR), None) => format!("close fd {fd}, which is both ends, before the test ends."),
        (Some(access), None) => {
            let (this, effect) = match access {
                libc::O_RDONLY => ("read", "a writer to this pipe would never get EPIPE"),
                _ => ("write", "a reader of this pipe would never see EOF"),
            };
            format!("close the {this} end, fd {fd}, before the test ends: as long as it is open, {effect}.")
        }
    };
    let rest: Vec<String> = close.rest.iter().map(|fd| fd.to_string()).collect();
    let rest = match &rest[..] {
        [] => String::new(),
        [fd] => format!(" Do the same with fd {fd}."),
        fds => {
            let more = if fds.len() > NAMED { ", .." } else { "" };
            format!(" Do the same with fds {}{more}.", fds[..fds.len().min(NAMED)].join(", "))
        }
    };
    match close.owners {
        None => first + &rest,
        Some(count) => {
            let them = if count == 1 { "it" } else { "them" };
            format!(
                "if a thread owns {them}, have it end and join it: what it owns is closed then. Otherwise {first}{rest}"
            )
        }
    }
}

/// How to close a file that is kept open outside of the fd table.
fn close_elsewhere(fd: i32, held_by: &HeldBy) -> String {
    match held_by {
        HeldBy::Thread { tid } => format!(
            "close fd {fd} in thread {tid}, or end the thread and join it: a thread that calls \
             unshare(CLONE_FILES) keeps a copy of every fd that was open then."
        ),
        HeldBy::Message => {
            format!("receive what was sent over the socket and close it, or close the socket, fd {fd}.")
        }
        HeldBy::Ring => {
            format!("unregister the files of the io_uring, or close it, fd {fd}, before the test ends.")
        }
        HeldBy::Opaque | HeldBy::Table => {
            format!("close fd {fd} before the test ends: a pipe may be kept open by it.")
        }
    }
}

fn of_endings(remedy: &Remedy) -> String {
    let words = match remedy {
        Remedy::JoinThreads => "join every thread that the body starts, or use `std::thread::scope`.",
        Remedy::ExitInChild => "end the child's branch after `fork` with `_exit` or an exec.",
        Remedy::ReturnFromBody => {
            "return from the body. A test that must exit or exec does so in a child process."
        }
        Remedy::LookAtExitCode => {
            "look at `atexit` handlers and destructors of statics: a leak checker such as LSan ends a process so."
        }
        Remedy::LookAtExitHandlersAndThreads => {
            "look at `atexit` handlers, destructors of statics, and threads that were still running."
        }
        Remedy::LookAtExitHandlers => "look at `atexit` handlers and destructors of statics.",
        Remedy::LookAtSignal { signal } => signals::that_ended(*signal),
        _ => "",
    };
    words.to_owned()
}
