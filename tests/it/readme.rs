//! The README shows reports as they come out of real runs.

use std::fs;
use std::process::Command;

use crate::output::normalise;
use crate::support::{Fixture, Ran, root};

#[childproof::test]
fn shows_reports_that_come_out_of_real_runs() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let shown: Vec<String> = readme
        .split("```text\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect();
    let fixture = Fixture::build("leaky");
    let name = fixture.binary("readme").file_name().unwrap().to_string_lossy()[..15].to_owned();
    let like = fixture.command("readme", &["--color=never"]);
    let mut command = Command::new(like.get_program());
    // The paths in it are as cargo's users see them.
    command
        .args(like.get_args())
        .current_dir(root().join("tests/fixtures/leaky"))
        .env_remove("RUST_BACKTRACE");
    let ran = Ran::of(&mut command);
    let plain = |text: &str| {
        // The kernel keeps 15 characters of a name, with a part of cargo's hash in it.
        let text = text.replace(&name, "readme-HASH");
        let words: Vec<&str> = text.split_whitespace().collect();
        let words = words.iter().map(|word| if word.starts_with("readme-") { "readme-HASH" } else { word });
        // The kernel's own function names differ from kernel to kernel.
        let words = words.filter(|word| !(word.starts_with('[') && word.ends_with(']')));
        normalise(&words.collect::<Vec<_>>().join(" "))
    };
    let real = plain(&ran.stdout);
    assert_eq!(shown.len(), 3);
    for report in shown {
        let report = plain(&report);
        assert!(real.contains(report.trim()), "not what comes out:\n{report}\n{real}");
    }
}
