//! A fork that is the first process of a new PID namespace (pid_namespaces(7)).
//!
//! The namespace is made by a process between the two, which exits at once: unshare(2) changes in which namespace all later
//! children of its caller are, and an ordinary user cannot take that back. A raw `clone` would leave libc with the thread id
//! of its parent.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::libc;

use super::channel::Channel;
use super::directory::open_directory;
use super::process::{Fork, Pid, check, exit_now, fork, kill, pidfd_open, wait_for};
use super::readable;
use super::wire::{Wire, wire_enum};

wire_enum! {
    /// A step on the way into a namespace.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum NamespaceStep {
        /// fork(2).
        Fork,
        /// unshare(2).
        Unshare,
        /// Mapping the user and the group to themselves (user_namespaces(7)).
        MapUser,
        /// Keeping mounts from the namespace of the machine.
        SeparateMounts,
        /// Mounting a `/proc` of the namespace.
        MountProc,
        /// A process on the way was killed, as by a seccomp filter.
        Survive,
        /// It took too long, and was killed.
        Wait,
    }
}

/// Why there is no namespace.
pub(crate) struct NamespaceRefusal {
    pub(crate) step: NamespaceStep,
    pub(crate) error: io::Error,
}

/// Which side of the fork this is.
pub(crate) enum NamespaceFork {
    /// The first process of the namespace.
    First(Inside),
    /// The forking process; the child's pid.
    Parent(Pid),
}

/// What the first process knows of the outside.
pub(crate) struct Inside {
    /// Its pid outside.
    pub(crate) pid: Pid,
    /// The root of the `/proc` of the outside.
    proc: OwnedFd,
}

wire_enum! {
    /// What the new processes report to the forking one.
    enum Message {
        /// The first process is forked.
        Forked { pid: i32 },
        Ready { pid: i32 },
        /// `pid` is that of the first process, or 0 if there is none.
        Refused { step: NamespaceStep, errno: i32, pid: i32 },
    }
}

/// How long the new processes may take. The fork server does not answer meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often they are continued, in case that one was stopped.
const CONTINUED: Duration = Duration::from_millis(250);

impl Inside {
    /// The pid that a child has outside: `Pid` in the fdinfo of a pidfd (proc_pid_fdinfo(5)).
    pub(crate) fn outside(&self, child: Pid) -> Option<Pid> {
        let pidfd = pidfd_open(child).ok()?;
        let path = format!("/proc/self/fd/{}/self/fdinfo/{}", self.proc.as_raw_fd(), pidfd.as_raw_fd());
        let info = fs::read_to_string(path).ok()?;
        info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
    }
}

/// Forks a process that is the first one of a new PID namespace, in a mount namespace of its own with the `/proc` of that.
/// If the user may not do that, in a user namespace as well. The calling process is a subreaper with one thread.
pub(crate) fn fork_in_namespace() -> Result<NamespaceFork, NamespaceRefusal> {
    let (ours, theirs) = Channel::pair().map_err(refused(NamespaceStep::Fork))?;
    match fork().map_err(refused(NamespaceStep::Fork))? {
        Fork::Parent(between) => {
            drop(theirs);
            let (answer, first) = follow(&ours, between);
            let answered = matches!(answer, Some(Message::Ready { .. } | Message::Refused { .. }));
            if !answered {
                let _ = kill(between, libc::SIGKILL);
            }
            let _ = wait_for(between);
            // It has become a child of this process. One whose pid is not known yet can tell no one that it is ready.
            let end = |pid: Pid| {
                let _ = kill(pid, libc::SIGKILL);
                let _ = wait_for(pid);
            };
            match (answer, first) {
                (Some(Message::Ready { pid }), _) => Ok(NamespaceFork::Parent(pid)),
                (Some(Message::Refused { step, errno, pid }), _) => {
                    let _ = (pid != 0).then(|| end(pid));
                    Err(NamespaceRefusal { step, error: io::Error::from_raw_os_error(errno) })
                }
                (answer, first) => {
                    first.map(end);
                    let (step, errno) = match answer {
                        None => (NamespaceStep::Wait, Errno::ETIMEDOUT),
                        Some(_) => (NamespaceStep::Survive, Errno::ESRCH),
                    };
                    Err(refused(step)(errno.into()))
                }
            }
        }
        Fork::Child => {
            drop(ours);
            Ok(NamespaceFork::First(go_between(&theirs)))
        }
    }
}

/// Waits for the answer of the new processes, and continues them if they are stopped. Returns it and the pid of the first
/// process, if that is known: no answer if they took too long, [`Message::Forked`] if they are gone.
fn follow(from: &Channel, between: Pid) -> (Option<Message>, Option<Pid>) {
    let (until, mut first) = (Instant::now() + PATIENCE, None);
    while Instant::now() < until {
        if !readable(from, Some(CONTINUED)) {
            for pid in [Some(between), first].into_iter().flatten() {
                let _ = kill(pid, libc::SIGCONT);
            }
            continue;
        }
        match from.receive().ok().flatten().and_then(|(bytes, _)| Message::decode(&bytes)) {
            Some(Message::Forked { pid }) => first = Some(pid),
            Some(answer) => return (Some(answer), first),
            None => return (Some(Message::Forked { pid: 0 }), first),
        }
    }
    (None, first)
}

fn refused(step: NamespaceStep) -> impl Fn(io::Error) -> NamespaceRefusal {
    move |error| NamespaceRefusal { step, error }
}

/// Makes the namespace and forks its first process; returns in that.
fn go_between(to: &Channel) -> Inside {
    let report = |refusal: &NamespaceRefusal, pid: Pid| {
        let errno = refusal.error.raw_os_error().unwrap_or(libc::EIO);
        let _ = to.send(&Message::Refused { step: refusal.step, errno, pid }.encode(), &[]);
    };
    let entered = enter().and_then(|entered| Ok((entered, fork().map_err(refused(NamespaceStep::Fork))?)));
    let (proc, is_other_user) = match entered {
        Ok((entered, Fork::Child)) => entered,
        Ok((_, Fork::Parent(pid))) => {
            let _ = to.send(&Message::Forked { pid }.encode(), &[]);
            exit_now(0)
        }
        Err(refusal) => {
            report(&refusal, 0);
            exit_now(1)
        }
    };
    // As the `/proc` of the outside numbers this process.
    let pid = readlinkat(&proc, c"self").ok().and_then(|pid| pid.to_str()?.parse().ok()).unwrap_or(0);
    match settle(is_other_user) {
        Ok(()) if pid != 0 => {
            // The forking process has given it up, and does its work in another way.
            if to.send(&Message::Ready { pid }.encode(), &[]).is_err() {
                exit_now(1)
            }
            Inside { pid, proc }
        }
        result => {
            let none = || refused(NamespaceStep::MountProc)(Errno::ESRCH.into());
            report(&result.err().unwrap_or_else(none), pid);
            exit_now(1)
        }
    }
}

/// `unshare(CLONE_NEWPID | CLONE_NEWNS)`, with `CLONE_NEWUSER` if that is not permitted. Returns the `/proc` from before,
/// and whether there is a user namespace.
fn enter() -> Result<(OwnedFd, bool), NamespaceRefusal> {
    let proc = open_directory(Path::new("/proc")).map_err(refused(NamespaceStep::MountProc))?;
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let is_other_user = match unshare(libc::CLONE_NEWPID | libc::CLONE_NEWNS) {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS)
                .map_err(refused(NamespaceStep::Unshare))?;
            true
        }
        Err(error) => return Err(refused(NamespaceStep::Unshare)(error)),
    };
    if is_other_user {
        // Without this the group may not be mapped (user_namespaces(7)).
        let maps = [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{user} {user} 1")),
            ("gid_map", format!("{group} {group} 1")),
        ];
        for (file, map) in maps {
            fs::write(format!("/proc/self/{file}"), map).map_err(refused(NamespaceStep::MapUser))?;
        }
    }
    // Not private: what is mounted on the machine arrives, and what is mounted here does not leave.
    mount(None, c"/", libc::MS_SLAVE | libc::MS_REC).map_err(refused(NamespaceStep::SeparateMounts))?;
    Ok((proc, is_other_user))
}

/// Mounts the `/proc` of the namespace, and gives up the capabilities of a user namespace.
fn settle(is_other_user: bool) -> Result<(), NamespaceRefusal> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(c"proc"), c"/proc", flags).map_err(refused(NamespaceStep::MountProc))?;
    if is_other_user && !nix::unistd::geteuid().is_root() {
        drop_capabilities().map_err(refused(NamespaceStep::MapUser))?;
    }
    Ok(())
}

/// `unshare(CLONE_NEWNS)` — what the calling process and its descendants mount or unmount from here on is theirs alone. Has no
/// effect where mounts are not permitted either.
pub(crate) fn separate_mounts() {
    let _ = unshare(libc::CLONE_NEWNS);
}

fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: the process has one thread, and shares nothing that this would take from another.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// `mount(kind, at, kind, flags, NULL)`.
fn mount(kind: Option<&CStr>, at: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let kind = kind.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the names are NUL-terminated or null, and no data is given.
    check(unsafe { libc::mount(kind, at.as_ptr(), kind, flags, ptr::null()) }).map(drop)
}

/// `capset(..)` — gives up all capabilities: an ordinary user has them in its own user namespace, so that a test could read
/// its files whatever their modes.
fn drop_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`, with two words for each of three sets (include/uapi/linux/capability.h).
    const VERSION: u32 = 0x2008_0522;
    let (header, none) = ([VERSION, 0], [0_u32; 6]);
    // SAFETY: the kernel reads a header of two words and, for this version, six words of sets.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    check(result as c_int).map(drop)
}
