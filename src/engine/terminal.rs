//! The terminal of a command: a shell with job control makes its own process group the foreground one, and takes that back
//! when it ends. If it is killed, the terminal would belong to a group without processes, and what started the guard could not
//! read from it (EIO).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::killpg;
use nix::unistd;

use crate::sys::{self, Pid};

/// Which process group had the terminal before a command was started. On drop it has it again, if the one that has it by
/// then is gone.
pub(super) struct Foreground {
    group: Pid,
}

impl Foreground {
    /// Reads which group it is; `None` if there is no terminal.
    pub(super) fn read() -> Option<Foreground> {
        sys::foreground_group(&terminal()?).map(|group| Foreground { group })
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let Some(terminal) = terminal() else { return };
        let is_gone = |group| killpg(unistd::Pid::from_raw(group), None) == Err(Errno::ESRCH);
        if sys::foreground_group(&terminal).is_some_and(|group| group != self.group && is_gone(group)) {
            // SIGTTOU is blocked, so that this process may do it in the background. If the group has ended too, it fails.
            let _ = sys::set_foreground_group(&terminal, self.group);
        }
    }
}

/// The controlling terminal of this process.
fn terminal() -> Option<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open("/dev/tty").ok()
}
