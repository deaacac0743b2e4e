//! What a test process tells of itself, and the page of shared memory it tells it in.
//!
//! Memory and not a pipe: a body may close every fd it can name, and nothing of ours may lie in
//! its fd table. The page is mapped before the fork, so it is there whatever the body does, and
//! it is readable after any kind of death.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::policy::Fds;
use crate::sys::FdIdentity;
use crate::wire::{wire_enum, wire_struct};

wire_enum! {
    /// What came of the body itself.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Body {
        /// It never came back: it was killed, ended the process, or never began.
        Unfinished,
        /// It returned, and its return value says success.
        Passed,
        /// `#[should_panic]`, and it did.
        PanickedAsExpected,
        /// It panicked.
        Panicked,
        /// It returned an `Err` or another failing `Termination`.
        Error,
        /// `#[should_panic]`, and it did not.
        DidNotPanic,
        /// `#[should_panic(expected = "..")]`, and it panicked with `message`.
        PanickedOtherwise { message: String },
    }
}

impl Body {
    /// Whether there is nothing to say against the body itself.
    pub(crate) fn has_passed(&self) -> bool {
        matches!(self, Body::Passed | Body::PanickedAsExpected)
    }
}

wire_enum! {
    /// How the test process came to its end.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum End {
        /// The process exited.
        Exited { code: i32 },
        /// A signal ended it.
        Signalled { signal: i32 },
        /// Its time was over; we killed it.
        TimedOut,
        /// It could not be started or followed.
        Lost { why: String },
    }
}

wire_struct! {
    /// An fd that the body opened and left open.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct StrayFd {
        pub(crate) fd: i32,
        /// What `/proc/PID/fd/N` names: `pipe:[123]`, `socket:[4]`, a path.
        pub(crate) target: String,
        pub(crate) ino: u64,
        /// `O_ACCMODE`.
        pub(crate) access: i32,
        pub(crate) cloexec: bool,
    }
}

wire_struct! {
    /// A thread that still ran when the body came back.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Running {
        pub(crate) tid: i32,
        /// Empty if nobody gave it one.
        pub(crate) name: String,
    }
}

/// How far the test process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Forked, and on its way to the body.
    Starting,
    /// In the body.
    Running,
    /// The body has come back.
    BodyEnded,
    /// What it has left is written down.
    Checked,
    /// It has stopped itself to be looked at, and exits when it is continued.
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

const MESSAGE: usize = 1024;
const TARGET: usize = 96;
const STRAYS: usize = 256;
const FOREIGN: usize = 64;
/// How many threads are told by name.
const RUNNING: usize = 16;
/// The most bytes of a thread's name (`TASK_COMM_LEN`).
const COMM: usize = 16;

/// One page of a test's last words. All zeroes is a valid value: no test has run yet.
#[repr(C)]
pub(crate) struct Page {
    phase: AtomicU32,
    body: AtomicU32,
    body_nanos: AtomicU64,
    threads: AtomicU32,
    returned_children: AtomicU32,
    returned_child: AtomicI32,
    message_length: AtomicU32,
    message: [AtomicU8; MESSAGE],
    foreign_count: AtomicU32,
    foreign: [AtomicI32; FOREIGN],
    running_count: AtomicU32,
    running: [RunningSlot; RUNNING],
    stray_count: AtomicU32,
    strays: [StraySlot; STRAYS],
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
    target_length: AtomicU32,
    ino: AtomicU64,
    target: [AtomicU8; TARGET],
}

/// Copies as much of `text` as fits, ending at a character.
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

impl Page {
    /// Forgets the test before. The arrays are behind their lengths and need no clearing.
    pub(crate) fn reset(&self) {
        for word in [
            &self.phase,
            &self.body,
            &self.threads,
            &self.returned_children,
            &self.message_length,
            &self.foreign_count,
            &self.running_count,
            &self.stray_count,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        self.body_nanos.store(0, Ordering::Release);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    pub(crate) fn phase(&self) -> Phase {
        let phase = self.phase.load(Ordering::Acquire) as usize;
        PHASES.get(phase).copied().unwrap_or(Phase::Running)
    }

    /// Records the end of the body.
    pub(crate) fn end_body(&self, body: &Body, took: Duration) {
        let code = match body {
            Body::Unfinished => 0,
            Body::Passed => PASSED,
            Body::PanickedAsExpected => PANICKED_AS_EXPECTED,
            Body::Panicked => PANICKED,
            Body::Error => ERROR,
            Body::DidNotPanic => DID_NOT_PANIC,
            Body::PanickedOtherwise { message } => {
                put(message, &self.message_length, &self.message);
                PANICKED_OTHERWISE
            }
        };
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.body_nanos.store(nanos, Ordering::Relaxed);
        self.body.store(code, Ordering::Release);
        self.set_phase(Phase::BodyEnded);
    }

    pub(crate) fn body(&self) -> Body {
        match self.body.load(Ordering::Acquire) {
            PASSED => Body::Passed,
            PANICKED_AS_EXPECTED => Body::PanickedAsExpected,
            PANICKED => Body::Panicked,
            ERROR => Body::Error,
            DID_NOT_PANIC => Body::DidNotPanic,
            PANICKED_OTHERWISE => {
                Body::PanickedOtherwise { message: get(&self.message_length, &self.message) }
            }
            _ => Body::Unfinished,
        }
    }

    /// How long the body ran; `None` if it did not come back.
    pub(crate) fn body_time(&self) -> Option<Duration> {
        (self.body() != Body::Unfinished)
            .then(|| Duration::from_nanos(self.body_nanos.load(Ordering::Acquire)))
    }

    /// Records how many threads besides the body's own were running at its end.
    pub(crate) fn set_threads(&self, threads: u32) {
        self.threads.store(threads, Ordering::Release);
    }

    pub(crate) fn threads(&self) -> u32 {
        self.threads.load(Ordering::Acquire)
    }

    /// Records which ones, as many as there is room for.
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

    /// Records that a process which the body forked ran on into the harness's code.
    pub(crate) fn add_returned_child(&self, pid: i32) {
        self.returned_child.store(pid, Ordering::Relaxed);
        self.returned_children.fetch_add(1, Ordering::AcqRel);
    }

    /// The last of them.
    pub(crate) fn returned_child(&self) -> Option<i32> {
        (self.returned_children() > 0).then(|| self.returned_child.load(Ordering::Relaxed))
    }

    pub(crate) fn returned_children(&self) -> u32 {
        self.returned_children.load(Ordering::Acquire)
    }

    /// Records the descendants that were there before the body, and are none of its doing.
    pub(crate) fn set_foreign(&self, pids: impl Iterator<Item = i32>) {
        let mut count = 0;
        for (slot, pid) in self.foreign.iter().zip(pids) {
            slot.store(pid, Ordering::Relaxed);
            count += 1;
        }
        self.foreign_count.store(count, Ordering::Release);
    }

    pub(crate) fn foreign(&self) -> Vec<i32> {
        let count = self.foreign_count.load(Ordering::Acquire) as usize;
        self.foreign.iter().take(count).map(|pid| pid.load(Ordering::Relaxed)).collect()
    }

    pub(crate) fn add_stray(&self, fd: RawFd, target: &str, identity: &FdIdentity, cloexec: bool) {
        let at = self.stray_count.fetch_add(1, Ordering::AcqRel) as usize;
        let Some(slot) = self.strays.get(at) else {
            return;
        };
        slot.fd.store(fd, Ordering::Relaxed);
        slot.access.store(identity.access, Ordering::Relaxed);
        slot.cloexec.store(u32::from(cloexec), Ordering::Relaxed);
        slot.ino.store(identity.ino, Ordering::Relaxed);
        put(target, &slot.target_length, &slot.target);
    }

    /// The stray fds that were recorded, and how many there were in all.
    pub(crate) fn strays(&self) -> (Vec<StrayFd>, u32) {
        let count = self.stray_count.load(Ordering::Acquire);
        let strays = self.strays.iter().take(count as usize).map(|slot| StrayFd {
            fd: slot.fd.load(Ordering::Relaxed),
            target: get(&slot.target_length, &slot.target),
            ino: slot.ino.load(Ordering::Relaxed),
            access: slot.access.load(Ordering::Relaxed),
            cloexec: slot.cloexec.load(Ordering::Relaxed) != 0,
        });
        (strays.collect(), count)
    }
}

/// Whether an open fd counts under a policy; `before` is the table from before the
/// body, ascending.
///
/// It counts if that number was not open before, or was another file: numbers and counts say
/// nothing, since a body may close one fd and open another in its place.
pub(crate) fn is_stray(before: &[(RawFd, FdIdentity)], fd: RawFd, identity: &FdIdentity, fds: Fds) -> bool {
    if before.binary_search_by_key(&fd, |(fd, _)| *fd).is_ok_and(|at| before[at].1 == *identity) {
        return false;
    }
    match fds {
        Fds::Off => false,
        Fds::All => true,
        // A second number for a pipe that was there before (a logger's copy of stderr, a
        // jobserver) keeps nobody waiting who was not waiting before.
        Fds::Pipes => {
            identity.kind == nix::libc::S_IFIFO
                && !before.iter().any(|(_, old)| (old.dev, old.ino) == (identity.dev, identity.ino))
        }
    }
}
