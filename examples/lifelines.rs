//! Guards a redis and a pipeline: both end with this program, whatever ends it.
//!
//! `cargo run --example lifelines`, and in another terminal `kill -9` it.
#![allow(clippy::unwrap_used, reason = "an example that cannot go on ends")]

use std::io::{self, BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

use childproof::lifeline::{Command, Lifeline};

fn main() -> io::Result<()> {
    redis()?;
    pipeline()?;
    cooperating()
}

/// A server with helpers of its own. It daemonizes nothing here, but it could: the whole tree is guarded.
fn redis() -> io::Result<()> {
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--unixsocket", "redis.sock", "--save", ""]);
    command.current_dir(std::env::temp_dir()).stdout(Stdio::piped());
    let mut redis = match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("redis-server is not installed");
            return Ok(());
        }
        redis => redis?,
    };
    let mut lines = BufReader::new(redis.stdout.take().unwrap()).lines();
    let ready = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("ready to accept")));
    println!("redis {}: {}", redis.id(), ready.transpose()?.unwrap_or_default());
    let ended = redis.kill()?;
    println!("redis ended: {}", ended.status);
    Ok(())
}

/// A pipeline: the shell and each of its programs are guarded together, and what it leaves in the background is
/// named.
fn pipeline() -> io::Result<()> {
    let script = "seq 100000 | grep 7 | wc -l; sleep 600 &";
    let mut pipeline = Command::new("sh")
        .args(["-c", script])
        .grace(Duration::from_millis(200))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut count = String::new();
    // Not to EOF: what was left in the background holds the pipe open until it is killed.
    BufReader::new(pipeline.stdout.take().unwrap()).read_line(&mut count)?;
    let ended = pipeline.wait()?;
    println!("pipeline: {}, {}; left {:?}", count.trim(), ended.status, ended.left);
    Ok(())
}

/// A child that ends by itself: its stdin is the watch.
fn cooperating() -> io::Result<()> {
    let (lifeline, watch) = Lifeline::new()?;
    let mut cat = std::process::Command::new("cat").stdin(watch).stdout(Stdio::piped()).spawn()?;
    drop(lifeline);
    cat.stdout.take().unwrap().read_to_end(&mut Vec::new())?;
    println!("cat ended by itself: {}", cat.wait()?);
    // Where it does not read its stdin, it can be told otherwise.
    let (lifeline, watch) = Lifeline::new()?;
    let (sender, receiver) = std::sync::mpsc::channel();
    watch.on_gone(move || sender.send("the owner is gone").unwrap())?;
    drop(lifeline);
    println!("{}", receiver.recv_timeout(Duration::from_secs(10)).unwrap());
    Ok(())
}
