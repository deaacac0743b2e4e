//! The calls that created what a test left behind: as recorded, and with their lines of code.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::proc::maps::Address;
use crate::recorder::awaited::Awaited;
use crate::sys::wire::{wire_enum, wire_struct};

/// The function through which libtest calls a test.
pub(crate) const RUNS_TEST: &str = "test::__rust_begin_short_backtrace";

/// Whether a file belongs to a package of the system, such as the shell of a script, or is the recorder: not the user's to
/// build.
#[cfg(feature = "sites")]
pub(super) fn is_installed(module: &str) -> bool {
    const ROOTS: [&str; 9] =
        ["/bin/", "/sbin/", "/usr/", "/lib/", "/lib64/", "/opt/", "/snap/", "/nix/store/", "/gnu/store/"];
    // Images of containers have projects in `/usr/src` and `/opt`.
    let is_of_project = module.starts_with("/usr/src/") || module.contains("/target/");
    ROOTS.iter().any(|root| module.starts_with(root)) && !is_of_project
        || module.ends_with("/libchildproof_recorder.so")
}

wire_enum! {
    /// What a recorded call creates.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum ResourceKind {
        Fds,
        Process,
        /// Nothing: the call ends its own process.
        End,
    }
}

wire_struct! {
    /// A call that created a process or a pair of fds, or that ended its own process.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct CallSite {
        /// The function: `pipe2`, `fork`, `posix_spawnp`, `exit`.
        pub(crate) call: String,
        pub(crate) kind: ResourceKind,
        /// The pid of the calling process.
        pub(crate) creator: i32,
        /// Inodes of the fds, or the pid of the process that was created or that ends.
        pub(crate) keys: [u64; 2],
        /// Forks and ends: how many threads the caller had, 0 if unknown.
        pub(crate) threads: u32,
        /// The name of the calling thread; `main` for the first one. Of one test only for forks and ends.
        pub(crate) thread: String,
        /// The number of the test whose thread made the call, in a suite; 0 if none is known.
        pub(crate) test: u32,
        /// Forks: the child has called an `exec`, whether or not it succeeded.
        pub(crate) execed: bool,
        /// Fds: created with close-on-exec, so a program that has them got them on purpose.
        pub(crate) cloexec: bool,
        /// The program that was started, with its arguments; truncated if there was no room.
        pub(crate) command_line: Vec<String>,
        /// The return addresses of the call, innermost first.
        pub(crate) frames: Vec<Address>,
    }
}

#[cfg(feature = "sites")]
impl CallSite {
    /// Whether a frame of it is in a program or library that the user may have built.
    pub(super) fn may_be_of_user(&self) -> bool {
        self.frames.is_empty() || self.frames.iter().any(|frame| !is_installed(&frame.module))
    }
}

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SourceLocation {
    /// The file, as rustc's messages have it: relative to the root of the workspace, or absolute if it lies elsewhere.
    pub(crate) file: String,
    pub(crate) line: u32,
    /// 0 if unknown.
    pub(crate) column: u32,
}

impl fmt::Display for SourceLocation {
    /// `tests/server.rs:31:10`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            0 => write!(f, "{}:{}", self.file, self.line),
            column => write!(f, "{}:{}:{column}", self.file, self.line),
        }
    }
}

/// A recorded call with the line of code that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvedCallSite {
    /// What was called: `pipe2`, `fork`, `posix_spawnp`, `exit`.
    pub(crate) call: String,
    /// The calling process.
    pub(crate) creator: i32,
    /// An inode, or the pid of the process that was created; for an end, the pid and the exit code.
    pub(crate) keys: [u64; 2],
    pub(crate) kind: ResourceKind,
    /// Forks and ends: how many threads the caller had, 0 if unknown.
    pub(crate) threads: u32,
    /// Forks and ends: the name of the calling thread; `main` for the first one.
    pub(crate) thread: String,
    /// The number of the test whose thread made the call, in a suite; 0 if none is known.
    pub(crate) test: u32,
    /// Forks: the child has called an `exec`, whether or not it succeeded.
    pub(crate) execed: bool,
    /// Fds: created with close-on-exec.
    pub(crate) cloexec: bool,
    /// The program that was started, with its arguments.
    pub(crate) command_line: Vec<String>,
    /// `None` if there is no debug information.
    pub(crate) place: Option<SourceLocation>,
    /// The function of that place.
    pub(crate) function: Option<String>,
    /// Its callers: the user's own frames with their places, innermost first.
    pub(crate) callers: Vec<String>,
    /// Where the test of libtest's is that the call was made below.
    pub(crate) in_test: Option<SourceLocation>,
    /// Every function of the stack, innermost first.
    pub(crate) functions: Vec<String>,
    /// Created by an async runtime for its own use.
    pub(crate) of_runtime: bool,
    /// The runtime keeps it open until the process ends.
    pub(crate) is_kept: bool,
    /// A process that `tokio::process` started.
    pub(crate) is_tokios: bool,
    /// The whole stack, if `CHILDPROOF_BACKTRACE=full` is set.
    pub(crate) stack: Vec<String>,
}

impl ResolvedCallSite {
    /// What the call did to the file that it returned an fd of.
    pub(crate) fn verb(&self) -> &'static str {
        match self.call.as_str() {
            "open" | "openat" | "openat2" | "creat" | "fopen" | "opendir" | "posix_openpt" | "openpty"
            | "shm_open" => "opened",
            _ => "created",
        }
    }
}

/// The names of all addresses of one test: of recorded calls and of stacks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// The calls that created what was left.
    pub(crate) call_sites: Vec<ResolvedCallSite>,
    /// Whether stacks are complete (`CHILDPROOF_BACKTRACE=full`).
    pub(crate) full: bool,
    /// Whether the test binary has no line information for the user's code.
    pub(crate) lineless: bool,
    /// Whether that is because it is compressed.
    pub(crate) compressed: bool,
    /// Whether the program is a libtest binary, whose threads are named after tests.
    pub(crate) is_libtest: bool,
    /// The frames of each thread, innermost first.
    pub(crate) stacks: HashMap<i32, Vec<String>>,
    /// The functions of each thread that is below libtest, innermost first.
    pub(crate) functions: HashMap<i32, Vec<String>>,
    /// The line of the user's own code that each thread is in.
    pub(crate) lines: HashMap<i32, SourceLocation>,
    /// For each thread that is in other code: the function of it that the user's code called.
    pub(crate) called: HashMap<i32, String>,
    /// The static that each thread's futex lies in.
    pub(crate) locks: HashMap<i32, String>,
    /// What each thread's futex is, if the stack shows it.
    pub(crate) awaited: HashMap<i32, Awaited>,
    /// The threads that wait for work of an async runtime.
    pub(crate) in_runtime: HashSet<i32>,
    /// The threads that are in the code of a task, so that their runtime runs nothing else on them.
    pub(crate) in_task: HashSet<i32>,
}

impl Names {
    /// The call that created the process `pid`.
    pub(crate) fn of_process(&self, pid: i32) -> Option<&ResolvedCallSite> {
        let mut sites = self.call_sites.iter().rev();
        sites.find(|site| site.kind == ResourceKind::Process && site.keys[0] == pid as u64)
    }

    /// The call that created the pipe or socket with this inode. The last one, since the kernel reuses
    /// inodes.
    pub(crate) fn of_inode(&self, inode: u64) -> Option<&ResolvedCallSite> {
        let mut sites = self.call_sites.iter().rev();
        sites.find(|site| site.kind == ResourceKind::Fds && site.keys.contains(&inode))
    }

    /// The call that created an fd with this key, as [`creation_key`](crate::proc::fds::creation_key) gives it; 0 stands for
    /// none.
    pub(crate) fn of_fd(&self, key: u64) -> Option<&ResolvedCallSite> {
        self.of_inode(key).filter(|_| key != 0)
    }

    /// The call that opened a file with a path: the first of these keys that is known.
    pub(crate) fn of_open(&self, keys: &[u64]) -> Option<&ResolvedCallSite> {
        // A file may have been closed and opened again: then no line is certain.
        let of = |key: &u64| {
            let site = self.of_fd(*key)?;
            let mut all = self.call_sites.iter().filter(|other| other.keys.contains(key));
            all.all(|other| other.place == site.place).then_some(site)
        };
        keys.iter().find_map(of)
    }

    /// Whether a runtime created a socket for itself.
    pub(crate) fn is_of_runtime(&self, inode: u64) -> bool {
        self.of_inode(inode).is_some_and(|site| site.of_runtime)
    }
}
