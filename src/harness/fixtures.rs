//! Programs that are started once for a target, and that all of its tests use.

use crate::config::policy::SHARED;

#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub(super) use guarded::Fixtures;

/// Returns the address of a program that [`Harness::shared`](crate::Harness::shared) has started for this target.
///
/// # Panics
///
/// If the target has none of this name.
#[track_caller]
#[allow(clippy::expect_used, clippy::panic, reason = "the test has failed")]
pub fn shared(name: &str) -> String {
    match std::env::var(format!("{SHARED}{name}")) {
        Ok(address) => address,
        Err(_) => panic!("there is no shared fixture `{name}`: `Harness::shared` of this target starts one"),
    }
}

#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod guarded {
    use std::io::{self, Write};
    use std::os::fd::{AsFd, RawFd};
    use std::os::unix::process::CommandExt;
    use std::panic::Location;
    use std::time::{Duration, Instant};

    use nix::libc;

    use super::super::builder::SharedFixture;
    use super::super::entries::Entries;
    use super::super::run::{judge, layout};
    use super::super::signals;
    use crate::config::options::Options;
    use crate::config::policy::{self, Policy, Settings};
    use crate::config::registry;
    use crate::diagnosis::{Note, Verdict};
    use crate::guard::command::GuardedCommand;
    use crate::guard::facts::{Answer, Facts};
    use crate::guard::messages::Job;
    use crate::guard::report_page::{Body, End};
    use crate::proc::process::Stat;
    use crate::report::{failure, text, words};
    use crate::sys::{self, Mask};

    /// How long a program may take to end after SIGTERM.
    const AFTER_TERM: Duration = Duration::from_secs(5);
    /// The same in a run that was cut: what cut it may send SIGKILL soon.
    const AFTER_CUT: Duration = Duration::from_secs(1);
    /// How long its guard may take to start it, or to kill it and report.
    const ANSWER: Duration = Duration::from_secs(30);

    /// The programs of a run. Dropping them ends them.
    #[derive(Default)]
    pub(in crate::harness) struct Fixtures(Vec<Fixture>);

    struct Fixture {
        name: String,
        command: GuardedCommand,
        settings: Settings,
        /// The line of `Harness::shared`.
        place: &'static Location<'static>,
    }

    impl Fixtures {
        /// Starts the programs if a test is selected that may use them. The error is a message.
        pub(in crate::harness) fn start(
            all: Vec<SharedFixture>,
            entries: &Entries,
            options: &Options,
            policy: &Policy,
        ) -> Result<Fixtures, String> {
            let mut fixtures = Fixtures::default();
            if all.is_empty() || !entries.iter().any(|entry| entry.runs(options)) {
                return Ok(fixtures);
            }
            if Stat::of_self().is_none_or(|stat| stat.threads != 1) {
                return Err("a shared fixture needs a process with one thread: call `Harness::run` before any thread is \
                            started"
                    .to_owned());
            }
            let settings = options.policy.clone().over(policy).over(&registry::target_policy()).settle();
            for SharedFixture { name, start, place } in all {
                let is_known = fixtures.0.iter().any(|fixture| fixture.name == name);
                let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
                if name.is_empty() || is_known || !name.chars().all(is_word) {
                    return Err(format!(
                        "invalid name `{name}` of a shared fixture: expected letters, digits, `_`, `-` and `.`, each name once"
                    ));
                }
                let (mut command, address) = start();
                // Ctrl-C at a terminal is for the run, which then ends the program.
                command.process_group(0);
                sys::set_env(&format!("{}{name}", policy::SHARED), address.as_ref());
                let failed = |why: String| format!("cannot start the shared fixture `{name}`: {why}");
                let settings = Settings { timeout: None, keep: false, ..settings.clone() };
                let mask = Mask::current().map_err(|error| failed(error.to_string()))?;
                let command = GuardedCommand::start(command, settings.clone(), mask, None, &fixtures.fds())
                    .map_err(|why| failed(failure::words(&why)))?;
                let fixture = Fixture { name: name.clone(), command, settings, place };
                match fixture.answer(ANSWER) {
                    Some(Answer::Started { .. }) => fixtures.0.push(fixture),
                    Some(Answer::NotStarted { error }) => {
                        return Err(failed(io::Error::from_raw_os_error(error).to_string()));
                    }
                    Some(Answer::NotBegun { failure }) => return Err(failed(failure::words(&failure))),
                    _ => return Err(failed("its guard does not answer".to_owned())),
                }
            }
            Ok(fixtures)
        }

        /// The fds by which this process holds the programs: no other one may have them.
        pub(in crate::harness) fn fds(&self) -> Vec<RawFd> {
            self.0.iter().flat_map(|fixture| fixture.command.fds()).collect()
        }

        /// Ends the programs, the last one first, and prints what each has left. `write` is given the verdict on each that
        /// has left anything. Returns whether there is one, or whether a guard was lost.
        pub(in crate::harness) fn end(self, options: &Options, write: &dyn Fn(&Verdict)) -> bool {
            let mut has_failed = false;
            for mut fixture in self.0.into_iter().rev() {
                has_failed |= fixture.end(options, write);
                fixture.command.shut_down();
            }
            has_failed
        }
    }

    impl Fixture {
        fn end(&self, options: &Options, write: &dyn Fn(&Verdict)) -> bool {
            let name = &self.name;
            let at = format!("{}:{}", self.place.file(), self.place.line());
            let say = |what: &str| {
                let _ = writeln!(io::stderr(), "childproof: the shared fixture `{name}` {what} ({at})");
            };
            let over = self.over(Duration::ZERO);
            let is_early = over.is_some();
            if !is_early {
                self.command.signal(libc::SIGTERM);
            }
            let limit = if signals::cut_by().is_some() { AFTER_CUT } else { AFTER_TERM };
            let over = over.or_else(|| self.over(limit)).or_else(|| {
                say(&format!("did not end within {} s of SIGTERM, and was killed", limit.as_secs()));
                self.command.cut();
                self.over(ANSWER)
            });
            let Some(mut facts) = over else {
                say("cannot be followed to its end: its guard was killed");
                return true;
            };
            match facts.end {
                End::Exited { code } if is_early => say(&format!("exited {code} before the end of the run")),
                End::Signalled { signal } if is_early => {
                    say(&format!("was ended by {} before the end of the run", words::signal_name(signal)))
                }
                _ => {}
            }
            facts.body = Body::OfCommand;
            let job =
                Job { index: u64::MAX, name: format!("shared {name}"), settings: self.settings.clone() };
            let mut verdict = judge(&job, *facts);
            verdict.syntax = registry::target_syntax();
            verdict.notes.push(Note::SharedFixture { at });
            if !verdict.failed() {
                return false;
            }
            write(&verdict);
            let report = text::report(&verdict, layout(options.coloured(), 1));
            let _ = writeln!(io::stdout(), "{report}\n");
            true
        }

        /// The facts, if the program has ended before this time is over.
        fn over(&self, within: Duration) -> Option<Box<Facts>> {
            let until = Instant::now() + within;
            loop {
                let answer = self.answer(until.saturating_duration_since(Instant::now()))?;
                if let Answer::Other { facts } = answer {
                    return Some(facts);
                }
            }
        }

        /// The next message of the guard; `None` if none comes in time, or the guard is gone.
        fn answer(&self, within: Duration) -> Option<Answer> {
            let is_ready = sys::readable(&self.command.as_fd(), Some(within));
            is_ready.then(|| self.command.receive().ok().flatten()).flatten()
        }
    }
}
