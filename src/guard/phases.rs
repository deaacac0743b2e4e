//! The state machine of a guarded subject: the action for every event in every phase, in one table.
//!
//! Nothing here makes a system call. The supervisor turns what the kernel reports into an [`Event`], calls
//! [`step`], and carries out the [`Action`].

/// The phase of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The subject runs within its timeout.
    Running,
    /// The body returned in time. The test process records what it has left.
    Checking,
    /// The subject's own process has exited. Its descendants have the grace to exit by themselves.
    Grace,
    /// The first snapshot of what is left was taken. A second follows, to find out which threads have run in
    /// between.
    Looking,
    /// The guard is done.
    Over,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The subject's own process has exited.
    Ended,
    /// The subject has paused itself for inspection: it has left something, and the parents of its
    /// descendants are still alive.
    Paused,
    /// The kernel reports that no child is left, dead or alive.
    Empty,
    /// The deadline of the phase has passed.
    Deadline,
    /// The deadline of the phase has passed after the body returned.
    DeadlineAfterBody,
    /// The run is cut: inspect, kill and report what is running, without waiting.
    Cut,
    /// The harness requests the state of the running processes.
    Inspect,
    /// The deadline of the phase has passed while a debugger is attached.
    DeadlineUnderDebugger,
    /// The lifeline is at EOF: nothing reads a report any more.
    Abandoned,
}

/// What the supervisor must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait for the next event.
    Wait,
    /// Take a snapshot of the process tree with all parents, and continue the subject.
    NoteTree,
    /// Give the test process time to record what its body has left.
    Extend,
    /// Take a snapshot of the processes, and start the grace.
    BeginGrace,
    /// Inspect what is left in full; schedule a second snapshot if that could prove anything.
    Look,
    /// Take the second snapshot, kill what is left, and report.
    Finish,
    /// Report: nothing is left.
    Report,
    /// Inspect the running processes without stopping them, and report. Nothing changes.
    Inspect,
    /// Give the subject another second.
    Postpone,
    /// Kill what is left, and report nothing.
    KillSilently,
}

/// The next phase and the action for `event` in `phase`.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, Action) {
    use {Action as A, Event as E, Phase as P};
    match (phase, event) {
        (P::Over, _) => (P::Over, A::Wait),
        (_, E::Abandoned) => (P::Over, A::KillSilently),

        (P::Running | P::Checking, E::Ended) => (P::Grace, A::BeginGrace),
        (P::Running | P::Checking, E::Paused) => (phase, A::NoteTree),
        (P::Running, E::DeadlineAfterBody) => (P::Checking, A::Extend),
        (P::Running | P::Checking, E::Deadline | E::DeadlineAfterBody | E::Cut) => (P::Looking, A::Look),

        (P::Running | P::Checking | P::Grace, E::Inspect) => (phase, A::Inspect),
        // It is being inspected already, and its report is about to be sent.
        (P::Looking, E::Inspect) => (phase, A::Wait),
        // The time at a breakpoint does not count: it is no hang.
        (P::Running | P::Checking, E::DeadlineUnderDebugger) => (phase, A::Postpone),
        (P::Grace, E::DeadlineUnderDebugger) => (P::Looking, A::Look),
        (P::Looking, E::DeadlineUnderDebugger) => (P::Over, A::Finish),

        (P::Grace, E::Empty) => (P::Over, A::Report),
        (P::Grace, E::Deadline | E::DeadlineAfterBody | E::Cut) => (P::Looking, A::Look),

        (P::Looking, E::Deadline | E::DeadlineAfterBody | E::Cut) => (P::Over, A::Finish),

        // The subject is a child itself, so no child is left only after it has exited. An exit during the
        // inspection changes nothing: the process was there at the deadline.
        (P::Running | P::Checking, E::Empty) | (P::Looking, E::Ended | E::Paused | E::Empty) => {
            (phase, A::Wait)
        }
        // The subject is reaped, and can neither exit nor stop again.
        (P::Grace, E::Ended | E::Paused) => (phase, A::Wait),
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Event, Phase, step};

    const PHASES: [Phase; 5] = [Phase::Running, Phase::Checking, Phase::Grace, Phase::Looking, Phase::Over];
    const EVENTS: [Event; 9] = [
        Event::Ended,
        Event::Paused,
        Event::Empty,
        Event::Deadline,
        Event::DeadlineAfterBody,
        Event::Cut,
        Event::Inspect,
        Event::DeadlineUnderDebugger,
        Event::Abandoned,
    ];

    /// Applies events from the start; returns the final phase and the actions.
    fn follow(events: &[Event]) -> (Phase, Vec<Action>) {
        let mut phase = Phase::Running;
        let mut actions = Vec::new();
        for event in events {
            let (next, action) = step(phase, *event);
            phase = next;
            actions.push(action);
        }
        (phase, actions)
    }

    #[test]
    fn a_clean_subject_is_reported_without_a_look() {
        let (phase, actions) = follow(&[Event::Ended, Event::Empty]);
        assert_eq!((phase, actions), (Phase::Over, vec![Action::BeginGrace, Action::Report]));
    }

    #[test]
    fn a_leak_is_looked_at_after_the_grace_and_before_the_kill() {
        let (phase, actions) = follow(&[Event::Paused, Event::Ended, Event::Deadline, Event::Deadline]);
        let expected = [Action::NoteTree, Action::BeginGrace, Action::Look, Action::Finish];
        assert_eq!((phase, actions), (Phase::Over, expected.to_vec()));
    }

    #[test]
    fn a_timeout_has_no_grace() {
        let (phase, actions) = follow(&[Event::Deadline, Event::Ended, Event::Deadline]);
        assert_eq!((phase, actions), (Phase::Over, vec![Action::Look, Action::Wait, Action::Finish]));
    }

    #[test]
    fn a_body_that_returned_in_time_is_not_late() {
        let (phase, actions) = follow(&[Event::DeadlineAfterBody, Event::Ended, Event::Empty]);
        assert_eq!((phase, actions), (Phase::Over, vec![Action::Extend, Action::BeginGrace, Action::Report]));
        // A second deadline ends it all the same.
        assert_eq!(follow(&[Event::DeadlineAfterBody, Event::DeadlineAfterBody]).0, Phase::Looking);
    }

    #[test]
    fn a_cut_looks_once_and_waits_for_nothing() {
        for before in [&[][..], &[Event::Ended], &[Event::DeadlineAfterBody]] {
            let (phase, actions) = follow(&[before, &[Event::Cut, Event::Cut]].concat());
            assert_eq!(phase, Phase::Over);
            assert!(actions.ends_with(&[Action::Look, Action::Finish]), "{actions:?}");
        }
    }

    #[test]
    fn an_inspection_changes_no_phase() {
        for phase in PHASES {
            let (next, action) = step(phase, Event::Inspect);
            assert_eq!(next, phase);
            assert!(matches!(action, Action::Inspect | Action::Wait), "{phase:?} {action:?}");
        }
        let (phase, actions) = follow(&[Event::Inspect, Event::Inspect, Event::Ended, Event::Empty]);
        let expected = [Action::Inspect, Action::Inspect, Action::BeginGrace, Action::Report];
        assert_eq!((phase, actions), (Phase::Over, expected.to_vec()));
    }

    #[test]
    fn a_debugger_postpones_a_timeout_and_no_grace() {
        let (phase, actions) = follow(&[Event::DeadlineUnderDebugger, Event::DeadlineUnderDebugger]);
        assert_eq!((phase, actions), (Phase::Running, vec![Action::Postpone; 2]));
        assert_eq!(follow(&[Event::DeadlineUnderDebugger, Event::Deadline]).0, Phase::Looking);
        assert_eq!(follow(&[Event::Ended, Event::DeadlineUnderDebugger]).0, Phase::Looking);
    }

    #[test]
    fn the_end_of_the_lifeline_kills_in_every_phase() {
        for phase in PHASES.into_iter().filter(|phase| *phase != Phase::Over) {
            assert_eq!(step(phase, Event::Abandoned), (Phase::Over, Action::KillSilently));
        }
    }

    /// The guard ends only with a report or a kill, and then stays ended.
    #[test]
    fn the_end_is_reached_by_a_report_or_a_kill_alone() {
        for phase in PHASES {
            for event in EVENTS {
                let (next, action) = step(phase, event);
                if phase == Phase::Over {
                    assert_eq!((next, action), (Phase::Over, Action::Wait));
                    continue;
                }
                let ends = matches!(action, Action::Report | Action::Finish | Action::KillSilently);
                assert_eq!(next == Phase::Over, ends, "{phase:?} {event:?}");
            }
        }
    }

    /// A deadline always leads to another phase, so no phase lasts forever.
    #[test]
    fn every_phase_is_left_at_its_deadline() {
        for phase in PHASES.into_iter().filter(|phase| *phase != Phase::Over) {
            assert_ne!(step(phase, Event::Deadline).0, phase);
        }
    }
}
