//! An ordinary test binary: its tests run on threads of one process.

#[test]
fn leaves_a_pipe() {
    std::mem::forget(std::io::pipe().unwrap()); // MARK pipe2
}

#[test]
fn starts_a_program() {
    std::process::Command::new("true").status().unwrap(); // MARK posix_spawnp
}
