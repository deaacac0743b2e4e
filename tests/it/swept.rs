//! What a guard leaves on disk when it is killed as a whole is removed by the next run of the same user, and nothing else
//! is.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::invariants::{TARGETS, is_installed, victim};
use crate::support::{Fixture, Ran, Run, alive, as_nobody, guard_above, scratch, send, through_shell, until};

/// A run of a test that stays, by a copy of the binary: other runs would sweep what lies beside it.
struct Staying {
    fixture: Fixture,
    binary: PathBuf,
    run: Run,
    /// The test's own directory for temporary files.
    own: PathBuf,
    supervisor: i32,
}

impl Staying {
    fn start(target: &str) -> Staying {
        let fixture = victim();
        let directory = scratch().join(format!("of-{target}"));
        fs::create_dir_all(&directory).unwrap();
        let binary = directory.join(target);
        fs::copy(fixture.binary(target), &binary).unwrap();
        let like = fixture.command(target, &[]);
        let arguments = ["bodies::turns::stays", "--exact"];
        let mut run = Run::spawn(through_shell(&like, "exec \"$@\"", &binary, &arguments));
        let told = run.wait_for("stays");
        let (own, supervisor) = told.rsplit_once(' ').unwrap();
        Staying { fixture, binary, own: own.into(), supervisor: supervisor.parse().unwrap(), run }
    }

    /// The file of the key.
    fn key(&self) -> PathBuf {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.run.pid())).unwrap().flatten();
        let mut links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        let is_key =
            |link: &PathBuf| link.to_string_lossy().contains("/childproof-serial-") && link.is_file();
        links.find(is_key).unwrap()
    }

    /// Stops the harness and its guard, the topmost first, so that none continues another, and kills these of them.
    fn kill(&self, kills_supervisor: bool) {
        let mut all = vec![self.supervisor];
        all.extend(guard_above(self.supervisor, self.run.pid()));
        all.push(self.run.pid());
        all.iter().rev().for_each(|pid| send(*pid, Signal::SIGSTOP));
        let killed = if kills_supervisor { &all[..] } else { &all[1..] };
        killed.iter().rev().for_each(|pid| send(*pid, Signal::SIGKILL));
        until("the end of the guard", || killed.iter().all(|pid| !alive(*pid)));
    }

    /// Another run in the same directories, of another test.
    fn run_another(&self, target: &str) {
        let like = self.fixture.command(target, &[]);
        let arguments = ["bodies::mounts::prints", "--exact"];
        let mut other = self.run.beside(through_shell(&like, "exec \"$@\"", &self.binary, &arguments));
        until("the end of the other run", || other.try_wait().unwrap().is_some());
        assert_eq!(other.wait().unwrap().code(), Some(0), "{target}\n{}", self.run.text());
    }
}

#[childproof::test]
fn what_a_killed_guard_leaves_goes_with_the_next_run() {
    for target in TARGETS {
        let staying = Staying::start(target);
        let key = staying.key();
        staying.kill(true);
        until("the end of the test", || staying.run.marked().is_empty());
        assert!(staying.own.join("file").exists() && key.exists(), "{target}: nothing is left");
        staying.run_another(target);
        assert_eq!(staying.run.scratches(), Vec::<PathBuf>::new(), "{target}");
        assert!(!key.exists() && !key.parent().unwrap().exists(), "{target}: {}", key.display());
    }
}

#[childproof::test]
fn what_a_live_run_uses_stays() {
    for target in TARGETS {
        let mut staying = Staying::start(target);
        let key = staying.key();
        staying.run_another(target);
        assert!(staying.own.join("file").exists() && key.exists(), "{target}");
        staying.run.tell("go");
        let text = staying.run.finish();
        assert_eq!(staying.run.code(), Some(0), "{target}\n{text}");
        staying.run.assert_nothing_left(Duration::from_secs(2));
        assert!(!key.exists(), "{target}: {}", key.display());
    }
}

/// The supervisor outlives harness, net and fork server, and still guards its test.
#[childproof::test]
fn so_does_what_a_supervisor_alone_still_uses() {
    for target in TARGETS {
        let staying = Staying::start(target);
        let key = staying.key();
        staying.kill(false);
        staying.run_another(target);
        assert!(staying.own.join("file").exists() && key.exists(), "{target}");
        send(staying.supervisor, Signal::SIGCONT);
        staying.run.assert_nothing_left(Duration::from_secs(10));
        staying.run_another(target);
        assert!(!key.exists(), "{target}: {}", key.display());
    }
}

/// A directory for temporary files with directories such as killed guards leave.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = scratch().join(name);
        fs::create_dir(&path).unwrap();
        // As that of /tmp.
        set_mode(&path, 0o1777);
        Place(path)
    }

    /// A directory with a file.
    fn directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        set_mode(&path, mode);
        path
    }

    /// Runs a test with this directory for temporary files.
    fn run(&self, mut command: Command) {
        let ran = Ran::of(command.env("TMPDIR", &self.0));
        assert_eq!(ran.code, Some(0), "{}", ran.all());
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn prints(fixture: &Fixture) -> Command {
    fixture.command("harness", &["bodies::mounts::prints", "--exact"])
}

/// Whether it is still there, with its file.
fn is_whole(path: &Path) -> bool {
    path.join("file").exists()
}

#[childproof::test]
fn only_a_directory_of_a_killed_guard_goes() {
    let place = Place::new("place");
    let dead = [
        place.directory("childproof-0000000000000001", 0o1711),
        place.directory("childproof-000000000000000f", 0o1700),
    ];
    let other_mode = place.directory("childproof-0000000000000002", 0o711);
    let other_name = place.directory("childproof-of-mine", 0o1711);
    let too_long = place.directory("childproof-00000000000000030", 0o1711);
    let file = place.0.join("childproof-0000000000000004");
    fs::write(&file, "").unwrap();
    set_mode(&file, 0o1711);
    let linked = place.directory("linked", 0o1711);
    let link = place.0.join("childproof-0000000000000005");
    symlink(&linked, &link).unwrap();
    let locked = place.directory("childproof-0000000000000006", 0o1711);
    let _lock = Flock::lock(File::open(&locked).unwrap(), FlockArg::LockShared).unwrap();
    place.run(prints(&victim()));
    for dead in dead {
        assert!(!dead.exists(), "{}", dead.display());
    }
    for path in [other_mode, other_name, too_long, linked, locked] {
        assert!(is_whole(&path), "{}", path.display());
    }
    assert!(file.exists() && link.is_symlink());
}

/// Killed between its creation and its lock.
#[childproof::test]
fn an_empty_one_that_was_never_locked_goes_after_a_day() {
    let place = Place::new("place");
    let make = |name: &str, is_old: bool| {
        let path = place.0.join(name);
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o700);
        if is_old {
            assert!(Command::new("touch").args(["-d", "2 days ago"]).arg(&path).status().unwrap().success());
        }
        path
    };
    let (old, new) = (make("childproof-0000000000000001", true), make("childproof-0000000000000002", false));
    let full = place.directory("childproof-0000000000000003", 0o700);
    assert!(Command::new("touch").args(["-d", "2 days ago"]).arg(&full).status().unwrap().success());
    place.run(prints(&victim()));
    assert!(!old.exists() && new.exists() && is_whole(&full));
}

#[childproof::test]
fn what_belongs_to_another_user_stays() {
    if !nix::unistd::geteuid().is_root() || !is_installed("setpriv") {
        println!("not checked: only root can make it");
        return;
    }
    let place = Place::new("place");
    let theirs = place.directory("childproof-0000000000000001", 0o1711);
    chown(&theirs, Some(65534), Some(65534)).unwrap();
    let fixture = victim();
    place.run(prints(&fixture));
    assert!(is_whole(&theirs));
    let ours = place.directory("childproof-0000000000000002", 0o1711);
    place.run(as_nobody(&fixture, "harness", &["bodies::mounts::prints", "--exact"]));
    assert!(!theirs.exists() && is_whole(&ours));
}

/// There other users can move directories, so a name says nothing.
#[childproof::test]
fn what_others_may_have_moved_there_stays() {
    let place = Place::new("place");
    let path = place.directory("childproof-0000000000000001", 0o1711);
    set_mode(&place.0, 0o777);
    place.run(prints(&victim()));
    assert!(is_whole(&path));
}

#[childproof::test]
fn what_is_mounted_in_it_stays() {
    let place = Place::new("place");
    let path = place.directory("childproof-0000000000000001", 0o1711);
    let at = path.join("at");
    fs::create_dir(&at).unwrap();
    let mounted = place.directory("mounted", 0o755);
    let bound = Command::new("mount").arg("--bind").arg(&mounted).arg(&at).output();
    if !bound.is_ok_and(|output| output.status.success()) {
        println!("not checked: this user may not mount here");
        return;
    }
    place.run(prints(&victim()));
    let (stays, is_mounted) = (is_whole(&mounted), is_whole(&at));
    let _ = Command::new("umount").arg(&at).status();
    assert!(stays && is_mounted && !is_whole(&path));
    place.run(prints(&victim()));
    assert!(!path.exists());
}
