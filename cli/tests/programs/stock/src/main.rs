//! Leaves a process behind, or does what its argument says.

fn main() {
    match std::env::args().nth(1).as_deref() {
        None => stock::start_helper(),
        // Its parent is the supervisor.
        Some("kill-its-guard") => {
            let guard = std::os::unix::process::parent_id().to_string();
            let _ = std::process::Command::new("kill").args(["-KILL", &guard]).status();
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        Some("variables") => {
            let ours = std::env::vars().filter(|(name, _)| name.ends_with("_RUNNER") || name == "WRAPPED");
            ours.for_each(|(name, value)| println!("{name}={value}"));
        }
        Some(code) => std::process::exit(code.parse().unwrap_or(1)),
    }
}
