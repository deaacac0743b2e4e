//! What belongs to an async runtime itself, and to none of its tasks. The functions on a stack tell,
//! by their paths, the innermost first.

/// Who does what others call for: makes a pair, or waits.
const CALLED: [&str; 9] =
    ["childproof::", "std::", "core::", "alloc::", "mio::", "nix::", "rustix::", "socket2::", "parking_lot"];

/// Whether a function is called by whoever is meant. Those of the C library have no path.
fn is_called(path: &str) -> bool {
    !path.contains("::") || CALLED.iter().any(|begin| path.starts_with(begin))
}

/// Whether a runtime made a socket for itself, to be told of signals. Nobody's task waits at it.
pub(crate) fn is_own_socket(paths: &[String]) -> bool {
    const MAKERS: [&str; 3] = ["tokio::runtime", "tokio::signal", "signal_hook"];
    made_by(paths, &MAKERS)
}

fn made_by(paths: &[String], makers: &[&str]) -> bool {
    let maker = paths.iter().find(|path| !is_called(path));
    maker.is_some_and(|path| makers.iter().any(|begin| path.starts_with(begin)))
}

/// Whether a pair of sockets is the one by which tokio learns of signals, and which it keeps until the process
/// ends. Not by `tokio::runtime`: that is below all that a task does, and the task's own functions may have no names.
pub(crate) fn is_kept_socket(paths: &[String]) -> bool {
    made_by(paths, &["tokio::signal"])
}

/// Whether a process was started as one of tokio's.
pub(crate) fn is_process(paths: &[String]) -> bool {
    made_by(paths, &["tokio::process"])
}

/// Whether a thread waits for work of a runtime, not in a task's own code.
pub(crate) fn waits(paths: &[String], name: &str) -> bool {
    const WAITERS: [&str; 3] = ["tokio::runtime", "tokio::park", "tokio::loom"];
    match paths.iter().find(|path| !is_called(path)) {
        Some(path) => WAITERS.iter().any(|begin| path.starts_with(begin)),
        // Where callers are not known.
        None => {
            !paths.is_empty() && name.starts_with("tokio-")
                || paths.iter().any(|path| path.starts_with("mio::"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{is_own_socket, waits};

    fn owned(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
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
        ] {
            assert_eq!(waits(&owned(paths), name), expected, "{paths:?}");
        }
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
