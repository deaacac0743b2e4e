//! Forks children that wait, each for something else, and ends. `orphans FILE` writes their numbers to FILE.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::sync::Mutex;
use std::time::Duration;

unsafe extern "C" {
    fn fork() -> i32;
    fn pipe(ends: *mut i32) -> i32;
}

static LEDGER: Mutex<i32> = Mutex::new(0);

fn takes_the_lock() {
    let _guard = LEDGER.lock(); // MARK lock
}

fn reads_its_own_pipe() {
    let mut ends = [0; 2];
    unsafe { pipe(ends.as_mut_ptr()) };
    let mut reader = unsafe { File::from_raw_fd(ends[0]) };
    let _ = reader.read(&mut [0]); // MARK read
}

fn waits_for_its_child() {
    let mut child = std::process::Command::new("sleep").arg("3137").spawn().unwrap();
    let _ = child.wait(); // MARK wait
}

fn forked(body: fn()) -> i32 {
    let pid = unsafe { fork() };
    if pid == 0 {
        body();
        std::process::exit(0);
    }
    pid
}

fn main() {
    let holder = std::thread::spawn(|| {
        let _guard = LEDGER.lock();
        std::thread::sleep(Duration::from_millis(300));
    });
    std::thread::sleep(Duration::from_millis(100));
    let locks = forked(takes_the_lock);
    holder.join().unwrap();
    let pids = [locks, forked(reads_its_own_pipe), forked(waits_for_its_child)];
    let file = std::env::args().nth(1).unwrap();
    std::fs::write(file, pids.map(|pid| pid.to_string()).join("\n") + "\n").unwrap();
}
