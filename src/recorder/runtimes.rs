//! Recognises what belongs to an async runtime itself and to none of its tasks, by the paths of the functions
//! on a stack, innermost first.

/// Crates that create pairs or wait on behalf of their callers.
const CALLED: [&str; 11] = [
    "childproof::",
    "std::",
    "core::",
    "alloc::",
    "mio::",
    "nix::",
    "rustix::",
    "socket2::",
    "parking_lot",
    "polling::",
    "parking::",
];

/// Whether a function only acts on behalf of its caller. Functions of the C library have no path.
fn is_called(path: &str) -> bool {
    !path.contains("::") || CALLED.iter().any(|begin| path.starts_with(begin))
}

/// Whether a runtime created a socket to be notified of signals. No task of the user waits on it.
pub(crate) fn is_own_socket(paths: &[String]) -> bool {
    const CREATORS: [&str; 3] = ["tokio::runtime", "tokio::signal", "signal_hook"];
    created_by(paths, &CREATORS)
}

fn created_by(paths: &[String], creators: &[&str]) -> bool {
    let creator = paths.iter().find(|path| !is_called(path));
    creator.is_some_and(|path| creators.iter().any(|begin| path.starts_with(begin)))
}

/// Whether mio created an eventfd to wake its own poll: nothing else is created in that file of mio. (A
/// runtime on the stack proves nothing: every task runs on top of one, and the task's own functions may have
/// no names.)
pub(crate) fn is_waker(paths: &[String]) -> bool {
    let of_mio =
        paths.iter().skip_while(|path| !path.starts_with("mio::")).take_while(|path| is_called(path));
    let made = paths.iter().find(|path| path.contains("::") && !path.starts_with("childproof::"));
    made.is_some_and(|path| path.starts_with("mio::"))
        && of_mio.into_iter().any(|path| path.contains("waker::"))
}

/// Whether a socket pair is the one through which tokio receives signals, which it keeps open until the
/// process ends. `tokio::runtime` on the stack proves nothing: every task runs on top of it, and the task's
/// own functions may have no names.
pub(crate) fn is_kept_socket(paths: &[String]) -> bool {
    created_by(paths, &["tokio::signal"])
}

/// Whether an fd is the harness's own, which a recorder that was preloaded sees too: it is open until the process ends. What
/// a user has of `childproof::lifeline` is the user's.
pub(crate) fn is_of_harness(paths: &[String]) -> bool {
    let called: Vec<&String> = paths.iter().take_while(|path| is_called(path)).collect();
    // A frame that was recognised by its file has the name of the crate twice.
    let has = |room: &str| called.iter().any(|path| path.contains(room));
    (has("childproof::guard::") || has("childproof::harness::")) && !has("childproof::lifeline::")
}

/// Whether a sanitizer created a pipe to its symbolizer, which it keeps open until the process ends. Debug information
/// has its functions without their paths.
pub(crate) fn is_sanitizers(functions: &[String]) -> bool {
    let of_sanitizer = ["__sanitizer", "StartSymbolizerSubprocess"];
    functions.iter().any(|function| of_sanitizer.iter().any(|name| function.contains(name)))
}

/// Whether a process was started by tokio.
pub(crate) fn is_process(paths: &[String]) -> bool {
    created_by(paths, &["tokio::process"])
}

/// Whether a thread waits for work of a runtime, and not in the code of a task.
pub(crate) fn waits(paths: &[String], name: &str) -> bool {
    const WAITERS: [&str; 6] = [
        "tokio::runtime",
        "tokio::park",
        "tokio::loom",
        "async_io::driver",
        "async_io::reactor",
        "async_global_executor::",
    ];
    match paths.iter().find(|path| !is_called(path)) {
        Some(path) => WAITERS.iter().any(|begin| path.starts_with(begin)),
        // Where the callers are unknown.
        None => {
            !paths.is_empty() && name.starts_with("tokio-")
                || paths.iter().any(|path| path.starts_with("mio::"))
        }
    }
}

/// Whether a thread is in the code of a task that shares it with others: one of a worker, or of a runtime of one thread.
/// `spawn_blocking` has threads of its own, and `block_in_place` gives the other tasks to another thread.
pub(crate) fn is_in_task(paths: &[String]) -> bool {
    const SHARED: [&str; 3] = [
        "tokio::runtime::scheduler::current_thread",
        "tokio::runtime::scheduler::multi_thread::worker",
        "tokio::task::local",
    ];
    let shares = |path: &String| SHARED.iter().any(|begin| path.starts_with(begin));
    paths.iter().any(shares)
        && !paths.iter().any(|path| path.contains("::block_in_place"))
        && !paths.iter().find(|path| !is_called(path)).is_some_and(shares)
}

#[cfg(test)]
mod tests {
    use super::{is_in_task, is_of_harness, is_own_socket, is_sanitizers, is_waker, waits};

    fn owned(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn a_task_shares_its_thread_unless_it_may_block() {
        const WORKER: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run_task";
        const POOL: &str = "tokio::runtime::blocking::pool::Inner::run";
        const BODY: &str = "tokio::runtime::scheduler::current_thread::CoreGuard::block_on";
        for (paths, expected) in [
            (&["std::sync::mpmc::x", "a::b", "tokio::runtime::task::core::x", WORKER, POOL][..], true),
            (&["std::sync::mpmc::x", "a::b", BODY, "a::test"], true),
            (&["a::b", "tokio::task::local::LocalSet::tick", BODY], true),
            // The body of a test with workers has a thread of its own.
            (&["a::b", "tokio::runtime::park::CachedParkThread::block_on", "a::test"], false),
            (&["a::b", "tokio::runtime::blocking::task::x", "tokio::runtime::task::core::x", POOL], false),
            (
                &["a::b", "tokio::runtime::scheduler::multi_thread::worker::block_in_place", "a::c", WORKER],
                false,
            ),
            // It waits for work.
            (
                &[
                    "std::x::Condvar::wait",
                    "tokio::runtime::scheduler::multi_thread::worker::Context::park",
                    POOL,
                ],
                false,
            ),
            (&["a::b"], false),
        ] {
            assert_eq!(is_in_task(&owned(paths)), expected, "{paths:?}");
        }
    }

    #[test]
    fn a_runtime_is_known_by_who_waits_not_by_who_called_it() {
        for (name, paths, expected) in [
            ("t", &["epoll_wait", "mio::poll::Poll::poll", "tokio::runtime::io::turn", "a::b"][..], true),
            ("t", &["std::sync::poison::mutex::Mutex<T>::lock", "a::b", "tokio::runtime::x"], false),
            ("t", &["std::thread::park", "tokio::sync::mutex::x", "a::b"], false),
            ("tokio-rt-worker", &["syscall", "parking_lot_core::thread_parker::a"], true),
            ("t", &["syscall", "parking_lot_core::thread_parker::a"], false),
            ("t", &["mio::sys::unix::selector::Selector::select"], true),
            ("tokio-rt-worker", &[], false),
            // smol: the test's own thread, and the one that drives the reactor otherwise.
            ("t", &["epoll_pwait", "polling::epoll::Poller::wait", "async_io::reactor::x", "a::b"], true),
            (
                "async-io",
                &["std::sync::poison::mutex::Mutex<T>::lock", "async_io::reactor::Reactor::lock"],
                true,
            ),
            (
                "async-process",
                &["std::x::Condvar::wait", "parking::Inner::park", "async_io::driver::y"],
                true,
            ),
            ("t", &["std::x::Condvar::wait", "parking::Inner::park", "a::b"], false),
        ] {
            assert_eq!(waits(&owned(paths), name), expected, "{paths:?}");
        }
    }

    #[test]
    fn an_eventfd_is_of_mio_if_no_other_code_is_between() {
        let made = [
            "eventfd",
            "mio::sys::unix::waker::eventfd::Waker::new_unregistered",
            "mio::waker::Waker::new",
            "a::b",
        ];
        assert!(is_waker(&owned(&made)));
        for paths in [
            &["eventfd", "a::b", "mio::sys::unix::waker::x"][..],
            &["eventfd", "mio::poll::x"],
            &["eventfd"],
            &[],
        ] {
            assert!(!is_waker(&owned(paths)), "{paths:?}");
        }
    }

    #[test]
    fn an_fd_is_of_the_harness_unless_a_user_asked_for_it() {
        for (paths, expected) in [
            (
                &["pipe2", "childproof::sys::lifeline::pair", "childproof::guard::client::start", "a::test"]
                    [..],
                true,
            ),
            (&["std::io::pipe", "childproof::childproof::harness::libtest::run", "a::test"], true),
            (
                &[
                    "pipe2",
                    "childproof::guard::guarded::start",
                    "childproof::lifeline::Command::spawn",
                    "a::b",
                ],
                false,
            ),
            (
                &["pipe2", "childproof::sys::lifeline::pair", "childproof::lifeline::Lifeline::new", "a::b"],
                false,
            ),
            (&["pipe2", "a::b", "childproof::guard::test_process::run"], false),
        ] {
            assert_eq!(is_of_harness(&owned(paths)), expected, "{paths:?}");
        }
    }

    #[test]
    fn a_pipe_is_of_a_sanitizer_if_that_has_started_its_symbolizer() {
        let with_lines = ["pipe", "CreateTwoHighNumberedPipes", "StartSymbolizerSubprocess", "a::b"];
        let without = ["pipe", "_ZN11__sanitizer17SymbolizerProcess25StartSymbolizerSubprocessEv", "a::b"];
        assert!(is_sanitizers(&owned(&with_lines)) && is_sanitizers(&owned(&without)));
        assert!(!is_sanitizers(&owned(&["pipe", "std::io::pipe", "a::sanitizer::b"])));
    }

    #[test]
    fn a_pair_is_of_whoever_asked_for_it() {
        let of_tokio = ["socketpair", "mio::net::uds::stream::UnixStream::pair", "tokio::signal::unix::x"];
        let of_task =
            ["socketpair", "mio::net::uds::x", "tokio::net::unix::pair", "a::b", "tokio::runtime::x"];
        for (paths, expected) in
            [(&of_tokio[..], true), (&of_task, false), (&["socketpair", "std::os::unix::x"], false)]
        {
            assert_eq!(is_own_socket(&owned(paths)), expected, "{paths:?}");
        }
    }
}
