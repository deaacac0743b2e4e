//! Hangs, with and without proof.

use super::*;
use crate::diagnosis::remedy::Ends;
use crate::diagnosis::{Deadlock, LinkOn, RuntimeWait, Shape, WaitsFor, WaitsOn};
use crate::recorder::awaited::Awaited;

#[track_caller]
fn deadlock(verdict: &Verdict) -> (Deadlock, Vec<Remedy>) {
    let found = only(verdict, |kind| matches!(kind, Kind::Deadlock(_)));
    let Kind::Deadlock(deadlock) = found.kind else { panic!("no deadlock") };
    (deadlock, found.remedies)
}

#[track_caller]
fn waits_for(verdict: &Verdict) -> (WaitsFor, Vec<Remedy>) {
    let found = only(verdict, |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(waits) = found.kind else { panic!("no wait") };
    (waits, found.remedies)
}

fn with_pipe(mut facts: Facts, queued: u32) -> Facts {
    facts.pipes = vec![state(PIPE, queued), state(PIPE + 1, queued)];
    facts
}

#[test]
fn a_process_that_has_the_other_end_itself_deadlocks_on_itself() {
    let reads = |pid, make: fn(i32, Vec<Thread>, Vec<Fd>) -> Process| {
        make(pid, vec![thread(pid, On::Read { fd: 3 })], vec![read_end(3, PIPE), write_end(4, PIPE)])
    };
    let conclude = |facts: Facts| deadlock(&verdict(with_pipe(facts, 0), names(vec![]), Policy::new()));
    let (found, remedies) = conclude(returned(vec![reads(CHILD, fork)]));
    assert!(found.proved() && matches!(&found.shape, Shape::OwnEnd(own) if own.ends == [4]));
    assert_eq!(found.chain[0].on, WaitsOn::PipeData { inode: PIPE, by_mistake: vec![] });
    assert_eq!(remedies, [Remedy::CloseInChild { fds: vec![4] }]);
    let (_, remedies) = conclude(hung(vec![reads(TEST, process)]));
    assert_eq!(remedies, [Remedy::DropOwnWriteEnd { fds: vec![4], only: true }]);
    // A program has the end from its parent, if an exec did not close it; otherwise from a fork of its own.
    let (_, remedies) = conclude(returned(vec![reads(CHILD, process)]));
    assert_eq!(remedies, [Remedy::CreateWithCloexec { fds: vec![4], created: None }]);
    let mut forked = reads(CHILD, process);
    forked.fds.iter_mut().flatten().for_each(|fd| fd.cloexec = true);
    let (_, remedies) = conclude(returned(vec![forked]));
    let ends = Ends { pid: CHILD, fds: vec![4], created: None };
    assert_eq!(remedies, [Remedy::CloseInReaders { pids: vec![CHILD], ends }]);
    // Another thread of the process might write.
    let mut two = reads(CHILD, fork);
    two.tasks.push(thread(CHILD + 50, futex()));
    two.threads = 2;
    let (found, remedies) = conclude(returned(vec![two]));
    assert!(matches!(&found.shape, Shape::OwnEnd(own) if own.threads == Some(2)));
    assert!(matches!(&remedies[..], [Remedy::LookAtWriters { thread: Some((_, Some(_))), .. }]));
    // Each waits for the other to write first.
    let crossed = |pid, reads: u64| {
        let ends = vec![read_end(3, reads), write_end(4, PIPE), write_end(5, PIPE + 1)];
        fork(pid, vec![thread(pid, On::Read { fd: 3 })], ends)
    };
    let (found, remedies) = conclude(returned(vec![crossed(CHILD, PIPE), crossed(CHILD + 1, PIPE + 1)]));
    assert_eq!((&found.also[..], found.chain.len()), (&[CHILD + 1][..], 1));
    assert_eq!(remedies, [Remedy::WriteFirst { pids: vec![CHILD, CHILD + 1] }]);
}

#[test]
fn equal_deadlocks_are_one_finding() {
    let hangs = |pid: i32| {
        let ends = vec![read_end(3, pid as u64), write_end(4, pid as u64)];
        fork(pid, vec![thread(pid, On::Read { fd: 3 })], ends)
    };
    let mut facts = returned((0..3).map(|at| hangs(CHILD + at)).collect());
    facts.pipes = (0..3).map(|at| state((CHILD + at) as u64, 0)).collect();
    let (found, _) = deadlock(&verdict(facts.clone(), names(vec![]), Policy::new()));
    assert_eq!(found.also, [CHILD + 1, CHILD + 2]);
    // A deadlock with another remedy is not the same.
    facts.processes[1].fds = Some(vec![read_end(3, (CHILD + 1) as u64), write_end(9, (CHILD + 1) as u64)]);
    let verdict = verdict(facts, names(vec![]), Policy::new());
    let found = verdict.findings.iter().filter(|finding| matches!(finding.kind, Kind::Deadlock(_)));
    assert_eq!(found.count(), 2);
}

#[test]
fn more_deadlocks_than_are_reported_are_counted() {
    let hangs = |at: i32| {
        let (pid, pipe) = (CHILD + at, (CHILD + at) as u64);
        fork(pid, vec![thread(pid, On::Read { fd: 3 })], vec![read_end(3, pipe), write_end(4 + at, pipe)])
    };
    let mut facts = returned((0..6).map(hangs).collect());
    facts.pipes = (0..6).map(|at| state((CHILD + at) as u64, 0)).collect();
    let verdict = verdict(facts, names(vec![]), Policy::new());
    only(&verdict, |kind| *kind == Kind::MoreDeadlocks { count: 2 });
}

#[test]
fn what_is_not_seen_is_a_doubt() {
    let mut reader =
        fork(CHILD, vec![thread(CHILD, On::Read { fd: 3 })], vec![read_end(3, PIPE), write_end(4, PIPE)]);
    reader.unseen_wakers = vec![UnseenWaker::Timers];
    let facts = with_pipe(returned(vec![reader]), 0);
    let (found, _) = deadlock(&verdict(facts, names(vec![]), Policy::new()));
    assert!(!found.proved() && found.doubts.len() == 1, "{found:?}");
}

#[test]
fn a_lock_is_inherited_only_by_a_fork_of_a_process_with_threads() {
    let conclude = |kind: Awaited, threads: u32, lock: Option<&str>| {
        let facts = returned(vec![fork(CHILD, vec![thread(CHILD, futex())], vec![])]);
        let forked = ResolvedCallSite { threads, ..site(ResourceKind::Process, "fork", CHILD as u64) };
        let mut names = names(vec![forked]);
        names.awaited.insert(CHILD, kind);
        names.called.insert(CHILD, "std::panicking::set_hook".to_owned());
        names.locks.extend(lock.map(|lock| (CHILD, lock.to_owned())));
        let (found, remedies) = deadlock(&verdict(facts, names, Policy::new()));
        (found.shape, remedies)
    };
    let exec =
        |or_own| vec![Remedy::ExecAfterFork { locking: Some("std::panicking::set_hook".to_owned()), or_own }];
    let (shape, remedies) = conclude(Awaited::Lock, 3, Some("std::panicking::HOOK"));
    assert_eq!((shape, remedies), (Shape::InheritedLock { forked_by: TEST, forked: CHILD }, exec(false)));
    let (shape, remedies) = conclude(Awaited::Lock, 3, Some("a::CACHE"));
    let expected = Shape::MaybeInheritedLock { forked_by: TEST, forked: CHILD, threads: 1 };
    assert_eq!((shape, remedies), (expected, exec(true)));
    let (shape, remedies) = conclude(Awaited::Lock, 1, Some("a::CACHE"));
    assert_eq!(shape, Shape::Alone { threads: 1, left_behind: None });
    assert_eq!(remedies, [Remedy::EndWait(Some(Awaited::Lock))]);
}

#[test]
fn a_lock_is_inherited_through_a_fork_with_one_thread() {
    let conclude = |execed: bool| {
        let worker = fork(CHILD + 1, vec![thread(CHILD + 1, futex())], vec![]);
        let forked = |pid: i32, threads, creator, execed| {
            let made = site(ResourceKind::Process, "fork", pid as u64);
            ResolvedCallSite { threads, creator, execed, ..made }
        };
        let mut names = names(vec![forked(CHILD, 3, TEST, execed), forked(CHILD + 1, 1, CHILD, false)]);
        names.awaited.insert(CHILD + 1, Awaited::Lock);
        names.locks.insert(CHILD + 1, "std::sys::backtrace::lock::LOCK".to_owned());
        deadlock(&verdict(returned(vec![worker]), names, Policy::new())).0.shape
    };
    assert_eq!(conclude(false), Shape::InheritedLock { forked_by: TEST, forked: CHILD });
    // A program that an exec has started has none of its parent's locks.
    assert_eq!(conclude(true), Shape::Alone { threads: 1, left_behind: None });
}

#[test]
fn threads_that_all_wait_are_one_finding() {
    let conclude = |first: Awaited, second: Option<Awaited>| {
        let on = if second.is_some() { futex() } else { On::Thread { tid: TEST + 50 } };
        let test = process(TEST, vec![thread(TEST, on), thread(TEST + 50, futex())], vec![]);
        let mut names = names(vec![]);
        names.awaited.insert(TEST + 50, first);
        names.awaited.extend(second.map(|kind| (TEST, kind)));
        names.locks.insert(TEST, "a::LEFT".to_owned());
        names.locks.insert(TEST + 50, "a::RIGHT".to_owned());
        let (found, remedies) = deadlock(&verdict(hung(vec![test]), names, Policy::new()));
        assert!(matches!(found.shape, Shape::Threads { threads: 2, .. }), "{found:?}");
        remedies
    };
    assert_eq!(conclude(Awaited::Lock, Some(Awaited::Lock)), [Remedy::LockOrder]);
    assert_eq!(conclude(Awaited::Lock, None), [Remedy::ReleaseBeforeJoin]);
    assert_eq!(conclude(Awaited::Message, None), [Remedy::EndWait(Some(Awaited::Message))]);
}

#[test]
fn an_executor_that_parks_waits_for_its_future() {
    let conclude = |called: &str| {
        let mut names = names(vec![]);
        names.awaited.insert(TEST, Awaited::Condvar);
        names.called.insert(TEST, called.to_owned());
        let test = process(TEST, vec![thread(TEST, futex())], vec![]);
        deadlock(&verdict(hung(vec![test]), names, Policy::new())).1
    };
    assert_eq!(conclude("futures_lite::future::block_on"), [Remedy::FindAwait]);
    assert_eq!(conclude("futures_executor::local_pool::block_on"), [Remedy::FindAwait]);
    assert_eq!(conclude("std::sync::Condvar::wait"), [Remedy::EndWait(Some(Awaited::Condvar))]);
}

#[test]
fn a_ring_is_mended_where_the_test_can() {
    let conclude = |test: On, test_fds: Vec<Fd>, child: On, child_fds: Vec<Fd>, queued: u32| {
        let test = process(TEST, vec![thread(TEST, test)], test_fds);
        let child = process(CHILD, vec![thread(CHILD, child)], child_fds);
        let facts = with_pipe(hung(vec![test, child]), queued);
        let (found, remedies) = deadlock(&verdict(facts, names(vec![]), Policy::new()));
        assert!(matches!(found.shape, Shape::Ring { .. }) && found.chain.len() == 2, "{found:?}");
        remedies
    };
    let waits = On::Child { pid: CHILD };
    let kept =
        conclude(waits.clone(), vec![write_end(4, PIPE)], On::Read { fd: 0 }, vec![read_end(0, PIPE)], 0);
    assert!(matches!(&kept[..], [Remedy::DropStdinBeforeWait { ends }] if ends.fds == [4]), "{kept:?}");
    let full = conclude(waits, vec![read_end(3, PIPE)], On::Write { fd: 1 }, vec![write_end(1, PIPE)], 4096);
    assert!(matches!(&full[..], [Remedy::ReadBeforeWait { ends }] if ends.fds == [3]), "{full:?}");
    let both = conclude(
        On::Read { fd: 5 },
        vec![write_end(4, PIPE), read_end(5, PIPE + 1)],
        On::Read { fd: 0 },
        vec![read_end(0, PIPE), write_end(1, PIPE + 1)],
        0,
    );
    assert!(matches!(&both[..], [Remedy::DropStdin { .. }]), "{both:?}");
    let full = conclude(
        On::Write { fd: 4 },
        vec![write_end(4, PIPE), read_end(5, PIPE + 1)],
        On::Write { fd: 1 },
        vec![read_end(0, PIPE), write_end(1, PIPE + 1)],
        4096,
    );
    assert_eq!(full, [Remedy::ReadWhileWriting]);
}

#[test]
fn a_writer_that_only_itself_could_read_closes_its_read_end() {
    let writes =
        fork(CHILD, vec![thread(CHILD, On::Write { fd: 4 })], vec![read_end(3, PIPE), write_end(4, PIPE)]);
    let (found, remedies) =
        deadlock(&verdict(with_pipe(returned(vec![writes]), 4096), names(vec![]), Policy::new()));
    assert_eq!(found.shape, Shape::Single);
    assert_eq!(remedies, [Remedy::CloseOwnReadEnd { fds: vec![3] }]);
}

#[test]
fn a_hang_without_proof_names_what_could_still_end_it() {
    let conclude = |test: On, test_fds: Vec<Fd>, child: Process, names: Names| {
        let test = process(TEST, vec![thread(TEST, test)], test_fds);
        waits_for(&verdict(with_pipe(hung(vec![test, child]), 0), names, Policy::new()))
    };
    let asleep = |make: fn(i32, Vec<Thread>, Vec<Fd>) -> Process, fds| {
        make(CHILD, vec![thread(CHILD, On::Sleep)], fds)
    };
    let reads = || (On::Read { fd: 3 }, vec![read_end(3, PIPE)]);
    let (on, fds) = reads();
    let left = Process { adopted: true, ..asleep(process, vec![write_end(1, PIPE)]) };
    let (waits, remedies) = conclude(on, fds, left, names(vec![]));
    assert!(matches!(&waits.chain[0].on, LinkOn::PipeData { writers, .. } if writers == &[CHILD]));
    assert_eq!(remedies, [Remedy::RedirectBackground { watch: false, orphan: Some(CHILD) }]);
    let (on, fds) = reads();
    let (_, remedies) = conclude(on, fds, asleep(fork, vec![write_end(4, PIPE)]), names(vec![]));
    assert!(matches!(&remedies[..], [Remedy::CloseInFork { ends, watch: false }] if ends.fds == [4]));
    let (on, fds) = reads();
    let mut part = names(vec![]);
    part.called.insert(TEST, "std::io::BufRead::read_line".to_owned());
    let (_, remedies) = conclude(on, fds, asleep(process, vec![write_end(1, PIPE)]), part);
    assert_eq!(remedies, [Remedy::FindWhyNothingIsWritten]);
    let (on, fds) = reads();
    let made = names(vec![site(ResourceKind::Fds, "pipe", PIPE)]);
    let (waits, remedies) = conclude(on, fds, asleep(process, vec![write_end(7, PIPE)]), made);
    assert!(matches!(waits.chain[0].on, LinkOn::PipeData { by_mistake: true, .. }));
    assert!(matches!(&remedies[..], [Remedy::CreatePipeWithCloexec { .. }]));
    let stopped = process(CHILD, vec![thread(CHILD, On::Stopped)], vec![]);
    let (waits, remedies) = conclude(On::Child { pid: CHILD }, vec![], stopped, names(vec![]));
    assert_eq!(
        (&waits.chain[0].on, &remedies[..]),
        (&LinkOn::Child { pid: CHILD }, &[Remedy::ContinueStopped { pids: vec![CHILD] }][..],)
    );
}

#[test]
fn what_waits_for_the_test_meanwhile_comes_first() {
    // The child has a second thread that sleeps, so that nothing is proved.
    let mut child = process(CHILD, vec![thread(CHILD, On::Read { fd: 0 })], vec![read_end(0, PIPE)]);
    child.tasks.push(thread(CHILD + 50, On::Sleep));
    child.threads = 2;
    let test = process(TEST, vec![thread(TEST, On::Child { pid: CHILD })], vec![write_end(4, PIPE)]);
    let facts = with_pipe(hung(vec![test, child]), 0);
    let (waits, remedies) = waits_for(&verdict(facts, names(vec![]), Policy::new()));
    let pids: Vec<i32> = waits.chain.iter().map(|link| link.pid).collect();
    assert_eq!((&pids[..], waits.ring), (&[TEST, CHILD][..], Some(0)));
    assert!(
        matches!(&remedies[..], [Remedy::DropStdinBeforeWait { ends }] if ends.fds == [4]),
        "{remedies:?}"
    );
}

#[test]
fn of_a_runtime_each_wait_is_named() {
    let fds = vec![3, i32::from(nix::libc::POLLIN)];
    let on = On::Epoll { epoll: 9, fds, inodes: vec![PIPE], exact: true, forever: false };
    let test = process(TEST, vec![thread(TEST, on)], vec![read_end(3, PIPE)]);
    let mut names = names(vec![]);
    names.in_runtime.insert(TEST);
    let (waits, _) = waits_for(&verdict(with_pipe(hung(vec![test]), 0), names, Policy::new()));
    let expected = vec![RuntimeWait::PipeData { fd: 3, writers: vec![] }, RuntimeWait::Timer];
    assert_eq!(waits.chain[0].on, LinkOn::Runtime { waits: expected });
}

#[test]
fn a_lifeline_that_is_not_watched_is_named_with_the_wait_for_its_process() {
    let child = fork(CHILD, vec![thread(CHILD, On::Sleep)], vec![read_end(5, PIPE + 1), write_end(6, PIPE)]);
    let test = process(TEST, vec![thread(TEST, On::Read { fd: 3 })], vec![read_end(3, PIPE)]);
    let mut facts = with_pipe(hung(vec![test, child]), 0);
    facts.pipes[1].no_writer = true;
    let verdict = verdict(facts, names(vec![]), Policy::new());
    let found = only(&verdict, |kind| matches!(kind, Kind::UnwatchedLifeline { .. }));
    assert_eq!(found.kind, Kind::UnwatchedLifeline { pid: CHILD, fds: vec![5] });
    let (_, remedies) = waits_for(&verdict);
    assert!(matches!(&remedies[..], [Remedy::CloseInFork { watch: true, .. }]), "{remedies:?}");
}
