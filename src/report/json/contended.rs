//! File locks, FIFOs, terminals and shared memory that threads wait for, as JSON.

use serde_json::{Value, json};

use super::list;
use crate::guard::contended::{FdHolder, Fifo, FileLock, SharedMemory, Terminal, Waiter};
use crate::proc::fds::end;

fn holder(holder: &FdHolder) -> Value {
    json!({
        "pid": holder.pid,
        "fd": holder.fd,
        "end": end(holder.access),
        "cloexec": holder.cloexec,
        "outside": holder.outside,
    })
}

fn waiter(waiter: &Waiter) -> Value {
    json!({ "pid": waiter.pid, "tid": waiter.tid, "fd": waiter.fd })
}

pub(super) fn lock(lock: &FileLock) -> Value {
    json!({
        "path": lock.path,
        "kind": lock.kind.to_ascii_lowercase(),
        "taken_by": lock.taken_by,
        "waiters": list(&lock.waiters, waiter),
        "holders": list(&lock.holders, holder),
    })
}

pub(super) fn fifo(fifo: &Fifo) -> Value {
    // An `open` waits for the other side to be opened.
    let waiters = list(&fifo.waiters, |waiting| {
        let mut value = waiter(waiting);
        value["end"] = json!(end(waiting.access));
        value
    });
    json!({ "path": fifo.path, "waiters": waiters, "holders": list(&fifo.holders, holder) })
}

pub(super) fn terminal(terminal: &Terminal) -> Value {
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
