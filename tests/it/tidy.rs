//! Rules that the authors have set for the code and the documents.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

/// The rooms from the top to the bottom. A room uses only rooms of a later line; two rooms of one line do not
/// use each other.
const ROOMS: &[&[&str]] = &[
    &["lib", "startup", "engine", "lifeline"],
    &["harness"],
    &["report"],
    &["diagnosis"],
    &["guard"],
    &["recorder"],
    &["proc", "config"],
    &["sys"],
];

/// The most lines of a file. A longer one gives the reason in its heading: `//! Longer than 600 lines: ..`.
const FILE: usize = 600;

/// The files that may contain `unsafe`.
const UNSAFE: &[&str] = &["src/sys/", "src/recorder/hooks/", "src/startup.rs"];

/// Identifiers that were replaced by standard terms, each with its present name.
const IDENTIFIERS: &[(&str, &str)] = &[
    ("desk", "job_socket"),
    ("Desk", "JobSocket"),
    ("mark_of", "name_hash"),
    ("World", "RunContext"),
    ("Then", "ChildEntry"),
    ("Served", "ServeOutcome"),
    ("Order", "BodyRequest"),
    ("ahead", "preforked"),
    ("forks_ahead", "preforks"),
    ("Entrance", "detach and activate"),
    ("second_net", "become_subreaper"),
    ("turn_deaf", "block_all_signals"),
    ("Page", "ReportPage"),
    ("expect_output", "update_baseline"),
    ("foreign", "preexisting"),
    ("moment", "fingerprint"),
    ("settled", "unchanged"),
    ("holes", "unseen_wakers"),
    ("hidden", "unseen_fds"),
    ("came", "process_appeared"),
    ("moved", "fd_transferred"),
    ("Makes", "ResourceKind"),
    ("makes", "kind"),
    ("maker", "creator"),
    ("Site", "CallSite"),
    ("Origin", "ResolvedCallSite"),
    ("Strayed", "InheritedByMistake"),
    ("Unread", "UnwatchedLifeline"),
    ("meddlers", "secondary_wakers"),
    ("crowd", "thread group"),
    ("has_crowd_behind", "parent_was_threaded"),
    ("told", "reported"),
    ("tell", "report"),
    ("obey", "drop_overridden_hints"),
    ("aside", "pass_note"),
    ("lost", "unguarded"),
    ("Lost", "Unguarded"),
    ("Form", "ArgumentSyntax"),
    ("Place", "ArgumentPosition"),
    ("Scene", "Evidence"),
    ("story", "what it is"),
    ("thing", "what it is"),
    ("somebody", "what it is"),
];

/// Phrases that reports must not contain.
const PHRASES: &[&str] = &[
    "outlived the test",
    "had not come back after",
    "the body panicked: see its output",
    "is its own lifeline keeper",
    "only because no O_CLOEXEC kept it back",
    "(same in",
    "Nothing was found that will let them go on",
    "It can never go on",
    "<- for ever",
    "probably started by that one",
    "its parent died and it did not",
    "other end: nobody",
    "look who took it",
    "it reached for memory that is not there",
    "not judged",
    "nobody",
    "somebody",
];

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Words for persons, which no comment needs: processes and threads are things, and a user is "a user that".
const PERSONS: &[&str] = &["who", "whom", "whoever", "nobody", "somebody", "anybody", "everybody"];

/// Every file with this ending below a directory of the repository, by its path from the root.
fn files(below: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(below)];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let path = entry.path();
            // `cli/recorder` is a symlink to a room that is read already.
            if entry.file_type().unwrap().is_dir() && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, read(&path)));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let sources = files("src", "rs");
    assert!(sources.len() > 40, "the sources were not found");
    sources
}

/// The part of a source file that a character belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Text,
}

/// The source with all other parts replaced by blanks. Lines keep their numbers.
fn only(source: &str, parts: &[Part]) -> String {
    let bytes = source.as_bytes();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    let mut emit = |from: usize, to: usize, part: Part| {
        for character in source[from..to].chars() {
            out.push(if character == '\n' || parts.contains(&part) { character } else { ' ' });
        }
    };
    while at < bytes.len() {
        let rest = &source[at..];
        let (length, part) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), Part::Comment)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), Part::Comment)
        } else if let Some(hashes) = raw_string(source, at) {
            let end = format!("\"{}", "#".repeat(hashes));
            let begin = hashes + 2;
            (rest[begin..].find(&end).map_or(rest.len(), |found| begin + found + end.len()), Part::Text)
        } else if rest.starts_with('"') {
            (quoted(rest), Part::Text)
        } else if let Some(length) = character(rest) {
            (length, Part::Text)
        } else {
            (rest.chars().next().map_or(1, char::len_utf8), Part::Code)
        };
        emit(at, at + length, part);
        at += length;
    }
    out
}

/// The number of `#` of a raw string that begins here.
fn raw_string(source: &str, at: usize) -> Option<usize> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if at > 0 && is_word(source.as_bytes()[at - 1]) && source.as_bytes()[at - 1] != b'b' {
        return None;
    }
    let behind = source[at..].strip_prefix('r')?;
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    behind[hashes..].starts_with('"').then_some(hashes)
}

/// The length of the string that begins here.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of the character literal that begins here; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let behind = rest.strip_prefix('\'')?;
    if let Some(escape) = behind.strip_prefix('\\') {
        let end = escape.get(1..)?.find('\'')?;
        return Some(end + 4);
    }
    let first = behind.chars().next()?;
    behind[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

/// The source without its unit tests.
fn without_tests(source: &str) -> &str {
    source.find("\n#[cfg(test)]\nmod ").map_or(source, |at| &source[..at])
}

/// The room of a source file.
fn room(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

fn rank(room: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&room))
}

/// Each line of `source` with its number.
fn lines(source: &str) -> impl Iterator<Item = (usize, &str)> {
    source.lines().enumerate().map(|(at, line)| (at + 1, line))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The rooms that the code names after `crate::`, also in lists of imports.
fn used_rooms(code: &str) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line = code[..at].lines().count().max(1);
        let behind = &code[at + "crate::".len()..];
        let names = match behind.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![behind],
        };
        for name in names {
            used.extend(words(name).next().map(|name| (line, name.to_owned())));
        }
    }
    used
}

fn fail_if_any(found: &[String], what: &str) {
    let mut text = String::new();
    for line in found {
        let _ = writeln!(text, "{line}");
    }
    assert!(found.is_empty(), "{what}:\n{text}");
}

#[childproof::test]
fn no_arrow_between_rooms_goes_up() {
    let mut found = Vec::new();
    for (path, source) in sources() {
        let from = room(&path);
        let Some(own) = rank(from) else {
            found.push(format!("{path}: `{from}` is no room"));
            continue;
        };
        let code = only(&source, &[Part::Code]);
        for (line, to) in used_rooms(&code) {
            let allowed = to == from || rank(&to).is_some_and(|other| other > own) || own == 0;
            // Macros of the crate, and items that `lib` itself exports, are allowed.
            if !allowed && (rank(&to).is_some() || to == "startup") {
                found.push(format!("{path}:{line}: {from} -> {to}"));
            }
        }
    }
    fail_if_any(&found, "arrows that go up");
}

#[childproof::test]
fn a_rooms_head_says_what_it_does_and_holds_no_logic() {
    let mut found = Vec::new();
    for name in ROOMS.iter().skip(1).copied().flatten() {
        let path = format!("src/{name}/mod.rs");
        let source = read(&root().join(&path));
        let heading = source.lines().take_while(|line| line.starts_with("//!")).count();
        if heading < 3 {
            found.push(format!("{path}: {heading} lines of heading"));
        }
        let code = only(&source, &[Part::Code]);
        for (line, text) in lines(&code) {
            if words(text).any(|word| ["fn", "struct", "enum", "impl", "static", "trait"].contains(&word)) {
                found.push(format!("{path}:{line}: {}", text.trim()));
            }
        }
    }
    fail_if_any(&found, "rooms whose head has more than a list");
}

#[childproof::test]
fn files_are_short_or_say_why_not() {
    let mut found = Vec::new();
    for below in ["src", "macros/src", "tests/it", "benches/cost"] {
        for (path, source) in files(below, "rs") {
            let count = source.lines().count();
            if count > FILE && !source.contains("//! Longer than 600 lines: ") {
                found.push(format!("{path}: {count} lines"));
            }
        }
    }
    fail_if_any(&found, "files of more than 600 lines");
    // clippy checks functions, with this limit.
    assert!(read(&root().join("clippy.toml")).contains("too-many-lines-threshold = 80"));
    assert!(read(&root().join("Cargo.toml")).contains("too_many_lines = \"warn\""));
}

#[childproof::test]
fn unsafe_stands_where_system_calls_are() {
    let mut found = Vec::new();
    for (path, source) in sources() {
        if UNSAFE.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        let code = only(&source, &[Part::Code]);
        let unsafe_lines = lines(&code).filter(|(_, line)| words(line).any(|word| word == "unsafe"));
        found.extend(unsafe_lines.map(|(line, _)| format!("{path}:{line}")));
    }
    fail_if_any(&found, "unsafe code elsewhere");
}

/// Whether a literal contains two words: a pattern such as `{name} *` does not.
fn is_prose(text: &str) -> bool {
    // A message of std in a test's output, and names of the kernel.
    if ["panicked at", "seccomp notify", "no syscall"].contains(&text) {
        return false;
    }
    let is_word =
        |word: &&str| word.len() > 1 && word.chars().all(|c| c.is_alphabetic() || c == '.' || c == ',');
    text.split(' ').filter(is_word).count() > 1
}

#[childproof::test]
fn only_the_report_writes_sentences() {
    let mut found = Vec::new();
    let silent = |path: &str| ["diagnosis", "guard", "recorder", "proc", "sys"].contains(&room(path));
    // Printed at once: before the program ends, by the test process in the words of std, or for CHILDPROOF_TRACE.
    let printed = [
        "guard/origin.rs",
        "guard/panics.rs",
        "sys/stack.rs",
        "recorder/hooks/observer.rs",
        "recorder/hooks/trace.rs",
        "recorder/hooks_off.rs",
    ];
    for (path, source) in sources().iter().filter(|(path, _)| silent(path)) {
        if path.contains("/tests") || printed.iter().any(|end| path.ends_with(end)) {
            continue;
        }
        let text = only(without_tests(source), &[Part::Text]);
        let is_reason =
            |line: usize| source.lines().nth(line - 1).is_some_and(|line| line.contains("reason = "));
        for (line, text) in lines(&text).filter(|(line, _)| !is_reason(*line)) {
            let inside = text.split('"').skip(1).step_by(2);
            found.extend(inside.filter(|text| is_prose(text)).map(|text| format!("{path}:{line}: {text}")));
        }
    }
    fail_if_any(&found, "sentences outside of `report`");
}

#[childproof::test]
fn the_words_are_those_of_the_field() {
    let mut found = Vec::new();
    let own = ["src", "macros/src", "cli/src"].iter().flat_map(|below| files(below, "rs"));
    for (path, source) in own {
        let code = only(&source, &[Part::Code]);
        for (line, text) in lines(&code).filter(|(_, text)| !text.contains("doc(hidden)")) {
            for (not, but) in IDENTIFIERS {
                if words(text).any(|word| word == *not) {
                    found.push(format!("{path}:{line}: `{not}`, not `{but}`"));
                }
            }
        }
        let text = only(without_tests(&source), &[Part::Text]);
        for (line, text) in lines(&text) {
            found.extend(
                PHRASES.iter().filter(|not| text.contains(*not)).map(|not| format!("{path}:{line}: {not}")),
            );
        }
    }
    fail_if_any(&found, "words that were replaced");
}

#[childproof::test]
fn a_comment_does_not_make_persons_of_processes() {
    let mut found = Vec::new();
    let mut count = 0;
    let places = ["src", "macros", "values", "cli", "tests", "benches", "examples"];
    for (path, source) in places.iter().flat_map(|below| files(below, "rs")) {
        count += 1;
        let comments = only(&source, &[Part::Comment]);
        for (line, text) in lines(&comments) {
            let persons = words(text).filter(|word| PERSONS.contains(&word.to_lowercase().as_str()));
            found.extend(persons.map(|word| format!("{path}:{line}: {word}")));
        }
    }
    assert!(count > 250, "the sources were not found");
    fail_if_any(&found, "comments about persons");
}

/// The modules by which the library's own frames are recognised in a stack.
#[childproof::test]
fn the_modules_that_stacks_are_cut_at_exist() {
    let mut found = Vec::new();
    let mut known = 0;
    for (path, source) in sources() {
        let text = only(without_tests(&source), &[Part::Text]);
        for (at, _) in text.match_indices("childproof::") {
            let behind: String =
                text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == ':' || *c == '_').collect();
            let parts: Vec<&str> = behind.trim_end_matches(':').split("::").skip(1).collect();
            // `childproof::test` and `childproof::guard` are attributes as well.
            if !behind.ends_with("::") || parts.len() < 2 {
                continue;
            }
            known += 1;
            let place = root().join("src").join(parts.join("/"));
            if !place.is_dir() && !place.with_extension("rs").is_file() {
                found.push(format!("{path}: {behind}"));
            }
        }
    }
    assert!(known >= 2, "no frame is known by its module any more");
    fail_if_any(&found, "modules that are not there");
}

#[childproof::test]
fn the_versions_agree() {
    let manifest = read(&root().join("Cargo.toml"));
    let value = |key: &str| {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{key} = ")));
        line.and_then(|line| line.split('"').nth(1)).unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    let (version, rust) = (value("version"), value("rust-version"));
    assert!(manifest.contains(&format!("childproof-macros = {{ version = \"={version}\"")));
    for name in ["README.md", "ARCHITECTURE.md"] {
        assert!(read(&root().join(name)).contains(&format!("Rust {rust}")), "{name} names another Rust");
    }
    let changelog = read(&root().join("CHANGELOG.md"));
    let has_section = changelog.contains(&format!("## {version}")) || changelog.contains("## Unreleased");
    assert!(has_section, "CHANGELOG.md has no section for {version}");
}

#[childproof::test]
fn each_package_has_the_licences() {
    for package in ["macros", "values", "cli"] {
        for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
            let own = fs::read_to_string(root().join(package).join(name)).unwrap_or_default();
            assert!(own == read(&root().join(name)), "{package}/{name} is not that of the root");
        }
    }
}

#[childproof::test]
fn links_between_the_documents_lead_somewhere() {
    let mut found = Vec::new();
    let documents: Vec<PathBuf> = fs::read_dir(root())
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    assert!(documents.len() >= 6);
    let headings: BTreeMap<PathBuf, Vec<String>> =
        documents.iter().map(|path| (path.clone(), anchors(&read(path)))).collect();
    for document in &documents {
        let name = document.file_name().unwrap().to_string_lossy().into_owned();
        for (line, text) in lines(&read(document)) {
            for (at, _) in text.match_indices("](") {
                let target: String = text[at + 2..].chars().take_while(|c| *c != ')' && *c != ' ').collect();
                if target.contains("://") || target.is_empty() {
                    continue;
                }
                let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
                let path = if path.is_empty() { document.clone() } else { root().join(path) };
                let missing = !path.exists()
                    || !anchor.is_empty()
                        && headings
                            .get(&path)
                            .is_some_and(|known| !known.iter().any(|known| known == anchor));
                if missing {
                    found.push(format!("{name}:{line}: {target}"));
                }
            }
        }
    }
    fail_if_any(&found, "links to nothing");
}

/// The anchors that GitHub makes of a document's headings.
fn anchors(document: &str) -> Vec<String> {
    let headings = document.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[childproof::test]
fn the_lexer_tells_code_from_comments_and_text() {
    let source =
        "let a = \"// no \\\" comment\"; // a 'comment'\nlet b = 'x'; let c: &'static str = r#\"raw \"#;\n";
    let code = only(source, &[Part::Code]);
    assert!(code.contains("let b =") && code.contains("&'static str"));
    assert!(!code.contains("comment") && !code.contains("raw"));
    assert!(only(source, &[Part::Comment]).contains("a 'comment'"));
    assert!(only(source, &[Part::Text]).contains("// no"));
}
