//! Whether a test runs in a PID namespace.

use childproof_values as values;

use crate::sys::wire::Wire;

/// Selects whether a test runs in a PID namespace (pid_namespaces(7)), which the guard's own process is the first one of.
///
/// The kernel kills everything in a namespace with its first process. So nothing survives even if all processes of the
/// guard are killed at once, each by its pid. It is tried once a run; where the kernel or the machine refuses, the run
/// says so and goes on without it.
///
/// A test sees some differences: its pids are those of the namespace, `getppid` of an orphan is 1, `/proc` shows nothing
/// of other processes, what it mounts is seen by itself only, and no debugger from outside stops the clock. An ordinary
/// user gets a user namespace as well, in which programs that change the user (`sudo`) do not work. As no process outside
/// is seen, no wait at a file, pipe or socket is called endless. With `--keep` it has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// The test shares the PID namespace of the run.
    Off,
    /// The tests of one guard share a PID namespace.
    Pidns,
}

impl Isolation {
    /// In the order of [`values::ISOLATION_VALUES`].
    pub(super) const ALL: [Isolation; 2] = [Isolation::Off, Isolation::Pidns];

    pub(super) fn read(text: &str) -> Option<Isolation> {
        Isolation::ALL.get(values::ISOLATION_VALUES.index(text)?).copied()
    }
}

impl Wire for Isolation {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u8).put(out);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        Isolation::ALL.get(usize::from(u8::get(input)?)).copied()
    }
}
