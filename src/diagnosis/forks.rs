//! Forks of a threaded process whose child did not go straight on to exec.

use super::{Allow, Because, Cause, Finding, Origin, Stuck};
use crate::policy::{Settings, ThreadedFork};

/// Tells each line of code that forked so, once.
pub(super) fn find(settings: &Settings, origins: &[Origin], stuck: &[Stuck], test: i32) -> Vec<Finding> {
    let deny = match settings.threaded_fork {
        ThreadedFork::Allow => return Vec::new(),
        ThreadedFork::Warn => false,
        ThreadedFork::Deny => true,
    };
    // A child that hangs for it has a finding of its own, which needs no warning beside it.
    let is_told = |origin: &Origin| {
        stuck
            .iter()
            .filter(|stuck| matches!(stuck.because, Because::InheritedLock | Because::MaybeInheritedLock))
            .any(|stuck| stuck.pid as u64 == origin.keys[0])
    };
    let forks = origins.iter().filter(|origin| is_one(origin) && (deny || !is_told(origin)));
    let mut lines: Vec<Vec<&Origin>> = Vec::new();
    for fork in forks {
        let line = |other: &Origin| (other.place.clone(), other.function.clone(), other.maker);
        match lines.iter_mut().find(|group| group.first().map(|first| line(first)) == Some(line(fork))) {
            Some(group) => group.push(fork),
            None => lines.push(vec![fork]),
        }
    }
    let findings = lines.iter().filter_map(|group| {
        let (first, more) = group.split_first()?;
        Some(Finding {
            cause: deny.then_some(Cause::ThreadedFork),
            sentence: sentence(first, more.len(), test),
            fix: Some(FIX.to_owned()),
            allow: vec![Allow::new("threaded_fork", "allow")],
        })
    });
    findings.collect()
}

const FIX: &str = "exec after the fork (`Command` does), or fork while there is one thread. Between fork and exec \
                   only async-signal-safe calls are sound: fork(2), signal-safety(7). CPython warns of the same \
                   since 3.12.";

fn sentence(fork: &Origin, more: usize, test: i32) -> String {
    let pid = fork.keys[0];
    let of = if fork.maker == test { String::new() } else { format!(" of pid {}", fork.maker) };
    let more = match more {
        0 => String::new(),
        1 => " So was 1 more there.".to_owned(),
        more => format!(" So were {more} more there."),
    };
    format!(
        "pid {pid} was forked {} by thread `{}`, one of {}{of}, and did not go straight on to exec: a lock that \
         another thread held at that moment stays locked in it for ever.{more}",
        fork.at(),
        fork.thread,
        fork.threads
    )
}

fn is_one(origin: &Origin) -> bool {
    origin.call == "fork" && origin.threads > 1 && !origin.execed && !is_commands(origin)
}

/// Whether it is the fork of a `Command` that has stopped short of its exec: what ran there was
/// `pre_exec`, and it said no.
fn is_commands(origin: &Origin) -> bool {
    let caller = origin.functions.iter().skip_while(|name| *name != "fork").nth(1);
    caller.is_some_and(|name| name.trim_start_matches('<').starts_with("std::sys::"))
}
