//! Processes that outlived their test.

use std::time::Duration;

use super::{Allow, Cause, Ended, Finding, Names, origin_of_process};
use crate::facts::{Class, Facts, Process};
use crate::outcome::End;
use crate::policy::Settings;
use crate::report::escape;

/// Adds what is to be said of leaked processes that are none of the `allowed`, and of forked children that
/// ran on. Gives the process that is named, if one is.
pub(super) fn find(
    facts: &Facts,
    settings: &Settings,
    allowed: &[i32],
    ended: &[Ended],
    names: &Names,
    findings: &mut Vec<Finding>,
) -> Option<i32> {
    if let Some(pid) = facts.returned_child {
        let origin = origin_of_process(&names.origins, pid).map(|origin| format!(" {}", origin.at()));
        let more = match facts.returned_children {
            0 | 1 => String::new(),
            many => format!(" So did {} more.", many - 1),
        };
        findings.push(Finding {
            cause: Some(Cause::EndedEarly),
            sentence: format!(
                "pid {pid}, which the body forked{}, came back through the body, like the test itself.{more}",
                origin.unwrap_or_default()
            ),
            fix: Some("end the child's branch after `fork` with `_exit` or an exec.".to_owned()),
            allow: Vec::new(),
        });
    }
    let leaked: Vec<&Process> = leaked(facts).filter(|process| !allowed.contains(&process.pid)).collect();
    // At a timeout the children are killed with the test that had no time to stop them: the
    // timeout is what failed, and they are shown with it.
    if facts.end == End::TimedOut || !settings.deny_processes {
        return None;
    }
    if facts.unseen {
        findings.push(Finding {
            cause: Some(Cause::LeakedProcess),
            sentence: format!(
                "a descendant was still there {} after the test (the grace), and gone whenever it was looked at: \
                 one that ends and leaves another behind, again and again. It was killed.",
                milliseconds(settings.grace)
            ),
            fix: Some("end the one that forks, or its whole process group.".to_owned()),
            allow: vec![Allow::new("processes", "allow")],
        });
    }
    let first = leaked.first()?;
    let who = format!("pid {} `{}`", first.pid, escape::command(first));
    let grace = milliseconds(settings.grace);
    let sentence = match leaked.len() {
        1 => format!("{who} outlived the test by {grace} (the grace)."),
        2 => format!("{who} and 1 more process outlived the test by {grace} (the grace)."),
        many => format!("{who} and {} more processes outlived the test by {grace} (the grace).", many - 1),
    };
    findings.push(Finding {
        cause: Some(Cause::LeakedProcess),
        sentence,
        fix: Some(fix(first, facts, ended, names)),
        allow: allow(&leaked),
    });
    Some(first.pid)
}

/// The arguments that let all of these pass; none if one of them has no name of its own.
fn allow(leaked: &[&Process]) -> Vec<Allow> {
    /// The most programs that are named one by one.
    const NAMED: usize = 4;
    let mut globs: Vec<Allow> = Vec::new();
    for process in leaked {
        let Some(glob) = glob_for(process) else { return Vec::new() };
        let glob = Allow::new("allow_process", glob);
        if !globs.contains(&glob) {
            globs.push(glob);
        }
    }
    if globs.len() > NAMED { vec![Allow::new("processes", "allow")] } else { globs }
}

fn fix(process: &Process, facts: &Facts, ended: &[Ended], names: &Names) -> String {
    let pid = process.pid;
    let origin = origin_of_process(&names.origins, pid);
    let by_test = origin.is_some_and(|origin| origin.maker == facts.pid);
    let is_child = by_test || !process.adopted && process.lineage.first() == Some(&facts.pid);
    // The test and all it starts are in the supervisor's session, unless they leave it.
    let has_left = is_daemon(process, facts);
    if has_left && !is_child {
        return format!(
            "pid {pid} made itself a daemon (it left the session): stop it the way it is meant to be stopped, \
             by its command or its pid file, and wait until it is gone."
        );
    }
    // Who has made a session has a group as well, but nobody else may be in it.
    let is_alone = || facts.processes.iter().all(|other| other.pid == pid || other.pgid != pid);
    if process.pgid == pid && !(has_left && is_alone()) {
        return format!("pid {pid} leads its own process group: `killpg({pid}, SIGTERM)`, then wait for it.");
    }
    if process.adopted && !by_test {
        let parent = ended.iter().find(|ended| ended.orphan == pid);
        let origin = parent.and_then(|ended| origin_of_process(&names.origins, ended.parent));
        let at = origin.and_then(|origin| origin.place.as_ref());
        if parent.is_some_and(|ended| ended.parent == process.pgid) {
            return format!(
                "its parent died and it did not: kill the whole group that its parent led, `killpg({}, SIGTERM)`, \
                 and wait until it is gone.",
                process.pgid
            );
        }
        if process.forked_without_exec {
            return "its parent died and it did not: let the parent wait for it, or have it end with its parent, by \
                    `prctl(PR_SET_PDEATHSIG, SIGKILL)` after the fork."
                .to_owned();
        }
        return format!(
            "its parent died and it did not: start the parent{} with `process_group(0)` and kill the whole \
             group, or let the parent `exec` it.",
            at.map_or_else(String::new, |place| format!(" ({place})"))
        );
    }
    if process.forked_without_exec {
        return format!(
            "`kill({pid}, SIGKILL)` and `waitpid({pid})` before the test ends, also when it panics."
        );
    }
    if is_child && origin.is_some_and(|origin| origin.is_tokios) {
        return "call `kill().await` on its `Child` before the test ends, or start it with `kill_on_drop(true)`: \
                otherwise dropping a `Child` does not end it."
            .to_owned();
    }
    if is_child {
        return "call `kill` and `wait` on its `Child` before the test ends, also when the test panics: \
                dropping a `Child` does neither."
            .to_owned();
    }
    "stop it where its parent is stopped, and wait for both.".to_owned()
}

/// Whether a process has left the session that the test was started in.
pub(crate) fn is_daemon(process: &Process, facts: &Facts) -> bool {
    facts.session != 0 && process.sid != facts.session
}

fn leaked(facts: &Facts) -> impl Iterator<Item = &Process> {
    facts.processes.iter().filter(|process| process.class == Class::Leaked && !process.is_test)
}

/// The leaked processes that the policy lets pass.
pub(super) fn allowed(facts: &Facts, settings: &Settings) -> Vec<i32> {
    let allowed = leaked(facts).filter(|process| !settings.deny_processes || is_allowed(process, settings));
    allowed.map(|process| process.pid).collect()
}

fn is_allowed(process: &Process, settings: &Settings) -> bool {
    let line = process.command_line.join(" ");
    let line = if line.is_empty() { &process.comm } else { &line };
    settings.allow_process.iter().any(|glob| matches(glob, line))
}

/// A glob that matches this process and its like: the program wherever it lies, any arguments.
/// `None` for a copy of the test binary itself, which has no name of its own.
fn glob_for(process: &Process) -> Option<String> {
    if process.forked_without_exec {
        return None;
    }
    Some(match process.command_line.split_first() {
        Some((program, arguments)) => glob(program, !arguments.is_empty()),
        None => glob(&process.comm, false),
    })
}

fn glob(program: &str, has_arguments: bool) -> String {
    /// The most characters of a name that a glob repeats.
    const NAME: usize = 60;
    // A program that rewrites its title puts it all into one argument: `nginx: master process ..`.
    let (name, cut) = match program.split_once(' ') {
        Some((name, _)) if !program.starts_with('/') => (name, true),
        _ => (program, false),
    };
    let (directory, name) = match name.rsplit_once('/') {
        Some((_, name)) => ("*/", name),
        None => ("", name),
    };
    // It has to be the same in a string literal, and to stand for itself in a glob.
    let literal = |c: char| escape::shows(c) && !"\"\\*?\u{fffd}".contains(c);
    let mut rest = name.chars();
    let name: String = rest.by_ref().take(NAME).map(|c| if literal(c) { c } else { '?' }).collect();
    let end = match rest.next() {
        Some(_) => "*",
        None if cut || has_arguments => " *",
        None => "",
    };
    format!("{directory}{name}{end}")
}

/// Matches `*` (any run of characters) and `?` (one character) against the whole of `text`.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t) = (0, 0);
    // Where to go on if the last star has to take one character more.
    let mut retry = None;
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                retry = Some((g, t));
                g += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => {
                let Some((star, taken)) = retry else {
                    return false;
                };
                retry = Some((star, taken + 1));
                g = star + 1;
                t = taken + 1;
            }
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[cfg(test)]
mod tests {
    use super::{glob, matches};

    #[test]
    fn a_glob_matches_the_whole_command_line() {
        for (glob, text, expected) in [
            ("sleep *", "sleep 100", true),
            ("sleep", "sleep 100", false),
            ("*sleep*", "/bin/sleep 100", true),
            ("s?eep 1*0", "sleep 1000", true),
            ("s?eep 1*0", "sleep 1001", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("**a**b", "xxaxxb", true),
            ("a*b*c", "abcbd", false),
        ] {
            assert_eq!(matches(glob, text), expected, "`{glob}` on `{text}`");
        }
    }

    #[test]
    fn a_glob_that_is_proposed_is_a_literal_and_matches() {
        for (program, arguments, expected) in [
            ("sleep", "100", "sleep *"),
            ("/bin/cat", "", "*/cat"),
            ("nginx: master process", "", "nginx: *"),
            ("/tmp/a\"b\\c\n\u{202e}*?\u{fffd}", "-x", "*/a?b?c????? *"),
            ("naïve ☃", "", "naïve *"),
        ] {
            let proposed = glob(program, !arguments.is_empty());
            assert_eq!(proposed, expected);
            let line = [program, arguments].join(" ");
            assert!(matches(&proposed, line.trim_end()), "`{proposed}` on `{line}`");
        }
        let long = "x".repeat(4096);
        let proposed = glob(&long, true);
        assert!(proposed.len() < 100 && matches(&proposed, &format!("{long} y")), "{proposed}");
    }
}
