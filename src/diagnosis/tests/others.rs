//! Processes and fds that are left, and how a test ended.

use std::time::Duration;

use nix::libc;

use super::*;
use crate::config::policy::{Fds, ThreadedFork as Policed};
use crate::diagnosis::{Allowance, Cause, Creator, Ending};
use crate::guard::facts::Survivor;
use crate::guard::facts::Unkillable;
use crate::guard::failure::GuardFailure;
use crate::proc::threads::Running;

fn asleep(pid: i32) -> Process {
    process(pid, vec![thread(pid, On::Sleep)], vec![])
}

#[test]
fn a_leaked_child_is_named_with_its_line() {
    let made = names(vec![site(ResourceKind::Process, "posix_spawnp", CHILD as u64)]);
    let verdict = verdict(returned(vec![asleep(CHILD), asleep(CHILD + 1)]), made, Policy::new());
    let found = only(&verdict, |kind| matches!(kind, Kind::LeakedProcess { .. }));
    let Kind::LeakedProcess { pid, others, created: Some(by), .. } = found.kind else { panic!("{found:?}") };
    assert_eq!((pid, &others[..], by.creator), (CHILD, &[CHILD + 1][..], Creator::Itself));
    assert_eq!(by.site.place.map(|place| place.to_string()).as_deref(), Some("tests/a.rs:3:5"));
    assert_eq!(found.cause, Some(Cause::LeakedProcess));
    assert_eq!(found.allow, [Allowance::Process { glob: "sleep *".to_owned() }]);
}

/// Its fork is a raw system call, and no call of the user's.
#[test]
fn a_sanitizers_symbolizer_is_no_leak_unless_the_test_has_started_it() {
    let symbolizer = || Process { comm: "llvm-symbolizer".to_owned(), ..asleep(CHILD) };
    let of_sanitizer = verdict(returned(vec![symbolizer()]), names(vec![]), Policy::new());
    assert!(!of_sanitizer.failed(), "{:?}", of_sanitizer.findings);
    let spawned = names(vec![site(ResourceKind::Process, "posix_spawnp", CHILD as u64)]);
    assert!(verdict(returned(vec![symbolizer()]), spawned, Policy::new()).failed());
}

fn by_hand() -> ResolvedCallSite {
    site(ResourceKind::Process, "posix_spawnp", CHILD as u64)
}

fn functions() -> Vec<String> {
    ["posix_spawnp", "std::process::Command::spawn", "a::makes"].map(str::to_owned).to_vec()
}

fn spawned() -> Names {
    names(vec![ResolvedCallSite { functions: functions(), ..by_hand() }])
}

/// The remedies of a leaked child.
fn of(change: fn(&mut Process), names: Names) -> Vec<Remedy> {
    let mut process = asleep(CHILD);
    change(&mut process);
    remedies_of_leak(returned(vec![process]), names)
}

/// A handler may clean up; a process that SIGTERM does not end needs another signal.
#[test]
fn what_mends_a_leak_fits_what_sigterm_does() {
    let first = Remedy::TerminateFirst { pid: CHILD };
    let handles = |process: &mut Process| process.signals.handled = vec![libc::SIGTERM];
    assert_eq!(of(handles, spawned()), [Remedy::KillAndWait, first.clone()]);
    let reads = |process: &mut Process| {
        process.signals.blocked = vec![libc::SIGTERM];
        process.tasks[0].syscall = "rt_sigtimedwait".to_owned();
    };
    assert_eq!(of(reads, spawned()), [Remedy::KillAndWait, first]);
    let ignore: fn(&mut Process) = |process| process.signals.ignored = vec![libc::SIGTERM];
    let block: fn(&mut Process) = |process| process.signals.blocked = vec![libc::SIGTERM];
    for (refuses, ignores) in [(ignore, true), (block, false)] {
        let signals = vec![libc::SIGTERM];
        let deaf = Remedy::EndDeaf { pid: CHILD, ignores, signals, inherited_from: None };
        assert_eq!(of(refuses, spawned()), [Remedy::KillAndWait, deaf.clone()]);
        let mut leader = Process { pgid: CHILD, ..asleep(CHILD) };
        refuses(&mut leader);
        let kill = Remedy::KillGroup { pid: CHILD, signal: libc::SIGKILL };
        assert_eq!(remedies_of_leak(returned(vec![leader]), spawned()), [kill, deaf]);
    }
}

#[test]
fn what_mends_a_leak_fits_its_facts() {
    let tokios = ResolvedCallSite { is_tokios: true, ..site(ResourceKind::Process, "fork", CHILD as u64) };
    let shell = || ResolvedCallSite { keys: [90, 0], ..site(ResourceKind::Process, "posix_spawnp", 90) };
    let orphan = |process: &mut Process| process.adopted = true;
    for (remedies, expected) in [
        (of(|_| (), spawned()), Remedy::KillAndWait),
        // There is no `Child`.
        (of(|_| (), names(vec![by_hand()])), Remedy::KillAndWaitpid { pid: CHILD }),
        (of(|_| (), names(vec![tokios])), Remedy::KillTokioChild),
        (of(|process| process.forked_without_exec = true, spawned()), Remedy::KillAndWaitpid { pid: CHILD }),
        (
            of(|process| process.pgid = CHILD, spawned()),
            Remedy::KillGroup { pid: CHILD, signal: libc::SIGTERM },
        ),
        (of(|process| process.lineage = vec![55, TEST], names(vec![])), Remedy::StopWithParent),
        (
            of(|process| (process.adopted, process.sid) = (true, 12), names(vec![])),
            Remedy::StopDaemon { pid: CHILD },
        ),
        (
            of(|process| (process.adopted, process.forked_without_exec) = (true, true), names(vec![])),
            Remedy::EndForkWithParent,
        ),
        (of(orphan, names(vec![])), Remedy::StartParentInGroup { parent: None, exec: false }),
        // Its parent had been killed, and was seen to die.
        (
            of(|process| (process.adopted, process.lineage) = (true, vec![90, TEST]), names(vec![shell()])),
            Remedy::StartParentInGroup { parent: shell().place, exec: true },
        ),
        (of(orphan, names(vec![shell()])), Remedy::StartParentInGroup { parent: shell().place, exec: true }),
        (
            of(|process| (process.adopted, process.pgid) = (true, 90), names(vec![shell()])),
            Remedy::KillParentsGroup { pgid: 90, signal: libc::SIGTERM },
        ),
    ] {
        assert_eq!(remedies, [expected]);
    }
    // A command may be written in any language, and be the parent that an orphan had.
    let of_command = |change: fn(&mut Process), names: Names| {
        let mut process = asleep(CHILD);
        change(&mut process);
        remedies_of_leak(Facts { body: Body::OfCommand, ..returned(vec![process]) }, names)
    };
    let in_c = || {
        let mut site = by_hand();
        site.place.iter_mut().for_each(|place| place.file = "Modules/_posixsubprocess.c".to_owned());
        names(vec![ResolvedCallSite { functions: functions(), ..site }])
    };
    assert_eq!(of_command(|_| (), in_c()), [Remedy::EndBeforeCommand]);
    assert_eq!(of_command(|_| (), spawned()), [Remedy::KillAndWait]);
    assert_eq!(of_command(orphan, names(vec![])), [Remedy::WaitInCommand]);
    // A shell and the job that it waits for: to kill the shell alone would leave the job.
    let mut job = asleep(CHILD + 1);
    job.lineage = vec![CHILD, TEST];
    assert_eq!(
        remedies_of_leak(returned(vec![asleep(CHILD), job]), spawned()),
        [Remedy::KillAllOfChild { pid: CHILD }]
    );
}

#[test]
fn stray_fds_are_closed_with_what_they_belong_to() {
    let close = |strays: Vec<StrayFd>, threads: u32| {
        let mut facts = returned(vec![]);
        (facts.stray_count, facts.strays, facts.threads) = (strays.len() as u32, strays, threads);
        let verdict = verdict(facts, names(vec![site(ResourceKind::Fds, "pipe2", PIPE)]), Policy::new());
        let found = only(&verdict, |kind| matches!(kind, Kind::StrayFd { .. }));
        assert!(found.kind.place().is_some());
        assert_eq!(found.allow, [Allowance::CreatedBy { path: "a::makes".to_owned() }]);
        match found.remedies.into_iter().next() {
            Some(Remedy::CloseFds(close)) => close,
            other => panic!("{other:?}"),
        }
    };
    let both = close(vec![stray(3, libc::O_RDONLY), stray(4, libc::O_WRONLY)], 0);
    assert_eq!((both.fd, both.other, both.owners), (3, Some(4), None));
    let one = close(vec![stray(4, libc::O_WRONLY)], 1);
    assert_eq!((one.access, one.other, one.owners), (Some(libc::O_WRONLY), None, Some(1)));
    let mut facts = returned(vec![]);
    facts.stray_count = 3;
    let found =
        only(&verdict(facts, names(vec![]), Policy::new()), |kind| matches!(kind, Kind::UnlistedFds { .. }));
    assert_eq!(found.remedies, [Remedy::CloseAllowedToo]);
}

#[test]
fn an_end_that_a_program_has_by_mistake_is_a_finding_of_its_own() {
    let held = process(CHILD, vec![thread(CHILD, On::Sleep)], vec![read_end(3, PIPE), write_end(4, PIPE)]);
    let made = || vec![site(ResourceKind::Fds, "pipe", PIPE)];
    let found = verdict(returned(vec![held.clone()]), names(made()), Policy::new());
    let found = only(&found, |kind| matches!(kind, Kind::InheritedByMistake { .. }));
    let Kind::InheritedByMistake { ends, others, .. } = &found.kind else { panic!("{found:?}") };
    assert_eq!((ends.len(), *others, found.cause), (2, 0, None));
    assert!(matches!(found.remedies[..], [Remedy::CreatePipeWithCloexec { .. }]));
    // A pipe that was created with close-on-exec was passed on purpose.
    let on_purpose = made().into_iter().map(|site| ResolvedCallSite { cloexec: true, ..site }).collect();
    let verdict = verdict(returned(vec![held]), names(on_purpose), Policy::new());
    assert!(verdict.findings.iter().all(|finding| !matches!(finding.kind, Kind::InheritedByMistake { .. })));
}

#[test]
fn how_a_test_ended_is_told_with_what_mends_it() {
    type Case = (fn(&mut Facts), fn(&Kind) -> bool, &'static [Remedy]);
    let cases: [Case; 11] = [
        (
            |facts| {
                facts.body = Body::Panicked { message: "no".into(), file: "a.rs".into(), line: 1, column: 2 };
            },
            |kind| matches!(kind, Kind::Panicked { message, place: Some(_) } if message == "no"),
            &[],
        ),
        (|facts| facts.body = Body::Error, |kind| matches!(kind, Kind::ReturnedError { .. }), &[]),
        (|facts| facts.body = Body::DidNotPanic, |kind| *kind == Kind::DidNotPanic, &[]),
        (
            |facts| facts.body = Body::PanickedOtherwise { message: "x".into() },
            |kind| matches!(kind, Kind::PanickedOtherwise { .. }),
            &[],
        ),
        (
            |facts| facts.body = Body::Unfinished,
            |kind| matches!(kind, Kind::EndedEarly { when: Ending::InBody, .. }),
            &[Remedy::ReturnFromBody],
        ),
        (
            |facts| facts.end = End::Exited { code: 3 },
            |kind| matches!(kind, Kind::EndedEarly { when: Ending::AtExit, code: 3, .. }),
            &[Remedy::LookAtExitCode],
        ),
        (
            |facts| facts.unchecked = true,
            |kind| matches!(kind, Kind::EndedEarly { when: Ending::Unchecked, .. }),
            &[Remedy::JoinThreads],
        ),
        (
            |facts| (facts.body, facts.end) = (Body::Unfinished, End::Signalled { signal: libc::SIGSEGV }),
            |kind| matches!(kind, Kind::Signalled { body_returned: false, .. }),
            &[Remedy::LookAtSignal { signal: libc::SIGSEGV }],
        ),
        (
            |facts| (facts.body, facts.end) = (Body::Unfinished, End::Signalled { signal: libc::SIGUSR1 }),
            |kind| matches!(kind, Kind::Signalled { .. }),
            &[],
        ),
        (
            |facts| facts.end = End::Signalled { signal: libc::SIGSEGV },
            |kind| matches!(kind, Kind::Signalled { body_returned: true, .. }),
            &[Remedy::LookAtExitHandlersAndThreads],
        ),
        (
            |facts| facts.end = End::TimedOut,
            |kind| matches!(kind, Kind::TimedOut { body_returned: true, .. }),
            &[Remedy::LookAtExitHandlers],
        ),
    ];
    for (change, is, remedies) in cases {
        let mut facts = returned(vec![]);
        change(&mut facts);
        let verdict = verdict(facts, names(vec![]), Policy::new());
        assert_eq!(only(&verdict, is).remedies, remedies);
    }
    let verdict = verdict(Facts::unguarded(GuardFailure::FindForkServer {}), names(vec![]), Policy::new());
    assert_eq!(only(&verdict, |_| true).cause, Some(Cause::Unguarded));
    assert!(matches!(
        &verdict.findings[0].kind,
        Kind::NotGuarded { failure: GuardFailure::FindForkServer {} }
    ));
}

/// A running test had no time to end its children, and descendants in the grace had not all of their time.
#[test]
fn a_cut_is_the_only_cause_of_what_it_has_killed() {
    for mut facts in [hung(vec![asleep(TEST), asleep(20)]), returned(vec![asleep(20)])] {
        facts.cut = true;
        let is_returned = facts.body != Body::Unfinished;
        let verdict = verdict(facts, names(vec![]), Policy::new());
        assert_eq!(verdict.causes(), [Cause::Cut]);
        let is_it =
            |kind: &Kind| matches!(kind, Kind::Cut { body_returned, .. } if *body_returned == is_returned);
        assert!(verdict.failures().all(|(_, finding)| is_it(&finding.kind) && finding.allow.is_empty()));
    }
}

#[test]
fn what_is_counted_and_what_could_not_be_killed_are_findings() {
    let mut facts = returned(vec![Process { class: Class::Unwaited, ..asleep(CHILD) }]);
    facts.threads = 1;
    facts.running = vec![Running { tid: 102, name: "w".to_owned() }];
    facts.survivors =
        vec![Survivor { pid: 103, name: "x".to_owned(), because: Unkillable::Uninterruptible {} }];
    (facts.returned_children, facts.returned_child, facts.unseen) = (2, Some(104), true);
    let verdict = verdict(facts, names(vec![]), Policy::new().deny_unwaited().deny_threads());
    for (is, remedy) in [
        (
            (|kind| matches!(kind, Kind::Unwaited { children, .. } if children.len() == 1))
                as fn(&Kind) -> bool,
            Remedy::WaitForChildren,
        ),
        (|kind| matches!(kind, Kind::Threads { count: 1, .. }), Remedy::JoinThreads),
        (|kind| matches!(kind, Kind::Unkillable { pid: 103, .. }), Remedy::EndByHand { pid: 103 }),
        (|kind| matches!(kind, Kind::ChildReturned { pid: 104, more: 1, .. }), Remedy::ExitInChild),
        (|kind| matches!(kind, Kind::ElusiveProcess { .. }), Remedy::EndForker),
    ] {
        assert_eq!(only(&verdict, is).remedies, [remedy]);
    }
}

#[test]
fn a_fork_among_threads_warns_or_fails_once_a_line() {
    let fork = |pid| ResolvedCallSite { threads: 3, ..site(ResourceKind::Process, "fork", pid) };
    let made = || names(vec![fork(1), fork(2), ResolvedCallSite { execed: true, ..fork(3) }]);
    let facts = || {
        let mut facts = returned(vec![]);
        facts.limits.push(EvidenceLimit::NotRecorded { why: Unrecorded::OtherLibc });
        facts
    };
    let warned = verdict(facts(), made(), Policy::new());
    let found = only(&warned, |kind| matches!(kind, Kind::ThreadedFork { more: 1, .. }));
    assert_eq!((found.cause, &found.remedies[..]), (None, &[Remedy::ExecOrForkSingleThreaded][..]));
    let denied = verdict(facts(), made(), Policy::new().threaded_fork(Policed::Deny));
    assert!(denied.has(Cause::ThreadedFork));
    assert!(verdict(facts(), made(), Policy::new().threaded_fork(Policed::Allow)).warnings.is_empty());
}

#[test]
fn more_time_is_offered_only_where_it_may_help() {
    let timed_out = |processes| {
        let policy = Policy::new().timeout(Duration::from_secs(1));
        let verdict = verdict(hung(processes), names(vec![]), policy);
        only(&verdict, |kind| matches!(kind, Kind::TimedOut { .. })).allow
    };
    let longer = vec![Allowance::Timeout { seconds: 600 }];
    let waits = || process(TEST, vec![thread(TEST, On::Child { pid: CHILD })], vec![]);
    assert_eq!(timed_out(vec![asleep(TEST)]), longer);
    assert_eq!(timed_out(vec![waits(), asleep(CHILD)]), longer);
    let stopped = process(CHILD, vec![thread(CHILD, On::Stopped)], vec![]);
    assert_eq!(timed_out(vec![waits(), stopped]), []);
}

/// Anonymous files share an inode: only the key tells which call made one.
#[test]
fn a_stray_eventfd_is_grouped_by_its_line() {
    const KEY: u64 = 1 << 40;
    let of = |name: &str| {
        let mut facts = returned(vec![]);
        let target = "anon_inode:[eventfd]".to_owned();
        facts.strays = vec![StrayFd { target, ino: 1, key: KEY, ..stray(3, libc::O_RDWR) }];
        facts.stray_count = 1;
        let names = names(vec![site(ResourceKind::Fds, "eventfd", KEY)]);
        conclude(name, &settings(Policy::new().fds(Fds::All)), facts, names)
    };
    let mut groups = crate::diagnosis::Groups::default();
    groups.add(&of("one"), "one", false);
    groups.add(&of("other"), "other", false);
    assert!(groups.have_a_common_line());
}
