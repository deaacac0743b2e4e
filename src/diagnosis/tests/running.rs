//! Which tests of a libtest binary a command was running.

use super::*;
use crate::recorder::call_site::RUNS_TEST;

fn line(line: u32) -> SourceLocation {
    SourceLocation { file: "src/lib.rs".to_owned(), line, column: 5 }
}

fn functions(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

/// A libtest binary: its main thread waits for the test in another thread.
fn libtest() -> (Facts, Names) {
    let sleeps = thread(TEST + 1, On::Sleep);
    let waits = On::Futex { address: 8, place: None, shared: false, forever: false };
    let facts = Facts {
        body: Body::OfCommand,
        ..hung(vec![process(TEST, vec![thread(TEST, waits), sleeps], vec![])])
    };
    let mut names = names(vec![]);
    names.lines.extend([(TEST, line(1)), (TEST + 1, line(11))]);
    names.functions.insert(TEST, functions(&["test::run_tests", "test::test_main_static", "a::main"]));
    let of_test = ["std::thread::sleep", "a::tests::hangs", RUNS_TEST];
    names.functions.insert(TEST + 1, functions(&of_test));
    (facts, names)
}

#[test]
fn the_thread_that_runs_a_test_is_the_hang_and_not_that_of_libtest() {
    let (facts, names) = libtest();
    let found = verdict(facts, names, Policy::new().timeout(Duration::from_secs(3)));
    assert!(found.findings.iter().all(|finding| !matches!(finding.kind, Kind::WaitsFor(_))));
    let Kind::TimedOut { hangs: None, tests, .. } =
        only(&found, |kind| matches!(kind, Kind::TimedOut { .. })).kind
    else {
        panic!("{:#?}", found.findings)
    };
    let named: Vec<(&str, Option<u32>)> =
        tests.iter().map(|test| (&*test.name, test.hang.as_ref().map(|hang| hang.place.line))).collect();
    assert_eq!(named, [("tests::hangs", Some(11))]);
}

#[test]
fn a_test_whose_stack_is_cut_is_known_by_its_thread() {
    let (mut facts, mut names) = libtest();
    names.functions.remove(&(TEST + 1));
    facts.processes[0].tasks[1].name = "tests::hangs".to_owned();
    let found = verdict(facts, names, Policy::new().timeout(Duration::from_secs(3)));
    let kind = only(&found, |kind| matches!(kind, Kind::TimedOut { .. })).kind;
    assert!(matches!(&kind, Kind::TimedOut { tests, .. } if tests[0].name == "tests::hangs"), "{kind:?}");
}

#[test]
fn the_line_of_a_block_on_is_said_to_be_one() {
    let mut names = names(vec![]);
    names.lines.insert(TEST, line(47));
    names.called.insert(TEST, "tokio::runtime::runtime::Runtime::block_on".to_owned());
    let found =
        verdict(hung(vec![process(TEST, vec![thread(TEST, On::Sleep)], vec![])]), names, Policy::new());
    let kind = only(&found, |kind| matches!(kind, Kind::TimedOut { .. })).kind;
    assert!(matches!(&kind, Kind::TimedOut { hangs: Some(hang), .. } if hang.in_block_on), "{kind:?}");
}
