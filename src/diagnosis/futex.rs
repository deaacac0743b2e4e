//! What a futex is. The kernel knows only a word of memory; the functions that wait for it know
//! what it stands for.

/// What a thread waits for in a futex.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(feature = "sites"), allow(dead_code, reason = "no stack is read"))]
pub(crate) enum Awaited {
    /// A message from a channel.
    Message,
    /// Room in a channel.
    Room,
    Condvar,
    /// `thread::park`.
    Unpark,
    Barrier,
    /// A `Once`, `OnceLock` or `LazyLock` that somebody is initialising.
    Once,
    Semaphore,
    /// The end of the threads of a `thread::scope`.
    Scope,
    /// A `Mutex` or `RwLock`, or what pthreads call so.
    Lock,
    /// A lock of the C library's own, such as malloc's. Nobody else can take it.
    CLibrary,
}

impl Awaited {
    /// It, behind the word `waits`; `name` says which one.
    pub(super) fn words(kind: Option<&Awaited>, name: &str) -> String {
        match kind {
            Some(Awaited::Message) => format!("for a message on a channel{name}"),
            Some(Awaited::Room) => format!("for room in a channel{name}"),
            Some(Awaited::Condvar) => format!("for a condition variable{name}"),
            Some(Awaited::Unpark) => "to be unparked".to_owned(),
            Some(Awaited::Barrier) => format!("for others at a barrier{name}"),
            Some(Awaited::Once) => format!("for a `Once` or `LazyLock`{name} that is being initialised"),
            Some(Awaited::Semaphore) => format!("for a semaphore{name}"),
            Some(Awaited::Scope) => "for the end of the threads of a `thread::scope`".to_owned(),
            Some(Awaited::Lock) => format!("for a lock{name}"),
            Some(Awaited::CLibrary) => format!("for a lock of the C library{name}"),
            None => format!("for a futex{name}"),
        }
    }

    /// What ends the wait: another thread `that could ..`.
    pub(super) fn ended_by(kind: Option<&Awaited>) -> &'static str {
        match kind {
            Some(Awaited::Message) => "send one",
            Some(Awaited::Room) => "make some",
            Some(Awaited::Condvar) => "notify it",
            Some(Awaited::Unpark) => "unpark it",
            Some(Awaited::Barrier) => "come to it",
            Some(Awaited::Once) => "finish that",
            Some(Awaited::Semaphore) => "post to it",
            Some(Awaited::Lock | Awaited::CLibrary) => "let go of it",
            Some(Awaited::Scope) | None => "wake it",
        }
    }

    /// What usually mends it where nobody else is to blame.
    pub(super) fn fix(kind: Option<&Awaited>) -> &'static str {
        match kind {
            Some(Awaited::Message) => {
                "a sender is alive and never used: drop it before the `recv`. A clone of it that waits in another \
                 thread, or that this thread keeps itself, counts too."
            }
            Some(Awaited::Room) => {
                "a receiver is alive and never used: receive from it in another thread, drop it, or make the \
                 channel larger."
            }
            Some(Awaited::Condvar) => {
                "nobody that could notify it runs: look which `notify` was left out, or came before the wait \
                 (`wait_while` checks first)."
            }
            Some(Awaited::Unpark) => {
                "nobody is left that could unpark it: call `unpark` in a thread that still runs then, or \
                 `park_timeout`."
            }
            Some(Awaited::Barrier) => {
                "fewer threads come to the barrier than it counts: look at the number in `Barrier::new`, and at \
                 threads that end before they come."
            }
            Some(Awaited::Once) => {
                "what initialises it needs the value itself, or waits for somebody who does: take that out of the \
                 initialiser."
            }
            Some(Awaited::Semaphore) => {
                "nobody that could post to it runs: look which `sem_post` was left out."
            }
            Some(Awaited::Scope) => "end the threads of the scope before its own end: it joins them all.",
            Some(Awaited::CLibrary) => {
                "look for a signal handler that calls what is not async-signal-safe: it may have come while the same \
                 thread had the lock (signal-safety(7))."
            }
            Some(Awaited::Lock) => {
                "look who took it and did not give it back: the same thread, or a guard that was forgotten."
            }
            None => {
                "look who should wake it: whoever holds the lock, the sender or the handle that it waits for."
            }
        }
    }

    /// Whether somebody has it while others wait for it, so that a fork can cut him off.
    pub(super) fn is_held(&self) -> bool {
        matches!(self, Awaited::Lock | Awaited::Once | Awaited::CLibrary)
    }
}
