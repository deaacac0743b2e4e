//! What is said of processes that no guard is above: why each is in the list, and what may not be read.

use super::escape;
use super::words::{enumerate, list, long, plural};
use crate::guard::facts::Facts;
use crate::guard::inspect::Limits;
use crate::guard::orphans::{Ancestor, Found, Refusal, Root, Trace};
use crate::proc::process::guarded;

/// What was found and seen of them, beside the facts.
pub(crate) struct Inspection<'a> {
    pub(crate) found: &'a Found,
    pub(crate) limits: &'a Limits,
    pub(crate) with_stacks: bool,
}

/// The most processes above one that are named.
const ABOVE: usize = 8;

/// ``17 `bash` ``.
fn name(ancestor: &Ancestor) -> String {
    let name =
        ancestor.guards.as_ref().map_or_else(|| escape::text(&ancestor.comm), |name| escape::guard(name));
    format!("{} `{name}`", ancestor.pid)
}

/// `below 17 \`bash\`, 1 \`init\``.
pub(super) fn above(root: &Root) -> String {
    let mut names: Vec<String> = root.ancestors.iter().take(ABOVE).map(name).collect();
    if root.ancestors.len() > ABOVE {
        names.push("..".to_owned());
    }
    match names.is_empty() {
        true => "below no other process".to_owned(),
        false => format!("below {}", names.join(", ")),
    }
}

/// Why a process is in the list.
pub(super) fn trace(trace: &Trace) -> Option<String> {
    /// The most characters of a value that are shown.
    const VALUE: usize = 100;
    match trace {
        Trace::Pid => None,
        Trace::Pattern(pattern) => Some(format!("matches `{}`", escape::text(pattern))),
        Trace::TargetFolder(folder) => Some(format!(
            "its program lies in cargo's folder {}",
            escape::text(&folder.display().to_string())
        )),
        Trace::Variable { name, value } => {
            let cut: String = value.chars().take(VALUE).collect();
            let more = if cut.len() < value.len() { ".." } else { "" };
            Some(format!("started with {name}={}{more}", escape::text(&cut)))
        }
        Trace::Kept(name) => Some(format!("kept, and stopped, by {}", escape::guard(name))),
    }
}

/// The file of a root's program, if that says more than its command line.
pub(super) fn program(root: &Root, facts: &Facts) -> Option<String> {
    let program = root.program.as_ref()?.display().to_string();
    let process = facts.processes.iter().find(|process| process.pid == root.stat.pid)?;
    let is_shown = process.command_line.first() == Some(&program) && !process.forked_without_exec;
    (!is_shown).then(|| format!("runs {}", escape::text(&program)))
}

/// Why a process is not one that an earlier run has left.
pub(crate) fn refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NoProcess => "there is no process with this number".to_owned(),
        Refusal::Zombie => "it has ended already, and its parent has not waited for it".to_owned(),
        Refusal::Above => "it is this process, or one that this process was started by".to_owned(),
        Refusal::HasParent(parent) => {
            format!("it is no orphan: its parent is {}. `kill` would end it", name(parent))
        }
        Refusal::Guarded(guard) => {
            format!(
                "its run goes on: it is guarded by {}, and ends with what that was started for",
                name(guard)
            )
        }
        Refusal::RunGoesOn(other) => {
            format!("the run that it is of may still go on: {} is of it and has its parent", name(other))
        }
        Refusal::OtherNamespace => "it is in another PID namespace, as of a container".to_owned(),
        Refusal::MayHaveParent(parent) => {
            format!(
                "{} may have started it: nothing shows that another process has. `kill` would end it",
                name(parent)
            )
        }
        Refusal::Service(service) => {
            format!("it is in the service {}. `kill` would end it", escape::text(service))
        }
        Refusal::NoTrace => {
            "nothing shows that a test has started it: its program lies in no target folder of cargo's, and \
                             its environment has no variable of a test runner. `kill` would end it"
                .to_owned()
        }
        Refusal::Unreadable(Some(user)) => {
            format!("it runs as user {user}: what has started it may not be read")
        }
        Refusal::Unreadable(None) => "what has started it may not be read".to_owned(),
    }
}

/// What was left out and what may not be read, a note each.
pub(super) fn notes(inspection: &Inspection<'_>) -> Vec<String> {
    let Inspection { found, limits, with_stacks } = inspection;
    let mut notes = Vec::new();
    for (pid, why) in &found.doubtful {
        notes.push(format!("pid {pid} is left out: {}", refusal(why)));
    }
    if found.unreadable > 0 {
        let count = plural(found.unreadable, "process");
        notes.push(format!(
            "{count} whose parent has ended may be of a test as well: what has started them may not be read as user {}",
            limits.user
        ));
    }
    let of_others: Vec<i32> =
        limits.unread.iter().filter(|(_, owner)| *owner != Some(limits.user)).map(|(pid, _)| *pid).collect();
    if !of_others.is_empty() {
        notes.push(format!(
            "what {} of other users wait in and have open may not be read as user {}: {}. Root may",
            plural(of_others.len(), "process"),
            limits.user,
            list(&of_others)
        ));
    }
    let own: Vec<i32> =
        limits.unread.iter().filter(|(_, owner)| *owner == Some(limits.user)).map(|(pid, _)| *pid).collect();
    if !own.is_empty() {
        let why = limits.yama.map_or_else(String::new, |scope| {
            format!(": kernel.yama.ptrace_scope is {scope}. Root may, and `sysctl kernel.yama.ptrace_scope=0` allows it")
        });
        notes.push(format!(
            "what the threads of {} wait in may not be read: {}{why}",
            plural(own.len(), "process"),
            list(&own)
        ));
    }
    let mut stackless = limits.stackless.clone();
    // What is said below of a thread is not said of its process.
    stackless.retain(|pid| !limits.running.contains(pid));
    if *with_stacks && !stackless.is_empty() {
        stackless.sort_unstable();
        notes.push(format!(
            "no stack could be read of {}: {}",
            plural(stackless.len(), "process"),
            list(&stackless)
        ));
    }
    if !limits.running.is_empty() {
        notes.push(format!(
            "the stack of {} was not read: to stop one that runs might cut short a call that it begins: {}",
            plural(limits.running.len(), "thread"),
            list(&limits.running)
        ));
    }
    for pid in &found.missing {
        notes.push(format!("there is no process {pid}"));
    }
    notes
}

/// `2 processes in 1 tree`.
pub(super) fn count(facts: &Facts, roots: usize) -> String {
    let processes = plural(facts.processes.len(), "process");
    match facts.processes.len() == roots {
        true => processes,
        false => format!("{processes} in {}", plural(roots, "tree")),
    }
}

/// `pid 17 \`sleep 3137\`, 9 h old: started with NEXTEST_TEST_NAME=a::b`.
pub(crate) fn line(root: &Root) -> String {
    let guard = guarded(&root.stat.comm, &root.command_line);
    let name = match root.command_line.is_empty() {
        _ if guard.is_some() => escape::guard(&guard.unwrap_or_default()),
        true => escape::text(&root.stat.comm),
        false => escape::words(&root.command_line),
    };
    let age = root.age.map_or_else(String::new, |age| format!(", {} old", long(age)));
    let traces: Vec<String> = root.traces.iter().filter_map(trace).collect();
    let why = if traces.is_empty() { String::new() } else { format!(": {}", enumerate(&traces)) };
    format!("pid {} `{name}`{age}{why}", root.stat.pid)
}
