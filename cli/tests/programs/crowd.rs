//! A suite that knows nothing of childproof: 40 tests on threads of one process. Twelve start helpers by `fork` without
//! exec, while the others panic, start threads, lock and allocate. A helper has only the thread that called `fork`: a lock
//! that another thread held at that moment is never released in it. With `--cfg mended`, each helper is killed when its
//! time is over, or is a program of its own.
//!
//! If `CROWD_LEDGER` names a file, each start and each end of a helper is written there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::panic::catch_unwind;
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

unsafe extern "C" {
    safe fn fork() -> i32;
    safe fn kill(pid: i32, signal: i32) -> i32;
    safe fn _exit(code: i32) -> !;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
}

const SIGKILL: i32 = 9;
const WNOHANG: i32 = 1;

/// How many helpers a test starts.
const HELPERS: usize = 6;
/// How long a test waits for a helper.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long the other tests keep the process busy.
const BUSY: Duration = Duration::from_millis(400);

static LEDGER: LazyLock<Option<File>> = LazyLock::new(|| {
    let path = std::env::var_os("CROWD_LEDGER")?;
    OpenOptions::new().append(true).create(true).open(path).ok()
});

/// A cache of the application, which its threads and its helpers use.
static CACHE: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn note(what: &str, pid: i32, test: &str) {
    if let Some(mut ledger) = LEDGER.as_ref() {
        ledger.write_all(format!("{what} {pid} {test}\n").as_bytes()).unwrap();
    }
}

fn fill_cache() {
    let mut cache = CACHE.lock().unwrap();
    cache.clear();
    cache.extend((0..50).map(|number| format!("entry {number}")));
}

fn panic_and_go_on() {
    catch_unwind(|| panic!("as expected")).unwrap_err();
}

fn start_a_thread() {
    thread::spawn(|| ()).join().unwrap();
}

/// What a helper does, and its end.
fn helper(kind: &str, work: fn()) -> ! {
    let pid = std::process::id() as i32;
    work();
    note("ended", pid, kind);
    _exit(0)
}

/// Waits for a helper, and gives up. As it was written, the helper is then forgotten.
fn wait_for(pid: i32, test: &str) {
    note("started", pid, test);
    let begin = Instant::now();
    while unsafe { waitpid(pid, std::ptr::null_mut(), WNOHANG) } == 0 {
        if begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        } else if cfg!(mended) {
            kill(pid, SIGKILL);
            unsafe { waitpid(pid, std::ptr::null_mut(), 0) };
            return;
        } else {
            return;
        }
    }
}

fn helpers_that_panic(test: &str) {
    for _ in 0..HELPERS {
        match fork() { // MARK panic
            0 => helper("panic", panic_and_go_on),
            pid => wait_for(pid, test),
        }
    }
}

fn helpers_that_start_a_thread(test: &str) {
    for _ in 0..HELPERS {
        match fork() { // MARK thread
            0 => helper("thread", start_a_thread),
            pid => wait_for(pid, test),
        }
    }
}

fn helpers_that_lock(test: &str) {
    for _ in 0..HELPERS {
        match fork() { // MARK lock
            0 => helper("lock", fill_cache),
            pid => wait_for(pid, test),
        }
    }
}

/// Each helper has a worker of its own, and reads what that writes.
#[cfg(not(mended))]
fn helpers_with_a_worker(test: &str) {
    for _ in 0..HELPERS {
        match fork() { // MARK reader
            0 => {
                let pid = std::process::id() as i32;
                let (mut reader, writer) = io::pipe().unwrap();
                match fork() { // MARK worker
                    0 => {
                        drop(reader);
                        panic_and_go_on();
                        (&writer).write_all(b"done").unwrap();
                        note("ended", std::process::id() as i32, "worker");
                        _exit(0)
                    }
                    worker => note("started", worker, test),
                }
                drop(writer);
                reader.read_to_end(&mut Vec::new()).unwrap();
                note("ended", pid, "reader");
                _exit(0)
            }
            pid => wait_for(pid, test),
        }
    }
}

#[cfg(mended)]
fn helpers_with_a_worker(_: &str) {
    for _ in 0..HELPERS {
        let output = std::process::Command::new("sh").args(["-c", "echo done"]).output().unwrap();
        assert_eq!(output.stdout, b"done\n");
    }
}

fn busy(mut work: impl FnMut()) {
    let begin = Instant::now();
    while begin.elapsed() < BUSY {
        work();
    }
}

macro_rules! tests {
    ($($test:ident: $body:expr;)*) => {
        $(
            #[test]
            fn $test() {
                // Before anything is forked, which would have to open it.
                LazyLock::force(&LEDGER);
                let body: fn(&str) = $body;
                body(stringify!($test));
            }
        )*
    };
}

// In the order of their names, as libtest starts them: those with helpers are all among the first 32.
tests! {
    helper_panics_1: helpers_that_panic;
    helper_panics_2: helpers_that_panic;
    helper_panics_3: helpers_that_panic;
    helper_starts_a_thread_1: helpers_that_start_a_thread;
    helper_starts_a_thread_2: helpers_that_start_a_thread;
    helper_starts_a_thread_3: helpers_that_start_a_thread;
    helper_locks_1: helpers_that_lock;
    helper_locks_2: helpers_that_lock;
    helper_locks_3: helpers_that_lock;
    helper_has_a_worker_1: helpers_with_a_worker;
    helper_has_a_worker_2: helpers_with_a_worker;
    helper_has_a_worker_3: helpers_with_a_worker;
    panics_1: |_| busy(panic_and_go_on);
    panics_2: |_| busy(panic_and_go_on);
    panics_3: |_| busy(panic_and_go_on);
    panics_4: |_| busy(panic_and_go_on);
    panics_5: |_| busy(panic_and_go_on);
    panics_6: |_| busy(panic_and_go_on);
    panics_7: |_| busy(panic_and_go_on);
    starts_threads_1: |_| busy(start_a_thread);
    starts_threads_2: |_| busy(start_a_thread);
    starts_threads_3: |_| busy(start_a_thread);
    starts_threads_4: |_| busy(start_a_thread);
    starts_threads_5: |_| busy(start_a_thread);
    starts_threads_6: |_| busy(start_a_thread);
    starts_threads_7: |_| busy(start_a_thread);
    takes_locks_1: |_| busy(fill_cache);
    takes_locks_2: |_| busy(fill_cache);
    takes_locks_3: |_| busy(fill_cache);
    takes_locks_4: |_| busy(fill_cache);
    takes_locks_5: |_| busy(fill_cache);
    takes_locks_6: |_| busy(fill_cache);
    takes_locks_7: |_| busy(fill_cache);
    writes_1: |_| busy(|| println!("{}", "text ".repeat(100)));
    writes_2: |_| busy(|| println!("{}", "text ".repeat(100)));
    writes_3: |_| busy(|| println!("{}", "text ".repeat(100)));
    writes_4: |_| busy(|| println!("{}", "text ".repeat(100)));
    writes_5: |_| busy(|| println!("{}", "text ".repeat(100)));
    writes_6: |_| busy(|| println!("{}", "text ".repeat(100)));
    writes_7: |_| busy(|| println!("{}", "text ".repeat(100)));
}
