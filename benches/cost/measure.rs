//! Times commands in turns.

use std::process::{Command, Stdio};
use std::time::Instant;

/// A command that is timed as a whole, and the number of tests that it runs.
pub(crate) struct Timed {
    command: Command,
    tests: f64,
}

impl Timed {
    pub(crate) fn new(mut command: Command, tests: usize) -> Timed {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Timed { command, tests: tests as f64 }
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: usize) -> Timed {
        self.command.env(name, value.to_string());
        self
    }

    /// Runs it once, and returns the time per test in seconds.
    pub(crate) fn run(&mut self) -> f64 {
        let begin = Instant::now();
        let status = self.command.status().unwrap();
        let took = begin.elapsed();
        assert!(status.success(), "{:?}: {status}", self.command);
        took.as_secs_f64() / self.tests
    }
}

/// Calls `sample` for each of `count` candidates once per round, so that a disturbance affects all of them
/// alike. Returns the samples of each.
pub(crate) fn side_by_side(
    rounds: usize,
    count: usize,
    mut sample: impl FnMut(usize) -> f64,
) -> Vec<Vec<f64>> {
    let mut samples = vec![Vec::new(); count];
    for _ in 0..rounds {
        for (at, samples) in samples.iter_mut().enumerate() {
            samples.push(sample(at));
        }
    }
    samples
}

/// Runs each command once per round; returns the times per test in seconds of each.
pub(crate) fn interleaved<const N: usize>(rounds: usize, mut commands: [Timed; N]) -> [Vec<f64>; N] {
    let samples = side_by_side(rounds, N, |at| commands[at].run());
    samples.try_into().unwrap_or_else(|_| unreachable!("one list a command"))
}
