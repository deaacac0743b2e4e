//! The README and the guide show reports exactly as real runs print them, and the guide has every variable.

use std::fs;
use std::process::Command;

use crate::output::normalise;
use crate::support::{Fixture, Ran, root};

#[childproof::test]
fn shows_reports_that_come_out_of_real_runs() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let documents = read("README.md") + &read("src/guide.md");
    let shown: Vec<String> = documents
        .split("```text\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect();
    let fixture = Fixture::build("leaky");
    let name = fixture.binary("readme").file_name().unwrap().to_string_lossy()[..15].to_owned();
    let like = fixture.command("readme", &["--color=never"]);
    let mut command = Command::new(like.get_program());
    // The paths in it are those that a user of cargo sees.
    command
        .args(like.get_args())
        .current_dir(root().join("tests/fixtures/leaky"))
        .env_remove("RUST_BACKTRACE");
    let ran = Ran::of(&mut command);
    let plain = |text: &str| {
        // The kernel keeps 15 characters of a name, including a part of cargo's hash.
        let text = text.replace(&name, "readme-HASH");
        let words: Vec<&str> = text.split_whitespace().collect();
        let words = words.iter().map(|word| if word.starts_with("readme-") { "readme-HASH" } else { word });
        // Names of kernel functions differ between kernels.
        let words = words.filter(|word| !(word.starts_with('[') && word.ends_with(']')));
        normalise(&words.collect::<Vec<_>>().join(" "))
    };
    let real = plain(&ran.stdout);
    assert_eq!(shown.len(), 4);
    for report in shown {
        let report = plain(&report);
        assert!(real.contains(report.trim()), "not what comes out:\n{report}\n{real}");
    }
}

/// The first of the table's cells, in each row of a document that begins like this.
fn rows<'a>(text: &'a str, begin: &str) -> Vec<&'a str> {
    let rows =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name));
    rows.filter(|name| name.starts_with(begin)).collect()
}

/// A run that is given a wrong name lists all that it knows.
#[childproof::test]
fn the_guide_lists_every_variable() {
    let mut command = Fixture::build("team").command("whole", &["passes"]);
    let ran = Ran::of(command.env("CHILDPROOF_TIMOUT", "5s"));
    let (_, known) =
        ran.stderr.split_once("expected one of CHILDPROOF_").unwrap_or_else(|| panic!("{}", ran.all()));
    let mut known: Vec<String> =
        known.trim_end().split(", _").map(|name| format!("CHILDPROOF_{name}")).collect();
    known.sort();
    let guide = fs::read_to_string(root().join("src/guide.md")).unwrap();
    let mut listed = rows(&guide, "CHILDPROOF_");
    listed.sort_unstable();
    assert_eq!(listed, known);
}

/// The files that a reader copies are files that their readers accept.
#[childproof::test]
fn the_files_for_ci_can_be_read() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<&str> = readme.split("```").skip(1).step_by(2).collect();
    let of = |language: &str| {
        let blocks = blocks.iter().filter_map(move |block| block.strip_prefix(&format!("{language}\n")));
        blocks.map(str::to_owned).collect::<Vec<_>>()
    };
    let python = |code: &str, text: &str| {
        let output = Command::new("python3").args(["-c", code, text]).output().unwrap();
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    };
    assert_eq!((of("yaml").len(), of("json").len()), (2, 1));
    let nextest = of("toml").into_iter().find(|text| text.contains("slow-timeout")).unwrap();
    python("import sys, tomllib; tomllib.loads(sys.argv[1])", &nextest);
    // The first line names the file.
    let json = |text: &str| text.split_once('\n').unwrap().1.to_owned();
    of("json").iter().for_each(|text| python("import sys, json; json.loads(sys.argv[1])", &json(text)));
    for text in of("yaml") {
        // Without a parser of YAML: no tabs, and only keys and items.
        let is_line = |line: &str| {
            let line = line.trim();
            line.is_empty() || line.starts_with(['#', '-']) || line.contains(':')
        };
        assert!(text.lines().all(is_line) && !text.contains('\t'), "{text}");
    }
}
