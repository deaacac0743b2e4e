//! What processes wait in that no guard is above, and what was ended of them.

use anstyle::{AnsiColor, Style};

use super::layout::{self, Layout};
use super::{Text, sentence};
use crate::diagnosis::Verdict;
use crate::guard::end::Ended;
use crate::guard::orphans::{Refusal, Root};
use crate::proc::process::{Stat, is_of_guard};
use crate::report::escape;
use crate::report::failure;
use crate::report::inspection::{self, Inspection};
use crate::report::words::{list, plural};

/// Writes what was seen.
pub(crate) fn inspected(verdict: &Verdict, of: &Inspection<'_>, layout: Layout) -> String {
    let roots = &of.found.roots;
    let mut text = Text { is_inspection: true, ..Text::new(layout) };
    for root in roots {
        text.above.insert(root.stat.pid, above(root, verdict));
    }
    let label = text.styled(Style::new().bold().fg_color(Some(AnsiColor::Yellow.into())), "SEEN");
    let name = text.styled(Style::new().bold(), &escape::text(&verdict.name));
    let count = inspection::count(&verdict.facts, roots.len());
    text.line(&format!("{label}  {name}   {count}"));
    text.what_is_seen(verdict, true);
    text.line("");
    text.notes(sentence::notes(verdict).into_iter().chain(inspection::notes(of)));
    layout::finish(&text.out, layout.width)
}

/// The lines below the name of a topmost process.
fn above(root: &Root, verdict: &Verdict) -> Vec<String> {
    let program = inspection::program(root, &verdict.facts);
    let kept: Vec<i32> = root.asked_for.iter().map(|asked| asked.stat.pid).collect();
    let keeps = (!kept.is_empty()).then(|| format!("has kept, and stopped: {}", list(&kept)));
    let traces = root.traces.iter().filter(|_| kept.is_empty()).filter_map(inspection::trace).chain(keeps);
    std::iter::once(inspection::above(root)).chain(program).chain(traces).collect()
}

/// Writes what is about to be ended, a line each.
pub(crate) fn listed(roots: &[Root], layout: Layout) -> String {
    let shown = roots.iter().flat_map(|root| match root.asked_for.is_empty() {
        true => std::slice::from_ref(root),
        // With them their guard ends, and all that it has kept.
        false => &root.asked_for[..],
    });
    let lines: Vec<String> =
        shown.map(|root| format!("{}; {}", inspection::line(root), inspection::above(root))).collect();
    if lines.is_empty() {
        return String::new();
    }
    layout::finish(&format!("{}\n", lines.join("\n")), layout.width)
}

/// Writes what was ended.
pub(crate) fn killed(root: &Root, ended: &Ended) -> String {
    let pid = root.stat.pid;
    let mut out = String::new();
    if ended.was_gone {
        out += &format!("pid {pid} had ended before\n");
    }
    if root.asked_for.is_empty() {
        out += &killed_below(pid, ended);
    } else {
        let (guards, kept): (Vec<&Stat>, Vec<&Stat>) =
            ended.killed.iter().partition(|stat| is_of_guard(&stat.comm));
        let pids = |of: Vec<&Stat>| list(&of.iter().map(|stat| stat.pid).collect::<Vec<i32>>());
        if !kept.is_empty() {
            out += &format!("killed {}, all that this guard has kept\n", pids(kept));
        }
        if !guards.is_empty() {
            out += &format!("ended with it: childproof's guard, {}\n", pids(guards));
        }
    }
    for survivor in &ended.survivors {
        let name = escape::text(&survivor.name);
        out += &format!(
            "pid {} `{name}` could not be killed: {}\n",
            survivor.pid,
            escape::text(&failure::unkillable(&survivor.because))
        );
    }
    out
}

fn killed_below(pid: i32, ended: &Ended) -> String {
    let below: Vec<i32> = ended.killed.iter().map(|stat| stat.pid).filter(|killed| *killed != pid).collect();
    let itself = ended.killed.iter().any(|stat| stat.pid == pid);
    let with = if below.is_empty() {
        String::new()
    } else {
        format!(" and {} below it: {}", plural(below.len(), "process"), list(&below))
    };
    match (itself, below.is_empty()) {
        (true, _) => format!("killed {pid}{with}\n"),
        (false, false) => format!("killed below {pid}: {}\n", list(&below)),
        (false, true) => String::new(),
    }
}

/// Writes why a process is not ended.
pub(crate) fn refused(pid: i32, why: &Refusal) -> String {
    format!("pid {pid} is left alone: {}", inspection::refusal(why))
}
