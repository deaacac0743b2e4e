//! Guards one subject: waits for its end, gives its descendants the grace, inspects what is left, and kills
//! it.
//!
//! The loop carries out the actions that [`phases`](super::phases) returns. Processes are inspected before
//! they are killed, since killing destroys the evidence.

use std::time::{Duration, Instant};

use nix::libc;

use super::events::{Sources, Wakeup};
use super::facts::{Answer, Class, Facts, LeftMount, Process};
use super::keep;
use super::kill;
use super::messages::SlotRequest;
use super::phases::{Action, Event, Phase, step};
use super::report_page::End;
use super::snapshot::{Snapshot, SubjectStart};
use super::stop::{self, Stopped};
use super::subject::Subject;
use crate::guard::failure::GuardFailure;
use crate::proc::mounts;
use crate::proc::process::{self, Stat, are_hidden};
use crate::proc::sockets::Socket;
use crate::proc::tree::Tree;
use crate::sys::wire::Wire;
use crate::sys::{self, ChildState, Children, Pid, Waited};

/// How long a test process may take to record what its body has left, beyond the grace: longer than it waits
/// for threads to end.
const CHECKING: Duration = Duration::from_secs(1);
/// Time limit for the snapshot at the end of a subject: the subject is paused meanwhile, and its grace has
/// not begun.
const AT_END: Duration = Duration::from_millis(500);
/// Time limit for the inspection of what is left, from the end of the grace to the kill.
const LOOK: Duration = Duration::from_secs(2);
/// The same when the run is cut: the sender of the signal does not wait for long.
const LOOK_OF_A_CUT: Duration = Duration::from_secs(1);
/// How much longer a subject with a debugger attached may run before the debugger is checked for again.
const UNDER_DEBUGGER: Duration = Duration::from_secs(1);
/// The time between the first snapshot of blocked threads and the second.
const AGAIN: Duration = Duration::from_millis(50);
/// The shortest grace after the end of a subject was noticed: a process that waits for that end needs a
/// moment.
const LEAST_GRACE: Duration = Duration::from_millis(10);

/// How much longer than the grace a process may take for an exit that it began within the grace.
pub(super) const EXITING: Duration = Duration::from_secs(10);
/// How often it is checked whether such a process is gone: the kernel reports that to its parent alone.
const EXITING_AGAIN: Duration = Duration::from_millis(5);

/// The guard of one subject.
pub(super) struct GuardedRun<'a> {
    sources: Sources<'a>,
    subject: Subject<'a>,
    start: SubjectStart<'a>,
    grace: Duration,
    phase: Phase,
    /// The deadline of the current phase.
    deadline: Option<Instant>,
    /// When the subject's timeout is over.
    timeout_at: Option<Instant>,
    has_ended: bool,
    /// Whether the kernel reports that no child is left.
    is_empty: bool,
    /// The processes at the end of the subject, or when it paused itself for inspection.
    at_end: Option<Snapshot>,
    /// The processes that had begun to exit when the grace was over, and until when they are waited for.
    exiting: Option<(Instant, Vec<Stat>)>,
    /// The processes that are left.
    left: Option<Snapshot>,
    raised: Option<sys::Raised>,
    facts: Box<Facts>,
    /// Whether what is left is stopped and not killed.
    keeps: bool,
    /// Adds facts that only the supervisor knows to an inspection.
    complete: Option<&'a dyn Fn(&mut Facts)>,
}

impl<'a> GuardedRun<'a> {
    /// Guards a running subject, with `timeout` counted from the beginning in `start`.
    pub(super) fn new(
        sources: Sources<'a>,
        subject: Subject<'a>,
        start: SubjectStart<'a>,
        timeout: Option<Duration>,
        grace: Duration,
    ) -> GuardedRun<'a> {
        let mut facts = Box::new(Facts::unguarded(GuardFailure::ReadExitStatus {}));
        facts.pid = subject.pid();
        facts.session = start.supervisor;
        let deadline = timeout.and_then(|limit| start.begin.checked_add(limit));
        let (at_end, left, raised) = (None, None, None);
        GuardedRun {
            sources,
            subject,
            start,
            grace,
            phase: Phase::Running,
            deadline,
            timeout_at: deadline,
            has_ended: false,
            is_empty: false,
            at_end,
            exiting: None,
            left,
            raised,
            facts,
            keeps: false,
            complete: None,
        }
    }

    /// Sets the function that adds facts to an inspection.
    pub(super) fn completed_by(self, complete: &'a dyn Fn(&mut Facts)) -> GuardedRun<'a> {
        GuardedRun { complete: Some(complete), ..self }
    }

    /// Makes it stop what is left, and not kill that.
    pub(super) fn keeping(self, keeps: bool) -> GuardedRun<'a> {
        GuardedRun { keeps, ..self }
    }

    /// Guards the subject until no process of it is left, or all that is left was stopped to be kept. Returns the
    /// facts, and the inodes of pipes that existed before; `None` if there is no receiver for a report.
    pub(super) fn run(mut self) -> Option<(Box<Facts>, Vec<u64>)> {
        loop {
            let event = self.next_event();
            let (phase, action) = step(self.phase, event);
            self.phase = phase;
            match action {
                Action::Wait => {}
                Action::NoteTree => self.note_tree(),
                Action::Extend => self.deadline = Some(Instant::now() + self.grace + CHECKING),
                Action::BeginGrace => self.begin_grace(),
                Action::Look => self.look(event == Event::Cut),
                Action::Finish => self.finish(),
                Action::Report => self.report(),
                Action::Inspect => self.inspect(),
                Action::Postpone => self.postpone(),
                Action::KillSilently => {
                    kill::kill_below(self.start.supervisor, &[]);
                    return None;
                }
            }
            if phase == Phase::Over {
                return Some((self.facts, self.start.preexisting()));
            }
        }
    }

    /// Waits for the next event of the current phase.
    fn next_event(&mut self) -> Event {
        if self.is_empty {
            return Event::Empty;
        }
        if self.phase == Phase::Grace
            && let Some(event) = self.emptied()
        {
            return event;
        }
        loop {
            let event = match self.sources.wait(self.deadline) {
                Wakeup::Children => match self.phase {
                    Phase::Running | Phase::Checking => self.subject_event(),
                    Phase::Grace => self.emptied(),
                    Phase::Looking | Phase::Over => None,
                },
                Wakeup::Request => self.request(),
                Wakeup::Deadline if self.is_only_exiting() => self.exit_is_late(),
                Wakeup::Deadline if self.phase == Phase::Grace && self.awaits_exits() => self.emptied(),
                Wakeup::Deadline => Some(self.deadline_event()),
                Wakeup::Abandoned => Some(Event::Abandoned),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Reaps zombies; returns an event if no child is left.
    fn emptied(&self) -> Option<Event> {
        reap_others(None);
        nothing_left().then_some(Event::Empty)
    }

    /// A request from the harness.
    fn request(&mut self) -> Option<Event> {
        match self.sources.slot.receive() {
            Ok(Some((bytes, _))) => match SlotRequest::decode(&bytes) {
                // The last descendant may have exited just now.
                Some(SlotRequest::Cut) if self.phase == Phase::Grace => {
                    Some(self.emptied().unwrap_or(Event::Cut))
                }
                Some(SlotRequest::Cut) => Some(Event::Cut),
                // The harness has the clocks of a suite's tests.
                Some(SlotRequest::TimeOut) if self.phase == Phase::Running => Some(self.deadline_event()),
                Some(SlotRequest::Inspect) => Some(Event::Inspect),
                Some(SlotRequest::Respond) => {
                    let _ = self.sources.slot.send(&Answer::Responds {}.encode(), &[]);
                    None
                }
                Some(SlotRequest::Signal { signal }) => {
                    // Its pid cannot be reused before it is reaped.
                    if !self.has_ended {
                        let _ = sys::kill(self.subject.pid(), signal);
                    }
                    None
                }
                _ => None,
            },
            Ok(None) | Err(_) => Some(Event::Abandoned),
        }
    }

    fn deadline_event(&mut self) -> Event {
        self.uncover_proc();
        match self.phase {
            Phase::Running | Phase::Checking if self.is_debugged() => Event::DeadlineUnderDebugger,
            Phase::Running if self.subject.has_returned() => Event::DeadlineAfterBody,
            // The last descendant may have exited just now.
            Phase::Grace => self.emptied().unwrap_or(Event::Deadline),
            _ => Event::Deadline,
        }
    }

    /// Whether the subject was continued after its inspection, has nothing left to do but to exit, and is within its
    /// timeout.
    fn is_only_exiting(&self) -> bool {
        let is_in_time = self.timeout_at.is_none_or(|at| Instant::now() < at);
        matches!(self.phase, Phase::Running | Phase::Checking)
            && self.at_end.is_some()
            && !self.subject.has_returned()
            && is_in_time
    }

    /// Sets the time at which it is checked whether a crowd of descendants keeps the subject from its exit.
    fn watch_exit(&mut self) {
        let until = Instant::now() + self.grace + CHECKING;
        self.deadline = Some(self.timeout_at.map_or(until, |at| at.min(until)));
    }

    /// The subject has not exited in time. For its exit it needs locks of the kernel, such as that of the mappings of its
    /// program, for which each fork of a fork bomb waits too: up to 40 s were measured. It has ended as it has reported.
    fn exit_is_late(&mut self) -> Option<Event> {
        if stop::is_crowded() && process::tracer(self.subject.pid()) == 0 {
            self.facts.end = End::Exited { code: self.subject.exit_code() };
            return Some(Event::Ended);
        }
        // It would stay stopped if the first signal was lost.
        let _ = sys::kill(self.subject.pid(), libc::SIGCONT);
        self.watch_exit();
        None
    }

    /// Asks for the state of the subject's own process. Reaps it if it has exited, after all orphans that
    /// exited before.
    fn subject_event(&mut self) -> Option<Event> {
        let event = self.subject_change();
        if event.is_none() {
            reap_others(Some(self.subject.pid()));
        }
        event
    }

    fn subject_change(&mut self) -> Option<Event> {
        let pid = self.subject.pid();
        let stops = match self.subject {
            Subject::Command { .. } => libc::WSTOPPED | libc::WCONTINUED,
            Subject::Body { .. } | Subject::Suite { .. } => libc::WSTOPPED,
        };
        match sys::waitid(Some(pid), libc::WEXITED | stops) {
            Ok(Children::Ready(Waited { state: ChildState::Exited(code), .. })) => {
                self.facts.end = End::Exited { code };
                Some(Event::Ended)
            }
            Ok(Children::Ready(Waited { state: ChildState::Signalled(signal), .. })) => {
                self.facts.end = End::Signalled { signal };
                Some(Event::Ended)
            }
            // It has requested to be traced, and would wait forever to be resumed.
            Ok(Children::Ready(Waited { state: ChildState::Trapped(signal), .. }))
                if signal != libc::SIGSTOP || !self.subject.asks_for_a_look() =>
            {
                sys::ptrace_detach(pid, signal);
                None
            }
            Ok(Children::Ready(Waited { state, .. })) => {
                if let Some(tid) = self.subject.fault() {
                    self.note_fault(tid);
                    return None;
                }
                if let Subject::Command { .. } = self.subject {
                    self.follow_stop(state);
                }
                (self.subject.asks_for_a_look() && self.at_end.is_none()).then_some(Event::Paused)
            }
            Ok(Children::Quiet) => None,
            // No other code reaps it, so this is an error of the guard and not the end of the subject.
            Ok(Children::None) => {
                self.facts.end = End::Unguarded { failure: GuardFailure::ReadExitStatus {} };
                Some(Event::Ended)
            }
            Err(error) => {
                let failure = GuardFailure::WaitForSubject { pid, error: error.into() };
                self.facts.end = End::Unguarded { failure };
                Some(Event::Ended)
            }
        }
    }

    /// Stops and continues the tool together with the command: the shell only sees the tool.
    fn follow_stop(&self, state: ChildState) {
        match state {
            ChildState::Stopped(signal) => {
                let _ = self.sources.slot.send(&Answer::Stopped { signal }.encode(), &[]);
            }
            // The tool may have stopped itself, and then reads no message.
            ChildState::Continued => {
                let _ = sys::pidfd_send_signal(self.sources.harness, libc::SIGCONT);
            }
            _ => {}
        }
    }

    /// Reads where a thread is that got a signal which ends the subject, and continues the subject.
    fn note_fault(&mut self, tid: Pid) {
        if self.facts.fault.replace(tid).is_none() {
            self.read_stacks(&[tid]);
        }
        let _ = sys::kill(self.subject.pid(), libc::SIGCONT);
    }

    /// Reads stacks of the subject, which is stopped.
    fn read_stacks(&mut self, tids: &[Pid]) {
        #[cfg(feature = "sites")]
        self.facts.stacks.extend(super::stacks::of_threads(self.subject.pid(), tids));
        #[cfg(not(feature = "sites"))]
        let _ = tids;
    }

    /// Takes a snapshot of the process tree while parents are still alive, and continues the subject.
    fn note_tree(&mut self) {
        // Raised until the kill: it would be too late then.
        self.raised = sys::raise_priority();
        self.at_end = Some(self.snapshot_at_end(AT_END));
        self.facts.stray_sockets = self.subject.stray_sockets();
        self.read_stacks(&self.subject.running());
        self.watch_exit();
        // If this process traces it, it must be detached: a signal would not resume it.
        sys::ptrace_detach(self.subject.pid(), 0);
        let _ = sys::kill(self.subject.pid(), libc::SIGCONT);
    }

    fn begin_grace(&mut self) {
        self.has_ended = true;
        self.facts.ran = self.start.begin.elapsed();
        self.is_empty = self.at_end.is_none() && nothing_left();
        if self.is_empty {
            self.uncover_proc();
            return;
        }
        // The processes that are left may use all CPUs.
        self.raised = self.raised.take().or_else(sys::raise_priority);
        // The grace begins at the end of the subject, which this process may have noticed late.
        let late = self.subject.since_over().unwrap_or_default();
        let until = Instant::now() + self.grace.saturating_sub(late).max(self.grace.min(LEAST_GRACE));
        if self.at_end.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            self.at_end = Some(self.snapshot_at_end(left.min(AT_END)));
        }
        self.deadline = Some(until);
    }

    /// The tree at the end of the subject, before its parents are gone. In a crowd, that would use up the CPU time that
    /// the look at what is left needs: then only the lines of the processes are read, if this one has priority.
    fn snapshot_at_end(&mut self, limit: Duration) -> Snapshot {
        self.uncover_proc();
        let now = Instant::now();
        let is_crowded = stop::is_crowded();
        let of_tree = if is_crowded && self.raised.is_none() { now } else { now + limit };
        Snapshot::of_tree(&self.start, of_tree, if is_crowded { now } else { of_tree })
    }

    /// Whether a process that has begun to exit within the grace is not gone yet: it ended by itself, and counts as left
    /// only if its exit takes too long. Sets the time at which this is checked again.
    fn awaits_exits(&mut self) -> bool {
        // The list of processes would take too long in a crowd.
        if self.exiting.is_none() && (nothing_left() || stop::is_crowded()) {
            return false;
        }
        let now = Instant::now();
        let supervisor = self.start.supervisor;
        let (until, exiting) = self.exiting.get_or_insert_with(|| {
            let tree = Tree::read();
            let below = tree.below(supervisor, &[]).into_iter();
            let exiting = below.filter(|stat| !stat.is_zombie() && stat.is_exiting()).cloned();
            (now + EXITING, exiting.collect())
        });
        exiting.retain(|stat| stat.again().is_some_and(|now| !now.is_zombie()));
        let is_awaited = !exiting.is_empty() && now < *until;
        if is_awaited {
            self.deadline = Some(now + EXITING_AGAIN);
        }
        is_awaited
    }

    /// Detaches what hides the processes, and records that. Costs one call where there is nothing.
    fn uncover_proc(&mut self) {
        if mounts::uncover_proc() {
            let (at, what, why) = (mounts::PROC_PATH.to_owned(), String::new(), None);
            self.facts.mounts.push(LeftMount { at, what, why });
        }
    }

    /// Whether a process outside of the guarded tree traces one in it: a debugger, which stops the test at
    /// breakpoints. A tracer that also traces the guard (strace of the whole run) is not counted: it does not
    /// stop the test on purpose.
    fn is_debugged(&self) -> bool {
        let supervisor = self.start.supervisor;
        let own = process::tracer(supervisor);
        let tree = Tree::read();
        let below: Vec<Pid> = tree.below(supervisor, &[]).iter().map(|stat| stat.pid).collect();
        let is_debugger =
            |tracer: Pid| tracer != 0 && tracer != supervisor && tracer != own && !below.contains(&tracer);
        below.iter().any(|pid| is_debugger(process::tracer(*pid)))
    }

    /// Gives a subject under a debugger more time, and notifies the harness, which then waits longer too.
    fn postpone(&mut self) {
        self.deadline = Some(Instant::now() + UNDER_DEBUGGER);
        if !matches!(self.subject, Subject::Command { .. }) {
            let _ = self.sources.slot.send(&Answer::Traced {}.encode(), &[]);
        }
    }

    /// Inspects the running processes and reports them. Nothing is stopped or interrupted: a traced or
    /// stopped process would return from epoll_wait(2) and the like with EINTR. So no stacks are read.
    fn inspect(&self) {
        let until = Instant::now() + LOOK_OF_A_CUT;
        let mut now = Snapshot::of_waits(&self.start, Tree::read(), &Stopped::default(), until);
        let mut facts = self.facts.clone();
        if !self.has_ended {
            facts.end = End::TimedOut;
        }
        facts.cut = true;
        facts.ran = self.start.begin.elapsed();
        facts.pipes = now.pipes();
        facts.sockets = now.sockets();
        let mut targets: Vec<String> =
            facts.pipes.iter().map(|pipe| format!("pipe:[{}]", pipe.ino)).collect();
        targets.extend(facts.sockets.iter().flat_map(Socket::ends).map(|ino| format!("socket:[{ino}]")));
        facts.outside = now.outside(&targets);
        now.close(&mut facts.limits);
        facts.processes = now.into_parts().1;
        facts.note_isolation();
        if let Some(complete) = self.complete {
            complete(&mut facts);
        }
        let _ = self.sources.slot.send(&Answer::Inspected { facts }.encode(), &[]);
    }

    /// Inspects what is left, and sets the time for a second snapshot if that could prove anything.
    fn look(&mut self, is_cut: bool) {
        if !self.has_ended {
            self.facts.ran = self.start.begin.elapsed();
            self.facts.end = End::TimedOut;
        }
        self.facts.cut = is_cut;
        self.raised = self.raised.take().or_else(sys::raise_priority);
        // The harness prepares for the report meanwhile. If it is gone, the next wait shows that.
        let _ = self.sources.slot.send(&Answer::Looking {}.encode(), &[]);
        self.uncover_proc();
        let begin = Instant::now();
        let limit = if is_cut { LOOK_OF_A_CUT } else { LOOK };
        let known = self.at_end.as_ref().map(|at_end| at_end.tree().clone()).unwrap_or_default();
        let supervisor = self.start.supervisor;
        let is_calm = self.raised.is_some() || !stop::is_crowded() || stop::calm(supervisor);
        if !is_calm {
            stop::settle(Instant::now() + stop::LIMIT.min(limit));
        }
        let until = Instant::now() + stop::LIMIT.min(limit);
        let (tree, mut stopped) = stop::stop_what_runs(supervisor, known, until);
        stopped.is_cut |= !is_calm;
        stop::settle(until);
        if !stopped.is_cut {
            // The processes that ran are stopped now, and other tests need the CPUs.
            drop(self.raised.take());
        }
        let mut now = Snapshot::of_waits(&self.start, tree, &stopped, begin + limit);
        if let Subject::Command { .. } = self.subject {
            now.name_tests();
        }
        if let Some(at_end) = &self.at_end {
            now.remember(at_end);
        }
        let again = Instant::now() + AGAIN;
        let facts = &mut self.facts;
        facts.pipes = now.pipes();
        facts.sockets = now.sockets();
        let mut targets = self.subject.stray_pipes();
        targets.extend(facts.pipes.iter().map(|pipe| format!("pipe:[{}]", pipe.ino)));
        targets.extend(facts.sockets.iter().flat_map(Socket::ends).map(|ino| format!("socket:[{ino}]")));
        facts.outside = now.outside(&targets);
        let is_worth_it = now.waits_forever() && !now.is_late();
        self.deadline = Some(if is_worth_it { again } else { Instant::now() });
        self.left = Some(now);
    }

    /// Takes a second snapshot if that could prove anything, reads stacks, and kills what is left.
    fn finish(&mut self) {
        let Some(mut now) = self.left.take() else { return };
        let is_timed_out = self.facts.end == End::TimedOut;
        let facts = &mut self.facts;
        if now.waits_forever() && !now.is_late() {
            facts.outside.process_appeared = now.look_again();
            facts.outside.fd_transferred = now.has_fd_moved();
            facts.outside.hides = are_hidden();
        }
        facts.contended = now.contended();
        #[cfg(feature = "sites")]
        {
            facts.mapped = now.read_stacks();
        }
        now.close(&mut facts.limits);
        let (tree, mut left) = now.into_parts();
        let survivors = if self.keeps && !facts.cut {
            facts.kept = keep::hold(self.start.supervisor, tree);
            Vec::new()
        } else {
            kill::kill_seen_below(self.start.supervisor, tree).survivors
        };
        left.retain(|process| process.class == Class::Leaked || is_timed_out);
        // If it has ended and is still there, it was only exiting.
        left.retain(|process| !process.is_test || !self.has_ended);
        for process in left.iter_mut().filter(|process| process.class == Class::Leaked) {
            let pid = process.pid;
            process.killed = facts.kept.is_empty() && !survivors.iter().any(|survivor| survivor.pid == pid);
        }
        // Descendants that fork and exit quickly may be in no snapshot, although the kernel reports that a
        // child is left.
        facts.unseen = left.is_empty() && !is_timed_out;
        facts.survivors = survivors;
        self.note_processes(left);
    }

    /// Reports a subject of which no process is left.
    fn report(&mut self) {
        let Some(mut at_end) = self.at_end.take() else { return };
        let strays = self.subject.stray_pipes();
        if !strays.is_empty() {
            let _ = self.sources.slot.send(&Answer::Looking {}.encode(), &[]);
        }
        drop(self.raised.take());
        at_end.set_until(Instant::now() + LOOK);
        self.facts.outside = at_end.outside(&strays);
        self.at_end = Some(at_end);
        self.note_processes(Vec::new());
    }

    /// Records the processes that are left, and those that exited by themselves since the end of the subject.
    fn note_processes(&mut self, left: Vec<Process>) {
        let at_end = self.at_end.take().unwrap_or_default();
        let gone = at_end
            .processes()
            .iter()
            .filter(|process| !process.is_test && !left.iter().any(|leaked| leaked.pid == process.pid));
        let mut processes: Vec<Process> = gone
            .map(|process| Process {
                class: if process.class == Class::Leaked { Class::Straggler } else { process.class },
                ..process.clone()
            })
            .collect();
        processes.extend(left);
        let preexisting = self.subject.preexisting();
        let is_preexisting = |pid: &Pid| preexisting.contains(pid);
        processes
            .retain(|process| !is_preexisting(&process.pid) && !process.lineage.iter().any(is_preexisting));
        self.facts.processes = processes;
    }
}

/// Whether no child, and so no descendant, is left (ECHILD).
fn nothing_left() -> bool {
    !sys::has_children()
}

/// Reaps every zombie child except `subject`.
pub(super) fn reap_others(subject: Option<Pid>) {
    while let Ok(Children::Ready(child)) = sys::waitid(None, libc::WEXITED | libc::WNOWAIT) {
        if Some(child.pid) == subject || sys::waitid(Some(child.pid), libc::WEXITED).is_err() {
            return;
        }
    }
}
