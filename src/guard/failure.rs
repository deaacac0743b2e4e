//! Failures of the guard, because of which a subject could not be guarded. They say nothing about the
//! subject.

use std::io;
use std::path::Path;

use crate::sys::Pid;
use crate::sys::wire::{wire_enum, wire_struct};

wire_enum! {
    /// A process of the guard, or the subject's own.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Role {
        /// A process that execs the program again.
        Restarted,
        Net,
        ForkServer,
        Supervisor,
        TestProcess,
        Command,
    }
}

wire_struct! {
    /// An [`io::Error`] that can be sent over a socket.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct SystemError {
        /// The errno, if the error comes from the kernel.
        pub(crate) errno: Option<i32>,
        pub(crate) text: String,
    }
}

wire_struct! {
    /// The failed use of a directory for temporary files.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct ScratchFailure {
        pub(crate) operation: ScratchOperation,
        pub(crate) errors: Vec<PathError>,
        /// How many errors there were besides these.
        pub(crate) more: u64,
    }
}

wire_enum! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum ScratchOperation {
        /// Opening `TMPDIR`.
        UseParent,
        /// Creating a directory.
        Make,
        /// Removing a directory with its contents.
        Remove,
    }
}

wire_struct! {
    /// An error that belongs to a path. ESTALE stands for a directory that was replaced by another one.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct PathError {
        pub(crate) path: String,
        pub(crate) error: SystemError,
    }
}

impl ScratchFailure {
    /// The failure of an operation on one path.
    pub(crate) fn of(operation: ScratchOperation, path: &Path) -> impl FnOnce(io::Error) -> ScratchFailure {
        move |error| ScratchFailure { operation, errors: vec![PathError::new(path, error)], more: 0 }
    }
}

impl PathError {
    pub(crate) fn new(path: &Path, error: io::Error) -> PathError {
        PathError { path: path.to_string_lossy().into_owned(), error: error.into() }
    }
}

wire_struct! {
    /// A process that traces another, such as a debugger.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Tracer {
        pub(crate) pid: Pid,
        pub(crate) name: String,
    }
}

wire_enum! {
    /// The operation of the guard that failed, with its object and the error.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum GuardFailure {
        /// fork(2).
        Fork { role: Role, error: SystemError },
        /// The set-up of a guard process.
        SetUp { role: Role, error: SystemError },
        /// Creating a directory for temporary files.
        MakeDirectory { failure: ScratchFailure },
        /// Creating a file for the output of a test, in this directory.
        MakeOutputFile { directory: String, error: SystemError },
        /// readlink(2) of `/proc/self`.
        FindProc { error: SystemError },
        /// `/proc` shows the processes of another PID namespace: `shown` is the pid of this process there.
        ReadProc { shown: String, own: Pid },
        /// A shared library of the program starts a thread when it is loaded.
        ForkAmongThreads {},
        /// execve(2) of this program, in which a constructor starts a thread.
        Restart { error: SystemError },
        /// The fork server has ended.
        FindForkServer {},
        /// The fork server did not answer in time.
        AskForkServer {},
        /// A supervisor did not answer in time, and was killed. If another process traces it, `tracer` is that one.
        AskSupervisor { pid: Pid, tracer: Option<Tracer> },
        /// Another process has killed a supervisor.
        KeepSupervisor { pid: Pid },
        /// Receiving from a supervisor's socket.
        HearSupervisor { pid: Pid, error: SystemError },
        /// Decoding a supervisor's message.
        ReadAnswer { pid: Pid },
        /// Sending the order to a test process.
        ReachTestProcess { error: SystemError },
        /// waitid(2) of the subject.
        WaitForSubject { pid: Pid, error: SystemError },
        /// The exit status of the subject, which other code has reaped.
        ReadExitStatus {},
        /// Waiting for the lock of a serial key.
        WaitForSerialKey { error: SystemError },
        /// The set-up of a command before its exec.
        StartCommand { error: SystemError },
    }
}

impl From<io::Error> for SystemError {
    fn from(error: io::Error) -> SystemError {
        SystemError { errno: error.raw_os_error(), text: error.to_string() }
    }
}

impl From<nix::errno::Errno> for SystemError {
    fn from(errno: nix::errno::Errno) -> SystemError {
        io::Error::from(errno).into()
    }
}

impl GuardFailure {
    /// The failed set-up of a process.
    pub(crate) fn set_up<E: Into<SystemError>>(role: Role) -> impl FnOnce(E) -> GuardFailure {
        move |error| GuardFailure::SetUp { role, error: error.into() }
    }

    /// The failed fork of a process.
    pub(crate) fn fork(role: Role) -> impl FnOnce(io::Error) -> GuardFailure {
        move |error| GuardFailure::Fork { role, error: error.into() }
    }

    /// The errno, if the kernel was asked.
    #[cfg(feature = "json")]
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            GuardFailure::Fork { error, .. }
            | GuardFailure::SetUp { error, .. }
            | GuardFailure::MakeOutputFile { error, .. }
            | GuardFailure::FindProc { error }
            | GuardFailure::Restart { error }
            | GuardFailure::HearSupervisor { error, .. }
            | GuardFailure::ReachTestProcess { error }
            | GuardFailure::WaitForSubject { error, .. }
            | GuardFailure::WaitForSerialKey { error }
            | GuardFailure::StartCommand { error } => error.errno,
            GuardFailure::MakeDirectory { failure } => failure.errors.first()?.error.errno,
            GuardFailure::ReadProc { .. }
            | GuardFailure::ForkAmongThreads {}
            | GuardFailure::FindForkServer {}
            | GuardFailure::AskForkServer {}
            | GuardFailure::AskSupervisor { .. }
            | GuardFailure::KeepSupervisor { .. }
            | GuardFailure::ReadAnswer { .. }
            | GuardFailure::ReadExitStatus {} => None,
        }
    }
}
