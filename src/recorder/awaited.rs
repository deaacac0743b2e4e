//! Finds out what a futex stands for. The kernel only knows a word of memory; the names of the waiting
//! functions show whether it is a lock, a channel or something else.

/// What a thread in a futex call waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(feature = "sites"), allow(dead_code, reason = "no stack is read"))]
pub(crate) enum Awaited {
    /// A message from a channel.
    Message,
    /// Room in a bounded channel.
    Room,
    Condvar,
    /// `thread::park`.
    Unpark,
    Barrier,
    /// A `Once`, `OnceLock` or `LazyLock` that is being initialised.
    Once,
    Semaphore,
    /// The end of the threads of a `thread::scope`.
    Scope,
    /// A `Mutex` or `RwLock`, or a lock of pthreads.
    Lock,
    /// An internal lock of the C library, such as malloc's. No other code can take it.
    CLibrary,
}

impl Awaited {
    /// Whether a thread holds it while others wait for it, so that a fork can leave it locked without a
    /// holder.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Awaited::Lock | Awaited::Once | Awaited::CLibrary)
    }
}

#[cfg(feature = "sites")]
impl Awaited {
    /// Classifies the wait by the public names of the C library's functions on the stack, innermost first.
    pub(crate) fn of_c(functions: &[String]) -> Option<Awaited> {
        let known = [
            ("pthread_mutex_", Awaited::Lock),
            ("pthread_rwlock_", Awaited::Lock),
            ("pthread_spin_", Awaited::Lock),
            ("pthread_cond_", Awaited::Condvar),
            ("pthread_barrier_", Awaited::Barrier),
            ("pthread_once", Awaited::Once),
            ("sem_", Awaited::Semaphore),
            ("new_sem_", Awaited::Semaphore),
            ("mtx_", Awaited::Lock),
            ("cnd_", Awaited::Condvar),
            ("call_once", Awaited::Once),
        ];
        // These wait for the C library's own threads.
        let others = ["aio_", "gai_", "lio_"];
        if functions.iter().any(|function| others.iter().any(|other| function.starts_with(other))) {
            return None;
        }
        let kind = |function: &String| {
            known.iter().find(|(begin, _)| function.starts_with(begin)).map(|(_, kind)| kind.clone())
        };
        functions.iter().find_map(kind).or(Some(Awaited::CLibrary))
    }

    /// Classifies the wait by the functions and files of std and of crates, innermost first, up to the user's
    /// code.
    pub(crate) fn of_rust(frames: &[String]) -> Option<Awaited> {
        // A barrier is built on a condition variable, and a channel on `thread::park`: the innermost frame
        // names the primitive, and a frame further out may name what is built on it. In an optimised build
        // the inner frames may be missing.
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
        // Ignore the type of the message: `recv::<sender::Job>`.
        let sends = |frame: &String| is_in(frame, &channel) && plain(frame).split("::").any(is_send);
        Some(match kind {
            Awaited::Unpark | Awaited::Condvar if outer.iter().any(sends) => Awaited::Room,
            Awaited::Unpark | Awaited::Condvar if has(&channel) => Awaited::Message,
            Awaited::Unpark if has(&["thread::scoped"]) => Awaited::Scope,
            Awaited::Condvar if has(&["sync::barrier"]) => Awaited::Barrier,
            // parking_lot parks threads with its own code.
            Awaited::Unpark if has(&["parking_lot::condvar"]) => Awaited::Condvar,
            Awaited::Unpark if has(&["parking_lot::raw_", "lock_api::"]) => Awaited::Lock,
            Awaited::Unpark if has(&["parking_lot::once"]) => Awaited::Once,
            kind => kind,
        })
    }
}

/// A path without its generic arguments, and without the file behind it.
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
            // An inlined function is only known by its file.
            (&["wait library::std::src::sys::sync::condvar::futex"], Some(Awaited::Condvar)),
            (
                &["std::sys::sync::condvar::futex::Condvar::wait ", "<std::sync::barrier::Barrier>::wait "],
                Some(Awaited::Barrier),
            ),
            // The thread has been woken and waits for the lock.
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
            // The channel's internal lock.
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
            (&["new_sem_wait_slow64.constprop.0"], Some(Awaited::Semaphore)),
            (&["malloc"], Some(Awaited::CLibrary)),
            (&["aio_suspend"], None),
        ] {
            let names: Vec<String> = functions.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(Awaited::of_c(&names), expected, "{functions:?}");
        }
    }
}
