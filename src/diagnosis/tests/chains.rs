//! Chains of waits to the last waiter, wake channels, and the table of preconditions.

use super::*;
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::finding::Finding;
use crate::diagnosis::remedy::{Ends, fits};
use crate::diagnosis::{LinkOn, WaitsFor};
use crate::guard::facts::Outsider;
use crate::proc::sockets::{Peer, Socket};

fn socket(ino: u64, peer: u64) -> Socket {
    Socket {
        ino,
        domain: libc::AF_UNIX,
        kind: libc::SOCK_STREAM,
        listens: false,
        reads_forever: true,
        writes_forever: true,
        peer: Peer::Socket { ino: peer },
        name: None,
        queued: Some(0),
        is_full: false,
        local: None,
        remote: None,
        listener: None,
    }
}

fn socket_fd(fd: i32, ino: u64) -> Fd {
    Fd { fd, target: format!("socket:[{ino}]"), cloexec: true, ino, ..read_end(fd, ino) }
}

fn event_fd(fd: i32) -> Fd {
    Fd {
        target: "anon_inode:[eventfd]".to_owned(),
        event: 41,
        ino: 1,
        access: libc::O_RDWR,
        ..read_end(fd, 1)
    }
}

/// An event loop with an eventfd and a socket pair of its own, and further fds in `set`.
fn event_loop(pid: i32, set: &[i32], inodes: &[u64], mut fds: Vec<Fd>) -> Process {
    let own = [socket_fd(6, 61), socket_fd(7, 60), event_fd(8)];
    fds.extend(own);
    fds.push(Fd { target: "anon_inode:[eventpoll]".to_owned(), ..read_end(9, 9) });
    let entries = [8, libc::POLLIN.into(), 7, libc::POLLIN.into()];
    let entries = entries.into_iter().chain(set.iter().flat_map(|fd| [*fd, libc::POLLIN.into()])).collect();
    let inodes = [1, 60].iter().chain(inodes).copied().collect();
    let on = On::Epoll { epoll: 9, fds: entries, inodes, exact: true, forever: true };
    process(pid, vec![thread(pid, on)], fds)
}

fn with_sockets(mut facts: Facts) -> Facts {
    facts.sockets = vec![socket(60, 61), socket(61, 60)];
    facts.pipes = vec![state(PIPE, 0), state(PIPE + 1, 0)];
    facts
}

fn says_own(finding: &Finding) -> bool {
    format!("{finding:?}").contains("OwnEnd")
}

#[test]
fn a_thread_of_the_harness_is_not_what_another_waits_for() {
    let futex = || On::Futex { address: 8, place: None, shared: false, forever: true };
    let mut signals = thread(TEST + 2, On::Read { fd: 9 });
    signals.name = "childproof-sign".to_owned();
    let test =
        process(TEST, vec![thread(TEST, futex()), thread(TEST + 1, On::Read { fd: 3 }), signals], vec![]);
    let found = verdict(hung(vec![test]), names(vec![]), Policy::new());
    let waits = only(&found, |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(WaitsFor { chain, .. }) = waits.kind else { panic!("{waits:?}") };
    assert!(matches!(&chain[0].on, LinkOn::Threads { tids, .. } if *tids == [TEST + 1]), "{chain:?}");
}

#[test]
fn a_wake_channel_is_never_the_cause() {
    // A server with its stdin held open by the test: that is the cause.
    let test = process(TEST, vec![thread(TEST, On::Child { pid: CHILD })], vec![write_end(4, PIPE)]);
    let server = event_loop(CHILD, &[0], &[PIPE], vec![read_end(0, PIPE)]);
    let found = verdict(with_sockets(hung(vec![test.clone(), server])), names(vec![]), Policy::new());
    assert!(!found.findings.iter().any(says_own), "{:#?}", found.findings);
    let deadlock = only(&found, |kind| matches!(kind, Kind::Deadlock(_)));
    assert!(matches!(&deadlock.remedies[..], [Remedy::DropStdinBeforeWait { .. }]), "{deadlock:#?}");
    // An idle event loop, waited for or left.
    let idle = || event_loop(CHILD, &[], &[], vec![]);
    let found = verdict(with_sockets(hung(vec![test, idle()])), names(vec![]), Policy::new());
    let waits = only(&found, |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(WaitsFor { chain, ring: None, .. }) = waits.kind else { panic!("{waits:?}") };
    assert_eq!(chain[1].on, LinkOn::EventLoop);
    let found = verdict(with_sockets(returned(vec![idle()])), names(vec![]), Policy::new());
    assert!(
        matches!(&found.findings[..], [Finding { kind: Kind::LeakedProcess { .. }, .. }]),
        "{:#?}",
        found.findings
    );
}

#[test]
fn a_chain_is_followed_over_threads_children_and_pipes() {
    let test = process(
        TEST,
        vec![thread(TEST, On::Thread { tid: 150 }), thread(150, On::Read { fd: 3 })],
        vec![read_end(3, PIPE)],
    );
    let shell = process(CHILD, vec![thread(CHILD, On::Child { pid: -1 })], vec![write_end(1, PIPE)]);
    let mut job = process(CHILD + 1, vec![thread(CHILD + 1, On::Sleep)], vec![write_end(1, PIPE)]);
    (job.parent, job.lineage) = (CHILD, vec![CHILD, TEST]);
    let found = verdict(with_sockets(hung(vec![test, shell, job])), names(vec![]), Policy::new());
    let waits = only(&found, |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(WaitsFor { chain, ring, .. }) = waits.kind else { panic!("{waits:?}") };
    let tids: Vec<i32> = chain.iter().map(|link| link.tid).collect();
    assert_eq!((&tids[..], ring), (&[TEST, 150, CHILD, CHILD + 1][..], None));
}

#[test]
fn a_child_that_failed_is_named_with_the_wait_for_it() {
    let test = process(TEST, vec![thread(TEST, On::Fd { fd: 3 })], vec![socket_fd(3, 60)]);
    let mut dead = Process { class: Class::Unwaited, ..process(CHILD, vec![], vec![]) };
    let conclude = |dead: Process| {
        let mut facts = with_sockets(hung(vec![test.clone(), dead]));
        facts.sockets[0].listens = true;
        only(&verdict(facts, names(vec![]), Policy::new()), |kind| matches!(kind, Kind::WaitsFor(_)))
    };
    dead.exit_status = Some(101 << 8);
    let found = conclude(dead.clone());
    assert_eq!(found.remedies, [Remedy::CheckChild { pid: CHILD, was_waited_for: false }]);
    // Without an error, if no other process is left.
    dead.exit_status = Some(0);
    assert_eq!(conclude(dead.clone()).remedies, [Remedy::CheckChild { pid: CHILD, was_waited_for: false }]);
    let client = process(CHILD + 1, vec![thread(CHILD + 1, On::Other)], vec![]);
    let mut facts = with_sockets(hung(vec![test.clone(), dead, client]));
    facts.sockets[0].listens = true;
    let found = only(&verdict(facts, names(vec![]), Policy::new()), |kind| matches!(kind, Kind::WaitsFor(_)));
    assert!(found.remedies.is_empty());
}

/// The only wait of leaked processes.
fn wait_of_leaked(processes: Vec<Process>) -> (WaitsFor, Vec<Remedy>) {
    let found = verdict(with_sockets(returned(processes)), names(vec![]), Policy::new());
    let waits = only(&found, |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(wait) = waits.kind else { panic!("{:?}", waits.kind) };
    (wait, waits.remedies)
}

#[test]
fn a_leaked_reader_of_a_pipe_that_only_it_and_its_siblings_write_to_says_so() {
    let ends = || vec![read_end(5, PIPE), write_end(6, PIPE)];
    let worker = process(CHILD, vec![thread(CHILD, On::Read { fd: 5 })], ends());
    let other = process(CHILD + 1, vec![thread(CHILD + 1, On::Other)], ends());
    let (waits, remedies) = wait_of_leaked(vec![worker.clone(), other.clone()]);
    let own = LinkOn::OwnPipe { inode: PIPE, fds: vec![6], others: vec![CHILD + 1] };
    assert_eq!(waits.chain[0].on, own);
    let ends_of = Ends { pid: CHILD, fds: vec![6], created: None };
    assert_eq!(remedies, [Remedy::CloseInReaders { pids: vec![CHILD, CHILD + 1], ends: ends_of }]);
    // Another thread may write there: that is how a program wakes itself.
    let mut threaded = worker.clone();
    threaded.tasks.push(thread(150, On::Other));
    let found = verdict(with_sockets(returned(vec![threaded])), names(vec![]), Policy::new());
    assert!(!found.findings.iter().any(|finding| matches!(finding.kind, Kind::WaitsFor(_))), "{found:#?}");
    // A writer outside of the test may still write.
    let mut facts = with_sockets(returned(vec![worker, other]));
    let outsider = Outsider { pid: 9, comm: "other".to_owned(), fds: vec![write_end(3, PIPE)] };
    facts.outside.holders.push(outsider);
    let found = verdict(facts, names(vec![]), Policy::new());
    assert!(!format!("{:?}", found.findings).contains("OwnPipe"), "{:#?}", found.findings);
}

#[test]
fn a_leaked_process_that_waits_for_a_child_or_a_connection_says_so() {
    let shell = process(CHILD, vec![thread(CHILD, On::Child { pid: CHILD + 1 })], vec![]);
    let mut job = process(CHILD + 1, vec![thread(CHILD + 1, On::Sleep)], vec![]);
    (job.parent, job.lineage) = (CHILD, vec![CHILD, TEST]);
    let (waits, remedies) = wait_of_leaked(vec![shell, job]);
    assert_eq!(waits.chain[0].on, LinkOn::Child { pid: CHILD + 1 });
    assert_eq!(remedies, []);
    let server = process(CHILD, vec![thread(CHILD, On::Fd { fd: 3 })], vec![socket_fd(3, 60)]);
    let mut facts = with_sockets(returned(vec![server]));
    facts.sockets[0].listens = true;
    let found = only(&verdict(facts, names(vec![]), Policy::new()), |kind| matches!(kind, Kind::WaitsFor(_)));
    assert!(format!("{found:?}").contains("Connection"), "{found:?}");
}

/// A remedy that names something is not shown if the facts do not contain that.
#[test]
fn a_remedy_that_does_not_fit_the_facts_is_not_shown() {
    let facts = with_sockets(hung(vec![
        process(TEST, vec![thread(TEST, On::Read { fd: 3 })], vec![read_end(3, PIPE)]),
        process(CHILD, vec![thread(CHILD, On::Sleep)], vec![write_end(7, PIPE)]),
    ]));
    let names = names(vec![]);
    let evidence =
        Evidence { facts: &facts, names: &names, stuck: &[], inherited: &[], unwatched: &[], exited: &[] };
    let Some(waits) = evidence.waits_for() else { panic!("no wait") };
    let kind = Kind::WaitsFor(waits);
    let ends = |pid: i32, fd: i32| Ends { pid, fds: vec![fd], created: None };
    for (remedy, expected) in [
        (Remedy::RedirectBackground { watch: false, orphan: None }, false),
        (Remedy::AnswerAtTerminal { pid: CHILD, fds: vec![3] }, false),
        (Remedy::BringToForeground { pid: CHILD, signal: libc::SIGTTIN }, false),
        (Remedy::CloseLockInChild { pid: CHILD, fd: 7, file: String::new(), opened: None }, false),
        (Remedy::ReleaseOwnFileLock { file: String::new(), opened: None }, false),
        (Remedy::ReadTerminal, false),
        (Remedy::CloseInProgram { ends: ends(CHILD, 7) }, true),
        (Remedy::CloseInProgram { ends: ends(CHILD, 1) }, false),
        (Remedy::CloseInFork { ends: ends(CHILD, 7), watch: false }, false),
        (Remedy::DropStdin { ends: ends(CHILD, 7) }, false),
        (Remedy::DropStdinBeforeWait { ends: ends(TEST, 3) }, false),
        (Remedy::ReadBeforeWait { ends: ends(TEST, 3) }, true),
        (Remedy::ReadAllTheWhile { ends: ends(CHILD, 7) }, false),
        (
            Remedy::CloseWriteEnd {
                reader: TEST,
                ends: ends(CHILD, 7),
                before: super::super::Before::Reading,
            },
            true,
        ),
        (Remedy::ShutdownSocket { ends: ends(CHILD, 7), before: super::super::Before::Reading }, false),
        (Remedy::ShutdownEither { one: ends(CHILD, 7), other: ends(TEST, 3) }, false),
        (Remedy::EndWriter { pid: CHILD }, false),
        (Remedy::CloseOwnFifo { pid: TEST, fds: vec![3], reads: 3 }, false),
        (Remedy::OpenInOneOrder, false),
        (Remedy::EndLockHolder { pid: CHILD, file: String::new() }, false),
        (Remedy::EndWait(None), false),
        (Remedy::AwaitInTask(None), false),
        (Remedy::StartOtherProgram, false),
        (Remedy::ContinueStopped { pids: vec![CHILD] }, false),
        (Remedy::FindStopSignal, false),
        (Remedy::CheckChild { pid: CHILD, was_waited_for: false }, false),
        (Remedy::CloseInReaders { pids: vec![TEST], ends: ends(CHILD, 7) }, true),
        (Remedy::CloseInReaders { pids: vec![TEST, CHILD], ends: ends(CHILD, 7) }, false),
        (Remedy::UnblockSignal { signal: libc::SIGTERM }, false),
        (Remedy::KillGroup { pid: CHILD, signal: libc::SIGTERM }, false),
        (Remedy::StopDaemon { pid: CHILD }, false),
        (Remedy::NoDaemonInBody { pid: CHILD }, false),
        (Remedy::KillAndWaitpid { pid: CHILD }, false),
        (Remedy::ClosePopen, false),
        (Remedy::EndJobsOfSystem, false),
        (Remedy::OpenOtherEnd { path: String::new() }, false),
        (Remedy::LeaveRuntime, false),
        (Remedy::ExecAfterFork { locking: None, or_own: false }, false),
        (Remedy::LookAtSignal { signal: libc::SIGSEGV }, false),
    ] {
        assert_eq!(fits(&remedy, &kind, &evidence), expected, "{remedy:?}");
    }
}

/// smol has its tasks' timeouts in one timerfd, and a thread of its own that drives what no `block_on` does.
#[test]
fn a_timer_of_smol_is_named_only_if_it_is_set() {
    let of = |is_set_timer| {
        let timer = Fd {
            target: "anon_inode:[timerfd]".to_owned(),
            is_set_timer,
            ino: 1,
            access: libc::O_RDWR,
            ..read_end(10, 1)
        };
        let mut test = event_loop(TEST, &[10], &[1], vec![timer]);
        test.is_test = true;
        test.fds.iter_mut().for_each(|fds| fds.sort_by_key(|fd| fd.fd));
        let lock = On::Futex { address: 8, place: None, shared: false, forever: true };
        let mut driver = thread(TEST + 1, lock);
        driver.name = "async-io".to_owned();
        test.tasks.push(driver);
        let mut names = names(vec![]);
        names.in_runtime.extend([TEST, TEST + 1]);
        let found = verdict(with_sockets(hung(vec![test])), names, Policy::new());
        format!("{:?}", found.findings)
    };
    assert!(of(true).contains("Timer"), "{}", of(true));
    assert!(!of(false).contains("Timer") && !of(false).contains("timerfd"), "{}", of(false));
}

#[test]
fn hangs_of_one_line_are_alike_only_if_they_wait_for_the_same() {
    let hang = |on| {
        let test = process(TEST, vec![thread(TEST, on)], vec![socket_fd(3, 60)]);
        let child = process(CHILD, vec![thread(CHILD, On::Sleep)], vec![]);
        let mut facts = with_sockets(hung(vec![test, child]));
        facts.sockets[0].listens = true;
        verdict(facts, names(vec![]), Policy::new())
    };
    let mut groups = crate::diagnosis::Groups::default();
    groups.add(&hang(On::Child { pid: CHILD }), "first", false);
    assert!(groups.has_one_like(&hang(On::Child { pid: CHILD })));
    assert!(!groups.has_one_like(&hang(On::Fd { fd: 3 })));
}
