//! The mounts of this process's namespace: `/proc/self/mountinfo`.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys;

pub(crate) const PROC_PATH: &str = "/proc";

/// The id of the mount at `/proc`: the one before the first test, or one that was mounted since then and shows the same
/// processes. 0 before Linux 5.8.
static PROC: AtomicU64 = AtomicU64::new(0);

/// Records what is mounted at `/proc`.
pub(crate) fn remember_proc() {
    PROC.store(sys::mount_at_proc().ok().flatten().unwrap_or(0), Ordering::Relaxed);
}

/// Detaches what was mounted over `/proc` and does not show the processes of this PID namespace: they could not be found
/// with it. Returns whether there was such a mount. What does show them is left, whichever process has mounted it.
///
/// A test that mounts the `/proc` of its own PID namespace, and is not in a mount namespace of its own, does that to
/// all processes of the machine. So does any other process of the machine: which one it was cannot be known.
pub(crate) fn uncover_proc() -> bool {
    let known = PROC.load(Ordering::Relaxed);
    if known == 0 || sys::mount_at_proc().is_ok_and(|mount| mount == Some(known)) {
        return false;
    }
    let found = sys::uncover_proc(known);
    if let Some(mount) = found.mount {
        PROC.store(mount, Ordering::Relaxed);
    }
    found.detached > 0
}

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    /// The device number, such as `8:1`.
    device: String,
    /// The directory or file within the file system that is mounted.
    root: String,
    /// Where it is mounted.
    pub(crate) at: String,
    /// The file system type: `ext4`, `tmpfs`.
    kind: String,
    source: String,
}

impl Mount {
    /// Every mount in this process's namespace.
    pub(crate) fn all() -> Vec<Mount> {
        let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(Mount::parse).collect()
    }

    fn parse(line: &str) -> Option<Mount> {
        let (first, last) = line.split_once(" - ")?;
        let mut first = first.split(' ');
        let id = first.next()?.parse().ok()?;
        let mut first = first.skip(1).map(unescaped);
        let mut last = last.split(' ').map(unescaped);
        Some(Mount {
            id,
            device: first.next()?,
            root: first.next()?,
            at: first.next()?,
            kind: last.next()?,
            source: last.next()?,
        })
    }

    /// The source of a mount: a path if the same directory or file is also mounted elsewhere, else the device
    /// or name that the kernel prints.
    pub(crate) fn what(&self, all: &[Mount]) -> String {
        if self.root == "/" {
            return if self.source == self.kind {
                self.kind.clone()
            } else {
                format!("{} ({})", self.source, self.kind)
            };
        }
        let others = all.iter().filter(|other| other.id != self.id && other.device == self.device);
        let seen = others.filter_map(|other| {
            let below = self.root.strip_prefix(other.root.trim_end_matches('/'))?;
            (below.is_empty() || below.starts_with('/'))
                .then(|| (other, format!("{}{below}", other.at.trim_end_matches('/'))))
        });
        // Prefer the mount that shows most of the file system: its path is the usual one.
        match seen.min_by_key(|(other, _)| other.root.len()) {
            Some((_, path)) => path,
            None => format!("{} of {} ({})", self.root, self.source, self.kind),
        }
    }
}

/// Decodes spaces, tabs, line ends and backslashes, which are written as `\` and three octal digits.
fn unescaped(word: &str) -> String {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                bytes.push(escaped);
                rest = &behind[3..];
            }
            _ => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 4] = [
        "22 1 254:0 / / rw,noatime - ext4 /dev/root rw",
        "25 22 254:0 /home/a\\040b/precious /tmp/x rw,noatime shared:3 master:1 - ext4 /dev/root rw",
        "26 22 0:31 / /tmp/t rw - tmpfs tmpfs rw,size=1k",
        "27 22 8:1 /sub /tmp/y rw - btrfs /dev/sda1 rw",
    ];

    #[test]
    fn a_mount_has_a_place_and_a_source() {
        let all: Vec<Mount> = LINES.iter().filter_map(|line| Mount::parse(line)).collect();
        let found: Vec<_> = all.iter().map(|mount| (mount.id, mount.at.clone(), mount.what(&all))).collect();
        let expected = [
            (22, "/", "/dev/root (ext4)"),
            (25, "/tmp/x", "/home/a b/precious"),
            (26, "/tmp/t", "tmpfs"),
            (27, "/tmp/y", "/sub of /dev/sda1 (btrfs)"),
        ];
        assert_eq!(found, expected.map(|(id, at, what)| (id, at.to_owned(), what.to_owned())));
    }

    #[test]
    fn what_is_no_line_is_none() {
        for line in ["", "22", "x 1 254:0 / / rw - ext4 a rw", "22 1 254:0 / / rw", "22 1 254:0 / - ext4"] {
            assert_eq!(Mount::parse(line), None, "{line:?}");
        }
        assert_eq!(unescaped("a\\011b\\134c\\0"), "a\tb\\c\\0");
    }
}
