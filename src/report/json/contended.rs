//! File locks, FIFOs, terminals and shared memory that threads wait for, as JSON.

use serde_json::{Value, json};

use super::list;
use crate::diagnosis::Verdict;
use crate::guard::contended::{FdHolder, Fifo, FileLock, SharedMemory, Terminal, Waiter};
use crate::proc::fds::end;
use crate::report::sentence;

fn holder(verdict: &Verdict, holder: &FdHolder) -> Value {
    json!({
        "pid": holder.pid,
        "fd": holder.fd,
        "end": end(holder.access),
        "cloexec": holder.cloexec,
        "outside": holder.outside,
        "opened_at": opened(verdict, &holder.keys),
    })
}

fn opened(verdict: &Verdict, keys: &[u64]) -> Option<String> {
    sentence::opened(verdict, keys).map(ToString::to_string)
}

fn waiter(waiter: &Waiter) -> Value {
    json!({ "pid": waiter.pid, "tid": waiter.tid, "fd": waiter.fd })
}

pub(super) fn lock(verdict: &Verdict, lock: &FileLock) -> Value {
    let holder = |end: &FdHolder| holder(verdict, end);
    json!({
        "path": lock.path,
        "kind": lock.kind.to_ascii_lowercase(),
        "taken_by": lock.taken_by,
        "waiters": list(&lock.waiters, waiter),
        "holders": list(&lock.holders, holder),
    })
}

pub(super) fn fifo(verdict: &Verdict, fifo: &Fifo) -> Value {
    let holder = |end: &FdHolder| holder(verdict, end);
    // An `open` waits for the other side to be opened.
    let waiters = list(&fifo.waiters, |waiting| {
        let mut value = waiter(waiting);
        value["end"] = json!(end(waiting.access));
        value
    });
    json!({ "path": fifo.path, "waiters": waiters, "holders": list(&fifo.holders, holder) })
}

pub(super) fn terminal(verdict: &Verdict, terminal: &Terminal) -> Value {
    let holder = |end: &FdHolder| holder(verdict, end);
    json!({
        "path": format!("/dev/pts/{}", terminal.index),
        "foreground": terminal.foreground,
        "queued_to_master": terminal.to_master,
        "queued_to_terminal": terminal.to_slave,
        "full": terminal.is_full,
        "waiters": list(&terminal.waiters, waiter),
        "masters": list(&terminal.masters, holder),
        "holders": list(&terminal.slaves, holder),
    })
}

pub(super) fn memory(memory: &SharedMemory) -> Value {
    json!({
        "path": memory.path,
        "waiters": list(&memory.waiters, waiter),
        "mapped_by": list(&memory.mapped_by, |mapper| json!({ "pid": mapper.pid, "outside": mapper.outside })),
    })
}
