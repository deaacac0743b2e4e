//! The words of remedies for locks, of threads and of files.

use super::look_at_writers;
use crate::diagnosis::Remedy;
use crate::guard::facts::Facts;
use crate::recorder::awaited::Awaited;
use crate::report::escape;
use crate::report::words::{brief, fds, in_brackets, process};

pub(super) fn of(facts: &Facts, remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::ExecAfterFork { locking, or_own } => {
            let called = locking.as_ref();
            let called = called.map_or_else(String::new, |function| format!(": `{}` locks", brief(function)));
            let own = match or_own {
                true => " If the process itself holds it already, release it before it is taken again.",
                false => "",
            };
            format!(
                "exec after the fork (`Command`), or fork while there is one thread. Between fork and exec only \
                 async-signal-safe calls are sound{called}.{own}"
            )
        }
        Remedy::ExecOrForkSingleThreaded => {
            "exec after the fork (`Command` does), or fork while there is one thread. Between fork and exec \
             only async-signal-safe calls are sound: fork(2), signal-safety(7). CPython warns of the same \
             since 3.12."
                .to_owned()
        }
        Remedy::EndWait(kind) => end_wait(kind.as_ref()).to_owned(),
        Remedy::AwaitInTask(kind) => await_in_task(kind.as_ref()),
        Remedy::LockOrder => {
            "take locks in the same order everywhere, and join no thread while holding what it needs.".to_owned()
        }
        Remedy::OneLockOrSeveral => {
            "if these are several locks, take them in the same order everywhere. If they are one, find where it is taken and \
             never released: twice in one thread (also a `read` within a `read`, while another thread waits in `write`), or \
             by a guard that was forgotten."
                .to_owned()
        }
        Remedy::ReleaseBeforeJoin => {
            "release a lock before the join of a thread that needs it. If the joining thread does not hold it, find \
             where this lock is taken and never released: in the same thread, or by a guard that was forgotten."
                .to_owned()
        }
        Remedy::LeaveRuntime => {
            "the two wait for each other: a runtime of one thread does nothing while that thread waits. Do not wait in a \
             task for a thread that needs the runtime: `.await` it by `spawn_blocking`, or give the thread a runtime of \
             its own."
                .to_owned()
        }
        Remedy::FindAwait => {
            "find the `.await` that nothing completes: a channel whose sender is kept, a lock that is held, a `Notify`. A \
             `tokio::time::timeout` around parts of the body shows where."
                .to_owned()
        }
        Remedy::LookAtWriters { pid, thread, ends } => {
            look_at_writers(facts, *pid, thread.as_ref(), &fds(ends))
        }
        _ => return of_files(facts, remedy),
    })
}

/// The same for locks on files.
fn of_files(facts: &Facts, remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::ReleaseFileLock { file, pid, waiter } => {
            let holder = if *pid == facts.pid { "the test".to_owned() } else { format!("pid {pid}") };
            format!(
                "release the lock on `{}` in {holder} before waiting for pid {waiter}, which wants the same lock.",
                escape::text(file)
            )
        }
        Remedy::ReleaseOwnFileLock { file, opened } => format!(
            "release the lock on `{}`{} before it is taken again, or take it once: each `open` of a file has a lock of \
             its own, also within one process.",
            escape::text(file),
            in_brackets("opened at ", opened.as_ref())
        ),
        Remedy::EndLockHolder { pid, file } => format!(
            "pid {pid} took the lock on `{}` and still runs: end it, or wait for its end, before the lock is taken again; or \
             take it with a timeout (`try_lock`, `flock -w`).",
            escape::text(file)
        ),
        Remedy::CloseLockInChild { pid, fd, file, .. }
            if process(facts, *pid).is_some_and(|process| process.forked_without_exec) =>
        {
            format!(
                "pid {pid} has fd {fd} from its fork, by which the lock on `{}` is held: close it there right after the \
                 fork, or end the fork first.",
                escape::text(file)
            )
        }
        Remedy::CloseLockInChild { pid, fd, file, opened } => format!(
            "pid {pid} has inherited fd {fd}, by which the lock on `{}` is held: close it where the program is started \
             (`{fd}>&-` in a shell), or open it with O_CLOEXEC{}; or end the program first.",
            escape::text(file),
            in_brackets("", opened.as_ref())
        ),
        _ => return None,
    })
}

/// The fix for a task that blocks its runtime: another task may be what should end the wait, or none.
fn await_in_task(kind: Option<&Awaited>) -> String {
    let other = match kind {
        Some(Awaited::Lock) => {
            "another task holds the lock over an `.await`: release it before, or use `tokio::sync::Mutex`"
        }
        Some(Awaited::Message | Awaited::Room) => {
            "another task is to end this wait: `.await` a channel of `tokio::sync` instead, or wait in `spawn_blocking`"
        }
        _ => {
            "another task is to end this wait: `.await` what does the same in `tokio::sync`, or wait in `spawn_blocking`"
        }
    };
    format!(
        "a task that waits without `.await` blocks its thread, where the runtime then runs no other task. If so, {other}. \
         If not, {}",
        end_wait(kind)
    )
}

/// The usual fix for a wait that no thread is left to end.
fn end_wait(kind: Option<&Awaited>) -> &'static str {
    match kind {
        Some(Awaited::Message) => {
            "a sender is alive, and no thread is left to send with it: drop it before the `recv`, or before the join \
             of the receiver. A clone of it in another thread that waits, or that this thread keeps itself, \
             counts too."
        }
        Some(Awaited::Room) => {
            "a receiver is alive, and no thread is left to receive from it: do that in another thread, drop it, or \
             make the channel larger."
        }
        Some(Awaited::Condvar) => {
            "no thread that could notify it runs: find the `notify` that is missing, or that came before the wait \
             (`wait_while` checks first)."
        }
        Some(Awaited::Unpark) => {
            "no thread is left that could unpark it: call `unpark` in a thread that still runs then, or \
             `park_timeout`."
        }
        Some(Awaited::Barrier) => {
            "fewer threads reach the barrier than it counts: look at the number in `Barrier::new`, and at \
             threads that end before they reach it."
        }
        Some(Awaited::Once) => {
            "what initialises it needs the value itself, or waits for a thread that does: take that out of the \
             initialiser."
        }
        Some(Awaited::Semaphore) => {
            "no thread that could post to it runs: find the `sem_post` that is missing."
        }
        Some(Awaited::Scope) => "end the threads of the scope before its own end: it joins them all.",
        Some(Awaited::CLibrary) => {
            "look for a signal handler that calls what is not async-signal-safe: it may have come while the same \
             thread had the lock (signal-safety(7))."
        }
        Some(Awaited::Lock) => {
            "find where this lock is taken and never released: in the same thread, or by a guard that was forgotten."
        }
        None => "find what should wake it: what holds the lock, the sender or the handle that it waits for.",
    }
}
