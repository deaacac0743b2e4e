//! One process: `/proc/PID/stat`, `cmdline`, `syscall`, `wchan`.

use std::ffi::CStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use nix::libc;

use super::signals;
use crate::sys::Pid;
use crate::sys::wire::wire_enum;

/// The name (`/proc/PID/comm`) of fork servers and supervisors.
pub(crate) const GUARD: &CStr = c"childproof";
/// The name of a guard that stays with processes which it has stopped and kept.
pub(crate) const KEPT: &CStr = c"childproof-kept";
/// What net and fork server of a guard call themselves: nothing that `pkill -f` is given matches it.
pub(crate) const NET: &str = "()";
/// What a supervisor's command line begins with, before the name of what it guards.
pub(crate) const GUARDS: &str = "childproof: ";

/// Whether a process of this name is a guard's, or the tool.
pub(crate) fn is_of_guard(comm: &str) -> bool {
    comm == NET || [GUARD, KEPT].iter().any(|name| comm.as_bytes() == name.to_bytes())
}

/// The test or command whose guard a process is by its name and command line, empty if it does not say; `None` if it is none.
pub(crate) fn guarded(comm: &str, command_line: &[String]) -> Option<String> {
    let title = command_line.first().map(String::as_str).unwrap_or_default();
    let name = title.strip_prefix(GUARDS).filter(|name| *name != "idle");
    let is_guard = is_of_guard(comm) && (comm != "childproof" || title.starts_with(GUARDS) || title == NET);
    is_guard.then(|| name.unwrap_or_default().to_owned())
}

/// The name of the program that a sanitizer starts to read lines of code. (The kernel cuts that of
/// `llvm-symbolizer-14` to this one.)
pub(crate) const SYMBOLIZER: &str = "llvm-symbolizer";

/// Set after a fork until the first exec (`PF_FORKNOEXEC`, include/linux/sched.h).
const PF_FORKNOEXEC: u64 = 0x40;
/// Set for kernel threads (`PF_KTHREAD`).
const PF_KTHREAD: u64 = 0x0020_0000;
/// Set once a thread has begun to exit (`PF_EXITING`), and before that once a signal has killed it (`PF_SIGNALED`).
const PF_EXITING_OR_SIGNALED: u64 = 0x404;

/// The fields of `/proc/PID/stat` that are used here (proc_pid_stat(5)).
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
    /// Whether its first thread has begun to exit.
    pub(crate) is_leader_exiting: bool,
    pub(crate) threads: u32,
    /// Start time in clock ticks since boot. Together with the pid it identifies the process.
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Reads the line of one process; `None` if there is no such process.
    pub(crate) fn read(pid: Pid) -> Option<Stat> {
        line(&format!("/proc/{pid}/stat"), Stat::parse)
    }

    /// Reads the line of this process.
    pub(crate) fn of_self() -> Option<Stat> {
        line("/proc/self/stat", Stat::parse)
    }

    /// Whether this process descends from a guard of the same program: one of its tests started it.
    pub(crate) fn has_own_guard_above() -> bool {
        /// Limit on the number of ancestors that are read.
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

    /// Whether the process is dead and waits to be reaped. A process whose first thread has exited shows the
    /// same state while its other threads run on.
    pub(crate) fn is_zombie(&self) -> bool {
        self.has_lost_leader() && self.threads <= 1
    }

    /// Whether its first thread has exited. `/proc/PID` then no longer shows memory and fds.
    pub(crate) fn has_lost_leader(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Reads the process again. `None` if it is gone, or its number was given to another.
    pub(crate) fn again(&self) -> Option<Stat> {
        Stat::read(self.pid).filter(|now| now.start_ticks == self.start_ticks)
    }

    /// Whether the process has begun to exit, or was killed: none of its threads runs code of its own any more. The
    /// exit itself takes a while, for the memory that is freed.
    pub(crate) fn is_exiting(&self) -> bool {
        let is_over = |thread: &Stat| {
            thread.is_leader_exiting || thread.has_lost_leader() || signals::has_pending_kill(thread.pid)
        };
        if self.threads <= 1 {
            return is_over(self);
        }
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let tids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
        tids.filter_map(Stat::read).all(|thread| is_over(&thread))
    }

    /// The id under which `/proc` shows the memory and fds of the process: its pid, or the id of another
    /// thread if the first one has exited.
    pub(crate) fn readable_id(&self) -> Pid {
        if !self.has_lost_leader() {
            return self.pid;
        }
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let mut others = tasks.filter_map(|task| task.file_name().to_str()?.parse::<Pid>().ok());
        others.find(|tid| *tid != self.pid).unwrap_or(self.pid)
    }

    /// Parses a line. The name may contain spaces, parentheses and newlines, so the fields are counted from
    /// its *last* parenthesis.
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
            is_leader_exiting: false,
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
                    stat.is_leader_exiting = flags & PF_EXITING_OR_SIGNALED != 0;
                }
                20 => stat.threads = field.parse().ok()?,
                // The last field that is needed. Skipping the rest matters when thousands of lines are read.
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

/// Reads a line of `stat` in a single read: the kernel generates it anew for each one.
fn line<T>(path: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    /// More than a name and 52 numbers can take.
    const LINE: usize = 2048;
    let mut line = [0; LINE];
    let length = fs::File::open(path).ok()?.read(&mut line).ok()?;
    parse(line.get(..length)?)
}

/// One field of `/proc/PID/stat` behind the name, numbered as in the man page.
pub(crate) fn field(pid: Pid, number: usize) -> Option<String> {
    line(&format!("/proc/{pid}/stat"), |line| {
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let fields = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        fields.split_ascii_whitespace().nth(number.checked_sub(3)?).map(str::to_owned)
    })
}

/// Where argv begins and ends in this process's memory (fields 48 and 49 of proc_pid_stat(5)).
pub(crate) fn argv_of_self() -> Option<(usize, usize)> {
    line("/proc/self/stat", argv)
}

/// The same for a given line. The first field behind the name is the third.
pub(super) fn argv(line: &[u8]) -> Option<(usize, usize)> {
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(line.get(close + 1..)?).ok()?.split_ascii_whitespace().skip(48 - 3);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The wait status of a zombie (field 52 of proc_pid_stat(5)). Without permission to read it the kernel shows
/// 0, which is taken as a successful exit.
pub(crate) fn exit_status(pid: Pid) -> Option<i32> {
    line(&format!("/proc/{pid}/stat"), status_field)
}

/// The same for a given line. The first field behind the name is the third.
fn status_field(line: &[u8]) -> Option<i32> {
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(line.get(close + 1..)?).ok()?.split_ascii_whitespace().skip(52 - 3);
    fields.next()?.parse().ok()
}

/// The most bytes of a command line that are kept. A process may show megabytes.
const COMMAND_LINE: u64 = 4096;

/// Reads `/proc/PID/cmdline`: the arguments, converted lossily. Empty for zombies and kernel threads.
pub(crate) fn command_line(pid: Pid) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = fs::File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(COMMAND_LINE).read_to_end(&mut bytes));
    if read.is_err() {
        return Vec::new();
    }
    arguments(&bytes)
}

/// The same of a process that may be within execve(2): there it runs, and has no arguments for a moment. posix_spawn(3) returns
/// to its parent before that moment ends.
pub(crate) fn settled_command_line(pid: Pid) -> Vec<String> {
    for _ in 0..50 {
        let line = command_line(pid);
        let may_exec = || Stat::read(pid).is_some_and(|stat| matches!(stat.state, 'R' | 'D'));
        if !line.is_empty() || !may_exec() {
            return line;
        }
        thread::sleep(Duration::from_millis(1));
    }
    command_line(pid)
}

/// Splits what the kernel shows as a command line.
pub(crate) fn arguments(mut bytes: &[u8]) -> Vec<String> {
    // The same limit as in `command_line`, so that the two can be compared.
    bytes = &bytes[..bytes.len().min(COMMAND_LINE as usize)];
    // The last argument ends with a NUL, which does not begin an empty argument. Titles set by setproctitle
    // are padded with many NULs.
    while let [rest @ .., 0] = bytes {
        bytes = rest;
    }
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// Whether a process has a handler for a signal.
#[cfg(feature = "__engine")]
pub(crate) fn catches(pid: Pid, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// How often a process's first thread has given up a processor, or lost it.
#[cfg(feature = "__engine")]
pub(crate) fn context_switches(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let counts =
        status.lines().filter_map(|line| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok());
    counts.sum()
}

wire_enum! {
    /// What may wake a process and does not show in the fd tables.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    pub(crate) enum UnseenWaker {
        /// It has handlers of these signals.
        Handlers { signals: Vec<i32> },
        /// It has timers of timer_create(2).
        Timers,
        /// It is traced by another process.
        Traced,
        /// It traces another process.
        Traces,
        /// Not everything about it was read in time.
        NotRead,
    }
}

/// Finds the signal handlers and timers that may wake a process.
pub(crate) fn unseen_wakers(pid: Pid) -> Vec<UnseenWaker> {
    let mut unseen_wakers = Vec::new();
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let signals: Vec<i32> = caught(&status).filter(|signal| !ACCOUNTED.contains(signal)).collect();
    if !signals.is_empty() {
        unseen_wakers.push(UnseenWaker::Handlers { signals });
    }
    // Timers of timer_create(2). Timers of setitimer(2) are not shown, but need a signal handler to be of
    // effect.
    if fs::read(format!("/proc/{pid}/timers")).is_ok_and(|timers| !timers.is_empty()) {
        unseen_wakers.push(UnseenWaker::Timers);
    }
    unseen_wakers
}

/// Handlers of these signals are not counted as unseen wakers. SIGCHLD comes when a child exits, and the
/// others from a process of the test; a keyboard, and a user that ends the run, are not considered.
pub(crate) const ACCOUNTED: [i32; 5] =
    [libc::SIGCHLD, libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Whether a cgroup may be configured to write to an eventfd on some event (`cgroup.event_control`). Only
/// version 1 of the memory controller can do that; it is in use if the kernel lists it.
pub(crate) fn cgroups_notify() -> bool {
    // Kernels without cgroups do not have this file.
    notifies(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
}

/// Whether a list of cgroups (`4:memory:/a`, cgroups(7)) contains the memory controller in a version 1
/// hierarchy.
fn notifies(cgroups: &str) -> bool {
    let controllers = cgroups.lines().filter_map(|line| line.split(':').nth(1));
    controllers.flat_map(|names| names.split(',')).any(|name| name == "memory")
}

/// The signals that a process handles, except those that std handles, faults, and those of the C library.
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

/// Whether a list of mounts (proc_pid_mountinfo(5)) has a `/proc` that hides processes of other users.
fn hides(mounts: &str) -> bool {
    let of_proc = |line: &&str| line.split(' ').nth(4) == Some("/proc");
    let options = mounts.lines().filter(of_proc).filter_map(|line| line.rsplit(' ').next());
    let levels =
        options.flat_map(|options| options.split(',')).filter_map(|option| option.strip_prefix("hidepid="));
    levels.into_iter().any(|level| !matches!(level, "0" | "off"))
}

/// The tracer of this process, such as a debugger; 0 if there is none, or none in this PID namespace.
pub(crate) fn tracer(pid: Pid) -> Pid {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line.and_then(|tracer| tracer.trim().parse().ok()).unwrap_or(0)
}

/// The process that traces this one and has stopped it, with its name. `None` if it runs, and if the same process traces
/// the caller too, as `strace -f` does.
pub(crate) fn stopped_by_tracer(pid: Pid) -> Option<(Pid, String)> {
    if Stat::read(pid)?.state != 't' {
        return None;
    }
    let by = tracer(pid);
    if by == 0 || by == tracer(std::process::id() as Pid) {
        return None;
    }
    Some((by, Stat::read(by).map(|stat| stat.comm).unwrap_or_default()))
}

/// How many threads of the machine are running or wait for a CPU (proc_loadavg(5)).
pub(crate) fn running_threads() -> Option<usize> {
    word_of_load(3)?.split('/').next()?.parse().ok()
}

/// The pid that was given last (proc_loadavg(5)).
pub(crate) fn last_pid() -> Option<Pid> {
    word_of_load(4)?.parse().ok()
}

fn word_of_load(at: usize) -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().nth(at).map(str::to_owned)
}

/// The effective uid of a process, from `/proc/PID/status`.
pub(crate) fn effective_uid(pid: Pid) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The time since a process was started.
pub(crate) fn age(stat: &Stat) -> Option<Duration> {
    uptime()?.checked_sub(since_boot(stat.start_ticks))
}

/// Converts [`Stat::start_ticks`] to the time since boot.
pub(crate) fn since_boot(ticks: u64) -> Duration {
    // USER_HZ has been 100 on every Linux architecture but alpha and ia64, which are gone.
    Duration::from_millis(ticks.saturating_mul(10))
}

/// How long the machine has been up.
pub(crate) fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::{hides, notifies, status_field};

    #[test]
    fn a_zombie_says_how_it_ended() {
        let zombie = "7 (a) b) Z 1 7 7 0 -1 4227084 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0 18446744073709551615 0 0 0 0 0 0 \
                      0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 25856\n";
        assert_eq!(status_field(zombie.as_bytes()).map(|status| status >> 8), Some(101));
        assert_eq!(status_field(b"7 (a) Z 1"), None);
    }

    #[test]
    fn a_cgroup_notifies_only_by_the_first_version() {
        assert!(notifies("5:cpu,memory:/a\n0::/a\n"));
        assert!(!notifies("0::/memory\n") && !notifies("1:name=memory:/\n") && !notifies(""));
    }

    #[test]
    fn a_proc_that_hides_processes_says_so() {
        let mount = |options| format!("22 27 0:21 / /proc rw,relatime - proc proc {options}\n");
        assert!(!hides(&mount("rw")) && !hides(&mount("rw,hidepid=0")) && !hides(""));
        assert!(hides(&mount("rw,hidepid=2")) && hides(&mount("rw,hidepid=invisible")));
    }
}
