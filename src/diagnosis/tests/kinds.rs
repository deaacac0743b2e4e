//! Siblings of the waits that people have reported: what each is told as, and which mends do not fit it.

use super::*;
use crate::diagnosis::{Creator, LinkOn, WaitsFor};
use crate::guard::contended::{FdHolder, Fifo, FileLock, Mapper, SharedMemory, Terminal, Waiter};
use crate::proc::sockets::{Peer, PeerUnknown, Socket};

fn file(fd: i32, target: &str) -> Fd {
    Fd { target: target.to_owned(), ino: 3, access: libc::O_RDWR, ..read_end(fd, 3) }
}

fn holder(pid: i32, fd: i32) -> FdHolder {
    FdHolder { pid, fd, access: libc::O_RDWR, cloexec: true, outside: None, keys: Vec::new() }
}

fn waiter(tid: i32, fd: Option<i32>) -> Waiter {
    Waiter { pid: tid, tid, fd, access: libc::O_RDWR, keys: Vec::new() }
}

/// The only wait of a hang.
#[track_caller]
fn wait(facts: Facts, names: Names) -> (WaitsFor, Vec<Remedy>) {
    let found = only(&verdict(facts, names, Policy::new()), |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(waits) = found.kind else { panic!("{:?}", found.kind) };
    (waits, found.remedies)
}

fn child(on: On, fds: Vec<Fd>) -> Process {
    process(CHILD, vec![thread(CHILD, on)], fds)
}

fn test(on: On, fds: Vec<Fd>) -> Process {
    process(TEST, vec![thread(TEST, on)], fds)
}

/// The first link of a test that waits so.
#[track_caller]
fn first(on: On, fds: Vec<Fd>, change: impl FnOnce(&mut Facts)) -> LinkOn {
    let mut facts = hung(vec![test(on, fds), child(On::Sleep, vec![])]);
    change(&mut facts);
    wait(facts, names(vec![])).0.chain.swap_remove(0).on
}

#[test]
fn output_is_redirected_only_of_what_is_left_in_the_background() {
    let read = |writer: fn(&mut Process)| {
        let mut job = child(On::Sleep, vec![write_end(1, PIPE)]);
        writer(&mut job);
        let reader = test(On::Read { fd: 3 }, vec![read_end(3, PIPE)]);
        wait(hung(vec![reader, job]), names(vec![])).1
    };
    assert!(matches!(read(|job| job.adopted = true)[..], [Remedy::RedirectBackground { .. }]));
    // A child that the test reads from, or that a shell waits for.
    assert_eq!(read(|_| ()), []);
}

#[test]
fn a_lock_is_inherited_only_from_another_process() {
    let locked = |cloexec: bool| {
        let lock = Fd { locks: true, held: vec!["L".to_owned()], cloexec, ..file(9, "/lock") };
        child(On::Sleep, vec![lock])
    };
    let remedies = |taken_by: Option<i32>, holders: &[i32], child: Process| {
        let mut waiter = test(On::Lock { fd: 3 }, vec![file(3, "/lock")]);
        waiter.tasks[0].behind = vec!["L".to_owned()];
        let mut facts = hung(vec![waiter, child]);
        let holders = holders.iter().map(|pid| holder(*pid, 9)).collect();
        let (line, path, kind) = ("L".to_owned(), "/lock".to_owned(), "FLOCK".to_owned());
        facts.contended.locks = vec![FileLock { line, path, kind, taken_by, waiters: vec![], holders }];
        wait(facts, names(vec![])).1
    };
    let close = Remedy::CloseLockInChild { pid: CHILD, fd: 9, file: "/lock".to_owned(), opened: None };
    assert_eq!(remedies(Some(77), &[CHILD], locked(false)), vec![close.clone()]);
    assert_eq!(remedies(None, &[CHILD], locked(false)), vec![close.clone()]);
    // It took the lock itself, and runs on.
    let end = Remedy::EndLockHolder { pid: CHILD, file: "/lock".to_owned() };
    for cloexec in [false, true] {
        assert_eq!(remedies(Some(CHILD), &[CHILD], locked(cloexec)), std::slice::from_ref(&end));
    }
    // What took it has it still; it cannot have come over an exec.
    assert_eq!(remedies(Some(77), &[CHILD, 77], locked(false)), []);
    assert_eq!(remedies(Some(77), &[CHILD], locked(true)), []);
    assert_eq!(remedies(None, &[CHILD], locked(true)), []);
    let fork = Process { forked_without_exec: true, ..locked(true) };
    assert_eq!(remedies(None, &[CHILD], fork), [close]);
}

#[test]
fn a_pidfd_is_the_end_of_its_process() {
    let pidfd = |fd: i32, process: i32| Fd { process, ..file(fd, "anon_inode:[pidfd]") };
    let poll = |fds: &[i32]| On::Poll { fds: fds.iter().flat_map(|fd| [*fd, 1]).collect(), forever: true };
    assert_eq!(first(poll(&[5]), vec![pidfd(5, CHILD)], |_| ()), LinkOn::Child { pid: CHILD });
    let both = first(poll(&[5, 6]), vec![pidfd(5, CHILD), pidfd(6, 102)], |_| ());
    assert_eq!(both, LinkOn::AnyChild { pids: vec![CHILD, 102] });
    // One whose process has exited, or that is not shown.
    let unknown = hung(vec![test(poll(&[5]), vec![pidfd(5, 0)]), child(On::Sleep, vec![])]);
    let found = verdict(unknown, names(vec![]), Policy::new()).findings;
    assert!(!found.iter().any(|finding| matches!(finding.kind, Kind::WaitsFor(_))), "{found:#?}");
}

#[test]
fn a_child_that_is_looked_for_again_and_again_is_followed() {
    let looks = |state: &str, called: &str| {
        let mut test = test(On::Other, vec![write_end(4, PIPE)]);
        test.tasks[0].state = state.to_owned();
        test.tasks[0].syscall = "running".to_owned();
        let mut names = names(vec![]);
        names.called.insert(TEST, called.to_owned());
        let reader = child(On::Read { fd: 0 }, vec![read_end(0, PIPE)]);
        verdict(hung(vec![test, reader]), names, Policy::new())
    };
    let found = only(&looks("R", "std::process::Child::try_wait"), |kind| matches!(kind, Kind::WaitsFor(_)));
    assert!(matches!(found.remedies[..], [Remedy::DropStdinBeforeWait { .. }]), "{found:#?}");
    assert_eq!(found.allow, []);
    // A test that computes does not wait for its child.
    let found = looks("R", "a::computes");
    assert!(!format!("{:?}", found.findings).contains("DropStdin"), "{:#?}", found.findings);
}

#[test]
fn a_wait_of_which_little_is_known_is_not_told_as_running() {
    let mut waits = test(On::Other, vec![]);
    waits.tasks[0].syscall = "semtimedop".to_owned();
    let (waits, _) = wait(hung(vec![waits]), names(vec![]));
    assert_eq!(waits.chain[0].on, LinkOn::Call { name: "semtimedop".to_owned(), file: None });
    let datagrams = |domain: i32, peer: Peer| {
        first(On::Read { fd: 3 }, vec![file(3, "socket:[60]")], |facts| {
            facts.sockets = vec![Socket { domain, peer, kind: libc::SOCK_DGRAM, ..chains_socket() }];
        })
    };
    assert_eq!(datagrams(libc::AF_UNIX, Peer::None), LinkOn::Datagram { inode: 60 });
    let unknown = Peer::Unknown { why: PeerUnknown::OtherKind };
    assert_eq!(datagrams(libc::AF_INET, unknown), LinkOn::Datagram { inode: 60 });
}

fn chains_socket() -> Socket {
    Socket {
        ino: 60,
        domain: libc::AF_UNIX,
        kind: libc::SOCK_STREAM,
        listens: false,
        reads_forever: true,
        writes_forever: true,
        peer: Peer::None,
        name: None,
        queued: Some(0),
        is_full: false,
        local: None,
        remote: None,
        listener: None,
    }
}

#[test]
fn a_shared_futex_is_told_with_the_processes_that_map_it() {
    let shared = On::Futex { address: 4096, place: None, shared: true, forever: true };
    let mapped = |pids: &[i32], outside: Option<&str>| {
        let mut mapped_by: Vec<Mapper> = pids.iter().map(|pid| Mapper { pid: *pid, outside: None }).collect();
        mapped_by.extend(outside.map(|name| Mapper { pid: 9, outside: Some(name.to_owned()) }));
        let path = "/dev/shm/queue".to_owned();
        let memory = SharedMemory { path, waiters: vec![waiter(TEST, None)], mapped_by };
        first(shared.clone(), vec![], |facts| facts.contended.memory = vec![memory])
    };
    let seen = |on: LinkOn| match on {
        LinkOn::SharedFutex { others, outside, .. } => (others, outside),
        other => panic!("{other:?}"),
    };
    assert_eq!(seen(mapped(&[TEST, CHILD], None)), (vec![CHILD], false));
    assert_eq!(seen(mapped(&[TEST], Some("other"))), (vec![], true));
    // Where the memory was not found, any process may map it.
    assert_eq!(seen(first(shared.clone(), vec![], |_| ())), (vec![], true));
}

#[test]
fn a_shared_futex_is_no_wait_for_the_processes_that_map_it() {
    let ends = || vec![read_end(5, PIPE), write_end(6, PIPE)];
    let worker = process(CHILD, vec![thread(CHILD, On::Read { fd: 5 })], ends());
    let shared = On::Futex { address: 4096, place: None, shared: true, forever: true };
    let other = process(102, vec![thread(102, shared)], ends());
    let mut facts = returned(vec![worker, other]);
    facts.pipes = vec![state(PIPE, 0)];
    let mapped_by = [CHILD, 102].map(|pid| Mapper { pid, outside: None }).to_vec();
    let waiters = vec![waiter(102, None)];
    facts.contended.memory = vec![SharedMemory { path: "/dev/shm/pool".to_owned(), waiters, mapped_by }];
    let (waits, remedies) = wait(facts, names(vec![]));
    assert_eq!(waits.ring, None);
    assert!(matches!(remedies[..], [Remedy::CloseInReaders { .. }]), "{remedies:?}");
}

#[test]
fn an_open_fifo_is_told_with_its_other_end() {
    let on = first(On::Read { fd: 3 }, vec![file(3, "/tmp/fifo")], |facts| {
        let (path, waiters) = ("/tmp/fifo".to_owned(), vec![waiter(TEST, Some(3))]);
        facts.contended.fifos =
            vec![Fifo { path, waiters, holders: vec![holder(TEST, 3), holder(CHILD, 5)] }];
    });
    let LinkOn::Fifo { own, others, writes: false, outside: false, .. } = &on else { panic!("{on:?}") };
    assert_eq!((&own[..], &others[..]), (&[3][..], &[CHILD][..]));
}

#[test]
fn a_child_that_asks_at_its_terminal_waits_for_the_test() {
    let hang_with = |writes: bool, outside: Option<&str>| {
        let on = if writes { On::Write { fd: 0 } } else { On::Read { fd: 0 } };
        let asks = child(on, vec![file(0, "/dev/pts/4")]);
        let waits = test(On::Child { pid: CHILD }, vec![file(3, "/dev/ptmx")]);
        let mut facts = hung(vec![waits, asks]);
        facts.contended.terminals = vec![Terminal {
            index: 4,
            waiters: vec![waiter(CHILD, Some(0))],
            masters: [holder(TEST, 3)]
                .into_iter()
                .chain(outside.map(|name| FdHolder { outside: Some(name.to_owned()), ..holder(9, 8) }))
                .collect(),
            slaves: vec![holder(CHILD, 0)],
            foreground: None,
            to_master: None,
            to_slave: None,
            is_full: writes,
        }];
        wait(facts, names(vec![]))
    };
    let hang = |writes| hang_with(writes, None);
    let (waits, _) = hang_with(false, Some("sshd"));
    assert!(matches!(waits.chain[1].on, LinkOn::Terminal { outside: true, .. }), "{waits:?}");
    let (waits, remedies) = hang(false);
    assert_eq!(
        (waits.ring, remedies),
        (Some(0), vec![Remedy::AnswerAtTerminal { pid: CHILD, fds: vec![3] }])
    );
    let (waits, remedies) = hang(true);
    assert_eq!((waits.ring, remedies), (Some(0), vec![Remedy::ReadTerminal]));
}

#[test]
fn what_its_terminal_has_stopped_is_not_to_be_continued() {
    let stopped = |signal: i32| {
        let mut job = child(On::Stopped, vec![]);
        job.tasks[0].state = "T".to_owned();
        job.signals.stopped_by = Some(signal);
        wait(hung(vec![test(On::Child { pid: CHILD }, vec![]), job]), names(vec![])).1
    };
    let signal = libc::SIGTTIN;
    assert_eq!(stopped(signal), [Remedy::BringToForeground { pid: CHILD, signal }]);
    assert_eq!(stopped(libc::SIGSTOP), [Remedy::ContinueStopped { pids: vec![CHILD] }]);
}

#[test]
fn tests_that_a_child_runs_again_are_not_followed() {
    let again = |guard: &str| {
        let waits = test(On::Child { pid: CHILD }, vec![]);
        let mut own = child(On::Read { fd: 5 }, vec![file(5, "socket:[60]")]);
        own.execed_own_program = true;
        own.command_line = ["/proc/self/exe", "--exact", "a::b"].map(str::to_owned).to_vec();
        let mut below = process(102, vec![thread(102, On::Sleep)], vec![]);
        (below.lineage, below.parent, below.comm) = (vec![CHILD, TEST], CHILD, guard.to_owned());
        verdict(hung(vec![waits, own, below]), names(vec![]), Policy::new())
    };
    let found = again("childproof");
    let own = only(&found, |kind| matches!(kind, Kind::OwnBinary { .. }));
    let Kind::OwnBinary { filters, .. } = &own.kind else { panic!("{own:?}") };
    assert_eq!(filters, &["a::b"]);
    let waits = only(&found, |kind| matches!(kind, Kind::WaitsFor(_)));
    let Kind::WaitsFor(WaitsFor { chain, .. }) = waits.kind else { panic!("{waits:?}") };
    assert_eq!(chain.len(), 1);
    // A target with a `main` of its own may do something else with these arguments.
    let found = again("sleep").findings;
    assert!(!found.iter().any(|finding| matches!(finding.kind, Kind::OwnBinary { .. })), "{found:#?}");
}

#[test]
fn a_job_of_system_is_told_by_its_command() {
    let left = |commands: &[&str]| {
        let call = |command: &&str| {
            let command_line = ["sh", "-c", command].map(str::to_owned).to_vec();
            ResolvedCallSite { command_line, ..site(ResourceKind::Process, "system", 0) }
        };
        let job = Process { adopted: true, ..child(On::Sleep, vec![]) };
        let names = names(commands.iter().map(call).collect());
        only(&verdict(returned(vec![job]), names, Policy::new()), |kind| {
            matches!(kind, Kind::LeakedProcess { .. })
        })
    };
    let found = left(&["true", "sleep 1 &"]);
    assert_eq!(found.remedies, [Remedy::EndJobsOfSystem]);
    let Kind::LeakedProcess { created: Some(by), .. } = &found.kind else { panic!("{found:?}") };
    assert_eq!(by.creator, Creator::ExitedParent { pid: 0, sure: false });
    // Which of two it was is not known, and none may be meant.
    for commands in [&["sleep 1 &", "sleep 2 &"][..], &["oversleep &"]] {
        assert_eq!(left(commands).remedies, [Remedy::StartParentInGroup { parent: None, exec: false }]);
    }
}

#[test]
fn the_shell_of_a_system_that_has_not_returned_is_not_a_child_of_std() {
    let left = |commands: &[&str]| {
        let call = |command: &&str| {
            let command_line = ["sh", "-c", command].map(str::to_owned).to_vec();
            ResolvedCallSite { command_line, ..site(ResourceKind::Process, "system", 0) }
        };
        let command_line = ["sh", "-c", "sleep 1"].map(str::to_owned).to_vec();
        let shell = Process { command_line, ..child(On::Child { pid: -1 }, vec![]) };
        let names = names(commands.iter().map(call).collect());
        let found = verdict(returned(vec![shell]), names, Policy::new());
        only(&found, |kind| matches!(kind, Kind::LeakedProcess { .. }))
    };
    let found = left(&["true", "sleep 1"]);
    assert_eq!(found.remedies, [Remedy::EndSystem { pid: CHILD }]);
    let Kind::LeakedProcess { created: Some(by), .. } = &found.kind else { panic!("{found:?}") };
    assert_eq!(by.creator, Creator::Itself);
    assert_eq!(left(&["true"]).remedies, [Remedy::KillAndWait]);
}

#[test]
fn a_read_end_that_a_program_created_is_no_lifeline() {
    let notes = |sites: Vec<ResolvedCallSite>| {
        let mut facts =
            hung(vec![test(On::Child { pid: CHILD }, vec![]), child(On::Sleep, vec![read_end(5, PIPE)])]);
        facts.pipes = vec![PipeState { no_writer: true, ..state(PIPE, 0) }];
        let found = verdict(facts, names(sites), Policy::new());
        found.findings.iter().filter(|finding| matches!(finding.kind, Kind::UnwatchedLifeline { .. })).count()
    };
    let started = || site(ResourceKind::Process, "posix_spawnp", CHILD as u64);
    assert_eq!(notes(vec![started()]), 0);
    assert_eq!(notes(vec![started(), site(ResourceKind::Fds, "pipe2", PIPE)]), 1);
    // Nothing was recorded.
    assert_eq!(notes(vec![]), 1);
}

#[test]
fn a_socket_that_a_program_has_by_mistake_is_a_finding_of_its_own() {
    let found = |on: On, arguments: &[&str]| {
        let socket = Fd { cloexec: false, ..file(5, "socket:[60]") };
        let mut holder = child(on, vec![socket]);
        holder.command_line = arguments.iter().map(|word| (*word).to_owned()).collect();
        let mut facts = returned(vec![holder]);
        facts.sockets = vec![Socket { listens: true, ..chains_socket() }];
        let names = names(vec![site(ResourceKind::Fds, "socket", 60)]);
        let found = verdict(facts, names, Policy::new()).findings;
        let by_mistake =
            found.into_iter().find(|finding| matches!(finding.kind, Kind::InheritedByMistake { .. }));
        by_mistake.map(|finding| finding.remedies)
    };
    let remedies = found(On::Sleep, &["sleep", "100"]);
    assert!(matches!(remedies.as_deref(), Some([Remedy::CreateSocketWithCloexec { .. }])), "{remedies:?}");
    // It was told the number, or waits there.
    assert_eq!(found(On::Sleep, &["server", "--fd=5"]), None);
    assert_eq!(found(On::Fd { fd: 5 }, &["server"]), None);
}
