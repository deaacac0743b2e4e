//! The leaks of the tour, in tests as cargo makes them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;

#[test]
fn pipeline() {
    let output = shell("printf 'b\\na\\n' | sort | head -n 1").output().unwrap();
    assert_eq!(output.stdout, b"a\n");
}

#[test]
fn http_server_forgotten() {
    let (_server, port) = http_server().unwrap();
    assert!(get(port).unwrap().starts_with("HTTP/1.0 200"));
}

#[test]
fn background_sleep() {
    shell("sleep 3137 &").status().unwrap(); // MARK background_sleep
}

#[test]
fn daemon() {
    let middle = fork(|| {
        unsafe { setsid() };
        fork(|| drop(Command::new("sleep").arg("3137").exec()));
    });
    unsafe { waitpid(middle, std::ptr::null_mut(), 0) };
}

#[test]
#[should_panic = "it should have ended by now"]
fn child_of_a_panic() {
    let mut child = Command::new("sleep").arg("3137").spawn().unwrap(); // MARK child_of_a_panic
    assert!(child.try_wait().unwrap().is_some(), "it should have ended by now");
    child.kill().unwrap();
}

#[test]
fn pipe_end() {
    let (reader, writer) = io::pipe().unwrap(); // MARK pipe_end
    std::mem::forget(writer);
    drop(reader);
}

#[test]
fn fork_while_a_thread_holds_a_lock() {
    static CACHE: Mutex<()> = Mutex::new(());
    let (locked, is_locked) = mpsc::channel();
    let (forked, is_forked) = mpsc::channel();
    let holder = thread::spawn(move || {
        let _guard = CACHE.lock();
        locked.send(()).unwrap();
        is_forked.recv().unwrap();
    });
    is_locked.recv().unwrap();
    fork(|| drop(CACHE.lock()));
    forked.send(()).unwrap();
    holder.join().unwrap();
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn http_server() -> io::Result<(Child, u16)> {
    let mut server = Command::new("python3")
        .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
        .current_dir(std::env::temp_dir())
        .stdout(Stdio::piped())
        .spawn()?; // MARK http_server_forgotten
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line)?;
    let port = line.split_whitespace().skip_while(|word| *word != "port").nth(1);
    Ok((server, port.unwrap().parse().unwrap()))
}

fn get(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

unsafe extern "C" {
    #[link_name = "fork"]
    safe fn libc_fork() -> i32;
    fn setsid() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    safe fn _exit(code: i32) -> !;
}

/// Forks, and ends the new process once it has run `child`.
#[inline(always)]
fn fork(child: impl FnOnce()) -> i32 {
    match libc_fork() { // MARK daemon, fork_while_a_thread_holds_a_lock
        0 => {
            child();
            _exit(0)
        }
        pid => pid,
    }
}
