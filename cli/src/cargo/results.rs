//! The file that every runner of one call adds to: a line when it begins and a line when it ends. One that was killed has
//! only the first.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The file of one call.
pub(super) struct Results {
    path: PathBuf,
}

/// What one runner adds to.
pub(super) struct Entry {
    file: File,
    id: String,
}

/// What is known of one run.
pub(super) struct GuardedRun {
    /// The program and its arguments.
    pub(super) command: Vec<String>,
    /// The package that it is of, if cargo has said that.
    pub(super) package: Option<String>,
    /// The signal that ended it.
    pub(super) signal: Option<i32>,
    /// The JSON of its report; `None` if the runner was killed before.
    pub(super) report: Option<Value>,
}

/// All runs of a call.
pub(super) struct All(pub(super) Vec<GuardedRun>);

impl Results {
    pub(super) fn create(directory: &Path) -> Result<Results, String> {
        let path = directory.join("results");
        File::create(&path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(Results { path })
    }

    /// The results beside the file of a call.
    pub(super) fn of(call: &Path) -> Results {
        Results { path: call.with_file_name("results") }
    }

    /// Notes that a program is to be run.
    pub(super) fn begin(&self, command: &[OsString]) -> Result<Entry, String> {
        let file = OpenOptions::new().append(true).open(&self.path);
        let file = file.map_err(|error| format!("cannot write {}: {error}", self.path.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let entry = Entry { file, id: format!("{}.{}", std::process::id(), now.as_nanos()) };
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        let package = std::env::var("CARGO_PKG_NAME").ok();
        entry.add(&json!({ "id": entry.id, "command": words, "package": package }))?;
        Ok(entry)
    }

    /// Everything that was added.
    pub(super) fn read(&self) -> Result<All, String> {
        let text = super::read(&self.path)?;
        let mut runs: Vec<GuardedRun> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for line in text.lines() {
            // A line is added whole, if there is room for it.
            let bad = || format!("{} has a line that cannot be read", self.path.display());
            let mut line: Value = serde_json::from_str(line).map_err(|_| bad())?;
            let id = line["id"].as_str().ok_or_else(bad)?.to_owned();
            match line["report"].take() {
                Value::Null => {
                    places.insert(id, runs.len());
                    let command = super::call::texts(&line["command"]).unwrap_or_default();
                    let package = line["package"].as_str().map(str::to_owned);
                    runs.push(GuardedRun { command, package, signal: None, report: None });
                }
                report => {
                    let place = places.get(&id).copied().ok_or_else(bad)?;
                    let signal = line["signal"].as_i64();
                    runs[place].signal = signal.and_then(|signal| i32::try_from(signal).ok());
                    runs[place].report = Some(report);
                }
            }
        }
        Ok(All(runs))
    }
}

impl Entry {
    /// Notes the end of the run, by a signal or not.
    pub(super) fn end(&self, report: &str, signal: Option<i32>) -> Result<(), String> {
        let report: Value =
            serde_json::from_str(report).map_err(|error| format!("a report is no JSON: {error}"))?;
        self.add(&json!({ "id": self.id, "report": report, "signal": signal }))
    }

    /// Adds a line by one call: what others add at the same time stands before or behind it.
    fn add(&self, line: &Value) -> Result<(), String> {
        let text = format!("{line}\n");
        match (&self.file).write(text.as_bytes()) {
            Ok(written) if written == text.len() => Ok(()),
            Ok(_) => Err("the result of this run was not written whole".to_owned()),
            Err(error) => Err(format!("cannot write the result of this run: {error}")),
        }
    }
}

impl All {
    /// Whether any run passed and left something, or failed by what the guard has seen.
    pub(super) fn has_leaks(&self) -> bool {
        self.0.iter().any(GuardedRun::has_left_something)
    }

    /// The reports, as lines of JSON.
    pub(super) fn reports(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().filter_map(|run| Some(run.report.as_ref()?.to_string()))
    }
}

impl GuardedRun {
    pub(super) fn has_left_something(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report["outcome"] == "failed")
    }

    /// Whether it only lists tests, for a runner such as nextest.
    pub(super) fn is_list(&self) -> bool {
        self.command.iter().any(|word| word == "--list")
    }
}
