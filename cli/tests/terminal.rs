//! Interactive programs below the tool, in a terminal of tmux: a shell, a pager, an editor, a debugger; with Ctrl-Z, `fg`,
//! Ctrl-C and a terminal that changes its size.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Whether all of these programs are installed. Says on the real stderr which one is not.
fn are_installed(programs: &[&str]) -> bool {
    let is_missing = |program: &&&str| {
        let mut which = Command::new("sh");
        which.args(["-c", "command -v \"$1\"", "sh", program]).stdout(Stdio::null());
        !which.status().unwrap().success()
    };
    let missing = programs.iter().find(is_missing);
    if let Some(missing) = missing {
        let _ = writeln!(std::io::stderr(), "SKIPPED: `{missing}` is not installed");
    }
    missing.is_none()
}

/// A terminal with a shell in it.
struct Terminal(TempDir);

impl Terminal {
    fn new() -> Terminal {
        let terminal = Terminal(tempfile::tempdir().unwrap());
        let shell = "PS1='P> ' PROMPT_COMMAND= exec bash --norc --noprofile -i";
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", shell]);
        terminal.tmux(&["set-option", "-g", "window-size", "manual"]);
        terminal.wait_for("P>");
        terminal
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(self.path("socket")).args(arguments).env_remove("TMUX").env_remove("LD_PRELOAD");
        tmux.stdin(Stdio::null()).env("TERM", "xterm").output().unwrap()
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    /// Waits until the screen shows something.
    fn wait_until(&self, what: &str, shows: impl Fn(&str) -> bool) {
        let begin = Instant::now();
        loop {
            let screen = self.screen();
            if shows(&screen) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_for(&self, text: &str) {
        self.wait_until(text, |screen| screen.contains(text));
    }

    /// Waits until this is the last line, as a prompt is.
    fn wait_for_prompt(&self, prompt: &str) {
        self.wait_until(prompt, |screen| {
            screen.trim_end().lines().last().is_some_and(|last| last.trim() == prompt)
        });
    }

    fn key(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn write(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Types a line.
    fn enter(&self, line: &str) {
        self.write(line);
        self.key("Enter");
    }

    /// Starts a command below the tool, on an empty screen.
    fn run(&self, command: &str) {
        self.enter("clear");
        self.wait_for_prompt("P>");
        self.enter(&format!("{} run -- {command}", env!("CARGO_BIN_EXE_childproof")));
    }

    /// Stops what runs with Ctrl-Z, and lets it go on with `fg`.
    fn stop_and_continue(&self) {
        // less loses a signal that comes between its look for signals and its read.
        self.wait_until("Stopped", |screen| {
            if !screen.contains("Stopped") {
                self.key("C-z");
            }
            screen.contains("Stopped")
        });
        self.wait_for_prompt("P>");
        self.enter("clear; fg");
    }

    fn resize(&self, columns: u32, lines: u32) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &lines.to_string()]);
    }

    /// Waits for the shell's prompt, and checks the exit code.
    fn ends_with(&self, code: i32) {
        self.wait_for("P>");
        self.enter("echo code=$?.");
        self.wait_for(&format!("code={code}."));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn a_shell() {
    if !are_installed(&["tmux", "bash"]) {
        return;
    }
    let terminal = Terminal::new();
    terminal.run("bash --norc --noprofile -i");
    terminal.enter("clear; PS1='Q> '");
    terminal.wait_for_prompt("Q>");
    // Its own job control.
    terminal.enter("clear; sleep 3137");
    terminal.wait_until("an empty screen", |screen| screen.trim().is_empty());
    terminal.key("C-z");
    terminal.wait_for("Stopped");
    terminal.wait_for_prompt("Q>");
    terminal.enter("clear; fg");
    terminal.wait_for("sleep 3137");
    terminal.key("C-c");
    terminal.wait_for_prompt("Q>");
    terminal.enter("echo code=$?.");
    terminal.wait_for("code=130.");
    // The size of the terminal, and the signal that says so.
    terminal.enter("clear; trap 'echo size=$(stty size).' WINCH; echo s''et.");
    terminal.wait_for("set.");
    terminal.resize(70, 20);
    terminal.enter("");
    terminal.wait_for("size=20 70.");
    terminal.enter("exit 3");
    terminal.ends_with(3);
}

#[test]
fn a_shell_that_is_killed_with_the_terminal() {
    if !are_installed(&["tmux", "bash"]) {
        return;
    }
    let terminal = Terminal::new();
    let tool = env!("CARGO_BIN_EXE_childproof");
    let script = format!(
        "{tool} run --quiet --timeout 2s -- bash --norc --noprofile -ic 'sleep 3137'\n\
         echo code=$?.\n\
         read line && echo got=$line. || echo failed.\n"
    );
    fs::write(terminal.path("script"), script).unwrap();
    terminal.enter(&format!("clear; sh {}", terminal.path("script").display()));
    terminal.wait_for("code=124.");
    terminal.enter("x");
    terminal.wait_until("an answer", |screen| screen.contains("got=x.") || screen.contains("failed."));
    assert!(terminal.screen().contains("got=x."), "{}", terminal.screen());
}

#[test]
fn a_pager() {
    if !are_installed(&["tmux", "less"]) {
        return;
    }
    let terminal = Terminal::new();
    let text: String = (1..=1000).map(|line| format!("line {line}.\n")).collect();
    fs::write(terminal.path("text"), text).unwrap();
    terminal.run(&format!("less {}", terminal.path("text").display()));
    terminal
        .wait_until("the first page", |screen| screen.contains("line 1.\n") && screen.contains("line 20.\n"));
    terminal.stop_and_continue();
    terminal.wait_for("line 1.\n");
    terminal.key("G");
    terminal.wait_for("line 1000.\n");
    terminal.wait_for("(END)");
    terminal.resize(70, 10);
    // It draws a page of nine lines from the first one on, and reads no key meanwhile.
    terminal.wait_for_prompt(":");
    terminal.key("g");
    terminal.wait_until("a page of nine lines", |screen| {
        screen.contains("line 9.\n") && !screen.contains("line 10.")
    });
    // A pager does not end at that.
    terminal.key("C-c");
    terminal.key("G");
    terminal.wait_for("line 1000.\n");
    terminal.key("q");
    terminal.ends_with(0);
}

#[test]
fn an_editor() {
    if !are_installed(&["tmux", "vi"]) {
        return;
    }
    let terminal = Terminal::new();
    let file = terminal.path("file");
    terminal.run(&format!("vi -u NONE {}", file.display()));
    terminal.wait_for("~\n~\n~");
    terminal.write("ione");
    terminal.wait_for("one\n~");
    terminal.key("Escape");
    terminal.stop_and_continue();
    terminal.wait_for("one\n~");
    terminal.resize(70, 10);
    terminal.enter(":set lines?");
    terminal.wait_for("lines=10");
    terminal.write("Atwo");
    terminal.wait_for("onetwo");
    // Ends the insertion, and nothing else.
    terminal.key("C-c");
    terminal.enter(":wq");
    terminal.ends_with(0);
    assert_eq!(fs::read_to_string(file).unwrap(), "onetwo\n");
}

#[test]
fn a_debugger() {
    if !are_installed(&["tmux", "gdb"]) {
        return;
    }
    let terminal = Terminal::new();
    let settings = "-iex 'set debuginfod enabled off' -iex 'set confirm off'";
    terminal.run(&format!("gdb -q -nx {settings} --args sh -c 'echo runs.; exec sleep 3137'"));
    terminal.wait_for_prompt("(gdb)");
    terminal.enter("run");
    // Ctrl-C before the program runs would end the start.
    terminal.wait_for("\nruns.\n");
    terminal.key("C-c");
    terminal.wait_for("received signal SIGINT");
    terminal.wait_for_prompt("(gdb)");
    terminal.stop_and_continue();
    terminal.enter("");
    terminal.wait_for("(gdb)");
    terminal.enter("kill");
    terminal.wait_for("killed]");
    terminal.enter("quit");
    terminal.ends_with(0);
}
