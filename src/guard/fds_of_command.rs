//! Which fds a command's program had left open when it ended.

use std::collections::HashSet;

use nix::libc;

use super::report_page::{HeldBy, StrayFd};
use crate::config::policy::Fds;
use crate::proc::fds::pipe_of;
use crate::recorder::call_site::ResourceKind;
use crate::recorder::program_log::ProgramLog;

/// The pipes and sockets that the command's own program has made, as its log has it, and that were open when it ended.
/// What it was given was made by another.
pub(super) fn strays(log: &ProgramLog, fds: Fds) -> Vec<StrayFd> {
    let made: HashSet<u64> = log
        .calls()
        .into_iter()
        .flat_map(|call| call.site.keys.into_iter().filter(move |_| call.site.kind == ResourceKind::Fds))
        .collect();
    let counts = |target: &str| match fds {
        Fds::Off => false,
        Fds::Pipes => pipe_of(target).is_some(),
        Fds::All => pipe_of(target).is_some() || target.starts_with("socket:["),
    };
    let open = log.open_fds().into_iter();
    let own = open.filter(|fd| fd.program == 0 && counts(&fd.target) && made.contains(&fd.ino));
    own.map(|fd| StrayFd {
        fd: fd.fd,
        target: fd.target,
        ino: fd.ino,
        key: fd.ino,
        access: fd.flags & (libc::O_ACCMODE | libc::O_PATH),
        cloexec: fd.cloexec,
        held_by: HeldBy::Table,
    })
    .collect()
}
