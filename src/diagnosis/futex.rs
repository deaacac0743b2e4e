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
            Some(Awaited::Once) => {
                format!("for a `Once`, `OnceLock` or `LazyLock`{name} that is being initialised")
            }
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
                "a sender is alive, and nobody is left to send with it: drop it before the `recv`, or before the join \
                 of who receives. A clone of it that waits in another thread, or that this thread keeps itself, \
                 counts too."
            }
            Some(Awaited::Room) => {
                "a receiver is alive, and nobody is left to receive from it: do that in another thread, drop it, or \
                 make the channel larger."
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

#[cfg(feature = "sites")]
impl Awaited {
    /// What it is by the functions of the C library that wait, the innermost first, by their public
    /// names.
    pub(crate) fn of_c(functions: &[String]) -> Option<Awaited> {
        let known = [
            ("pthread_mutex_", Awaited::Lock),
            ("pthread_rwlock_", Awaited::Lock),
            ("pthread_spin_", Awaited::Lock),
            ("pthread_cond_", Awaited::Condvar),
            ("pthread_barrier_", Awaited::Barrier),
            ("pthread_once", Awaited::Once),
            ("sem_", Awaited::Semaphore),
            ("mtx_", Awaited::Lock),
            ("cnd_", Awaited::Condvar),
            ("call_once", Awaited::Once),
        ];
        // These wait for threads of the library's own.
        let others = ["aio_", "gai_", "lio_"];
        if functions.iter().any(|function| others.iter().any(|other| function.starts_with(other))) {
            return None;
        }
        let kind = |function: &String| {
            known.iter().find(|(begin, _)| function.starts_with(begin)).map(|(_, kind)| kind.clone())
        };
        functions.iter().find_map(kind).or(Some(Awaited::CLibrary))
    }

    /// The same by the functions and files of std and of crates, the innermost first, up to the user's.
    pub(crate) fn of_rust(frames: &[String]) -> Option<Awaited> {
        // A barrier waits for a condition variable, and a channel to be unparked: the innermost says
        // what it is built of, and one further out may say what it is.
        // In an optimised build the inner ones may be missing.
        let primitives: [(&[&str], Awaited); 7] = [
            (&["sync::mutex::", "sync::rwlock::", "parking_lot::raw_", "lock_api::"], Awaited::Lock),
            (&["sync::condvar::", "parking_lot::condvar"], Awaited::Condvar),
            (&["sync::once::", "parking_lot::once"], Awaited::Once),
            (&["thread_parking", "thread_parker", "crossbeam_utils::sync::parker"], Awaited::Unpark),
            (&["futex_mutex", "futex_rwlock"], Awaited::Lock),
            (&["sync::barrier::"], Awaited::Barrier),
            (
                &["::Thread>::park", "thread::Thread::park", "thread::park ", "functions::park ", "::mpmc::"],
                Awaited::Unpark,
            ),
        ];
        let is_in = |frame: &String, parts: &[&str]| parts.iter().any(|part| frame.contains(part));
        let (at, kind) = frames.iter().enumerate().find_map(|(at, frame)| {
            let found = primitives.iter().find(|(parts, _)| is_in(frame, parts));
            Some((at, found?.1.clone()))
        })?;
        let outer = &frames[at..];
        let has = |parts: &[&str]| outer.iter().any(|frame| is_in(frame, parts));
        let channel = ["::mpmc::", "::mpsc::", "crossbeam_channel::"];
        // Not what it sends: `recv::<sender::Job>`.
        let sends = |frame: &String| is_in(frame, &channel) && plain(frame).split("::").any(is_send);
        Some(match kind {
            Awaited::Unpark | Awaited::Condvar if outer.iter().any(sends) => Awaited::Room,
            Awaited::Unpark | Awaited::Condvar if has(&channel) => Awaited::Message,
            Awaited::Unpark if has(&["thread::scoped"]) => Awaited::Scope,
            Awaited::Condvar if has(&["sync::barrier"]) => Awaited::Barrier,
            // parking_lot parks its threads itself.
            Awaited::Unpark if has(&["parking_lot::condvar"]) => Awaited::Condvar,
            Awaited::Unpark if has(&["parking_lot::raw_", "lock_api::"]) => Awaited::Lock,
            Awaited::Unpark if has(&["parking_lot::once"]) => Awaited::Once,
            kind => kind,
        })
    }
}

/// A path without what stands in angle brackets, and without the file behind it.
#[cfg(feature = "sites")]
fn plain(frame: &str) -> String {
    let mut depth = 0;
    let outside = |c: &char| {
        depth += i32::from(*c == '<');
        let outside = depth == 0;
        depth -= i32::from(*c == '>');
        outside
    };
    frame.split(' ').next().unwrap_or_default().chars().filter(outside).collect()
}

#[cfg(feature = "sites")]
fn is_send(part: &str) -> bool {
    part == "send" || part.starts_with("send_")
}

#[cfg(all(test, feature = "sites"))]
mod tests {
    use super::Awaited;

    #[test]
    fn a_futex_is_what_the_functions_that_wait_for_it_say() {
        for (frames, expected) in [
            (&["std::sys::pal::unix::futex::futex_wait "][..], None),
            (&["<std::sys::sync::mutex::futex::Mutex>::lock_contended "], Some(Awaited::Lock)),
            (&["std::sys::sync::rwlock::futex::RwLock::read_contended "], Some(Awaited::Lock)),
            // The file is all that is known of a function that was inlined.
            (&["wait library::std::src::sys::sync::condvar::futex"], Some(Awaited::Condvar)),
            (
                &["std::sys::sync::condvar::futex::Condvar::wait ", "<std::sync::barrier::Barrier>::wait "],
                Some(Awaited::Barrier),
            ),
            // It has been woken, and waits for the lock.
            (
                &["Mutex::lock std::src::sys::sync::mutex::futex", "Condvar::wait sys::sync::condvar::futex"],
                Some(Awaited::Lock),
            ),
            (&["std::sys::sync::once::futex::Once::call "], Some(Awaited::Once)),
            (&["std::sys::sync::thread_parking::futex::Parker::park "], Some(Awaited::Unpark)),
            (
                &["sys::sync::thread_parking::futex::Parker::park ", "std::thread::scoped::scope "],
                Some(Awaited::Scope),
            ),
            (
                &[
                    "sys::sync::thread_parking::futex::Parker::park ",
                    "std::sync::mpmc::list::Channel<T>::recv ",
                ],
                Some(Awaited::Message),
            ),
            (
                &[
                    "sys::sync::thread_parking::futex::Parker::park ",
                    "crossbeam_channel::channel::Sender<T>::send ",
                ],
                Some(Awaited::Room),
            ),
            // An optimised build.
            (&["<std::sync::barrier::Barrier>::wait "], Some(Awaited::Barrier)),
            (
                &["std::thread::functions::park ", "core::ops::function::FnOnce::call_once "],
                Some(Awaited::Unpark),
            ),
            (&["std::sync::mpmc::array::Channel<T>::send::{{closure}} "], Some(Awaited::Room)),
            // A channel's own lock.
            (
                &["sys::sync::mutex::futex::Mutex::lock ", "std::sync::mpmc::list::Channel<T>::recv "],
                Some(Awaited::Lock),
            ),
            (
                &[
                    "parking_lot_core::thread_parker::imp::ThreadParker::futex_wait ",
                    "parking_lot_core::parking_lot::park ",
                    "parking_lot::raw_mutex::RawMutex::lock_slow ",
                ],
                Some(Awaited::Lock),
            ),
            (
                &[
                    "parking_lot_core::thread_parker::x ",
                    "parking_lot::condvar::Condvar::wait_until_internal ",
                ],
                Some(Awaited::Condvar),
            ),
        ] {
            let words: Vec<String> = frames.iter().map(|frame| (*frame).to_owned()).collect();
            assert_eq!(Awaited::of_rust(&words), expected, "{frames:?}");
        }
        for (functions, expected) in [
            (&["__lll_lock_wait", "pthread_mutex_lock"][..], Some(Awaited::Lock)),
            (&["pthread_cond_wait"], Some(Awaited::Condvar)),
            (&["sem_wait"], Some(Awaited::Semaphore)),
            (&["malloc"], Some(Awaited::CLibrary)),
            (&["aio_suspend"], None),
        ] {
            let names: Vec<String> = functions.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(Awaited::of_c(&names), expected, "{functions:?}");
        }
    }
}
