//! Of lists of processes that are made up, which one is an orphan of a test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;

use crate::proc::started::Unit;
use crate::sys;

use super::{Pid, Refusal, Started, Stat, Survey, Trace, Tree};

struct Line(Pid, Pid, Pid, Pid, &'static str);

/// Processes: pid, parent, group, session, name; and of some their environment.
fn survey(lines: &[Line], environments: &[(Pid, &[(&str, &str)])]) -> Survey {
    let stats = lines.iter().map(|Line(pid, parent, group, session, name)| {
        let line =
            format!("{pid} ({name}) S {parent} {group} {session} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0");
        Stat::parse(line.as_bytes()).unwrap()
    });
    let tree = Tree::of(stats);
    let started = lines.iter().map(|line| {
        let own = environments.iter().find(|(pid, _)| *pid == line.0).map_or(&[][..], |(_, entries)| entries);
        let entries = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let program = Some(PathBuf::from("/usr/bin/a"));
        let environment = Some(entries.collect());
        (line.0, Started { program, environment, ..in_namespace() })
    });
    let own = (sys::own_pid(), in_namespace());
    let started = started.chain([own]).collect();
    Survey { tree, own: [900].into(), started }
}

fn in_namespace() -> Started {
    Started { pid_namespace: Some("pid:[1]".into()), ..Started::default() }
}

const OF_CARGO: &[(&str, &str)] = &[("CARGO_MANIFEST_DIR", "/w/a")];

#[test]
fn an_orphan_of_a_test_is_found_with_what_is_below_it() {
    let survey = survey(
        // A service, and one with a child; an orphan of a shell; one of a test, with a child.
        &[
            Line(1, 0, 1, 1, "init"),
            Line(20, 1, 20, 20, "service"),
            Line(30, 1, 29, 28, "daemon"),
            Line(40, 1, 39, 28, "sleep"),
            Line(41, 40, 39, 28, "cat"),
        ],
        &[(40, OF_CARGO), (41, OF_CARGO)],
    );
    let found = survey.orphans(|_, _| None);
    let pids: Vec<Pid> = found.roots.iter().map(|root| root.stat.pid).collect();
    assert_eq!(pids, [40]);
    assert!(matches!(found.roots[0].traces[..], [Trace::Variable { name: "CARGO_MANIFEST_DIR", .. }]));
    assert_eq!(survey.orphan_with(30), Err(Refusal::NoTrace));
    assert!(matches!(survey.orphan_with(41), Err(Refusal::HasParent(parent)) if parent.pid == 40));
    assert_eq!(survey.orphan_with(50), Err(Refusal::NoProcess));
    assert_eq!(survey.orphan_with(900), Err(Refusal::NoProcess));
}

#[test]
fn what_a_run_that_goes_on_has_started_is_left_alone() {
    let lines = [
        Line(1, 0, 1, 1, "init"),
        Line(10, 1, 10, 10, "bash"),
        Line(20, 10, 20, 10, "cargo"),
        Line(21, 20, 20, 10, "a-1234"),
        // One has left the group, the other has not.
        Line(40, 1, 39, 10, "sleep"),
        Line(41, 1, 20, 10, "sleep"),
    ];
    let all: Vec<(Pid, &[(&str, &str)])> = vec![(21, OF_CARGO), (40, OF_CARGO), (41, OF_CARGO)];
    let survey_of_run = survey(&lines, &all);
    assert!(
        matches!(survey_of_run.orphan_with(40), Err(Refusal::RunGoesOn(run)) if [20, 21].contains(&run.pid))
    );
    assert!(matches!(survey_of_run.orphan_with(41), Err(Refusal::RunGoesOn(_))));
    assert!(survey_of_run.orphans(|_, _| None).roots.is_empty());
    // Of another package the process group and the session tell, while a runner is in them.
    let other: Vec<(Pid, &[(&str, &str)])> =
        vec![(21, &[("CARGO_MANIFEST_DIR", "/w/b")]), (40, OF_CARGO), (41, OF_CARGO)];
    let survey_of_other = survey(&lines, &other);
    assert!(matches!(survey_of_other.orphan_with(40), Err(Refusal::RunGoesOn(run)) if run.pid == 20));
    assert!(matches!(survey_of_other.orphan_with(41), Err(Refusal::RunGoesOn(_))));
}

/// Whether the orphan 40 of a session of its own is left alone for a process 20, and this is its parent or that 21.
fn goes_on(runner: (&'static str, &'static str), below: &[(&str, &str)], orphan: &[(&str, &str)]) -> bool {
    let (name, line) = runner;
    let lines = [
        Line(1, 0, 1, 1, "init"),
        Line(10, 1, 10, 10, "bash"),
        Line(20, 10, 20, 10, name),
        Line(21, 20, 20, 10, "a"),
        Line(40, 1, 39, 28, "sleep"),
    ];
    let mut survey = survey(&lines, &[(21, below), (40, orphan)]);
    let started = survey.started.get_mut(&20).unwrap();
    started.command_line = line.split(' ').map(str::to_owned).collect();
    started.folder = Some("/w/a".into());
    match survey.orphan_with(40) {
        Ok(_) => false,
        Err(Refusal::RunGoesOn(other)) => [20, 21].contains(&other.pid),
        Err(why) => panic!("{why:?}"),
    }
}

#[test]
fn a_live_process_of_a_run_or_its_runner_shows_that_it_goes_on() {
    let bats = ("bash", "bash /usr/bin/bats a.bats");
    let run = |value| [("BATS_RUN_TMPDIR", value)];
    let of_bats = [("BATS_TEST_NAME", "a"), ("BATS_RUN_TMPDIR", "/tmp/1")];
    assert!(goes_on(("bash", "bash"), &run("/tmp/1"), &of_bats));
    assert!(goes_on(bats, &run("/tmp/1"), &of_bats) && goes_on(bats, &[], &of_bats));
    assert!(!goes_on(bats, &run("/tmp/2"), &of_bats) && !goes_on(("vim", "vim a.bats"), &[], &of_bats));
    // No run is named: any other will do.
    assert!(goes_on(("bash", "bash"), &run("/tmp/2"), &of_bats[..1]));

    let of_pytest = [("PYTEST_CURRENT_TEST", "a.py::a (call)")];
    assert!(goes_on(("pytest", "/usr/bin/python3 /usr/bin/pytest"), &[], &of_pytest));
    assert!(goes_on(("python3", "python3 run_tests.py"), &[], &of_pytest));
    assert!(goes_on(("sh", "sh"), &[("PYTEST_CURRENT_TEST", "b")], &of_pytest));
    assert!(!goes_on(("sh", "sh"), &[], &of_pytest) && !goes_on(bats, &run("1"), &of_pytest));

    let nextest = ("cargo-nextest", "cargo-nextest nextest run");
    let of_nextest = [("NEXTEST_TEST_NAME", "a"), ("NEXTEST_RUN_ID", "1")];
    assert!(goes_on(nextest, &[], &of_nextest) && goes_on(nextest, &of_nextest[1..], &of_nextest));
    assert!(!goes_on(nextest, &[("NEXTEST_RUN_ID", "2")], &of_nextest));

    let cargo = ("cargo", "cargo test");
    assert!(goes_on(cargo, &[], OF_CARGO) && goes_on(cargo, &[], &[("CARGO_MANIFEST_DIR", "/w/a/b")]));
    assert!(!goes_on(cargo, &[], &[("CARGO_MANIFEST_DIR", "/w/b")]));
    let elsewhere = ("cargo", "cargo test --manifest-path=/w/b/Cargo.toml");
    assert!(goes_on(elsewhere, &[], &[("CARGO_MANIFEST_DIR", "/w/b")]));
}

#[test]
fn a_test_binary_of_the_same_target_folder_shows_that_its_run_goes_on() {
    let with = |program: &str| {
        let lines = [
            Line(1, 0, 1, 1, "init"),
            Line(10, 1, 10, 10, "bash"),
            Line(20, 10, 20, 10, "a-1234"),
            Line(40, 1, 39, 28, "server"),
        ];
        let mut survey = survey(&lines, &[]);
        survey.started.get_mut(&20).unwrap().program = Some(program.into());
        survey.started.get_mut(&40).unwrap().program = Some("/w/target/debug/server".into());
        survey.orphan_with(40).map(|root| root.traces)
    };
    assert!(matches!(with("/w/target/debug/deps/a-1234"), Err(Refusal::RunGoesOn(run)) if run.pid == 20));
    // It runs no tests.
    for other in ["/w/target/debug/other", "/v/target/debug/deps/a-1234"] {
        assert_eq!(with(other), Ok(vec![Trace::TargetFolder("/w/target".into())]), "{other}");
    }
}

#[test]
fn a_process_of_another_pid_namespace_is_left_alone() {
    let mut survey = survey(&[Line(1, 0, 1, 1, "init"), Line(40, 1, 39, 28, "sleep")], &[(40, OF_CARGO)]);
    assert!(survey.orphan_with(40).is_ok());
    survey.started.get_mut(&40).unwrap().pid_namespace = Some("pid:[2]".into());
    assert_eq!(survey.orphan_with(40), Err(Refusal::OtherNamespace));
    survey.started.get_mut(&40).unwrap().pid_namespace = None;
    assert!(matches!(survey.orphan_with(40), Err(Refusal::Unreadable(_))));
    // Below what starts containers, too.
    let mut below = super::Survey { tree: Tree::of([]), ..survey };
    let lines = [(1, 0, 1, "init"), (10, 1, 10, "containerd-shim"), (40, 10, 40, "sleep")];
    below.tree = Tree::of(lines.map(|(pid, parent, session, name)| {
        let line =
            format!("{pid} ({name}) S {parent} {pid} {session} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0");
        Stat::parse(line.as_bytes()).unwrap()
    }));
    below.started.get_mut(&40).unwrap().pid_namespace = Some("pid:[1]".into());
    assert!(matches!(below.orphan_with(40), Err(Refusal::HasParent(parent)) if parent.pid == 10));
}

#[test]
fn a_service_is_left_alone_also_with_the_variables_of_cargo() {
    const OF_TEST: &[(&str, &str)] = &[("NEXTEST_TEST_NAME", "a"), ("NEXTEST_RUN_ID", "1")];
    let below = |manager: (&'static str, &str), session: Pid, unit: Unit, variables: &[(&str, &str)]| {
        let lines = [
            Line(1, 0, 1, 1, "systemd"),
            Line(10, 1, 10, 10, manager.0),
            Line(40, if manager.0 == "sh" { 1 } else { 10 }, 40, session, "server"),
        ];
        let mut survey = survey(&lines, &[(40, variables)]);
        let line = manager.1.split(' ').map(str::to_owned).collect();
        survey.started.get_mut(&10).unwrap().command_line = line;
        survey.started.get_mut(&40).unwrap().unit = unit;
        survey.orphan_with(40).map(|_| ())
    };
    let service = || Unit::Service("/system.slice/a.service".to_owned());
    let scope = || Unit::Scope("/user.slice/session-3.scope".to_owned());
    let (first, of_user, other) = (("sh", "sh"), ("systemd", "systemd --user"), ("systemd", "systemd"));
    for manager in [first, of_user] {
        assert!(matches!(below(manager, 40, Unit::None, OF_CARGO), Err(Refusal::MayHaveParent(_))));
        assert!(matches!(below(manager, 40, service(), OF_CARGO), Err(Refusal::Service(_))));
        assert!(matches!(below(manager, 28, service(), OF_CARGO), Err(Refusal::Service(_))));
        assert_eq!(below(manager, 28, Unit::None, OF_CARGO), Ok(()));
        assert_eq!(below(manager, 28, service(), OF_TEST), Ok(()));
        assert_eq!(below(manager, 40, scope(), OF_CARGO), Ok(()));
    }
    for session in [28, 40] {
        assert!(matches!(below(other, session, Unit::None, OF_CARGO), Err(Refusal::HasParent(_))));
    }
}

#[test]
fn what_the_first_process_of_a_container_has_started_itself_is_no_orphan() {
    let below = |first: &'static str| {
        let lines = [Line(1, 0, 1, 1, first), Line(20, 1, 1, 1, "a-1234"), Line(30, 1, 29, 28, "sleep")];
        let survey = survey(&lines, &[(20, OF_CARGO), (30, &[("CARGO_MANIFEST_DIR", "/w/b")])]);
        (survey.orphan_with(20).is_ok(), survey.orphan_with(30).is_ok())
    };
    // Its run goes on.
    assert_eq!(below("cargo"), (false, false));
    assert_eq!(below("sh"), (true, true));
    assert_eq!(below("tini"), (false, true));
    assert_eq!(below("init"), (false, true));
}

#[test]
fn a_parent_that_is_not_known_to_adopt_may_have_started_it() {
    // It may have founded a session after the fork.
    let lines = [Line(1, 0, 1, 1, "init"), Line(10, 1, 10, 10, "terminal"), Line(30, 10, 29, 28, "sleep")];
    let survey = survey(&lines, &[(30, OF_CARGO)]);
    assert!(matches!(survey.orphan_with(30), Err(Refusal::HasParent(parent)) if parent.pid == 10));
}

#[test]
fn a_harness_is_left_alone_whoever_has_started_it() {
    let lines = [
        Line(1, 0, 1, 1, "init"),
        Line(20, 1, 20, 20, "a-1234"),
        Line(21, 20, 21, 21, "()"),
        Line(22, 21, 22, 22, "childproof"),
        Line(30, 22, 30, 22, "a-1234"),
        // Nothing guards what this one runs.
        Line(40, 1, 40, 39, "b-1234"),
    ];
    let survey = survey(&lines, &[(20, OF_CARGO), (40, &[("CARGO_MANIFEST_DIR", "/w/b")])]);
    assert!(matches!(survey.orphan_with(20), Err(Refusal::RunGoesOn(guard)) if guard.pid == 21));
    assert!(survey.orphan_with(40).is_ok());
}

#[test]
fn a_stopped_process_that_nothing_shows_to_be_a_tests_is_no_orphan() {
    let stat =
        Stat { state: 'T', ..survey(&[Line(40, 1, 39, 28, "vim")], &[]).tree.get(40).unwrap().clone() };
    let mut survey = survey(&[Line(1, 0, 1, 1, "init")], &[]);
    survey.tree = Tree::of([survey.tree.get(1).unwrap().clone(), stat]);
    survey.started.insert(
        40,
        Started {
            program: Some(PathBuf::from("/usr/bin/vim")),
            environment: Some([].into()),
            ..in_namespace()
        },
    );
    assert_eq!(survey.orphan_with(40), Err(Refusal::NoTrace));
}

#[test]
fn what_a_guard_is_above_is_of_its_run_unless_it_was_kept() {
    let lines = [
        Line(1, 0, 1, 1, "init"),
        Line(10, 1, 10, 10, "childproof"),
        Line(20, 10, 20, 20, "childproof"),
        Line(30, 20, 29, 28, "sleep"),
        // Its run has ended, below one that goes on.
        Line(11, 20, 11, 11, "()"),
        Line(21, 11, 21, 21, "childproof-kept"),
        Line(31, 21, 29, 28, "sleep"),
    ];
    let survey = survey(&lines, &[(30, OF_CARGO), (31, OF_CARGO)]);
    assert!(matches!(survey.orphan_with(30), Err(Refusal::Guarded(guard)) if guard.pid == 10));
    let kept = survey.orphan_with(31).unwrap();
    assert!(kept.stat.pid == 11 && matches!(kept.traces[..], [Trace::Kept(_)]), "{kept:?}");
    assert_eq!(kept.asked_for.iter().map(|asked| asked.stat.pid).collect::<Vec<_>>(), [31]);
}
