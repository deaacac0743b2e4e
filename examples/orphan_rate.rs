//! How many children outlive a parent that is killed at a random moment, by what guards them.
//!
//! `cargo run --release --example orphan_rate -- --trials 1000 [--plot orphans.svg]`
//!
//! Each trial starts a parent, which starts a child in one of six ways, and kills the parent with SIGKILL at a random
//! moment between its first instruction and some milliseconds after the child was started. The child has the write end
//! of a pipe: EOF is its end.
#![allow(clippy::unwrap_used, reason = "an example that cannot go on ends")]
#![allow(unsafe_code, reason = "PR_SET_PDEATHSIG has to be set between fork and exec")]

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::{self, Child, Command, Stdio};
use std::time::{Duration, Instant};

use childproof::lifeline::{self, Lifeline, Watch};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The ways to guard a child.
const WAYS: [&str; 6] = ["none", "pdeathsig", "pdeathsig-recheck", "lifeline", "lifeline-pidfd", "guarded"];
/// A child that lives as long as this after its parent's death is an orphan.
const ORPHANED: Duration = Duration::from_millis(300);
/// The latest moment of the kill.
const LATEST: Duration = Duration::from_millis(5);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["parent", way] => parent(way),
        ["child"] => child(),
        _ => measure(&arguments),
    }
}

/// Starts a child, and waits to be killed.
fn parent(way: &str) -> ! {
    let own = process::id();
    let mut sleep = Command::new("sleep");
    sleep.arg("60").stdin(Stdio::null());
    match way {
        "none" => drop(sleep.spawn().unwrap()),
        "pdeathsig" | "pdeathsig-recheck" => {
            let rechecks = way == "pdeathsig-recheck";
            let set = move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // It may have died before the call.
                if rechecks && parent_id() != own {
                    process::exit(1);
                }
                Ok(())
            };
            // SAFETY: the closure makes system calls alone.
            drop(unsafe { sleep.pre_exec(set) }.spawn().unwrap());
        }
        "lifeline" => {
            let (lifeline, watch) = Lifeline::new().unwrap();
            // It reads its stdin to EOF.
            drop(Command::new("cat").stdin(watch).spawn().unwrap());
            std::mem::forget(lifeline);
        }
        "lifeline-pidfd" => {
            let (lifeline, watch) = Lifeline::new().unwrap();
            drop(
                Command::new("/proc/self/exe")
                    .arg("child")
                    .stdin(watch)
                    .env("OWNER", own.to_string())
                    .spawn(),
            );
            std::mem::forget(lifeline);
        }
        "guarded" => {
            let mut command = lifeline::Command::new("sleep");
            std::mem::forget(command.arg("60").stdin(Stdio::null()).spawn().unwrap());
        }
        _ => panic!("unknown way {way}: expected one of {}", WAYS.join(", ")),
    }
    loop {
        std::thread::park();
    }
}

/// A child that cooperates: it ends with its owner, by whichever sign comes first.
fn child() {
    let watch = Watch::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let owner: u32 = std::env::var("OWNER").unwrap().parse().unwrap();
    // SAFETY: reads no memory of this process.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, owner, 0) };
    if pidfd < 0 || parent_id() != owner {
        return;
    }
    // SAFETY: the fd was just opened, and nothing else has it.
    let pidfd = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(pidfd as i32) };
    let mut fds =
        [PollFd::new(watch.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::from(60_000_u16));
}

/// The results of one way: the times from the parent's death to the child's, and how many were orphans.
struct Seen {
    way: &'static str,
    orphans: usize,
    times: Vec<Duration>,
}

fn measure(arguments: &[String]) {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let trials = value("--trials").map_or(100, |text| text.parse().unwrap());
    // Orphans become children of this process, so that it can end them.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut random = Random(value("--seed").map_or(process::id().into(), |text| text.parse().unwrap()));
    println!("seed {}, {trials} trials each\n", random.0);
    println!("| guard | orphans | time to death, p50 | p99 |");
    println!("| --- | --- | --- | --- |");
    let mut all = Vec::new();
    for way in WAYS {
        let mut seen = Seen { way, orphans: 0, times: Vec::new() };
        for _ in 0..trials {
            match trial(way, random.below(LATEST)) {
                Some(time) => seen.times.push(time),
                None => seen.orphans += 1,
            }
        }
        seen.times.sort_unstable();
        let at = |part: usize| {
            let time = seen.times.get(seen.times.len() * part / 100).or(seen.times.last());
            time.map_or("-".to_owned(), |time| format!("{:.2} ms", time.as_secs_f64() * 1e3))
        };
        println!("| {way} | {} of {trials} | {} | {} |", seen.orphans, at(50), at(99));
        all.push(seen);
    }
    if let Some(path) = value("--plot") {
        fs::write(path, plot(&all, trials)).unwrap();
    }
}

/// One trial: the time from the parent's death to its child's, `None` if the child was an orphan.
fn trial(way: &str, moment: Duration) -> Option<Duration> {
    let (mut read, write) = io::pipe().unwrap();
    // The child inherits it as its stdout.
    let mut parent = Command::new("/proc/self/exe").args(["parent", way]).stdout(write).spawn().unwrap();
    std::thread::sleep(moment);
    parent.kill().unwrap();
    parent.wait().unwrap();
    let died = Instant::now();
    let ended = {
        let mut fds = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(ORPHANED.as_millis()).unwrap();
        poll(&mut fds, limit).unwrap() == 1
    };
    let time = died.elapsed();
    end_orphans(&parent);
    assert_eq!(read.read_to_end(&mut Vec::new()).unwrap(), 0);
    ended.then_some(time)
}

/// Kills what has become a child of this process.
fn end_orphans(parent: &Child) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let ppid = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        if ppid == Some(&process::id().to_string()) && pid != parent.id() as i32 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    while nix::sys::wait::waitpid(None, None).is_ok() {}
}

/// A bar for each way, as long as its share of orphans, with the time to death beside it.
fn plot(all: &[Seen], trials: usize) -> String {
    let mut bars = String::new();
    for (row, seen) in all.iter().enumerate() {
        let (y, width) = (20 + row * 30, 400 * seen.orphans / trials.max(1));
        let time = seen.times.get(seen.times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3);
        bars += &format!(
            "<text x='150' y='{}' text-anchor='end'>{}</text><rect x='160' y='{y}' width='{}' height='18' \
             fill='#b33'/><text x='{}' y='{}'>{} of {trials}; p50 {time:.2} ms</text>\n",
            y + 14,
            seen.way,
            width.max(1),
            168 + width,
            y + 14,
            seen.orphans,
        );
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='760' height='{}' font-family='sans-serif' \
         font-size='13'>\n{bars}</svg>\n",
        40 + all.len() * 30
    )
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_nanos((mixed ^ (mixed >> 31)) % most.as_nanos() as u64)
    }
}
