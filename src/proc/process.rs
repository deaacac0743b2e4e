//! One process: `/proc/PID/stat`, `cmdline`, `syscall`, `wchan`.

use std::ffi::CStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use nix::libc;

use crate::sys::Pid;

/// What fork servers and supervisors call themselves (`/proc/PID/comm`).
pub(crate) const GUARD: &CStr = c"childproof";

/// Forked, and has not called exec since (`PF_FORKNOEXEC`, include/linux/sched.h).
const PF_FORKNOEXEC: u64 = 0x40;
/// A thread of the kernel's own (`PF_KTHREAD`).
const PF_KTHREAD: u64 = 0x0020_0000;

/// The fields of `/proc/PID/stat` that are of use here (proc_pid_stat(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: Pid,
    pub(crate) comm: String,
    pub(crate) state: char,
    pub(crate) ppid: Pid,
    pub(crate) pgid: Pid,
    pub(crate) sid: Pid,
    pub(crate) forked_without_exec: bool,
    pub(crate) is_kernel_thread: bool,
    pub(crate) threads: u32,
    /// Clock ticks between boot and the start of the process. With the pid, its identity.
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Reads the line of one process; `None` if there is no such process (any more).
    pub(crate) fn read(pid: Pid) -> Option<Stat> {
        line(&format!("/proc/{pid}/stat"), Stat::parse)
    }

    /// Reads the line of this process.
    pub(crate) fn of_self() -> Option<Stat> {
        line("/proc/self/stat", Stat::parse)
    }

    /// Whether a guard of this very program is above this process: one of its tests has started it.
    pub(crate) fn has_own_guard_above() -> bool {
        /// More than anybody nests processes between a test and what it runs.
        const MOST: usize = 256;
        let program = |process: &str| {
            let found = fs::metadata(format!("/proc/{process}/exe")).ok()?;
            Some((found.dev(), found.ino()))
        };
        let Some(own) = program("self") else { return false };
        let mut below = Stat::of_self();
        for _ in 0..MOST {
            let Some(above) = below.filter(|stat| stat.ppid > 0).and_then(|stat| Stat::read(stat.ppid))
            else {
                return false;
            };
            if above.comm.as_bytes() == GUARD.to_bytes() && program(&above.pid.to_string()) == Some(own) {
                return true;
            }
            below = Some(above);
        }
        false
    }

    /// Whether the process is dead and only waits to be reaped. One whose first thread has exited
    /// shows the same state, and lives on in the others.
    pub(crate) fn is_zombie(&self) -> bool {
        self.has_lost_leader() && self.threads <= 1
    }

    /// Whether its first thread has exited: what `/proc/PID` shows of memory and fds is gone with it.
    pub(crate) fn has_lost_leader(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// The id under which `/proc` shows the memory and the fds of the process: its own, or that of
    /// another thread if the first has exited.
    pub(crate) fn readable_id(&self) -> Pid {
        if !self.has_lost_leader() {
            return self.pid;
        }
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let mut others = tasks.filter_map(|task| task.file_name().to_str()?.parse::<Pid>().ok());
        others.find(|tid| *tid != self.pid).unwrap_or(self.pid)
    }

    /// Parses a line. The name may hold anything, spaces, parentheses and newlines too, so the
    /// fields are counted from its *last* parenthesis.
    pub(crate) fn parse(line: &[u8]) -> Option<Stat> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let pid = std::str::from_utf8(line.get(..open)?).ok()?.trim().parse().ok()?;
        let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        let mut stat = Stat {
            pid,
            comm,
            state: '?',
            ppid: 0,
            pgid: 0,
            sid: 0,
            forked_without_exec: false,
            is_kernel_thread: false,
            threads: 0,
            start_ticks: 0,
        };
        // The fields are numbered as in the man page.
        for (number, field) in (3..).zip(rest.trim_ascii_start().split(' ')) {
            match number {
                3 => stat.state = field.chars().next()?,
                4 => stat.ppid = field.parse().ok()?,
                5 => stat.pgid = field.parse().ok()?,
                6 => stat.sid = field.parse().ok()?,
                9 => {
                    let flags: u64 = field.parse().ok()?;
                    stat.forked_without_exec = flags & PF_FORKNOEXEC != 0;
                    stat.is_kernel_thread = flags & PF_KTHREAD != 0;
                }
                20 => stat.threads = field.parse().ok()?,
                // There are more. Thousands of lines may have to be read, and this is the last of use.
                22 => {
                    stat.start_ticks = field.trim_ascii_end().parse().ok()?;
                    return Some(stat);
                }
                _ => {}
            }
        }
        None
    }
}

/// Reads a line of `stat` in one go: the kernel makes it for each read anew.
fn line<T>(path: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    /// More than 52 numbers and a name take.
    const LINE: usize = 2048;
    let mut line = [0; LINE];
    let length = fs::File::open(path).ok()?.read(&mut line).ok()?;
    parse(line.get(..length)?)
}

/// Where argv begins and ends in this process's memory (fields 48 and 49 of proc_pid_stat(5)).
pub(crate) fn argv_of_self() -> Option<(usize, usize)> {
    line("/proc/self/stat", argv)
}

/// The same of any line. The first field behind the name is the third.
pub(super) fn argv(line: &[u8]) -> Option<(usize, usize)> {
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(line.get(close + 1..)?).ok()?.split_ascii_whitespace().skip(48 - 3);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The most of a command line that is kept, in bytes. A process may show megabytes.
const COMMAND_LINE: u64 = 4096;

/// Reads `/proc/PID/cmdline`: the arguments, lossily as text. Empty for zombies and kernel threads.
pub(crate) fn command_line(pid: Pid) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = fs::File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(COMMAND_LINE).read_to_end(&mut bytes));
    if read.is_err() {
        return Vec::new();
    }
    arguments(&bytes)
}

/// Splits what the kernel shows as a command line.
pub(crate) fn arguments(mut bytes: &[u8]) -> Vec<String> {
    // As much as `command_line` reads, so that the two can be compared.
    bytes = &bytes[..bytes.len().min(COMMAND_LINE as usize)];
    // The last argument ends with a NUL, which is no empty argument; titles set by setproctitle
    // are padded with many.
    while let [rest @ .., 0] = bytes {
        bytes = rest;
    }
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// What may wake a process and does not show in who holds what, in words.
pub(crate) fn holes(pid: Pid) -> Vec<String> {
    let mut holes = Vec::new();
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let name = |signal| match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.to_string(),
        // SIGRTMIN is 34: glibc has the two before for itself.
        Err(_) => format!("SIGRTMIN+{}", signal - RTMIN),
    };
    let names: Vec<String> = caught(&String::from_utf8_lossy(&status)).map(name).collect();
    /// How many are named.
    const NAMED: usize = 3;
    if !names.is_empty() {
        let more = if names.len() > NAMED { ", .." } else { "" };
        holes.push(format!("it handles {}{more}", names[..names.len().min(NAMED)].join(", ")));
    }
    // Of timer_create(2). Those of setitimer(2) are not shown, but their signal must be handled.
    if fs::read(format!("/proc/{pid}/timers")).is_ok_and(|timers| !timers.is_empty()) {
        holes.push("it has timers".to_owned());
    }
    holes
}

/// The first signal for real time that a program can have (signal(7)).
const RTMIN: i32 = 34;

/// The signals that a process handles, but for those that std does, for faults, and the C library.
pub(super) fn caught(status: &str) -> impl Iterator<Item = i32> {
    let others = [libc::SIGSEGV, libc::SIGBUS, 32, 33];
    let set = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    (1..=64).filter(move |signal| set >> (signal - 1) & 1 == 1 && !others.contains(signal))
}

/// Whether `/proc` hides processes of other users from this one (`hidepid`, proc(5)).
pub(crate) fn are_hidden() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hides(&mounts)
}

/// Whether a list of mounts (proc_pid_mountinfo(5)) has a `/proc` that does not show everybody.
fn hides(mounts: &str) -> bool {
    let of_proc = |line: &&str| line.split(' ').nth(4) == Some("/proc");
    let options = mounts.lines().filter(of_proc).filter_map(|line| line.rsplit(' ').next());
    let levels =
        options.flat_map(|options| options.split(',')).filter_map(|option| option.strip_prefix("hidepid="));
    levels.into_iter().any(|level| !matches!(level, "0" | "off"))
}

/// The user that a process runs as, from `/proc/PID/status`: the effective uid.
pub(crate) fn effective_uid(pid: Pid) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::hides;

    #[test]
    fn a_proc_that_hides_processes_says_so() {
        let mount = |options| format!("22 27 0:21 / /proc rw,relatime - proc proc {options}\n");
        assert!(!hides(&mount("rw")) && !hides(&mount("rw,hidepid=0")) && !hides(""));
        assert!(hides(&mount("rw,hidepid=2")) && hides(&mount("rw,hidepid=invisible")));
    }
}
