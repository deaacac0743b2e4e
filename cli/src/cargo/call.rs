//! What the runners of one call have to know: a file in the directory of the call.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::options::{self, Asked, Run};

/// What a call has asked for, for one target triple.
pub(super) struct Call {
    /// Options of `childproof run`.
    pub(super) options: Vec<String>,
    /// The exit code of a runner whose program passed and left something.
    pub(super) leak_exit_code: u8,
    /// The same of a documentation test.
    pub(super) doctest_exit_code: u8,
    /// The runner that cargo would have used, and its arguments.
    pub(super) runner: Vec<String>,
    /// What cargo's own variables were before.
    pub(super) environment: Vec<(String, Option<String>)>,
}

impl Call {
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let environment: Vec<Value> =
            self.environment.iter().map(|(name, value)| json!([name, value])).collect();
        let text = json!({
            "options": self.options,
            "leak_exit_code": self.leak_exit_code,
            "doctest_exit_code": self.doctest_exit_code,
            "runner": self.runner,
            "environment": environment,
        });
        fs::write(path, text.to_string()).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    pub(super) fn read(path: &Path) -> Result<Call, String> {
        let bad = || format!("{} is not the file of a call", path.display());
        let call: Value = serde_json::from_str(&super::read(path)?).map_err(|_| bad())?;
        let code = |name: &str| call[name].as_u64().and_then(|code| u8::try_from(code).ok()).ok_or_else(bad);
        let variable =
            |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str().map(str::to_owned)));
        Ok(Call {
            options: texts(&call["options"]).ok_or_else(bad)?,
            leak_exit_code: code("leak_exit_code")?,
            doctest_exit_code: code("doctest_exit_code")?,
            runner: texts(&call["runner"]).ok_or_else(bad)?,
            environment: call["environment"]
                .as_array()
                .and_then(|all| all.iter().map(variable).collect())
                .ok_or_else(bad)?,
        })
    }

    /// The options of `childproof run` for a program and its arguments.
    pub(super) fn run(&self, command: &[OsString]) -> Result<Run, String> {
        let mut arguments: Vec<OsString> = vec!["childproof".into(), "run".into()];
        arguments.extend(self.options.iter().map(OsString::from));
        arguments.push("--".into());
        arguments.extend(self.runner.iter().map(OsString::from));
        arguments.extend_from_slice(command);
        match options::read(arguments) {
            Ok(Asked::Run(mut run)) => {
                run.leak_exit_code = self.leak_exit_code;
                run.environment = self.environment.clone();
                Ok(*run)
            }
            Ok(_) => Err("a runner was started with another command than `run`".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A list of texts, or one that cargo splits at its blanks.
pub(crate) fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(line) => Some(line.split_whitespace().map(str::to_owned).collect()),
        Value::Array(all) => all.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}
