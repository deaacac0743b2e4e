//! Turns a fork of a supervisor into a test process.
//!
//! After a fork, each group of 16 pages is mapped at its first use, and each page that is written to is
//! copied. Each of these page faults costs about 2 us, including the clean-up at exit, and every test pays
//! for them. In an unoptimised build the small functions, of this crate and of `core`, are spread over the
//! whole binary. So the guard's part in a test process is a few functions that only make system calls, placed
//! side by side in a section of their own, `childproof_text`. They use no iterator, no `?` on a type of
//! `core`, no method of an atomic or a pointer. Slices are indexed, structs are written out.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::io;
use std::os::fd::RawFd;

use nix::libc;

use super::Pid;
use super::argv::Argv;
use super::baseline::{BaselineFds, SYS_FCNTL, update_baseline};
use super::process::{Fork, check};
use super::signal::Mask;

/// The job of a test process: the words of a message, in native byte order. Sender and receiver are the same
/// program.
pub(crate) type Words = [u64; 4];

/// The data that a fork of a supervisor needs on its way, prepared before the fork.
pub(crate) struct ProcessEntry<'a> {
    supervisor: Pid,
    close: [RawFd; 9],
    job_socket: RawFd,
    mask: &'a Mask,
    argv: usize,
    /// The original argv.
    arguments: *const c_void,
    length: usize,
    comm: *const c_char,
    baseline: BaselineFds,
}

/// `struct user_msghdr` (include/linux/socket.h), the argument of the system call. libc's type has private
/// fields, so it cannot be written out.
#[repr(C)]
struct MessageHeader {
    /// A pointer to an address; null.
    name: usize,
    name_length: c_int,
    parts: *mut libc::iovec,
    part_count: usize,
    control: *mut c_void,
    control_length: usize,
    flags: c_uint,
}

/// `struct cmsghdr` followed by the fds (cmsg(3)).
#[repr(C)]
struct Rights {
    length: usize,
    level: c_int,
    kind: c_int,
    fds: [RawFd; 4],
}

impl<'a> ProcessEntry<'a> {
    /// The fds in `close` are closed at once, except -1; `job_socket` is closed when the job has arrived.
    pub(crate) fn new(
        supervisor: Pid,
        mut close: [RawFd; 9],
        job_socket: RawFd,
        mask: &'a Mask,
        argv: &'a Argv,
        comm: &'a CStr,
        baseline: BaselineFds,
    ) -> ProcessEntry<'a> {
        let original = argv.original();
        let (arguments, length) = (original.as_ptr().cast(), original.len());
        let argv = argv.start();
        // Neighbours are closed by one call.
        close.sort_unstable();
        ProcessEntry {
            supervisor,
            close,
            job_socket,
            mask,
            argv,
            arguments,
            length,
            comm: comm.as_ptr(),
            baseline,
        }
    }

    /// `fork()`. In the child: detaches from the supervisor, waits for a job, and restores the state from
    /// before the harness was started. Ends the process if the supervisor is gone, or there is no job.
    ///
    /// While it waits, the child keeps the supervisor's name and signal mask: it is not a test yet.
    #[unsafe(link_section = "childproof_text")]
    #[inline(never)]
    pub(crate) fn fork(&self, order: &mut Words) -> io::Result<Fork> {
        // SAFETY: a supervisor has one thread, so no lock is held by a thread that the child would lack.
        let pid = unsafe { libc::fork() };
        if pid != 0 {
            return check(pid).map(Fork::Parent);
        }
        self.leave();
        let output = self.receive(order);
        update_baseline(self.baseline, output);
        self.arrive(output);
        Ok(Fork::Child)
    }

    /// Leaves the supervisor. Ends the process if the supervisor is gone.
    #[inline(always)]
    fn leave(&self) {
        // SAFETY: reads no memory of ours.
        unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG as c_long, libc::SIGKILL as c_long) };
        // SAFETY: `getppid` has no preconditions.
        if unsafe { libc::getppid() } != self.supervisor {
            // The supervisor died between the fork and the call above.
            end();
        }
        // SAFETY: reads no memory of ours.
        unsafe { libc::setpgid(0, 0) };
        let mut at = 0;
        while at < self.close.len() {
            let mut next = at + 1;
            while next < self.close.len() && self.close[next] == self.close[next - 1] + 1 {
                next += 1;
            }
            close_all(&self.close[at..next]);
            at = next;
        }
    }

    /// Waits for the job, and returns the fds for stdout and stderr: the same one twice if only one was sent.
    #[inline(always)]
    fn receive(&self, order: &mut Words) -> [RawFd; 2] {
        let mut part = libc::iovec { iov_base: &raw mut *order as *mut c_void, iov_len: size_of::<Words>() };
        // Written out: an array of equal values would become a call of `memset`.
        let mut rights = Rights { length: 0, level: 0, kind: 0, fds: [-1, -1, -1, -1] };
        let mut message = MessageHeader {
            name: 0,
            name_length: 0,
            parts: &raw mut part,
            part_count: 1,
            control: &raw mut rights as *mut c_void,
            control_length: size_of::<Rights>(),
            flags: 0,
        };
        let length = loop {
            // SAFETY: `message` refers to memory of the caller's and of this frame, with its true lengths.
            let length = unsafe {
                libc::syscall(libc::SYS_recvmsg, self.job_socket, &raw mut message, libc::MSG_CMSG_CLOEXEC)
            };
            if length == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            break length;
        };
        if length as usize != size_of::<Words>() || rights.kind != libc::SCM_RIGHTS || rights.fds[0] == -1 {
            end();
        }
        let stdout = rights.fds[0];
        [stdout, if rights.fds[1] == -1 { stdout } else { rights.fds[1] }]
    }

    /// Completes the set-up, with the fds for stdout and stderr. Ends the process if there is no output.
    #[inline(always)]
    fn arrive(&self, output: [RawFd; 2]) {
        let [stdout, stderr] = output;
        // System calls, which bypass the recorder: these fds belong to the supervisor.
        // SAFETY: reads no memory of ours, and nothing in here owns 1.
        let out = unsafe { libc::syscall(libc::SYS_dup3, stdout, 1, 0) };
        // SAFETY: as above, of 2.
        let err = unsafe { libc::syscall(libc::SYS_dup3, stderr, 2, 0) };
        if out == -1 || err == -1 {
            end();
        }
        // SAFETY: the number is not used again.
        unsafe { libc::syscall(libc::SYS_close, self.job_socket) };
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_close, stdout) };
        if stderr != stdout {
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_close, stderr) };
        }
        // A previous test may have changed the flags of /dev/null, which all tests share.
        // SAFETY: reads no memory of ours.
        unsafe { libc::syscall(SYS_FCNTL, 0_usize, libc::F_SETFL as c_long, 0_usize) };
        // `std::env::args` reads this memory.
        // SAFETY: the region is ours (see `Argv::at`) and as long, and there is one thread.
        unsafe { libc::memcpy(self.argv as *mut c_void, self.arguments, self.length) };
        // SAFETY: a NUL-terminated name in memory that the fork has copied.
        unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME as c_long, self.comm) };
        /// `_NSIG / 8`: the size of the kernel's signal set, which is the beginning of libc's.
        const KERNEL_SET: usize =
            if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 16 } else { 8 };
        let no_old = 0_usize;
        // SAFETY: the mask came from the kernel.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const self.mask.0,
                no_old,
                KERNEL_SET,
            )
        };
    }
}

/// `close_range` — closes these fds, which are neighbours: by one call, or one by one where a filter refuses it. -1 is left
/// out.
#[inline(always)]
fn close_all(fds: &[RawFd]) {
    let fds = if let [-1, others @ ..] = fds { others } else { fds };
    let is_closed = match fds {
        // SAFETY: the caller forgets their owners, and the numbers are not used again.
        [first, .., last] => unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) == 0 },
        _ => false,
    };
    let mut at = 0;
    while !is_closed && at < fds.len() {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_close, fds[at]) };
        at += 1;
    }
}

/// `exit_group(1)`
#[inline(always)]
fn end() -> ! {
    loop {
        // SAFETY: the call takes any value and does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, 1) };
    }
}
