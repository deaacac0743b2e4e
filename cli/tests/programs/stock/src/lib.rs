//! A crate that knows nothing of childproof.

/// Starts a helper.
///
/// ```
/// stock::start_helper();
/// ```
pub fn start_helper() {
    drop(std::process::Command::new("sleep").arg("3137").spawn()); // MARK tests::unit_leaks
}

#[cfg(test)]
mod tests {
    #[test]
    fn unit_leaks() {
        super::start_helper();
    }

    #[test]
    fn unit_is_clean() {}

    /// Runs until it is killed, with helpers beside it.
    #[test]
    #[ignore = "for what kills it"]
    fn runs_on() {
        for words in [&["sleep", "3137"][..], &["setsid", "sleep", "3137"]] {
            drop(std::process::Command::new(words[0]).args(&words[1..]).spawn());
        }
        if let Some(path) = std::env::var_os("STOCK_STARTED") {
            std::fs::write(path, "").unwrap();
        }
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
}
