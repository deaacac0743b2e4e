//! What a supervisor saw of one test, as it sends it to the harness. Facts only: what they mean
//! is concluded in `diagnosis`.

use std::time::Duration;

use crate::outcome::{Body, End, Running, StrayFd};
use crate::proc::fds::Fd;
use crate::proc::maps::Address;
use crate::proc::sockets::Socket;
use crate::proc::waits::Thread;
use crate::wire::{wire_enum, wire_struct};

wire_enum! {
    /// What became of a descendant that the test did not take down itself.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Class {
        /// Alive after the grace, or at the timeout. Killed.
        Leaked,
        /// Alive at the end of the body, and gone by itself within the grace.
        Straggler,
        /// Dead at the end of the body, and never waited for: a zombie.
        Unwaited,
    }
}

wire_struct! {
    /// One process that was there at the end of a test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Process {
        pub(crate) pid: i32,
        pub(crate) class: Class,
        /// The ancestors up to the test process, nearest first, as far as they were seen.
        pub(crate) lineage: Vec<i32>,
        /// Its parent when it was last looked at, be it the supervisor.
        pub(crate) parent: i32,
        /// Its children that have ended and were not waited for.
        pub(crate) dead_children: Vec<i32>,
        /// Whether its parent exited before it did.
        pub(crate) adopted: bool,
        pub(crate) is_test: bool,
        pub(crate) comm: String,
        /// Empty for a zombie.
        pub(crate) command_line: Vec<String>,
        pub(crate) state: String,
        pub(crate) pgid: i32,
        pub(crate) sid: i32,
        pub(crate) threads: u32,
        /// A fork of the test that has not called exec since: it runs the test's own program.
        pub(crate) forked_without_exec: bool,
        pub(crate) age: Option<Duration>,
        /// Its threads, the first one first. Only of a process that was killed.
        pub(crate) tasks: Vec<Thread>,
        /// The test's pipes that it holds, its sockets if they matter, and whatever a thread of it
        /// waits on; `None` if they may not be read.
        pub(crate) fds: Option<Vec<Fd>>,
        /// What might wake it and is seen nowhere else, in words: `it has timers`.
        pub(crate) holes: Vec<String>,
        /// What it may hold that is not in its table, in words: `it uses io_uring`.
        pub(crate) hidden: Vec<String>,
        /// Whether it has, or may have, sockets that are not in `fds`.
        pub(crate) more_sockets: bool,
        pub(crate) killed: bool,
    }
}

impl Process {
    /// Whether it runs the test's own program: it is the test process, or a fork that has not called exec.
    pub(crate) fn runs_own_program(&self) -> bool {
        self.is_test || self.forked_without_exec
    }

    /// Its fds, as far as they may be read.
    pub(crate) fn known_fds(&self) -> &[Fd] {
        self.fds.as_deref().unwrap_or_default()
    }

    /// One of its fds, by its number: that is how they are sorted.
    pub(crate) fn fd(&self, fd: i32) -> Option<&Fd> {
        let fds = self.known_fds();
        fds.get(fds.binary_search_by_key(&fd, |known| known.fd).ok()?)
    }

    /// The pipe behind one of its fds.
    pub(crate) fn pipe(&self, fd: i32) -> Option<u64> {
        self.fd(fd)?.pipe()
    }
}

wire_struct! {
    /// A pipe at one moment, as the kernel tells it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct PipeState {
        pub(crate) ino: u64,
        /// Bytes that wait to be read, and how many there is room for in all.
        pub(crate) queued: Option<u32>,
        pub(crate) capacity: Option<u32>,
        /// Nobody has a write end: the read end is at end-of-file.
        pub(crate) no_writer: bool,
        /// Nobody has a read end: writing fails with EPIPE.
        pub(crate) no_reader: bool,
    }
}

impl PipeState {
    /// `65536 of 65536 bytes queued`.
    pub(crate) fn queue(&self) -> Option<String> {
        Some(format!("{} of {} bytes queued", self.queued?, self.capacity?))
    }
}

wire_struct! {
    /// A process outside of the test's tree that holds one of its pipes or sockets.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Outsider {
        pub(crate) pid: i32,
        pub(crate) comm: String,
        pub(crate) fds: Vec<Fd>,
    }
}

wire_struct! {
    /// What one look over every other process of the machine brought.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Outside {
        pub(crate) holders: Vec<Outsider>,
        pub(crate) read: u32,
        /// Processes whose fds may not be read.
        pub(crate) unreadable: u32,
        /// `/proc` does not show the processes of other users at all (`hidepid`, proc(5)).
        pub(crate) hides: bool,
        /// A process of the test came between two looks.
        pub(crate) came: bool,
        /// An end of a pipe or a socket came to a process of the test between two looks.
        pub(crate) moved: bool,
    }
}

wire_struct! {
    /// A process that could not be killed, and why.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Survivor {
        pub(crate) pid: i32,
        pub(crate) name: String,
        pub(crate) why: String,
    }
}

wire_enum! {
    /// What a recorded call is for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Makes {
        Fds,
        Process,
        /// The end of the process that calls.
        End,
    }
}

wire_struct! {
    /// A call that made a process or a pair of fds.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Site {
        /// The function: `pipe2`, `fork`, `posix_spawnp`, `exit`.
        pub(crate) call: String,
        pub(crate) makes: Makes,
        /// The pid of the process that called it.
        pub(crate) maker: i32,
        /// Inodes of the fds, or the pid of the process that was made, or that is at its end.
        pub(crate) keys: [u64; 2],
        /// Of a fork or an end: how many threads the caller had, 0 if that is not known.
        pub(crate) threads: u32,
        /// Of a fork or an end: the name of the thread that called; `main` for the first one.
        pub(crate) thread: String,
        /// Of a fork: the child has called an `exec`, whatever came of it.
        pub(crate) execed: bool,
        /// Of fds: they were made with close-on-exec, so that whoever has them after an exec was to.
        pub(crate) cloexec: bool,
        /// The program that was started, with its arguments, as far as there was room for them.
        pub(crate) command_line: Vec<String>,
        /// The return addresses of the call, the innermost first.
        pub(crate) frames: Vec<Address>,
    }
}

wire_struct! {
    /// Everything a supervisor tells of one test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Facts {
        pub(crate) pid: i32,
        /// The session that the test was started in: the supervisor's. 0 if there was none.
        pub(crate) session: i32,
        pub(crate) body: Body,
        pub(crate) body_time: Option<Duration>,
        pub(crate) end: End,
        /// From the request to the end of the test process, or of its time.
        pub(crate) ran: Duration,
        /// From the request to the verdict.
        pub(crate) time: Duration,
        pub(crate) processes: Vec<Process>,
        /// There was a descendant after the grace, and no look could catch it.
        pub(crate) unseen: bool,
        /// The body came back, and its process ended before it was written down what was left.
        pub(crate) unchecked: bool,
        /// More calls were made than are recorded, and something is left.
        pub(crate) unrecorded: bool,
        pub(crate) strays: Vec<StrayFd>,
        /// More than `strays` lists when there were too many to keep.
        pub(crate) stray_count: u32,
        pub(crate) threads: u32,
        /// Some of them.
        pub(crate) running: Vec<Running>,
        pub(crate) returned_children: u32,
        /// One of them.
        pub(crate) returned_child: Option<i32>,
        pub(crate) survivors: Vec<Survivor>,
        /// The inodes of pipes that were there before the test.
        pub(crate) foreign: Vec<u64>,
        /// The pipes that matter here.
        pub(crate) pipes: Vec<PipeState>,
        /// The sockets of what was left, if a thread waits on one.
        pub(crate) sockets: Vec<Socket>,
        pub(crate) outside: Outside,
        /// Who made what was left.
        pub(crate) sites: Vec<Site>,
        /// What could not be read or cleaned, in words.
        pub(crate) notes: Vec<String>,
    }
}

wire_enum! {
    /// Facts as they are sent: of a clean test only what differs from another's.
    pub(crate) enum Answer {
        /// There is more to come, and it is no clean test's: what was left is looked at now.
        Looking {},
        /// The test has not begun, and may be given to another supervisor.
        NotBegun { why: String },
        Clean { pid: i32, session: i32, body_time: Option<Duration>, time: Duration },
        Other { facts: Box<Facts> },
    }
}

impl Answer {
    pub(crate) fn of(facts: Box<Facts>) -> Answer {
        let Facts { pid, session, body_time, time, .. } = *facts;
        if facts.are_clean() {
            Answer::Clean { pid, session, body_time, time }
        } else {
            Answer::Other { facts }
        }
    }
}

impl Facts {
    /// Every thread that was looked at, with its process.
    ///
    /// Boxed, as is what `holders` is asked with: in a debug build each use would compile all of it anew.
    pub(crate) fn tasks(&self) -> Box<dyn Iterator<Item = (&Process, &Thread)> + '_> {
        let of_all = self.processes.iter();
        Box::new(of_all.flat_map(|process| process.tasks.iter().map(move |thread| (process, thread))))
    }

    /// How full a pipe is, in brackets and behind a space; empty if that is not known.
    pub(crate) fn queue_of(&self, pipe: u64) -> String {
        let queue = self.pipe(pipe).and_then(PipeState::queue);
        queue.map_or_else(String::new, |queue| format!(" ({queue})"))
    }

    /// Whether the body passed, the process returned, and nothing at all was left: what nearly every
    /// test comes to, and nothing can be concluded from.
    pub(crate) fn are_clean(&self) -> bool {
        self.body.has_passed()
            && self.end == (End::Exited { code: 0 })
            && self.threads == 0
            && self.returned_children == 0
            && !self.unseen
            && !self.unchecked
            && self.processes.is_empty()
            && self.stray_count == 0
            && self.survivors.is_empty()
            && self.sites.is_empty()
            && self.notes.is_empty()
    }

    /// Everybody who has such an fd: the pid, the fd, and the name of one that is not of the test.
    pub(crate) fn holders(&self, is: &dyn Fn(&Fd) -> bool) -> Vec<(i32, &Fd, Option<&str>)> {
        let inside = self
            .processes
            .iter()
            .flat_map(|process| process.known_fds().iter().map(move |fd| (process.pid, fd, None)));
        let outside = self.outside.holders.iter().flat_map(|outsider| {
            outsider.fds.iter().map(move |fd| (outsider.pid, fd, Some(outsider.comm.as_str())))
        });
        inside.chain(outside).filter(|(_, fd, _)| is(fd)).collect()
    }

    /// The state of a pipe, if the kernel told it.
    pub(crate) fn pipe(&self, ino: u64) -> Option<&PipeState> {
        self.pipes.iter().find(|state| state.ino == ino)
    }

    /// What is known of a socket.
    pub(crate) fn socket(&self, ino: u64) -> Option<&Socket> {
        self.sockets.iter().find(|socket| socket.ino == ino)
    }

    /// Facts of a test that passed and left nothing.
    pub(crate) fn clean(pid: i32, session: i32, body_time: Option<Duration>, time: Duration) -> Facts {
        Facts {
            pid,
            session,
            body: Body::Passed,
            body_time,
            end: End::Exited { code: 0 },
            time,
            ..Facts::lost(String::new())
        }
    }

    /// Facts of a test that could not be run or followed.
    pub(crate) fn lost(why: String) -> Facts {
        Facts {
            pid: 0,
            session: 0,
            body: Body::Unfinished,
            body_time: None,
            end: End::Lost { why },
            ran: Duration::ZERO,
            time: Duration::ZERO,
            processes: Vec::new(),
            unseen: false,
            unchecked: false,
            unrecorded: false,
            strays: Vec::new(),
            stray_count: 0,
            threads: 0,
            running: Vec::new(),
            returned_children: 0,
            returned_child: None,
            survivors: Vec::new(),
            foreign: Vec::new(),
            pipes: Vec::new(),
            sockets: Vec::new(),
            outside: Outside::default(),
            sites: Vec::new(),
            notes: Vec::new(),
        }
    }
}
