//! The recorder, in programs that know nothing of it. `programs/` has these.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory of one test, removed when it ends.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("childproof-preload-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles a C program.
    fn c(&self, source: &str, more: &[&str]) -> PathBuf {
        let program = self.file(source.strip_suffix(".c").unwrap());
        let mut cc = Command::new("cc");
        cc.args(["-g", "-w", "-pthread"])
            .arg(programs().join(source))
            .arg("-o")
            .arg(&program)
            .args(more)
            .arg("-lutil");
        succeed(&mut cc);
        program
    }

    /// Runs a command with the recorder.
    fn record(&self, command: &[&str]) -> Recorded {
        self.record_with(&[], command, |_| ())
    }

    fn record_with(&self, options: &[&str], command: &[&str], set: impl FnOnce(&mut Command)) -> Recorded {
        let log = self.file("log");
        let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
        tool.arg("__record").args(options).arg(&log).arg("--").args(command).stdin(Stdio::null());
        tool.env_remove("LD_PRELOAD");
        set(&mut tool);
        let output = tool.output().unwrap();
        let log = fs::read_to_string(log).unwrap_or_default();
        Recorded { output, log }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Recorded {
    output: Output,
    log: String,
}

/// A call in the log.
struct Call<'a> {
    line: &'a str,
    frames: Vec<(&'a str, u64)>,
}

impl Recorded {
    fn calls(&self, name: &str) -> Vec<Call<'_>> {
        let mut calls: Vec<Call> = Vec::new();
        let mut is_wanted = false;
        for line in self.log.lines() {
            if let Some(frame) = line.strip_prefix("  ") {
                let (module, offset) = frame.rsplit_once("+0x").unwrap();
                let frame = (module, u64::from_str_radix(offset, 16).unwrap());
                if is_wanted {
                    calls.last_mut().unwrap().frames.push(frame);
                }
                continue;
            }
            is_wanted = line.starts_with(&format!("call {name} "));
            if is_wanted {
                calls.push(Call { line, frames: Vec::new() });
            }
        }
        calls
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn all(&self) -> String {
        format!("{:?}\n{}", self.output, self.log)
    }
}

impl Call<'_> {
    /// The lines of the program's own frames, as addr2line prints them: `FUNCTION FILE:LINE`.
    fn lines(&self, program: &Path) -> Vec<String> {
        let own = self.frames.iter().filter(|(module, _)| Path::new(module) == program);
        let mut addr2line = Command::new("addr2line");
        addr2line.arg("-fCpe").arg(program).arg("-i");
        addr2line.args(own.map(|(_, offset)| format!("{:#x}", offset - 1)));
        succeed(&mut addr2line).lines().map(str::to_owned).collect()
    }

    fn field(&self, name: &str) -> &str {
        let name = format!(" {name}=");
        let rest = self.line.split_once(&name).unwrap_or_else(|| panic!("no{name}in {}", self.line)).1;
        rest.split(' ').next().unwrap()
    }
}

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The marked lines of a source: the call, and its place.
fn marks(source: &str) -> Vec<(String, usize)> {
    let text = fs::read_to_string(programs().join(source)).unwrap();
    let lines = (1..).zip(text.lines());
    lines.filter_map(|(at, line)| Some((line.split_once("// MARK ")?.1.to_owned(), at))).collect()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

#[test]
fn every_call_of_a_c_program_has_its_line() {
    let directory = Directory::new("calls");
    let program = directory.c("calls.c", &[]);
    let ran = directory.record(&[program.to_str().unwrap()]);
    assert_eq!(ran.output.status.code(), Some(7), "{}", ran.all());
    assert!(ran.output.stdout.is_empty() && ran.output.stderr.is_empty(), "{}", ran.all());
    for (name, line) in marks("calls.c") {
        let calls = ran.calls(&name);
        let place = format!("calls.c:{line}");
        let found = calls.iter().any(|call| {
            // `FUNCTION at FILE:LINE`, and ` (discriminator 3)` if the line has several parts.
            call.lines(&program).iter().any(|line| format!("{line} ").contains(&format!("{place} ")))
        });
        assert!(found, "no {name} at {place}:\n{}", ran.all());
    }
    let [of_thread, of_main] = &ran.calls("fork")[..] else { panic!("{}", ran.all()) };
    assert_eq!((of_thread.field("thread"), of_thread.field("threads")), ("\"worker-7\"", "2"));
    assert_eq!((of_main.field("thread"), of_main.field("threads")), ("\"main\"", "1"));
    // A pipe that the fork created is recorded with the fork's pid.
    let inner = &ran.calls("pipe")[0];
    assert_eq!(of_thread.field("keys"), format!("[{},", inner.field("pid")), "{}", ran.all());
    let popen = &ran.calls("popen")[0];
    assert!(popen.field("keys") != "[0,", "no pid of the shell: {}", ran.all());
    assert!(popen.line.contains("[\"sh\", \"-c\", \"exit 3\"]"), "{}", popen.line);
    // At its end: the three standard streams, and everything that it has left open.
    assert!(ran.log.contains(" Ended(Some(\"exit\")) "), "{}", ran.all());
    for target in
        ["\"pipe:[", "\"socket:[", "\"anon_inode:[eventfd]", "\"anon_inode:[timerfd]", "\"/memfd:name"]
    {
        assert!(
            ran.log.lines().any(|line| line.starts_with("open ") && line.contains(target)),
            "{}",
            ran.all()
        );
    }
    assert!(ran.log.ends_with("complete=true\n"), "{}", ran.all());
}

#[test]
fn a_rust_test_binary_tells_which_test_it_was() {
    let directory = Directory::new("suite");
    let program = directory.file("suite");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    succeed(
        Command::new(rustc)
            .args(["--test", "-g", "--edition", "2024", "-o"])
            .args([&program, &programs().join("suite.rs")]),
    );
    let ran = directory.record(&[program.to_str().unwrap(), "--test-threads=2"]);
    assert!(ran.output.status.success(), "{}", ran.all());
    assert!(ran.stdout().contains("2 passed"), "{}", ran.all());
    for (name, line) in marks("suite.rs") {
        let place = format!("suite.rs:{line}");
        let test = if name == "pipe2" { "leaves_a_pipe" } else { "starts_a_program" };
        let calls = ran.calls(&name);
        let of_test = calls.iter().find(|call| {
            let lines = call.lines(&program);
            lines.iter().any(|line| line.contains(&place) && line.contains(&format!("suite::{test}")))
        });
        let call = of_test.unwrap_or_else(|| panic!("no {name} at {place} of {test}:\n{}", ran.all()));
        // The kernel's size limit for the name of a thread.
        assert_eq!(call.field("thread"), format!("{:?}", &test[..test.len().min(15)]), "{}", ran.all());
    }
}

#[test]
fn a_child_finds_nothing_of_the_recorder() {
    let directory = Directory::new("environment");
    let other = directory.file("libother.so");
    let source = directory.file("other.c");
    fs::write(&source, "int other;\n").unwrap();
    succeed(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&other, &source]));
    for command in [&["env"][..], &["sh", "-c", "env; :"]] {
        let ran = directory.record(command);
        assert!(!ran.log.starts_with("not recorded"), "{}", ran.all());
        let found = |ran: &Recorded| {
            let text = ran.stdout();
            let lines =
                text.lines().filter(|line| line.starts_with("LD_PRELOAD") || line.starts_with("CHILDPROOF_"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(found(&ran), Vec::<String>::new(), "{}", ran.all());
        assert!(ran.stdout().contains("\nPATH="), "{}", ran.all());
        let ran = directory.record_with(&[], command, |tool| {
            tool.env("LD_PRELOAD", &other);
        });
        assert_eq!(found(&ran), [format!("LD_PRELOAD={}", other.display())], "{}", ran.all());
        assert!(ran.log.contains("program pid="), "{}", ran.all());
    }
}

#[test]
fn a_tree_is_recorded_if_that_is_asked_for() {
    let directory = Directory::new("tree");
    let ran = directory.record_with(&["--tree"], &["sh", "-c", "sh -c 'true | cat'; exit 5"], |_| ());
    assert_eq!(ran.output.status.code(), Some(5), "{}", ran.all());
    let programs = ran.log.lines().filter(|line| line.starts_with("program ")).count();
    assert!(programs >= 3, "{}", ran.all());
}

#[test]
fn what_cannot_be_recorded_runs_as_it_would() {
    let directory = Directory::new("unfit");
    let program = directory.c("fds.c", &["-static"]);
    let ran = directory.record(&[program.to_str().unwrap()]);
    assert!(ran.output.status.success() && ran.output.stderr.is_empty(), "{}", ran.all());
    assert!(ran.log.contains("is linked statically"), "{}", ran.all());
    let script = directory.file("script");
    fs::write(&script, "#!/usr/bin/env sh\nexit 3\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = directory.record(&[script.to_str().unwrap()]);
    assert_eq!(ran.output.status.code(), Some(3), "{}", ran.all());
    assert!(ran.log.contains("goes on by exec"), "{}", ran.all());
    fs::write(&script, "#!/bin/sh\nexit 4\n").unwrap();
    let ran = directory.record(&[script.to_str().unwrap()]);
    assert_eq!(ran.output.status.code(), Some(4), "{}", ran.all());
    assert!(ran.log.contains("program pid="), "{}", ran.all());
    let asan = directory.file("asan");
    let built = Command::new("cc")
        .arg("-fsanitize=address")
        .arg(programs().join("fds.c"))
        .arg("-w")
        .arg("-o")
        .arg(&asan)
        .output()
        .unwrap();
    if built.status.success() {
        let ran = directory.record(&[asan.to_str().unwrap()]);
        assert!(ran.log.contains("AddressSanitizer"), "{}", ran.all());
        assert!(
            !String::from_utf8_lossy(&ran.output.stderr).contains("does not come first"),
            "{}",
            ran.all()
        );
    }
    let ran = directory.record(&["/no/such/program"]);
    assert!(ran.log.contains("was not found"), "{}", ran.all());
    if is_root() {
        let other = directory.file("set-user-id");
        fs::copy(fs::canonicalize("/usr/bin/id").unwrap(), &other).unwrap();
        chown(&other, Some(65534), None).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o4755)).unwrap();
        let ran = directory.record(&[other.to_str().unwrap(), "-u"]);
        assert_eq!(ran.stdout(), "65534\n", "{}", ran.all());
        assert!(ran.output.stderr.is_empty() && ran.log.contains("set-user-ID"), "{}", ran.all());
    }
}

#[test]
fn what_goes_through_a_program_is_untouched() {
    let directory = Directory::new("untouched");
    let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at * 7) as u8).collect();
    let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
    tool.arg("__record").arg(directory.file("log")).args(["--", "cat"]);
    let mut child = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let written = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&written));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.stdout == bytes && output.stderr.is_empty() && output.status.success());
}

#[test]
fn a_program_that_closes_every_fd_is_recorded() {
    let directory = Directory::new("fds");
    let program = directory.c("fds.c", &[]);
    let ran = directory.record(&[program.to_str().unwrap()]);
    for (name, line) in marks("fds.c") {
        let lines = ran.calls(&name)[0].lines(&program);
        assert!(lines[0].contains(&format!("fds.c:{line}")), "{lines:?}\n{}", ran.all());
    }
    assert!(ran.log.contains(" Ended(None) ") && ran.log.contains(" open=Some(5) "), "{}", ran.all());
    // A failed exec is not recorded as an end.
    let ran = directory.record(&[program.to_str().unwrap(), "abort"]);
    assert_eq!(ran.output.status.code(), Some(128 + 6), "{}", ran.all());
    assert_eq!(ran.calls("abort").len(), 1, "{}", ran.all());
    assert!(ran.log.contains(" Unfinished("), "{}", ran.all());
}

#[test]
fn a_program_that_goes_on_to_another_is_told() {
    let directory = Directory::new("exec");
    let ran = directory.record(&["sh", "-c", "exec /bin/echo other"]);
    assert_eq!(ran.stdout(), "other\n");
    assert!(ran.log.contains(" WentOn(Some(\"exec\")) "), "{}", ran.all());
    assert_eq!(ran.calls("exec").len(), 1, "{}", ran.all());
}

/// Less than 2 ms a program, and 10 us a pipe. The least of many: the machine may be loaded.
#[test]
fn it_costs_little() {
    let directory = Directory::new("cost");
    let (library, log) = (directory.file("libchildproof_recorder.so"), directory.file("calls"));
    let copy = format!("cp {0}/log.d/libchildproof_recorder.so {0}/log.d/calls {0}", directory.0.display());
    let ran = directory.record(&["sh", "-c", &copy]);
    assert!(ran.output.status.success(), "{}", ran.all());
    let least = |recorded: bool| {
        let mut least = Duration::MAX;
        for _ in 0..60 {
            let mut command = Command::new("/bin/true");
            if recorded {
                command.env("LD_PRELOAD", &library).env("CHILDPROOF_RECORDER_LOG", &log);
            }
            let begin = Instant::now();
            assert!(command.status().unwrap().success());
            least = least.min(begin.elapsed());
        }
        least
    };
    let (plain, recorded) = (least(false), least(true));
    println!("true: {plain:?}, recorded {recorded:?}");
    assert!(recorded < plain + Duration::from_millis(2), "{plain:?}, recorded {recorded:?}");
    let program = directory.c("pipes.c", &["-O2"]);
    let plain: u64 = succeed(&mut Command::new(&program)).trim().parse().unwrap();
    let recorded: u64 = directory.record(&[program.to_str().unwrap()]).stdout().trim().parse().unwrap();
    println!("pipe: {plain} ns, recorded {recorded} ns");
    assert!(recorded < plain + 10_000, "{plain} ns, recorded {recorded} ns");
}
