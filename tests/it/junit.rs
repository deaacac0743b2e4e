//! The JUnit XML is what tools expect of it, and the file exists only when it is complete.
//!
//! `tests/fixtures/leaky/tests/reports.rs` has the tests. The output is read by expat, which accepts only
//! well-formed XML.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Fixture, PATIENCE, Ran, Run, scratch};

/// Runs the fixture with these arguments, and with its file at `path`.
fn run(path: &Path, arguments: &[&str]) -> Ran {
    Ran::of(command(arguments).arg("--junit").arg(path))
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Fixture::build("leaky").command("reports", arguments);
    command.env("VICTIM_OUT", scratch());
    command
}

fn path() -> PathBuf {
    scratch().join("junit.xml")
}

/// An element: its tag, attributes, text and children. `None` where there is no python3.
fn read(path: &Path) -> Option<Value> {
    const READER: &str = "
import json, sys, xml.etree.ElementTree as tree
def element(e):
    return {'tag': e.tag, 'at': e.attrib, 'text': e.text or '', 'in': [element(child) for child in e]}
print(json.dumps(element(tree.parse(sys.argv[1]).getroot())))
";
    let Ok(output) = Command::new("python3").args(["-c", READER]).arg(path).output() else {
        println!("skipped: python3 is not installed");
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", fs::read_to_string(path).unwrap_or_default());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn children<'a>(element: &'a Value, tag: &str) -> Vec<&'a Value> {
    let children = element["in"].as_array().unwrap();
    children.iter().filter(|child| child["tag"] == tag).collect()
}

fn child<'a>(element: &'a Value, tag: &str) -> &'a Value {
    let found = children(element, tag);
    assert_eq!(found.len(), 1, "`{tag}` in {element:#}");
    found[0]
}

fn text(element: &Value) -> &str {
    element["text"].as_str().unwrap()
}

fn case<'a>(suite: &'a Value, name: &str) -> &'a Value {
    let cases = children(suite, "testcase");
    let mut found = cases.iter().filter(|case| case["at"]["name"] == name);
    let case = found.next().unwrap_or_else(|| panic!("no `{name}` in {suite:#}"));
    assert!(found.next().is_none(), "`{name}` twice in {suite:#}");
    case
}

#[childproof::test]
fn has_the_warning_of_a_test_that_passed() {
    let path = path();
    let ran =
        Ran::of(command(&["leaks", "--exact"]).env("CHILDPROOF_PROCESSES", "warn").arg("--junit").arg(&path));
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let Some(root) = read(&path) else { return };
    let warned = case(child(&root, "testsuite"), "leaks");
    assert!(text(child(warned, "system-err")).starts_with("WARN  leaks   left 1 process"), "{warned:#}");
    assert!(children(warned, "failure").is_empty(), "{warned:#}");
}

#[childproof::test]
fn tells_every_test_with_its_words() {
    let path = path();
    let ran = run(&path, &["passes", "ignored", "panics", "leaks", "--exact"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let Some(root) = read(&path) else { return };
    let suite = child(&root, "testsuite");
    for element in [&root, suite] {
        for (name, value) in
            [("name", "reports"), ("tests", "4"), ("failures", "2"), ("errors", "0"), ("skipped", "1")]
        {
            assert_eq!(element["at"][name], value, "{name} in {element:#}");
        }
        let time: f64 = element["at"]["time"].as_str().unwrap().parse().unwrap();
        assert!(time > 0.2, "there was a grace of 0.2 s: {element:#}");
    }
    assert_eq!(root["tag"], "testsuites");
    assert!(suite["at"]["timestamp"].as_str().unwrap().starts_with("20"), "{suite:#}");

    let passes = case(suite, "passes");
    assert_eq!(passes["at"]["classname"], "reports");
    assert!(passes["at"]["time"].as_str().unwrap().starts_with("0."));
    assert_eq!(text(child(passes, "system-out")), "words of a body that passed\n");
    assert_eq!(passes["in"].as_array().unwrap().len(), 1);

    let ignored = case(suite, "ignored");
    assert_eq!(child(ignored, "skipped")["at"]["message"], "not <today> & \"not here\"");

    let panics = case(suite, "panics");
    assert!(text(child(panics, "system-out")).contains("words of the panic"));
    let failure = child(panics, "failure");
    assert_eq!(failure["at"]["type"], "panicked");
    assert!(failure["at"]["message"].as_str().unwrap().ends_with(": words of the panic"), "{failure:#}");
    assert!(text(failure).starts_with("FAIL  panics   body panicked after "), "{failure:#}");

    let leaks = case(suite, "leaks");
    let failure = child(leaks, "failure");
    assert_eq!(failure["at"]["type"], "leaked_process");
    let message = failure["at"]["message"].as_str().unwrap();
    assert!(
        message.contains("`sleep 86399` was still running 200 ms after the test ended. It was spawned at "),
        "{message}"
    );
    assert!(text(failure).contains("  allow: #[childproof::test(allow_process = \"sleep *\")]\n"));
    assert!(children(leaks, "system-out").is_empty(), "it printed nothing: {leaks:#}");
}

#[childproof::test]
fn has_the_sentence_that_explains_for_its_message() {
    let path = path();
    let mut command = Fixture::build("leaky").command("waits", &["keeper_of_its_own_lifeline", "--exact"]);
    Ran::of(command.arg("--junit").arg(&path));
    let Some(root) = read(&path) else { return };
    let failure = child(case(child(&root, "testsuite"), "keeper_of_its_own_lifeline"), "failure");
    assert_eq!(failure["at"]["type"], "timed_out");
    let message = failure["at"]["message"].as_str().unwrap();
    assert!(message.contains(" deadlocks on itself: it reads a pipe "), "{message}");
}

#[childproof::test]
fn is_xml_whatever_a_body_prints() {
    let path = path();
    run(&path, &["prints_any_byte", "--repeat=2"]);
    let Some(root) = read(&path) else { return };
    let suite = child(&root, "testsuite");
    let (passes, fails) = (case(suite, "prints_any_byte"), case(suite, "prints_any_byte_and_fails"));
    let again = child(fails, "rerunFailure");
    for element in [passes, fails, again] {
        let text = text(child(element, "system-out"));
        assert!(
            text.contains("]]> </system-out><x a='\"'> &amp; &#0; \u{fffd}\u{fffd}\u{10ffff} "),
            "{text}"
        );
        assert!(text.contains("red    and\u{fffd}]0;no end of it\nlast words\n"), "{text}");
    }
}

#[childproof::test]
fn names_each_test_once_however_often_it_ran() {
    let path = path();
    let ran = run(&path, &["passes", "fails_from_the_second_round_on", "--repeat=3"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let Some(root) = read(&path) else { return };
    let suite = child(&root, "testsuite");
    assert_eq!((&suite["at"]["tests"], &suite["at"]["failures"]), (&"2".into(), &"1".into()));
    assert!(children(case(suite, "passes"), "failure").is_empty());
    let fails = case(suite, "fails_from_the_second_round_on");
    assert!(text(child(fails, "failure")).starts_with("round 2 of 3\n\nFAIL  "), "{fails:#}");
    assert!(text(child(fails, "system-out")).starts_with("this is time 2\n"), "{fails:#}");
    let again = child(fails, "rerunFailure");
    assert!(text(child(again, "stackTrace")).starts_with("round 3 of 3\n\nFAIL  "), "{fails:#}");
    assert!(text(child(again, "system-out")).starts_with("this is time 3\n"), "{fails:#}");
}

#[childproof::test]
fn is_written_when_a_run_fails_fast() {
    let path = path();
    run(&path, &["leaks", "panics", "passes", "--exact", "--fail-fast", "--test-threads=1"]);
    let Some(root) = read(&path) else { return };
    let suite = child(&root, "testsuite");
    assert_eq!((&suite["at"]["tests"], &suite["at"]["skipped"]), (&"3".into(), &"2".into()), "{suite:#}");
    let skipped = child(case(suite, "passes"), "skipped");
    assert!(skipped["at"]["message"].as_str().unwrap().contains("--fail-fast is set"), "{skipped:#}");
}

#[childproof::test]
fn goes_where_bazel_wants_it() {
    let (path, other) = (path(), scratch().join("other.xml"));
    let ran = Ran::of(command(&["passes"]).env("XML_OUTPUT_FILE", &path));
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let written = fs::metadata(&path).unwrap();
    assert_eq!(written.permissions().mode() & 0o777, 0o666 & !umask(), "others read it");

    fs::remove_file(&path).unwrap();
    let arguments = ["passes", "--junit", other.to_str().unwrap()];
    Ran::of(command(&arguments).env("XML_OUTPUT_FILE", &path));
    assert!(!path.exists() && other.exists(), "the command line wins");

    let ran = Ran::of(command(&["passes"]).env("XML_OUTPUT_FILE", ""));
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let ran = Ran::of(command(&["--list"]).env("XML_OUTPUT_FILE", &path));
    assert_eq!((ran.code, path.exists()), (Some(0), false), "a list has no results: {}", ran.all());
}

/// Under nextest, each test would replace the file of the previous one.
#[childproof::test]
fn is_not_written_by_the_single_tests_of_nextest() {
    let path = path();
    let mut command = command(&["--exact", "passes", "--nocapture"]);
    let ran = Ran::of(command.env("XML_OUTPUT_FILE", &path).env("NEXTEST", "1"));
    assert_eq!((ran.code, path.exists()), (Some(0), false), "{}", ran.all());
    let said = "childproof: `XML_OUTPUT_FILE` is set and nothing is written there: cargo-nextest runs each";
    assert!(ran.stderr.contains(said), "{}", ran.all());
    // An explicit request for the file is followed.
    let ran = Ran::of(command.args(["--junit", path.to_str().unwrap()]));
    assert_eq!((ran.code, path.exists()), (Some(0), true), "{}", ran.all());
}

fn umask() -> u32 {
    let mask = nix::sys::stat::umask(Mode::empty());
    nix::sys::stat::umask(mask);
    mask.bits()
}

#[childproof::test]
fn is_not_there_before_it_is_whole() {
    let directory = scratch().join("results");
    fs::create_dir(&directory).unwrap();
    let path = directory.join("junit.xml");
    fs::write(&path, "yesterday's").unwrap();
    let mut command = Fixture::build("leaky").command("reports", &["waits_for_its_end"]);
    command.env("XML_OUTPUT_FILE", &path);
    let mut killed = Run::spawn(command);
    killed.wait_for("waits");
    let there = || fs::read_dir(&directory).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(there().count(), 0, "{:?}", there().collect::<Vec<_>>());
    kill(Pid::from_raw(killed.pid()), Signal::SIGKILL).unwrap();
    killed.finish();
    killed.assert_nothing_left(PATIENCE);
    assert_eq!(there().count(), 0, "{:?}", there().collect::<Vec<_>>());
}

#[childproof::test]
fn goes_through_a_symlink() {
    let (link, target) = (scratch().join("link.xml"), scratch().join("target.xml"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    run(&link, &["passes"]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&target).unwrap().ends_with("</testsuites>\n"));
}

#[childproof::test]
fn needs_its_feature() {
    let path = path();
    let victim = Fixture::build("victim");
    let arguments = ["no_test_of_this_name", "--junit", path.to_str().unwrap()];
    let refused = victim.run("harness", &arguments);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{}", refused.all());
    let words = "`--junit` needs childproof's feature `junit`, which is off in this build";
    assert!(refused.stderr.contains(words), "{}", refused.all());
    // Bazel sets it for every test: that is no error, and noted once.
    let said = "childproof: `XML_OUTPUT_FILE` is set and nothing is written there: that needs childproof's \
                feature `junit`, which is off in this build";
    for (target, more) in [("harness", ""), ("stock", ", and a target with `harness = false`")] {
        let tests = ["--exact", "bodies::closes_everything", "bodies::closes_from_3"];
        let run = |file: &Path| {
            let mut command = victim.command(target, &tests);
            Ran::of(command.env("XML_OUTPUT_FILE", file))
        };
        let ran = run(&path);
        assert_eq!((ran.code, path.exists()), (Some(0), false), "{}", ran.all());
        assert_eq!(ran.stderr, format!("{said}{more}\n"), "{}", ran.all());
        let ran = run(Path::new(""));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{}", ran.all());
    }
    let ran = Ran::of(victim.command("harness", &["--list"]).env("XML_OUTPUT_FILE", &path));
    assert_eq!(ran.stderr, "", "{}", ran.all());
}
