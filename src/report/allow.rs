//! The arguments that would make a test pass, as they are written in the code.

use crate::config::registry::{ArgumentPosition, ArgumentSyntax};
use crate::diagnosis::Allowance;
#[cfg(feature = "json")]
use crate::diagnosis::Finding;

/// An argument of the attribute: `timeout = "600s"`.
pub(super) fn argument(allow: &Allowance) -> String {
    let value = match allow {
        Allowance::Timeout { seconds } => format!("{seconds}s"),
        Allowance::Process { glob } => glob.clone(),
        Allowance::CreatedBy { path } => path.clone(),
        Allowance::PipesOnly => "pipes".to_owned(),
        Allowance::NoFds => "off".to_owned(),
        Allowance::Processes | Allowance::Unwaited | Allowance::Threads | Allowance::ThreadedFork => {
            "allow".to_owned()
        }
    };
    format!("{} = \"{value}\"", allow.argument())
}

/// All arguments of one finding; `None` if there are none.
#[cfg(feature = "json")]
pub(super) fn arguments(finding: &Finding) -> Option<String> {
    let all: Vec<String> = finding.allow.iter().map(argument).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// The code with all of these arguments.
pub(super) fn code(syntax: ArgumentSyntax, all: &[&Allowance]) -> String {
    // Existing arguments stay.
    let others = syntax.has_arguments.then(|| "..".to_owned());
    let arguments = || {
        let all = others.into_iter().chain(all.iter().map(|allow| argument(allow)));
        all.collect::<Vec<_>>().join(", ")
    };
    match syntax.position {
        ArgumentPosition::Test => format!("#[childproof::test({})]", arguments()),
        ArgumentPosition::Guard => format!("#[childproof::guard({})]", arguments()),
        ArgumentPosition::Target => format!("childproof::policy!({});", arguments()),
        ArgumentPosition::CommandLine => {
            all.iter().filter_map(|allow| option(allow)).collect::<Vec<_>>().join(" ")
        }
        ArgumentPosition::Policy => {
            let policy = if syntax.has_arguments { "policy" } else { "Policy::new()" };
            let calls: String = all.iter().map(|allow| call(allow)).collect();
            format!("test_with(.., {policy}{calls}, ..)")
        }
    }
}

/// The arguments of the test that some of these take the place of, as a note behind the code; empty if there are none.
pub(super) fn replaced(given: &[&'static str], all: &[&Allowance]) -> String {
    let mut names: Vec<String> = Vec::new();
    for name in all.iter().map(|allow| allow.argument()).filter(|name| given.contains(name)) {
        let name = format!("`{name}`");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { String::new() } else { format!(" in place of its own {}", names.join(" and ")) }
}

/// The option of `childproof run` for an argument, if there is one. An option that allows every process is
/// not suggested.
fn option(allow: &Allowance) -> Option<String> {
    match allow {
        Allowance::Timeout { seconds } => Some(format!("--timeout {seconds}s")),
        Allowance::Process { glob } => Some(format!("--allow-process \"{glob}\"")),
        Allowance::CreatedBy { path } => Some(format!("--allow-created-by \"{path}\"")),
        Allowance::NoFds => Some("--fds off".to_owned()),
        Allowance::PipesOnly => Some("--fds pipes".to_owned()),
        _ => None,
    }
}

/// The method of `Policy` for an argument.
fn call(allow: &Allowance) -> String {
    match allow {
        Allowance::Timeout { seconds } => format!(".timeout(Duration::from_secs({seconds}))"),
        Allowance::Process { glob } => format!(".allow_process(\"{glob}\")"),
        Allowance::Processes => ".allow_processes()".to_owned(),
        Allowance::PipesOnly => ".fds(Fds::Pipes)".to_owned(),
        Allowance::NoFds => ".fds(Fds::Off)".to_owned(),
        Allowance::CreatedBy { path } => format!(".allow_created_by(\"{path}\")"),
        Allowance::Unwaited => ".allow_unwaited()".to_owned(),
        Allowance::Threads => ".allow_threads()".to_owned(),
        Allowance::ThreadedFork => ".threaded_fork(ThreadedFork::Allow)".to_owned(),
    }
}
