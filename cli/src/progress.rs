//! `--progress`: one line on a terminal while the command runs.
//!
//! It is asked for, and never there by itself: a command has the same terminal, and what it draws there would be mixed up
//! with it. It is for commands that are silent for long.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use childproof::__engine::Guarded;

/// How often the line is written.
const EVERY: Duration = Duration::from_secs(1);
/// From when on a process is said to wait.
const LONG: Duration = Duration::from_secs(3);

/// The line, if there is one.
pub(crate) struct Progress {
    begin: Instant,
    next: Option<Instant>,
    /// By pid: how often each process had run, and since when it has not.
    processes: HashMap<i32, (u64, Instant)>,
    is_shown: bool,
}

impl Progress {
    /// Shows a line if that was asked for and stderr is a terminal.
    pub(crate) fn new(is_wanted: bool) -> Progress {
        let begin = Instant::now();
        let next = (is_wanted && io::stderr().is_terminal()).then(|| begin + EVERY);
        Progress { begin, next, processes: HashMap::new(), is_shown: false }
    }

    /// When the line is to be written next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Writes the line if it is time.
    pub(crate) fn update(&mut self, guarded: &Guarded) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + EVERY);
        let running = guarded.processes();
        let before = std::mem::take(&mut self.processes);
        for process in &running {
            let same = before.get(&process.pid).filter(|(switches, _)| *switches == process.switches);
            self.processes.insert(process.pid, (process.switches, same.map_or(now, |(_, since)| *since)));
        }
        let since = |pid: i32| self.processes.get(&pid).map_or(now, |(_, since)| *since);
        let longest = running.iter().min_by_key(|process| since(process.pid));
        let longest = longest.filter(|process| now - since(process.pid) >= LONG).map(|process| {
            let time = (now - since(process.pid)).as_secs();
            let name: String = process.name.chars().filter(|c| !c.is_control()).collect();
            format!(", `{name}` (pid {}) waits for {time} s", process.pid)
        });
        let count = match running.len() {
            1 => "1 process".to_owned(),
            count => format!("{count} processes"),
        };
        let time = (now - self.begin).as_secs();
        self.is_shown = true;
        // Without a line break: what is written next takes its place.
        let _ = write!(io::stderr(), "\r\x1b[Kchildproof: {time} s, {count}{}", longest.unwrap_or_default());
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
