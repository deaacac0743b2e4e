//! A report shows the evidence about its processes: their own lines, and the holders of their locks,
//! terminals, FIFOs and sockets.
//!
//! `tests/fixtures/leaky/tests/evidence.rs` has the shapes, `tests/it/expected/evidence` their reports.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::Value;

use crate::output::{assert_expected, report_in};
use crate::support::{Fixture, Ran, scratch};

/// The JSON of one test, which runs the server at `server` if one is given.
fn verdict(name: &str, server: Option<&Path>) -> Value {
    let json = scratch().join(format!("{name}.json"));
    let arguments = ["--exact", name, "--json", json.to_str().unwrap()];
    let mut command = Fixture::build("leaky").command("evidence", &arguments);
    if let Some(server) = server {
        command.env("LEAKY_SERVER", server);
    }
    let ran = Ran::of(&mut command);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap()
}

/// The stack of each thread of processes that run other programs, by the thread's name.
fn stacks(verdict: &Value) -> Vec<(String, String)> {
    let others = verdict["waits"].as_array().unwrap().iter().filter(|wait| wait["pid"] != verdict["pid"]);
    others.map(|wait| (wait["thread"].as_str().unwrap().to_owned(), wait["stack"].to_string())).collect()
}

/// The position of a marked line in the server's source.
fn line(mark: &str) -> String {
    let path = "src/bin/server.rs";
    let source = crate::support::root().join("tests/fixtures/leaky").join(path);
    let source = fs::read_to_string(source).unwrap();
    format!("{path}:{}:", source.lines().position(|line| line.contains(mark)).unwrap() + 1)
}

#[childproof::test]
fn of_a_server_is_its_own_lines() {
    let stacks = stacks(&verdict("server_that_hangs", None));
    let stack = |name: &str| &stacks.iter().find(|(thread, _)| thread == name).unwrap().1;
    assert!(stack("server").contains(&line("io::stdin().read(&mut byte)")), "{stacks:?}");
    assert!(stack("worker").contains(&line("queue.recv()")), "{stacks:?}");
    assert!(stack("worker").contains("server::answer"), "{stacks:?}");
}

/// A program without debug information shows function names, and one without symbols shows offsets in its
/// file. With separate debug information everything is shown.
#[childproof::test]
fn of_a_stripped_server_is_what_is_left() {
    let fixture = Fixture::build("leaky");
    let own = fixture.binary("server");
    let [debug, symbols, stripped, linked] =
        ["server.debug", "symbols/server", "stripped/server", "server"].map(|name| scratch().join(name));
    let objcopy = |arguments: &[&str], from: &Path, to: &Path| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        Command::new("objcopy").args(arguments).args([from, to]).status().is_ok_and(|status| status.success())
    };
    let link = format!("--add-gnu-debuglink={}", debug.display());
    if !(objcopy(&["--only-keep-debug"], own, &debug)
        && objcopy(&["--strip-debug"], own, &symbols)
        && objcopy(&["--strip-all"], own, &stripped)
        && objcopy(&["--strip-all", &link], own, &linked))
    {
        println!("skipped: objcopy(1) is not installed");
        return;
    }
    let worker = |server: &Path| {
        let stacks = stacks(&verdict("server_that_hangs", Some(server)));
        stacks.into_iter().find(|(thread, _)| thread == "worker").unwrap().1
    };
    let found = worker(&symbols);
    assert!(found.contains("server::answer") && !found.contains("server.rs"), "{found}");
    assert_eq!(worker(&stripped), "[]");
    let found = worker(&linked);
    assert!(found.contains(&line("queue.recv()")), "{found}");
}

/// The frames of a signal handler, and the interrupted ones.
#[childproof::test]
fn of_a_handler_is_what_it_has_interrupted() {
    let stacks = stacks(&verdict("server_that_hangs_in_a_handler", None));
    let [(_, stack)] = &stacks[..] else { panic!("{stacks:?}") };
    let places = [line("io::stdin().read(&mut [0])"), line("raise(10) }")].map(|place| stack.find(&place));
    assert!(places[0].is_some() && places[0] < places[1], "{stack}");
}

/// The locks of one test: kind, whether the test itself took it, and for each holder whether it is the test.
#[childproof::test]
fn of_a_lock_is_what_has_it_now() {
    for (name, kind, taken_by_test) in [
        ("lock_that_a_daemon_has_inherited", "flock", Some(true)),
        ("lock_of_an_open_file_that_a_daemon_has_inherited", "ofdlck", None),
        ("lock_of_a_child", "posix", Some(false)),
    ] {
        let verdict = verdict(name, None);
        let [lock] = &verdict["locks"].as_array().unwrap()[..] else {
            panic!("{name}: {}", verdict["locks"])
        };
        let [holder] = &lock["holders"].as_array().unwrap()[..] else { panic!("{name}: {lock}") };
        let taken_by = &lock["taken_by"];
        assert_eq!(
            (!taken_by.is_null()).then_some(*taken_by == verdict["pid"]),
            taken_by_test,
            "{name}: {lock}"
        );
        assert_eq!(
            (lock["kind"].as_str(), &holder["cloexec"]),
            (Some(kind), &Value::Bool(false)),
            "{name}: {lock}"
        );
        assert_eq!(holder["pid"], verdict["processes"][1]["pid"], "{name}: {lock}");
        assert_eq!(lock["waiters"][0]["pid"], verdict["pid"], "{name}: {lock}");
    }
}

#[childproof::test]
fn of_a_terminal_are_both_its_ends() {
    let silent = verdict("terminal_that_a_silent_child_has", None);
    let terminal = &silent["terminals"][0];
    let pids = |list: &str| {
        terminal[list].as_array().unwrap().iter().map(|end| end["pid"].clone()).collect::<Vec<_>>()
    };
    let [test, child] = [0, 1].map(|at| silent["processes"][at]["pid"].clone());
    assert_eq!(
        (pids("masters"), pids("holders")),
        (vec![test.clone(), child.clone()], vec![child]),
        "{terminal}"
    );
    assert_eq!((&terminal["waiters"][0]["pid"], &terminal["queued_to_master"]), (&test, &Value::from(0)));

    let stopped = verdict("terminal_that_is_read_in_the_background", None);
    let [shell, job] = [1, 2].map(|at| &stopped["processes"][at]);
    let terminal = &stopped["terminals"][0];
    assert_eq!(job["signals"]["stopped_by"], 21, "{job}");
    assert_eq!(
        (&terminal["foreground"], &terminal["waiters"][0]["pid"]),
        (&shell["pid"], &job["pid"]),
        "{terminal}"
    );
}

#[childproof::test]
fn of_a_fifo_is_what_it_is_open_for() {
    let verdict = verdict("fifo_that_has_no_writer", None);
    let fifo = &verdict["fifos"][0];
    let path = fifo["path"].as_str().unwrap();
    assert!(path.ends_with("/fifo"), "{fifo}");
    assert_eq!(
        (&fifo["waiters"][0]["end"], &fifo["waiters"][0]["fd"]),
        (&"read".into(), &Value::Null),
        "{fifo}"
    );
    let holders = fifo["holders"].as_array().unwrap();
    assert!(holders.len() == 2 && holders.iter().all(|holder| holder["end"] == "read"), "{fifo}");
}

#[childproof::test]
fn of_shared_memory_is_what_has_mapped_it() {
    let verdict = verdict("semaphore_in_a_file", None);
    let memory = &verdict["shared_memory"][0];
    assert!(memory["path"].as_str().unwrap().ends_with("/semaphore"), "{memory}");
    let pids: Vec<&Value> =
        memory["mapped_by"].as_array().unwrap().iter().map(|mapper| &mapper["pid"]).collect();
    assert_eq!(pids, [&verdict["processes"][0]["pid"], &verdict["processes"][1]["pid"]], "{memory}");
}

#[childproof::test]
fn of_signals_is_what_never_came() {
    let verdict = verdict("signal_that_is_blocked", None);
    let [fork, sleep] = [1, 2].map(|at| &verdict["processes"][at]);
    assert_eq!(
        (&fork["signals"]["blocked"], &fork["signals"]["pending"]),
        (&[15].into(), &[0; 0].into()),
        "{fork}"
    );
    // Fork and exec keep the signal mask.
    assert_eq!(
        (&sleep["signals"]["blocked"], &sleep["signals"]["pending"]),
        (&[15].into(), &[15].into()),
        "{sleep}"
    );
    assert_eq!(sleep["signals"]["inherited_from"], fork["pid"], "{sleep}");
}

#[childproof::test]
fn of_a_dead_child_is_how_it_ended() {
    let verdict = verdict("child_that_waits_for_no_child", None);
    let children = verdict["processes"][1]["ended_children"].as_array().unwrap();
    let ends: Vec<_> =
        children.iter().map(|child| (child["exit"].as_i64(), child["exit_signal"].as_i64())).collect();
    assert_eq!(ends, [(Some(7), None), (None, Some(6))], "{verdict}");
    let verdict = self::verdict("child_that_is_not_waited_for", None);
    assert_eq!(verdict["processes"][0]["exit"], 3, "{verdict}");
}

#[childproof::test]
fn of_a_connection_are_its_addresses_and_its_listener() {
    let verdict = verdict("connection_that_was_accepted", None);
    let sockets = verdict["sockets"].as_array().unwrap();
    let listener = sockets.iter().find(|socket| socket["listens"] == true).unwrap();
    let [accepted] =
        &sockets.iter().filter(|socket| socket["listener"] == listener["inode"]).collect::<Vec<_>>()[..]
    else {
        panic!("{sockets:?}")
    };
    let client = sockets.iter().find(|socket| socket["inode"] == accepted["peer"]).unwrap();
    assert_eq!((&accepted["local"], &accepted["remote"]), (&client["remote"], &client["local"]));
    assert_eq!(accepted["local"], listener["local"]);
    let calls = [listener, accepted, client].map(|socket| socket["created"]["call"].as_str().unwrap());
    assert_eq!(calls, ["socket", "accept4", "socket"]);
}

#[childproof::test]
fn of_a_stray_socket_is_what_it_is_for() {
    let verdict = verdict("sockets_of_all_kinds_left_open", None);
    let finding = &verdict["findings"][0]["fields"];
    let sockets = finding["sockets"].as_array().unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let roles: Vec<_> = sockets
        .iter()
        .map(|socket| (text(&socket["kind"]).unwrap(), text(&socket["role"]).unwrap()))
        .collect();
    let expected = [
        ("unix stream", "listening"),
        ("unix stream", "connected"),
        ("IPv4 datagram", "unconnected"),
        ("IPv4 stream", "listening"),
        ("IPv4 stream", "connected"),
        ("IPv4 stream", "accepted"),
        ("unix stream", "paired"),
        ("unix stream", "paired"),
        ("IPv4 stream", "unconnected"),
    ];
    assert_eq!(roles, expected.map(|(kind, role)| (kind.to_owned(), role.to_owned())), "{finding}");
    let [named, client, datagram, listener, connection, accepted, .., unbound] =
        &sockets.iter().map(|socket| (text(&socket["address"]), text(&socket["remote"]))).collect::<Vec<_>>()
            [..]
    else {
        panic!("{sockets:?}")
    };
    assert!(named.0.as_ref().unwrap().ends_with("/upgrade.sock") && named.1.is_none(), "{named:?}");
    assert_eq!((&client.1, &client.0), (&named.0, &None));
    assert!(datagram.0.as_ref().unwrap().starts_with("127.0.0.1:"), "{datagram:?}");
    assert_eq!((&connection.1, &accepted.0), (&listener.0, &listener.0));
    assert_eq!(*unbound, (None, None));
}

/// The line that created each stray fd.
fn lines(verdict: &Value) -> Vec<(i64, Option<&str>)> {
    let fds = verdict["fds"].as_array().unwrap();
    fds.iter().map(|fd| (fd["fd"].as_i64().unwrap(), fd["created_at"].as_str())).collect()
}

#[childproof::test]
fn of_a_file_without_an_inode_is_its_line() {
    let verdict = verdict("anonymous_files_left_open", None);
    let lines = lines(&verdict);
    let places: std::collections::BTreeSet<_> = lines.iter().map(|(_, place)| place.unwrap()).collect();
    assert_eq!((lines.len(), places.len()), (5, 5), "{lines:?}");
    let calls: Vec<_> =
        verdict["fds"].as_array().unwrap().iter().map(|fd| fd["created"]["call"].as_str().unwrap()).collect();
    let expected = ["eventfd", "timerfd_create", "epoll_create1", "inotify_init1", "memfd_create"];
    assert_eq!(calls, expected);
}

#[childproof::test]
fn of_a_number_that_was_taken_is_no_line() {
    let verdict = verdict("anonymous_files_whose_numbers_were_taken", None);
    let known: Vec<bool> = lines(&verdict).iter().map(|(_, place)| place.is_some()).collect();
    assert_eq!(known, [false, false, false, true], "{verdict}");
}

#[childproof::test]
fn of_a_file_with_a_path_is_the_line_that_opened_it() {
    let verdict = verdict("files_opened_in_every_way_left_open", None);
    let calls: Vec<_> =
        verdict["fds"].as_array().unwrap().iter().map(|fd| fd["created"]["call"].as_str()).collect();
    let expected = [
        "open",
        "open",
        "openat",
        "creat",
        "fopen",
        "opendir",
        "posix_openpt",
        "openpty",
        "openpty",
        "shm_open",
    ];
    assert_eq!(calls, expected.map(Some), "{verdict}");
    let lines = lines(&verdict);
    let places: std::collections::BTreeSet<_> = lines.iter().map(|(_, place)| place.unwrap()).collect();
    // Both ends of a terminal have one.
    assert_eq!(places.len(), 9, "{lines:?}");
}

#[childproof::test]
fn of_a_file_is_no_line_of_an_earlier_one() {
    let verdict = verdict("files_whose_numbers_were_taken", None);
    let known: Vec<bool> = lines(&verdict).iter().map(|(_, place)| place.is_some()).collect();
    assert_eq!(known, [true, false, false], "{verdict}");
}

#[childproof::test]
fn of_an_inherited_file_is_the_line_of_its_first_opening() {
    let verdict = verdict("lock_of_a_file_that_was_opened_again", None);
    let holder = &verdict["locks"][0]["holders"][0];
    assert_ne!(holder["pid"], verdict["pid"], "{verdict}");
    let source = crate::support::root().join("tests/fixtures/leaky/tests/evidence.rs");
    let source = fs::read_to_string(source).unwrap();
    let first = source.lines().position(|line| line.contains("let first = unsafe")).unwrap() + 1;
    assert!(holder["opened_at"].as_str().unwrap().contains(&format!("evidence.rs:{first}:")), "{holder}");
}

/// The tests wait for their timeouts, so they run in parallel.
#[childproof::test]
fn is_reported_as_a_reader_needs_it() {
    let shapes = [
        "server_that_hangs",
        "server_that_hangs_in_a_handler",
        "server_whose_stdin_is_kept",
        "server_that_locks_its_state_twice",
        "connection_that_both_threads_read",
        "client_that_is_waited_for_with_its_connection",
        "fifos_that_are_opened_in_two_orders",
        "fifo_that_a_test_and_its_reader_keep_open",
        "lock_that_a_child_takes_and_keeps",
        "event_of_inotify_that_does_not_come",
        "signal_that_does_not_come",
        "thread_that_reads_from_a_child_that_runs_on",
        "lock_that_a_daemon_has_inherited",
        "lock_of_an_open_file_that_a_daemon_has_inherited",
        "lock_of_a_child",
        "terminal_that_a_silent_child_has",
        "terminal_that_is_read_in_the_background",
        "fifo_that_has_no_writer",
        "semaphore_in_a_file",
        "signal_that_is_blocked",
        "child_that_waits_for_no_child",
        "child_that_is_not_waited_for",
        "connection_that_was_accepted",
        "accepted_connection_left_open",
        "sockets_of_all_kinds_left_open",
        "anonymous_files_left_open",
        "readers_that_keep_their_own_pipe_open",
        "shell_that_waits_for_its_job",
        "pipeline_in_the_foreground",
        "output_of_a_child_that_runs_on",
        "lock_that_the_test_has_itself",
        "child_that_asks_at_its_terminal",
        "fifo_that_only_its_reader_writes_to",
        "datagram_that_a_failed_child_should_have_sent",
        "connection_that_a_sibling_has_inherited",
        "listener_that_a_child_has_inherited",
        "poll_for_a_child_whose_stdin_is_kept",
        "message_that_never_comes",
        "job_of_system",
        "child_of_a_bare_posix_spawn",
        "fifo_left_open",
        "connection_that_the_test_does_not_accept",
        "connection_that_a_server_does_not_accept",
        "files_opened_in_every_way_left_open",
        "lock_of_a_file_that_was_opened_again",
        "child_that_handles_sigterm",
        "group_that_ignores_sigterm",
    ];
    let reports: Vec<_> =
        shapes.iter().map(|shape| (*shape, thread::spawn(|| report_in("evidence", shape)))).collect();
    let reports = reports.into_iter().map(|(shape, report)| (shape, report.join().unwrap()));
    assert_expected("evidence", reports);
}
