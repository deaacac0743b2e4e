//! Failures of the guard, and reasons why a process could not be killed, in words.

use nix::libc;

use crate::guard::facts::Unkillable;
use crate::guard::failure::{
    GuardFailure, PathError, Role, ScratchFailure, ScratchOperation, SystemError, Tracer,
};
use crate::guard::isolation::NotIsolated;
use crate::sys::NamespaceStep;

/// The message of a failure, with its object and the error.
pub(crate) fn words(failure: &GuardFailure) -> String {
    match failure {
        GuardFailure::Fork { role, error } => {
            format!("cannot fork {}: {}{}", process(*role), error.text, advice(error))
        }
        GuardFailure::SetUp { role, error } => format!("cannot set up {}: {}", process(*role), error.text),
        GuardFailure::MakeDirectory { failure } => {
            format!("{}; expected in `TMPDIR` is a directory that may be written to", scratch(failure))
        }
        GuardFailure::MakeOutputFile { directory, error } => {
            format!("cannot make a file for its output in `{directory}` (`TMPDIR`): {}", error.text)
        }
        GuardFailure::FindProc { error } => {
            format!(
                "cannot read `/proc/self`: {}; a proc file system has to be mounted at `/proc`",
                error.text
            )
        }
        GuardFailure::ReadProc { shown, own } => format!(
            "`/proc` belongs to another PID namespace: it says that this process is {shown}, and it is {own}; mount \
             one of this namespace's own (`unshare --mount-proc`)"
        ),
        GuardFailure::ForkAmongThreads {} => {
            "a shared library of the program starts a thread when it is loaded, so \
             that no test can be forked safely: start the thread later, or link that library statically"
                .to_owned()
        }
        GuardFailure::Restart { error } => {
            format!("a constructor starts a thread, and the program cannot be started again: {}", error.text)
        }
        GuardFailure::FindForkServer {} => "the fork server is gone".to_owned(),
        GuardFailure::AskForkServer {} => "the fork server does not answer".to_owned(),
        GuardFailure::AskSupervisor { pid, tracer: None } => {
            format!("supervisor {pid} does not answer and was killed")
        }
        GuardFailure::AskSupervisor { pid, tracer: Some(Tracer { pid: by, name }) } => {
            format!("supervisor {pid} was stopped by process {by} `{name}`, which traces it, and was killed")
        }
        GuardFailure::KeepSupervisor { pid } => format!("supervisor {pid} was killed"),
        GuardFailure::HearSupervisor { pid, error } => {
            format!("the socket of supervisor {pid} failed: {}", error.text)
        }
        GuardFailure::ReadAnswer { pid } => format!("supervisor {pid} sent an unreadable answer"),
        GuardFailure::ReachTestProcess { error } => format!("cannot reach the test process: {}", error.text),
        GuardFailure::WaitForSubject { pid, error } => {
            format!("waitid for its process {pid}: {}", error.text)
        }
        GuardFailure::ReadExitStatus {} => "its process was gone and left no exit status".to_owned(),
        GuardFailure::WaitForSerialKey { error } => format!("cannot wait for the serial key: {}", error.text),
        GuardFailure::StartCommand { error } => format!("cannot start the command: {}", error.text),
    }
}

/// What a namespace means for a report.
pub(crate) const ISOLATED: &str = "pids are those of the test's PID namespace (`isolation`), and which processes outside of it \
     have something open is not known";

/// Why `isolation = "pidns"` has no effect.
pub(crate) fn not_isolated(why: &NotIsolated) -> String {
    let why = match why {
        NotIsolated::Keeps => "what is kept (`--keep`) must have its number on the machine".to_owned(),
        NotIsolated::Refused { step, error } => {
            let (step, cause) = match step {
                NamespaceStep::Fork => ("cannot fork", ""),
                NamespaceStep::Unshare => (
                    "cannot make a PID namespace (unshare)",
                    "; it needs CAP_SYS_ADMIN or user namespaces (user.max_user_namespaces, seccomp)",
                ),
                NamespaceStep::MapUser => {
                    ("cannot map the user in a user namespace", "; a security module may forbid that")
                }
                NamespaceStep::SeparateMounts => (
                    "cannot keep mounts apart (MS_SLAVE)",
                    "; `/` has to be a mount, and a security module may forbid it",
                ),
                NamespaceStep::MountProc => (
                    "cannot mount `/proc`",
                    "; a container that hides parts of `/proc` forbids it (Docker: `--security-opt systempaths=unconfined`)",
                ),
                NamespaceStep::Survive => {
                    ("cannot make a PID namespace", "; a process was killed meanwhile, maybe by seccomp")
                }
                NamespaceStep::Wait => (
                    "cannot make a PID namespace within 5 s",
                    "; the machine may be too busy, or a tracer slows it",
                ),
            };
            format!("{step}: {}{cause}", error.text)
        }
    };
    format!("`isolation = \"pidns\"` has no effect: {why}")
}

/// The failed use of a directory for temporary files.
pub(crate) fn scratch(failure: &ScratchFailure) -> String {
    let error = |of: &PathError| match of.error.errno {
        Some(libc::ESTALE) => {
            format!("`{}`: it is another directory than it was when the run began", of.path)
        }
        _ => format!("`{}`: {}", of.path, of.error.text),
    };
    let what = match failure.operation {
        ScratchOperation::UseParent => "cannot use the directory for temporary files",
        ScratchOperation::Make => "cannot make the directory",
        ScratchOperation::Remove => "cannot remove",
    };
    let errors: Vec<String> = failure.errors.iter().map(error).collect();
    let more = if failure.more > 0 { format!("; and {} more", failure.more) } else { String::new() };
    format!("{what} {}{more}", errors.join("; "))
}

/// Why a process could not be killed.
pub(super) fn unkillable(because: &Unkillable) -> String {
    match because {
        Unkillable::OtherUser { uid, own } => {
            format!("it runs as user {uid}, whose processes user {own} may not signal")
        }
        Unkillable::Refused { error } => format!("the kernel does not let it be signalled: {}", error.text),
        Unkillable::Uninterruptible {} => "it is in an uninterruptible wait (state D)".to_owned(),
        Unkillable::StillThere { after, state } => format!(
            "it was still there {} s after SIGKILL, in state {}",
            after.as_secs(),
            char::from_u32(*state).unwrap_or('?')
        ),
        Unkillable::Unlisted {} => "`/proc` does not list it".to_owned(),
    }
}

/// The name of the failed operation in reports for programs.
#[cfg(feature = "json")]
pub(super) fn operation(failure: &GuardFailure) -> &'static str {
    match failure {
        GuardFailure::Fork { .. } => "fork",
        GuardFailure::SetUp { .. } => "set_up",
        GuardFailure::MakeDirectory { .. } => "make_directory",
        GuardFailure::MakeOutputFile { .. } => "make_output_file",
        GuardFailure::FindProc { .. } => "find_proc",
        GuardFailure::ReadProc { .. } => "read_proc",
        GuardFailure::ForkAmongThreads {} => "fork_among_threads",
        GuardFailure::Restart { .. } => "restart",
        GuardFailure::FindForkServer {} => "find_fork_server",
        GuardFailure::AskForkServer {} => "ask_fork_server",
        GuardFailure::AskSupervisor { .. } => "ask_supervisor",
        GuardFailure::KeepSupervisor { .. } => "keep_supervisor",
        GuardFailure::HearSupervisor { .. } => "hear_supervisor",
        GuardFailure::ReadAnswer { .. } => "read_answer",
        GuardFailure::ReachTestProcess { .. } => "reach_test_process",
        GuardFailure::WaitForSubject { .. } => "wait_for_subject",
        GuardFailure::ReadExitStatus {} => "read_exit_status",
        GuardFailure::WaitForSerialKey { .. } => "wait_for_serial_key",
        GuardFailure::StartCommand { .. } => "start_command",
    }
}

fn process(role: Role) -> &'static str {
    match role {
        Role::Restarted => "a process",
        Role::Net => "the net",
        Role::ForkServer => "the fork server",
        Role::Supervisor => "a supervisor",
        Role::TestProcess => "the test process",
        Role::Command => "the command",
    }
}

/// Advice if the limit on processes was reached.
fn advice(error: &SystemError) -> &'static str {
    // fork(2) lists the four limits that EAGAIN stands for.
    match error.errno {
        Some(libc::EAGAIN) => {
            "; there may be no more processes: raise the limit (`ulimit -u`, or `pids.max` of the cgroup) or run \
             fewer tests at once (`--test-threads`)"
        }
        _ => "",
    }
}
