//! Finds out which of a command's tests started a process.

use crate::guard::facts::Process;
use crate::recorder::call_site::{Names, RUNS_TEST, ResolvedCallSite};

/// The most bytes of a thread's name that the kernel keeps.
const THREAD: usize = 15;

/// The test by the call that created the process or one of its ancestors: its function on the recorded stack, or else the
/// name of the thread, which libtest gives the test's. Where nothing was recorded, the test that the environment names.
pub(super) fn test_of(names: &Names, process: &Process, exited_parent: Option<i32>) -> Option<String> {
    let pids = std::iter::once(&process.pid).chain(&process.lineage).chain(&exited_parent);
    let sites: Vec<&ResolvedCallSite> = pids.filter_map(|pid| names.of_process(*pid)).collect();
    of_calls(names, &sites).or_else(|| process.test_in_environment.clone())
}

/// The test that left an fd open, by the call that made it.
pub(super) fn test_of_fd(names: &Names, key: u64) -> Option<String> {
    of_calls(names, &[names.of_fd(key)?])
}

/// The test of libtest's that made a call.
pub(crate) fn test_of_call(site: &ResolvedCallSite) -> Option<String> {
    function(&site.functions).or_else(|| thread(&site.thread))
}

fn of_calls(names: &Names, sites: &[&ResolvedCallSite]) -> Option<String> {
    let by_function = sites.iter().find_map(|site| function(&site.functions));
    let by_thread = || sites.iter().filter(|_| names.is_libtest).find_map(|site| thread(&site.thread));
    by_function.or_else(by_thread)
}

/// The test's function on a stack, the innermost first, without its crate: as libtest names it.
pub(super) fn function(functions: &[String]) -> Option<String> {
    let runs = functions.iter().position(|name| name.starts_with(RUNS_TEST))?;
    let is_others = |name: &str| {
        let name = name.trim_start_matches('<');
        ["core::", "std::", "alloc::", "test::"].iter().any(|krate| name.starts_with(krate))
    };
    let own = functions.get(..runs)?.iter().rev().find(|name| !is_others(name))?;
    // A documentation test has no name here but a number.
    if own.trim_start_matches('<').starts_with("doctest_") {
        return None;
    }
    let path = own.split("::{{closure}}").next().unwrap_or(own);
    Some(path.split_once("::").map_or(path, |(_, within)| within).to_owned())
}

/// The test that a thread is named after. A thread without a name has the name of the thread that started it.
pub(super) fn thread(name: &str) -> Option<String> {
    let is_path = name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':');
    // rustdoc calls a documentation test `src/lib.rs - path::of::item (line 5)`.
    let is_doctest = name.contains(".rs ") || name.contains('/') && !name.contains(' ');
    if !(is_path || is_doctest) || name.is_empty() || name == "main" {
        return None;
    }
    let is_whole = name.len() < THREAD;
    Some(if is_whole { name.to_owned() } else { format!("{name}..") })
}

#[cfg(test)]
mod tests {
    use super::{function, thread};

    #[test]
    fn the_function_below_libtest_is_the_test() {
        let stack =
            |names: &[&str]| function(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let own = ["posix_spawnp", "std::process::Command::spawn", "suite::help", "suite::tests::leaks"];
        let libtest =
            ["suite::tests::leaks::{{closure}}", "core::ops::function::FnOnce::call_once", super::RUNS_TEST];
        assert_eq!(stack(&[&own[..], &libtest].concat()).as_deref(), Some("tests::leaks"));
        assert_eq!(stack(&["fork", "a::b", super::RUNS_TEST]).as_deref(), Some("b"));
        assert_eq!(stack(&own), None);
        let doctest = "<doctest_runner_2024::__doctest_0::TEST::{closure#0} as core::ops::function::FnOnce<()>>::call_once";
        assert_eq!(stack(&["suite::help", doctest, super::RUNS_TEST]), None);
        assert_eq!(stack(&["std::a", super::RUNS_TEST]), None);
    }

    #[test]
    fn a_thread_of_a_runtime_is_no_test() {
        assert_eq!(thread("leaks").as_deref(), Some("leaks"));
        assert_eq!(thread("tests::leaks_a_").as_deref(), Some("tests::leaks_a_.."));
        assert_eq!(thread("tokio-runtime-w"), None);
        assert_eq!(thread("main"), None);
        assert_eq!(thread("src/lib.rs - st").as_deref(), Some("src/lib.rs - st.."));
        assert_eq!(thread("src/a/very/long").as_deref(), Some("src/a/very/long.."));
    }
}
