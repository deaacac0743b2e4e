//! What was seen of processes that no guard is above, as JSON: the keys of a test's line, and `inspection`.

use serde_json::{Value, json};

use super::{list, seconds};
use crate::diagnosis::Verdict;
use crate::guard::orphans::{Root, Trace};
use crate::report::inspection::{self, Inspection};

/// Writes the line.
pub(crate) fn inspected(verdict: &Verdict, of: &Inspection<'_>) -> String {
    let mut line = super::value(verdict);
    if let Value::Object(keys) = &mut line {
        keys.insert("test".to_owned(), Value::Null);
        keys.insert("outcome".to_owned(), json!("inspected"));
        let notes = keys.get("notes").and_then(Value::as_array).cloned().unwrap_or_default();
        let notes = notes.into_iter().chain(inspection::notes(of).into_iter().map(Value::from));
        keys.insert("notes".to_owned(), notes.collect());
        let unread = of.limits.unread.iter().map(|(pid, user)| json!({ "pid": pid, "uid": user }));
        keys.insert(
            "inspection".to_owned(),
            json!({
                "roots": list(&of.found.roots, root),
                "left_out": list(&of.found.doubtful, |(pid, _)| json!(pid)),
                "missing": of.found.missing,
                "unknown_orphans": of.found.unreadable,
                "unread": unread.collect::<Value>(),
                "stackless": of.limits.stackless,
                "running": of.limits.running,
            }),
        );
    }
    line.to_string()
}

fn root(root: &Root) -> Value {
    let variable = root.traces.iter().find_map(|trace| match trace {
        Trace::Variable { name, value } => Some(json!({ "name": name, "value": value })),
        _ => None,
    });
    let folder = root.traces.iter().find_map(|trace| match trace {
        Trace::TargetFolder(folder) => Some(folder.display().to_string()),
        _ => None,
    });
    let pattern = root.traces.iter().find_map(|trace| match trace {
        Trace::Pattern(pattern) => Some(pattern),
        _ => None,
    });
    json!({
        "pid": root.stat.pid,
        "orphan": root.is_adopted,
        "ancestors": list(&root.ancestors, |above| json!({ "pid": above.pid, "comm": above.comm })),
        "program": root.program.as_ref().map(|program| program.display().to_string()),
        "age": root.age.map(seconds),
        "target_folder": folder,
        "variable": variable,
        "pattern": pattern,
        "kept": root.traces.iter().any(|trace| matches!(trace, Trace::Kept(_))),
    })
}
