//! The page of shared memory through which a test process reports.
//!
//! Memory and not a pipe: a body may close any fd, and its fd table must contain no fd of the guard. The page
//! is mapped before the fork, so it exists whatever the body does, and it stays readable however the process
//! ends.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::config::policy::Fds;
use crate::guard::failure::GuardFailure;
use crate::proc::threads::Running;
use crate::sys::wire::{wire_enum, wire_struct};
use crate::sys::{self, BaselineFds, FdIdentity};

wire_enum! {
    /// The outcome of the body itself.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Body {
        /// It never returned: it was killed, ended the process, or never started.
        Unfinished,
        /// It returned a successful value.
        Passed,
        /// `#[should_panic]`, and it panicked.
        PanickedAsExpected,
        /// It panicked. The message is empty if the payload is not a string, the file if the panic hook did
        /// not run.
        Panicked { message: String, file: String, line: u32, column: u32 },
        /// It returned an `Err` or another failing `Termination`.
        Error,
        /// `#[should_panic]`, and it did not panic.
        DidNotPanic,
        /// `#[should_panic(expected = "..")]`, and it panicked with `message`; empty if the
        /// payload is no string.
        PanickedOtherwise { message: String },
        /// There is none: the subject is a command.
        OfCommand,
        /// There is none: processes are looked at that no guard is above, and they go on.
        Inspected,
    }
}

impl Body {
    /// Whether the body itself gives no reason to fail the test.
    pub(crate) fn has_passed(&self) -> bool {
        matches!(self, Body::Passed | Body::PanickedAsExpected | Body::OfCommand)
    }
}

wire_enum! {
    /// How the test process ended.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum End {
        /// The process exited.
        Exited { code: i32 },
        /// A signal killed it.
        Signalled { signal: i32 },
        /// It exceeded its timeout; the guard killed it.
        TimedOut,
        /// It could not be started or followed.
        Unguarded { failure: GuardFailure },
    }
}

wire_enum! {
    /// What keeps a stray file open.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum HeldBy {
        /// The fd table of the test process.
        Table,
        /// The private fd table of a thread (unshare(2)).
        Thread { tid: i32 },
        /// A message in a unix socket that was not received (`SCM_RIGHTS`, unix(7)).
        Message,
        /// An io_uring instance that it is registered with.
        Ring,
        /// It keeps other files open itself, which cannot be inspected.
        Opaque,
    }
}

wire_struct! {
    /// An fd that the body opened and left open.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct StrayFd {
        /// Its number; for a file in a message or a ring, the number of the socket or the ring.
        pub(crate) fd: i32,
        /// What `/proc/PID/fd/N` names: `pipe:[123]`, `socket:[4]`, a path.
        pub(crate) target: String,
        pub(crate) ino: u64,
        /// The key under which the recorder stores the call that created it; 0 if there is none.
        pub(crate) key: u64,
        /// `O_ACCMODE` and `O_PATH`.
        pub(crate) access: i32,
        pub(crate) cloexec: bool,
        pub(crate) held_by: HeldBy,
    }
}

impl StrayFd {
    pub(crate) fn is_socket(&self) -> bool {
        self.target.starts_with("socket:[")
    }
}

/// The progress of the test process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Forked, and not yet at the body.
    Starting,
    /// In the body.
    Running,
    /// The body has returned.
    BodyEnded,
    /// What it left has been recorded.
    Checked,
    /// It has stopped itself for inspection, and exits when it is continued.
    Stopped,
}

const PHASES: [Phase; 5] =
    [Phase::Starting, Phase::Running, Phase::BodyEnded, Phase::Checked, Phase::Stopped];

const PASSED: u32 = 1;
const PANICKED: u32 = 2;
const ERROR: u32 = 3;
const DID_NOT_PANIC: u32 = 4;
const PANICKED_OTHERWISE: u32 = 5;
const PANICKED_AS_EXPECTED: u32 = 6;

const HELD_BY_TABLE: u32 = 0;
const HELD_BY_THREAD: u32 = 1;
const HELD_BY_MESSAGE: u32 = 2;
const HELD_BY_RING: u32 = 3;
const HELD_BY_OPAQUE: u32 = 4;

const MESSAGE: usize = 1024;
/// The most bytes of the path of the file that a body panicked in.
const FILE: usize = 256;
const TARGET: usize = 96;
const STRAYS: usize = 256;
const PREEXISTING: usize = 64;
/// How many threads are reported by name.
const RUNNING: usize = 16;
/// The most bytes of a thread's name (`TASK_COMM_LEN`).
const COMM: usize = 16;

/// The report of one test process, in one page. All zeroes is a valid value: no test has run yet.
#[repr(C)]
pub(crate) struct ReportPage {
    phase: AtomicU32,
    body: BodyPage,
    /// When the test process was about to exit by itself, by the monotonic clock. 0: not yet.
    over_nanos: AtomicU64,
    /// The thread that got SIGSEGV or SIGBUS, while it waits to be looked at.
    fault: AtomicI32,
    threads: AtomicU32,
    returned_children: AtomicU32,
    returned_child: AtomicI32,
    preexisting_count: AtomicU32,
    preexisting: [AtomicI32; PREEXISTING],
    running_count: AtomicU32,
    running: [RunningSlot; RUNNING],
    stray_count: AtomicU32,
    strays: [StraySlot; STRAYS],
}

/// How one body ended. All zeroes: it has not.
#[repr(C)]
pub(super) struct BodyPage {
    outcome: AtomicU32,
    nanos: AtomicU64,
    message_length: AtomicU32,
    message: [AtomicU8; MESSAGE],
    file_length: AtomicU32,
    file: [AtomicU8; FILE],
    line: AtomicU32,
    column: AtomicU32,
}

impl BodyPage {
    /// Records the end of the body.
    #[inline(always)]
    pub(super) fn end(&self, body: &Body, nanos: u64) {
        let code = match body {
            Body::Unfinished | Body::OfCommand | Body::Inspected => 0,
            Body::Passed => PASSED,
            Body::PanickedAsExpected => PANICKED_AS_EXPECTED,
            Body::Panicked { message, file, line, column } => {
                put(message, &self.message_length, &self.message);
                put(file, &self.file_length, &self.file);
                self.line.store(*line, Ordering::Relaxed);
                self.column.store(*column, Ordering::Relaxed);
                PANICKED
            }
            Body::Error => ERROR,
            Body::DidNotPanic => DID_NOT_PANIC,
            Body::PanickedOtherwise { message } => {
                put(message, &self.message_length, &self.message);
                PANICKED_OTHERWISE
            }
        };
        self.nanos.store(nanos, Ordering::Relaxed);
        self.outcome.store(code, Ordering::Release);
    }

    pub(super) fn get(&self) -> Body {
        match self.outcome.load(Ordering::Acquire) {
            PASSED => Body::Passed,
            PANICKED_AS_EXPECTED => Body::PanickedAsExpected,
            PANICKED => Body::Panicked {
                message: get(&self.message_length, &self.message),
                file: get(&self.file_length, &self.file),
                line: self.line.load(Ordering::Acquire),
                column: self.column.load(Ordering::Acquire),
            },
            ERROR => Body::Error,
            DID_NOT_PANIC => Body::DidNotPanic,
            PANICKED_OTHERWISE => {
                Body::PanickedOtherwise { message: get(&self.message_length, &self.message) }
            }
            _ => Body::Unfinished,
        }
    }

    /// How long it ran; `None` if it did not return.
    pub(super) fn time(&self) -> Option<Duration> {
        let has_returned = self.get() != Body::Unfinished;
        has_returned.then(|| Duration::from_nanos(self.nanos.load(Ordering::Acquire)))
    }

    /// Clears it for the next body. The texts follow their lengths and need no clearing.
    pub(super) fn reset(&self) {
        for word in [&self.outcome, &self.message_length, &self.file_length] {
            word.store(0, Ordering::Relaxed);
        }
        self.nanos.store(0, Ordering::Release);
    }
}

#[repr(C)]
struct RunningSlot {
    tid: AtomicI32,
    name_length: AtomicU32,
    name: [AtomicU8; COMM],
}

#[repr(C)]
struct StraySlot {
    fd: AtomicI32,
    access: AtomicI32,
    cloexec: AtomicU32,
    /// One of `HELD_BY_*`, and the thread id.
    held_by: AtomicU32,
    tid: AtomicI32,
    target_length: AtomicU32,
    ino: AtomicU64,
    key: AtomicU64,
    target: [AtomicU8; TARGET],
}

/// Copies as much of `text` as fits, ending at a character boundary.
fn put(text: &str, length: &AtomicU32, bytes: &[AtomicU8]) {
    let mut end = text.len().min(bytes.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for (to, from) in bytes.iter().zip(text[..end].bytes()) {
        to.store(from, Ordering::Relaxed);
    }
    length.store(end as u32, Ordering::Release);
}

fn get(length: &AtomicU32, bytes: &[AtomicU8]) -> String {
    let length = (length.load(Ordering::Acquire) as usize).min(bytes.len());
    let bytes: Vec<u8> = bytes[..length].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl ReportPage {
    /// Clears the page for the next test. The arrays follow their lengths and need no clearing.
    pub(crate) fn reset(&self) {
        for word in [
            &self.phase,
            &self.threads,
            &self.returned_children,
            &self.preexisting_count,
            &self.running_count,
            &self.stray_count,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        self.over_nanos.store(0, Ordering::Relaxed);
        self.fault.store(0, Ordering::Relaxed);
        self.body.reset();
    }

    #[inline(always)]
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    pub(crate) fn phase(&self) -> Phase {
        let phase = self.phase.load(Ordering::Acquire) as usize;
        PHASES.get(phase).copied().unwrap_or(Phase::Running)
    }

    /// Records the end of the body.
    #[inline(always)]
    pub(crate) fn end_body(&self, body: &Body, nanos: u64) {
        self.body.end(body, nanos);
        self.set_phase(Phase::BodyEnded);
    }

    pub(crate) fn body(&self) -> Body {
        self.body.get()
    }

    /// Records that the test process is about to exit.
    pub(crate) fn set_over(&self) {
        self.over_nanos.store(sys::monotonic_nanos(), Ordering::Release);
    }

    /// The time since then.
    pub(crate) fn since_over(&self) -> Option<Duration> {
        let over = Some(self.over_nanos.load(Ordering::Acquire)).filter(|over| *over != 0)?;
        Some(Duration::from_nanos(sys::monotonic_nanos().saturating_sub(over)))
    }

    /// How long the body ran; `None` if it did not return.
    pub(crate) fn body_time(&self) -> Option<Duration> {
        self.body.time()
    }

    /// Where the handler of a fault writes its thread.
    pub(crate) fn fault_report(&self) -> &AtomicI32 {
        &self.fault
    }

    pub(crate) fn fault(&self) -> Option<i32> {
        Some(self.fault.load(Ordering::Acquire)).filter(|tid| *tid != 0)
    }

    /// Records how many threads besides the body's own were running at its end.
    pub(crate) fn set_threads(&self, threads: u32) {
        self.threads.store(threads, Ordering::Release);
    }

    pub(crate) fn threads(&self) -> u32 {
        self.threads.load(Ordering::Acquire)
    }

    /// Records their names, as many as there is room for.
    pub(crate) fn set_running(&self, threads: &[Running]) {
        for (slot, thread) in self.running.iter().zip(threads) {
            slot.tid.store(thread.tid, Ordering::Relaxed);
            put(&thread.name, &slot.name_length, &slot.name);
        }
        self.running_count.store(threads.len() as u32, Ordering::Release);
    }

    pub(crate) fn running(&self) -> Vec<Running> {
        let count = self.running_count.load(Ordering::Acquire) as usize;
        let running = self.running.iter().take(count).map(|slot| Running {
            tid: slot.tid.load(Ordering::Relaxed),
            name: get(&slot.name_length, &slot.name),
        });
        running.collect()
    }

    /// Records that a process forked by the body continued into the harness's code.
    pub(crate) fn add_returned_child(&self, pid: i32) {
        self.returned_child.store(pid, Ordering::Relaxed);
        self.returned_children.fetch_add(1, Ordering::AcqRel);
    }

    /// The last such process.
    pub(crate) fn returned_child(&self) -> Option<i32> {
        (self.returned_children() > 0).then(|| self.returned_child.load(Ordering::Relaxed))
    }

    pub(crate) fn returned_children(&self) -> u32 {
        self.returned_children.load(Ordering::Acquire)
    }

    /// Records the descendants that existed before the body, and are not its own.
    pub(crate) fn set_preexisting(&self, pids: impl Iterator<Item = i32>) {
        let mut count = 0;
        for (slot, pid) in self.preexisting.iter().zip(pids) {
            slot.store(pid, Ordering::Relaxed);
            count += 1;
        }
        self.preexisting_count.store(count, Ordering::Release);
    }

    pub(crate) fn preexisting(&self) -> Vec<i32> {
        let count = self.preexisting_count.load(Ordering::Acquire) as usize;
        self.preexisting.iter().take(count).map(|pid| pid.load(Ordering::Relaxed)).collect()
    }

    pub(crate) fn add_stray(&self, stray: &StrayFd) {
        let at = self.stray_count.fetch_add(1, Ordering::AcqRel) as usize;
        let Some(slot) = self.strays.get(at) else {
            return;
        };
        let (held_by, tid) = match stray.held_by {
            HeldBy::Table => (HELD_BY_TABLE, 0),
            HeldBy::Thread { tid } => (HELD_BY_THREAD, tid),
            HeldBy::Message => (HELD_BY_MESSAGE, 0),
            HeldBy::Ring => (HELD_BY_RING, 0),
            HeldBy::Opaque => (HELD_BY_OPAQUE, 0),
        };
        slot.fd.store(stray.fd, Ordering::Relaxed);
        slot.access.store(stray.access, Ordering::Relaxed);
        slot.cloexec.store(u32::from(stray.cloexec), Ordering::Relaxed);
        slot.held_by.store(held_by, Ordering::Relaxed);
        slot.tid.store(tid, Ordering::Relaxed);
        slot.ino.store(stray.ino, Ordering::Relaxed);
        slot.key.store(stray.key, Ordering::Relaxed);
        put(&stray.target, &slot.target_length, &slot.target);
    }

    /// The stray fds that were recorded, and how many there were in all.
    pub(crate) fn strays(&self) -> (Vec<StrayFd>, u32) {
        let count = self.stray_count.load(Ordering::Acquire);
        let strays = self.strays.iter().take(count as usize).map(|slot| StrayFd {
            fd: slot.fd.load(Ordering::Relaxed),
            target: get(&slot.target_length, &slot.target),
            ino: slot.ino.load(Ordering::Relaxed),
            key: slot.key.load(Ordering::Relaxed),
            access: slot.access.load(Ordering::Relaxed),
            cloexec: slot.cloexec.load(Ordering::Relaxed) != 0,
            held_by: match slot.held_by.load(Ordering::Relaxed) {
                HELD_BY_THREAD => HeldBy::Thread { tid: slot.tid.load(Ordering::Relaxed) },
                HELD_BY_MESSAGE => HeldBy::Message,
                HELD_BY_RING => HeldBy::Ring,
                HELD_BY_OPAQUE => HeldBy::Opaque,
                _ => HeldBy::Table,
            },
        });
        (strays.collect(), count)
    }
}

/// Whether an open fd counts as stray under a policy; `before` is the fd baseline, ascending.
///
/// It counts if that number was not open before, or referred to another file. Comparing numbers or counts
/// alone is not enough, since a body may close one fd and open another with the same number.
pub(crate) fn is_stray(before: BaselineFds, fd: RawFd, identity: &FdIdentity, fds: Fds) -> bool {
    if before.binary_search_by_key(&fd, |known| known.fd).is_ok_and(|at| before[at].identity() == *identity) {
        return false;
    }
    match fds {
        Fds::Off => false,
        Fds::All => true,
        // A duplicate of a pipe from before (a logger's copy of stderr, a jobserver) keeps no additional
        // process waiting. An fd with `O_PATH` keeps none waiting at all: writers get EPIPE, and readers EOF.
        Fds::Pipes => {
            identity.kind == nix::libc::S_IFIFO
                && identity.access & nix::libc::O_PATH == 0
                && !before.iter().any(|known| {
                    let old = known.identity();
                    (old.dev, old.ino) == (identity.dev, identity.ino)
                })
        }
    }
}
