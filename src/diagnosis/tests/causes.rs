//! The cause at the end of a chain of waits, where something near it looks like one.

use super::*;
use crate::diagnosis::remedy::{Before, Ends};
use crate::diagnosis::{LinkOn, RuntimeWait, Shape, WaitsFor};
use crate::guard::contended::{Contended, FdHolder, Fifo, Waiter};
use crate::guard::report_page::Body;
use crate::proc::sockets::{Peer, Socket};
use crate::recorder::awaited::Awaited;

fn socket(ino: u64, peer: Peer) -> Socket {
    Socket {
        ino,
        domain: libc::AF_UNIX,
        kind: libc::SOCK_STREAM,
        listens: peer == Peer::None,
        reads_forever: true,
        writes_forever: true,
        peer,
        name: None,
        queued: Some(0),
        is_full: false,
        local: None,
        remote: None,
        listener: None,
    }
}

fn file(fd: i32, target: &str) -> Fd {
    Fd { target: target.to_owned(), ino: 0, access: libc::O_RDWR, ..read_end(fd, 0) }
}

fn socket_fd(fd: i32, ino: u64) -> Fd {
    Fd { ino, ..file(fd, &format!("socket:[{ino}]")) }
}

/// Two connected sockets, 60 and 61, and one that listens, 62.
fn sockets(mut facts: Facts) -> Facts {
    facts.sockets = vec![
        socket(60, Peer::Socket { ino: 61 }),
        socket(61, Peer::Socket { ino: 60 }),
        socket(62, Peer::None),
    ];
    facts.pipes = vec![state(PIPE, 0)];
    facts
}

fn test(on: On, fds: Vec<Fd>) -> Process {
    process(TEST, vec![thread(TEST, on)], fds)
}

fn child(on: On, fds: Vec<Fd>) -> Process {
    process(CHILD, vec![thread(CHILD, on)], fds)
}

fn poll(fds: &[i32]) -> On {
    On::Poll { fds: fds.iter().flat_map(|fd| [*fd, libc::POLLIN.into()]).collect(), forever: true }
}

#[track_caller]
fn wait(facts: Facts, names: Names) -> (WaitsFor, Vec<Remedy>) {
    let found = only(&verdict(facts, names, Policy::new()), |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(waits) = found.kind else { panic!("{found:?}") };
    (waits, found.remedies)
}

#[test]
fn of_a_set_all_is_named_and_what_a_waiter_holds_is_closed() {
    let server = |fds: &[i32]| child(poll(fds), vec![read_end(0, PIPE), socket_fd(5, 62), socket_fd(6, 60)]);
    let waits = |fds: &[i32], own: Fd| {
        wait(sockets(hung(vec![test(On::Child { pid: CHILD }, vec![own]), server(fds)])), names(vec![]))
    };
    let (found, remedies) = waits(&[5, 0], write_end(4, PIPE));
    let stdin = RuntimeWait::PipeData { fd: 0, writers: vec![TEST] };
    let LinkOn::AnyOf { waits: any } = &found.chain[1].on else { panic!("{found:?}") };
    assert!(any.contains(&stdin) && any.len() == 2, "{any:?}");
    assert_eq!(found.ring, Some(0));
    assert!(matches!(remedies[..], [Remedy::DropStdinBeforeWait { .. }]), "{remedies:?}");
    // The same of a connection.
    let (_, remedies) = waits(&[5, 6], socket_fd(4, 61));
    let ends = Ends { pid: TEST, fds: vec![4], created: None };
    assert_eq!(remedies, [Remedy::ShutdownSocket { ends, before: Before::Waiting }]);
    // What listens and nothing else waits for a connection.
    let (found, remedies) = waits(&[5], write_end(4, PIPE));
    assert_eq!((&found.chain[1].on, &remedies[..]), (&LinkOn::Connection { inode: 62 }, &[][..]));
}

#[test]
fn a_lock_explains_more_than_the_accept_beside_it() {
    let hang = |kind: Awaited| {
        let mut server = child(On::Fd { fd: 5 }, vec![socket_fd(5, 62), socket_fd(6, 60)]);
        server.tasks.push(thread(150, futex()));
        let client = test(On::Fd { fd: 3 }, vec![socket_fd(3, 61)]);
        let mut names = names(vec![]);
        names.awaited.insert(150, kind);
        wait(sockets(hung(vec![client, server])), names)
    };
    let (waits, remedies) = hang(Awaited::Lock);
    assert!(matches!(waits.chain[1].on, LinkOn::Threads { .. }) && waits.chain.len() == 2, "{waits:?}");
    assert_eq!(remedies, [Remedy::EndWait(Some(Awaited::Lock))]);
    // What a semaphore of another program stands for is not known.
    let (waits, remedies) = hang(Awaited::Semaphore);
    assert!(matches!(waits.chain[1].on, LinkOn::Threads { .. }) && waits.chain.len() == 2, "{waits:?}");
    assert_eq!(remedies, []);
    // A worker without work.
    let (waits, remedies) = hang(Awaited::Message);
    assert_eq!((&waits.chain[1].on, &remedies[..]), (&LinkOn::Connection { inode: 62 }, &[][..]));
}

#[test]
fn of_a_connection_that_both_threads_read_either_end_may_be_shut_down() {
    let mut reads = test(On::Read { fd: 3 }, vec![socket_fd(3, 60), socket_fd(4, 61)]);
    reads.tasks.push(thread(150, On::Read { fd: 4 }));
    // A child that sleeps may have been given an end.
    let facts = sockets(hung(vec![reads, child(On::Sleep, vec![])]));
    let created = |key: u64, line: u32| ResolvedCallSite {
        place: Some(SourceLocation { file: "a.rs".to_owned(), line, column: 1 }),
        ..site(ResourceKind::Fds, "socket", key)
    };
    let mut names = names(vec![created(60, 1), created(61, 2)]);
    names.called.insert(TEST, "read_to_end".to_owned());
    let evidence = crate::diagnosis::evidence::Evidence {
        facts: &facts,
        names: &names,
        stuck: &[],
        inherited: &[],
        unwatched: &[],
        exited: &[],
    };
    let Some(waits) = evidence.waits_for() else { panic!("no wait") };
    let kind = Kind::WaitsFor(waits);
    let ends = |fd: i32, line: u32| Ends { pid: TEST, fds: vec![fd], created: created(0, line).place };
    let either = Remedy::ShutdownEither { one: ends(3, 1), other: ends(4, 2) };
    assert_eq!(crate::diagnosis::remedy::remedies(&kind, &evidence), [either]);
}

#[test]
fn of_tests_that_a_left_child_runs_no_wait_is_reported() {
    let mut own = child(On::Read { fd: 5 }, vec![read_end(5, PIPE)]);
    own.execed_own_program = true;
    own.command_line = ["/proc/self/exe", "helper"].map(str::to_owned).to_vec();
    let mut guard = process(102, vec![thread(102, On::Sleep)], vec![write_end(6, PIPE)]);
    (guard.lineage, guard.parent, guard.comm) = (vec![CHILD, TEST], CHILD, "childproof".to_owned());
    let found = verdict(sockets(returned(vec![own, guard])), names(vec![]), Policy::new());
    let own = only(&found, |kind| matches!(kind, Kind::OwnBinary { .. }));
    // It may be meant: the leak is what is to be mended.
    assert_eq!(own.remedies, []);
    assert!(!found.findings.iter().any(|finding| matches!(finding.kind, Kind::WaitsFor(_))), "{found:#?}");
}

#[test]
fn threads_that_wait_for_one_in_a_ring_are_no_cause_of_their_own() {
    let ring = |waits_for_child: bool| {
        let on = if waits_for_child { On::Child { pid: CHILD } } else { futex() };
        let mut waits = test(futex(), vec![write_end(4, PIPE)]);
        waits.tasks.push(thread(150, futex()));
        waits.tasks.push(thread(151, on));
        let reads = child(On::Read { fd: 0 }, vec![read_end(0, PIPE)]);
        let found = verdict(sockets(hung(vec![waits, reads])), names(vec![]), Policy::new()).findings;
        let deadlocks = found.into_iter().filter_map(|finding| match finding.kind {
            Kind::Deadlock(deadlock) => Some(deadlock.shape),
            _ => None,
        });
        deadlocks.collect::<Vec<Shape>>()
    };
    assert!(matches!(ring(true)[..], [Shape::Ring { .. }]), "{:?}", ring(true));
    assert!(matches!(ring(false)[..], [Shape::Threads { .. }]), "{:?}", ring(false));
}

#[test]
fn a_task_that_blocks_is_told_from_a_thread_that_does() {
    let remedies = |in_task: bool, threads: usize| {
        let mut waits = test(futex(), vec![]);
        waits.tasks.extend((1..threads).map(|at| thread(150 + at as i32, futex())));
        let mut names = names(vec![]);
        names.awaited.insert(TEST, Awaited::Message);
        names.in_task.extend(in_task.then_some(TEST));
        // The others are idle workers.
        names.in_runtime.extend((1..threads).map(|at| 150 + at as i32));
        let found = verdict(hung(vec![waits]), names, Policy::new());
        only(&found, |kind| matches!(kind, Kind::Deadlock(_))).remedies
    };
    for threads in [1, 3] {
        assert_eq!(remedies(true, threads), [Remedy::AwaitInTask(Some(Awaited::Message))]);
        assert_eq!(remedies(false, threads), [Remedy::EndWait(Some(Awaited::Message))]);
    }
}

#[test]
fn readers_and_writers_may_wait_for_one_lock() {
    let remedies = |called: &str| {
        let lock = |address: u64| On::Futex { address, place: None, shared: false, forever: true };
        let mut waits = test(lock(8), vec![]);
        waits.tasks.push(thread(150, lock(16)));
        let mut names = names(vec![]);
        for tid in [TEST, 150] {
            names.awaited.insert(tid, Awaited::Lock);
            names.called.insert(tid, called.to_owned());
        }
        let found = verdict(hung(vec![waits]), names, Policy::new());
        only(&found, |kind| matches!(kind, Kind::Deadlock(_))).remedies
    };
    assert_eq!(remedies("std::sync::poison::rwlock::RwLock<T>::read"), [Remedy::OneLockOrSeveral]);
    assert_eq!(remedies("lock_api::mutex::Mutex<R,T>::lock"), [Remedy::OneLockOrSeveral]);
    assert_eq!(remedies("std::sync::poison::mutex::Mutex<T>::lock"), [Remedy::LockOrder]);
}

#[test]
fn a_runtime_does_not_wait_for_a_child_that_has_exited() {
    let epoll =
        On::Epoll { epoll: 9, fds: vec![5, 1, 6, 1], inodes: vec![0, 60], exact: true, forever: true };
    let pidfd = Fd { process: CHILD, ..file(5, "anon_inode:[pidfd]") };
    let mut dead = child(On::Other, vec![]);
    (dead.class, dead.exit_status, dead.tasks) = (Class::Unwaited, Some(0x7f00), vec![]);
    let mut names = names(vec![]);
    names.in_runtime.insert(TEST);
    let facts = sockets(hung(vec![test(epoll, vec![pidfd, socket_fd(6, 62)]), dead]));
    let (waits, remedies) = wait(facts, names);
    let LinkOn::Runtime { waits: any } = &waits.chain[0].on else { panic!("{waits:?}") };
    assert!(matches!(any[..], [RuntimeWait::Socket { inode: 62, .. }]), "{any:?}");
    assert_eq!(remedies, [Remedy::CheckChild { pid: CHILD, was_waited_for: false }]);
}

fn holder(pid: i32, fd: i32) -> FdHolder {
    FdHolder { pid, fd, access: libc::O_RDWR, cloexec: false, outside: None, keys: vec![] }
}

fn fifo(path: &str, tid: i32, fd: Option<i32>, holders: Vec<FdHolder>) -> Fifo {
    let access = if fd.is_some() { libc::O_RDONLY } else { libc::O_WRONLY };
    let waiters = vec![Waiter { pid: tid, tid, fd, access, keys: vec![] }];
    Fifo { path: path.to_owned(), waiters, holders }
}

#[test]
fn two_that_open_two_fifos_wait_for_each_other() {
    let open = |path: &str| On::Open { path: path.to_owned(), access: libc::O_WRONLY };
    let hang = |second: &str| {
        let mut facts = hung(vec![test(open("/a"), vec![]), child(open(second), vec![])]);
        facts.contended.fifos = match second {
            "/a" => vec![fifo("/a", TEST, None, vec![])],
            _ => vec![fifo("/a", TEST, None, vec![]), fifo(second, CHILD, None, vec![])],
        };
        wait(facts, names(vec![]))
    };
    let (waits, remedies) = hang("/b");
    assert_eq!((waits.ring, remedies), (Some(0), vec![Remedy::OpenInOneOrder]));
    // Both wait for a third.
    let (waits, remedies) = hang("/a");
    assert!(waits.chain.len() == 1 && matches!(remedies[..], [Remedy::OpenOtherEnd { .. }]), "{remedies:?}");
}

#[test]
fn a_fifo_that_its_reader_keeps_open_is_closed_there() {
    let hang = |holders: Vec<FdHolder>, fds: Vec<Fd>| {
        let reader = child(On::Read { fd: 0 }, fds);
        let mut facts = hung(vec![test(On::Child { pid: CHILD }, vec![]), reader]);
        let fifos = vec![fifo("/f", CHILD, Some(0), holders)];
        facts.contended = Contended { fifos, ..Contended::default() };
        wait(facts, names(vec![])).1
    };
    let close = |fd: i32| [Remedy::CloseOwnFifo { pid: CHILD, fds: vec![fd], reads: 0 }];
    let two = || vec![file(0, "/f"), file(3, "/f")];
    assert_eq!(hang(vec![holder(CHILD, 3)], two()), close(3));
    assert_eq!(hang(vec![holder(CHILD, 0)], vec![file(0, "/f")]), close(0));
    // A process outside of the test may write.
    let outside = FdHolder { outside: Some("other".to_owned()), ..holder(9, 3) };
    assert_eq!(hang(vec![holder(CHILD, 3), outside], two()), []);
    assert_eq!(hang(vec![], two()), []);
}

#[test]
fn a_signal_and_an_event_are_what_a_test_waits_for() {
    let idle = || child(On::Read { fd: 0 }, vec![]);
    let (waits, remedies) = wait(hung(vec![test(On::Signal, vec![]), idle()]), names(vec![]));
    assert_eq!((&waits.chain[0].on, &remedies[..]), (&LinkOn::Signal, &[][..]));
    let at = |target: &str, is_set_timer: bool| {
        let fd = Fd { is_set_timer, ..file(3, target) };
        let found =
            verdict(hung(vec![test(On::Read { fd: 3 }, vec![fd]), idle()]), names(vec![]), Policy::new());
        let waits = only(&found, |kind| matches!(kind, Kind::WaitsFor(_)));
        let timed_out = only(&found, |kind| matches!(kind, Kind::TimedOut { .. }));
        (format!("{:?}", waits.kind), !timed_out.allow.is_empty())
    };
    let (event, more_time) = at("anon_inode:inotify", false);
    assert!(event.contains("anon_inode:inotify") && !more_time, "{event}");
    // Only a timer that is set ends a wait by itself.
    assert!(at("anon_inode:[timerfd]", true).1 && !at("anon_inode:[timerfd]", false).1);
}

#[test]
fn a_child_that_runs_on_is_ended_before_the_thread_that_reads_from_it() {
    let hang = |change: fn(&mut Process)| {
        let mut reads = test(On::Thread { tid: 150 }, vec![read_end(3, PIPE)]);
        reads.tasks.push(thread(150, On::Read { fd: 3 }));
        let mut writes = child(On::Sleep, vec![write_end(1, PIPE)]);
        change(&mut writes);
        wait(sockets(hung(vec![reads, writes])), names(vec![])).1
    };
    assert_eq!(hang(|_| ()), [Remedy::EndWriter { pid: CHILD }]);
    assert!(matches!(
        hang(|job| (job.adopted, job.parent) = (true, 99))[..],
        [Remedy::RedirectBackground { .. }]
    ));
}

#[test]
fn of_the_programs_of_several_tests_none_is_guessed_to_be_a_parent() {
    let started = |pid: u64, test: u32, thread: &str| ResolvedCallSite {
        test,
        thread: thread.to_owned(),
        ..site(ResourceKind::Process, "posix_spawn", pid)
    };
    let parents = |sites: Vec<ResolvedCallSite>, body: Body| {
        let orphan = Process { adopted: true, lineage: vec![], ..child(On::Sleep, vec![]) };
        let facts = Facts { body, ..returned(vec![orphan]) };
        let found = crate::diagnosis::parents::find(&facts, &names(sites));
        found.iter().map(|found| found.parent).collect::<Vec<_>>()
    };
    let one = |test: u32| vec![started(50, test, "a"), started(51, test, "a")];
    let two = |test: u32| vec![started(50, 1, "a"), started(51, test, "b")];
    assert_eq!(parents(one(0), Body::Passed), [51]);
    assert_eq!(parents(one(2), Body::Passed), [51]);
    // The threads of one test.
    assert_eq!(parents(vec![started(50, 0, "a"), started(51, 0, "b")], Body::Passed), [51]);
    assert_eq!(parents(two(2), Body::Passed), [0; 0]);
    assert_eq!(parents(vec![started(50, 0, "a"), started(51, 0, "b")], Body::OfCommand), [0; 0]);
}
