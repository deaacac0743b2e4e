//! Finds the files that a body has left open, in its own process.
//!
//! Usually that is a number in the process's fd table. A file is also kept open by the private fd table of a
//! thread (unshare(2)), by an fd in flight in a socket (`SCM_RIGHTS`, unix(7)), and by an io_uring instance
//! that it is registered with (io_uring_register(2)).

use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::libc;

use crate::config::policy::Fds;
use crate::guard::report_page::{HeldBy, StrayFd, is_stray};
use crate::proc::fds::{self, URING};
use crate::proc::threads;
use crate::sys::{self, BaselineFds, FdIdentity, Pid};

/// The process's own fd table.
const OWN: &str = "/proc/self";

/// Finds the fds that are open, were not open `before`, and count under the policy.
pub(crate) fn find(before: BaselineFds, counted: Fds, others: &[Pid]) -> Vec<StrayFd> {
    let mut search = Search { before, counted, strays: Vec::new(), seen: Vec::new() };
    // First collect all numbers: looking into a socket opens others for a moment.
    let mut open = Vec::new();
    sys::each_open_fd(|fd| open.push(fd));
    for fd in &open {
        let Some(identity) = sys::fd_identity(*fd).filter(|identity| search.is_new(*fd, identity)) else {
            continue;
        };
        let cloexec = sys::is_cloexec(*fd).unwrap_or(false);
        search.look(OWN, *fd, &identity, &Held { fd: *fd, cloexec, by: HeldBy::Table });
    }
    for tid in others {
        search.look_at_thread(*tid);
    }
    search.strays
}

/// The threads of this process that have, or may have, a private fd table.
pub(crate) fn threads_with_own_table() -> Vec<Pid> {
    let own = std::process::id() as Pid;
    let mut others = threads::list();
    others.retain(|tid| *tid != own && sys::have_same_files(own, *tid) != Some(true));
    others
}

/// How a file is held.
struct Held {
    /// The number of the fd, or of the fd that keeps it open.
    fd: RawFd,
    cloexec: bool,
    by: HeldBy,
}

struct Search {
    before: BaselineFds,
    counted: Fds,
    strays: Vec<StrayFd>,
    /// The sockets that have been searched: a socket may be in flight in itself.
    seen: Vec<u64>,
}

impl Search {
    fn is_new(&self, fd: RawFd, identity: &FdIdentity) -> bool {
        let at = self.before.binary_search_by_key(&fd, |known| known.fd);
        !at.is_ok_and(|at| self.before[at].identity() == *identity)
    }

    /// Checks an fd of the table of `task`, which is [`OWN`] or a thread's, and what it keeps open.
    fn look(&mut self, task: &str, fd: RawFd, identity: &FdIdentity, held: &Held) {
        let link = fs::read_link(format!("{task}/fd/{fd}")).ok();
        let link = link.map(|link| link.to_string_lossy().into_owned());
        // A file that is in no table has no number to compare.
        let number = if matches!(held.by, HeldBy::Message) { -1 } else { fd };
        if is_stray(self.before, number, identity, self.counted)
            && let Some(target) = target(link.as_deref(), identity, self.counted)
        {
            self.add(held, target, identity.ino, identity.access, identity.dev);
        }
        let info = || fs::read_to_string(format!("{task}/fdinfo/{fd}")).unwrap_or_default();
        if identity.kind == libc::S_IFSOCK {
            if !self.seen.contains(&identity.ino) {
                self.seen.push(identity.ino);
                if fds::parse(fd, String::new(), &info()).carries && !self.look_into_socket(task, fd, held) {
                    self.add_opaque(held, link, identity);
                }
            }
        } else if link.as_deref() == Some(URING) {
            match fds::registered(&info()) {
                Some(files) => files.iter().for_each(|file| self.add_registered(file, held)),
                None => self.add_opaque(held, link, identity),
            }
        }
    }

    /// Checks the fds in flight in a socket; returns whether that was possible.
    fn look_into_socket(&mut self, task: &str, fd: RawFd, held: &Held) -> bool {
        let copy = match held.by {
            HeldBy::Thread { tid } if task != OWN => match sys::fd_of_thread(tid, fd) {
                Ok(copy) => Some(copy),
                Err(_) => return false,
            },
            _ => None,
        };
        let socket = copy.as_ref().map_or(fd, AsRawFd::as_raw_fd);
        sys::peek_fds(socket, &mut |sent| {
            let fd = sent.as_raw_fd();
            let held = Held { fd: held.fd, cloexec: true, by: HeldBy::Message };
            if let Some(identity) = sys::fd_identity(fd) {
                self.look(OWN, fd, &identity, &held);
            }
        })
    }

    /// Checks the fd table of a thread.
    fn look_at_thread(&mut self, tid: Pid) {
        let task = format!("/proc/self/task/{tid}");
        let Ok(entries) = fs::read_dir(format!("{task}/fd")) else { return };
        let mut numbers: Vec<RawFd> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        for fd in numbers {
            let Ok(file) = fs::metadata(format!("{task}/fd/{fd}")) else { continue };
            let info = fs::read_to_string(format!("{task}/fdinfo/{fd}")).unwrap_or_default();
            let info = fds::parse(fd, String::new(), &info);
            let kind = file.mode() & libc::S_IFMT;
            let identity = FdIdentity { dev: file.dev(), ino: file.ino(), kind, access: info.access };
            // Where kcmp(2) is forbidden, the table may be the process's own, which was checked before.
            if self.is_new(fd, &identity) && sys::fd_identity(fd) != Some(identity) {
                let held = Held { fd, cloexec: info.cloexec, by: HeldBy::Thread { tid } };
                self.look(&task, fd, &identity, &held);
            }
        }
    }

    /// Adds a file that is registered with an io_uring instance. For a pipe it is unknown which end it is.
    fn add_registered(&mut self, file: &str, held: &Held) {
        let pipe = fds::pipe_of(file);
        let is_pipe = |old: FdIdentity, pipe: u64| old.kind == libc::S_IFIFO && old.ino == pipe;
        let was_there = |pipe: u64| self.before.iter().any(|known| is_pipe(known.identity(), pipe));
        let counts = match self.counted {
            Fds::Off => false,
            Fds::Pipes => pipe.is_some_and(|pipe| !was_there(pipe)),
            Fds::All => !pipe.is_some_and(was_there),
        };
        if counts {
            let held = Held { fd: held.fd, cloexec: held.cloexec, by: HeldBy::Ring };
            self.add(&held, file.to_owned(), pipe.unwrap_or(0), fds::SOME_END, 0);
        }
    }

    /// Adds an fd that keeps files open which cannot be inspected: a pipe may be among them.
    fn add_opaque(&mut self, held: &Held, link: Option<String>, identity: &FdIdentity) {
        let held = Held { fd: held.fd, cloexec: held.cloexec, by: HeldBy::Opaque };
        self.strays.retain(|stray| stray.fd != held.fd || stray.ino != identity.ino);
        let link = link.unwrap_or_else(|| "unreadable".to_owned());
        self.add(&held, link, identity.ino, identity.access, identity.dev);
    }

    fn add(&mut self, held: &Held, target: String, ino: u64, access: i32, dev: u64) {
        let Held { fd, cloexec, ref by } = *held;
        let own = std::process::id() as Pid;
        let number = if *by == HeldBy::Table { fd } else { -1 };
        let key = fds::creation_key(&target, own, number);
        let key = key.unwrap_or_else(|| fds::open_key(own, number, dev, ino));
        let stray = StrayFd { fd, target, ino, key, access, cloexec, held_by: by.clone() };
        // The same file may be in two messages, or be seen twice in a long message.
        let is_sent = matches!(by, HeldBy::Message | HeldBy::Ring);
        if !is_sent || !self.strays.contains(&stray) {
            self.strays.push(stray);
        }
    }
}

/// Follows the path of a named FIFO.
pub(crate) const FIFO: &str = " (FIFO)";

/// The description of an fd as the kernel gives it; `None` if the policy does not cover it.
fn target(link: Option<&str>, identity: &FdIdentity, fds: Fds) -> Option<String> {
    match link {
        // A named FIFO keeps its reader from EOF, as a pipe does.
        Some(link) if identity.kind == libc::S_IFIFO && !link.starts_with("pipe:[") => {
            Some(format!("{link}{FIFO}"))
        }
        Some(link) if fds == Fds::Pipes && !link.starts_with("pipe:[") => None,
        Some(link) => Some(link.to_owned()),
        // The body has changed its root, and there is no /proc.
        None if identity.kind == libc::S_IFIFO => Some(format!("pipe:[{}]", identity.ino)),
        None => Some("unreadable".to_owned()),
    }
}
