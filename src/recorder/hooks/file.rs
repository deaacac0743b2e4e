//! The layout of the log file through which a program that was started with the recorder reports to the tool.
//!
//! The tool creates the file with the size of a [`File`] and its [`Header`]; everything else is zero. The
//! program checks the header, maps the file shared, and writes: itself ([`Program`]), the files that its code
//! is mapped from ([`Mapping`]), its calls ([`Log`]), and the fds that are open at its end ([`OpenFd`]). All
//! processes append to the same tables; rows that find no room are dropped and counted. Strings lie in one
//! shared store.
//!
//! Numbers have native byte order: a log is read on the machine that wrote it. Every byte value is valid at
//! every position; the reader checks positions and lengths ([`Text::get`]) and codes
//! ([`super::log::Call::of`]). A change to this file or to [`Log`] needs a new [`VERSION`].

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::log::Log;

/// The characters `childprf`.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"childprf");
pub(crate) const VERSION: u32 = 2;
/// The environment variable with the path of the file.
pub(crate) const LOG_VARIABLE: &str = "CHILDPROOF_RECORDER_LOG";
/// The environment variable which, set to `tree`, also records the programs that the program starts.
pub(crate) const RECORD_VARIABLE: &str = "CHILDPROOF_RECORD";
/// The file name of the library.
pub(crate) const LIBRARY: &str = "libchildproof_recorder.so";

#[repr(C)]
pub(crate) struct File {
    pub(crate) header: Header,
    pub(crate) programs: Table<Program, 256>,
    pub(crate) mappings: Table<Mapping, 4096>,
    pub(crate) open: Table<OpenFd, 1024>,
    pub(crate) texts: Texts,
    pub(crate) log: Log,
}

#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU32,
    pub(crate) reserved: AtomicU32,
    /// The size of a [`File`] in bytes.
    pub(crate) size: AtomicU64,
}

/// Rows that are taken in order.
#[repr(C)]
pub(crate) struct Table<T, const SIZE: usize> {
    /// How many rows were asked for, including those that found no room.
    pub(crate) taken: AtomicU64,
    pub(crate) rows: [T; SIZE],
}

/// A program in a process: from its start to its end, or to an exec.
#[repr(C)]
pub(crate) struct Program {
    /// 0 while the row is being written. See [`State`].
    pub(crate) state: AtomicU32,
    pub(crate) pid: AtomicU32,
    pub(crate) parent: AtomicU32,
    /// The call that ended the program, as in [`super::log::Entry`]; 0 if there was none, or `main` returned.
    pub(crate) end: AtomicU32,
    /// How many fds and how many threads it had at its end.
    pub(crate) open: AtomicU32,
    pub(crate) threads: AtomicU32,
    /// The path of its executable.
    pub(crate) path: Text,
}

/// The state of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// It is running, or was killed.
    Started = 1,
    /// It ended by itself, and its open fds are in the table.
    Ended = 2,
    /// It called an exec, or `daemon`.
    WentOn = 3,
}

/// A part of a file that a process has mapped for execution.
#[repr(C)]
pub(crate) struct Mapping {
    /// Index of the program plus one; 0 while the row is being written.
    pub(crate) program: AtomicU32,
    /// The process that recorded the mapping. Its forks have it too.
    pub(crate) pid: AtomicU32,
    pub(crate) start: AtomicU64,
    pub(crate) end: AtomicU64,
    /// The file offset that is mapped at `start`.
    pub(crate) offset: AtomicU64,
    /// The address of the file's first mapping.
    pub(crate) base: AtomicU64,
    /// Empty for anonymous memory.
    pub(crate) path: Text,
    /// The length of the build id, and its bytes.
    pub(crate) build_id_length: AtomicU32,
    pub(crate) build_id: [AtomicU8; 20],
}

/// An fd that was open at the end of a program.
#[repr(C)]
pub(crate) struct OpenFd {
    /// Index of the program plus one; 0 while the row is being written.
    pub(crate) program: AtomicU32,
    pub(crate) fd: AtomicU32,
    /// `st_mode`, `st_dev` and `st_ino`.
    pub(crate) mode: AtomicU32,
    /// `O_ACCMODE` and whatever else of `F_GETFL`.
    pub(crate) flags: AtomicU32,
    pub(crate) cloexec: AtomicU32,
    pub(crate) dev: AtomicU64,
    pub(crate) ino: AtomicU64,
    /// The target of the link in /proc/self/fd: `pipe:[12]`, `anon_inode:[eventfd]`, a path.
    pub(crate) target: Text,
}

/// A string in the store.
#[repr(C)]
pub(crate) struct Text {
    pub(crate) at: AtomicU32,
    pub(crate) length: AtomicU32,
}

#[repr(C)]
pub(crate) struct Texts {
    /// How many bytes were asked for, including those that found no room.
    pub(crate) taken: AtomicU64,
    pub(crate) bytes: [AtomicU8; 1 << 18],
}

impl Header {
    /// Whether the header is the one of this version.
    pub(crate) fn is_known(&self) -> bool {
        self.magic.load(Ordering::Acquire) == MAGIC
            && self.version.load(Ordering::Relaxed) == VERSION
            && self.size.load(Ordering::Relaxed) == size_of::<File>() as u64
    }
}

/// The tool's side of the file.
#[cfg(feature = "__engine")]
mod tool {
    use std::alloc::{Layout, alloc, handle_alloc_error};

    use super::{File, MAGIC, VERSION};

    impl File {
        /// The first bytes of an empty log; the rest is zeroes.
        pub(crate) fn beginning() -> [u8; 24] {
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
            bytes[8..12].copy_from_slice(&VERSION.to_ne_bytes());
            bytes[16..].copy_from_slice(&(size_of::<File>() as u64).to_ne_bytes());
            bytes
        }

        /// Copies a log out of `bytes`. `None` if there are too few of them.
        pub(crate) fn copy(bytes: &[u8]) -> Option<Box<File>> {
            if bytes.len() != size_of::<File>() {
                return None;
            }
            let layout = Layout::new::<File>();
            // SAFETY: the type has a size.
            let memory = unsafe { alloc(layout) };
            if memory.is_null() {
                handle_alloc_error(layout);
            }
            // SAFETY: both have that many bytes, and the second is new.
            unsafe { memory.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            // SAFETY: allocated for the type, and every value of every byte is a valid one of it.
            Some(unsafe { Box::from_raw(memory.cast()) })
        }
    }
}
