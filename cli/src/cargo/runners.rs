//! Which target triples cargo may run programs of, and the runner that each has already.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::call::texts;
use super::cfg;

/// The triples of a call, each with the runner that cargo would use.
pub(super) fn of_call(
    cargo: &OsStr,
    arguments: &[OsString],
) -> Result<BTreeMap<String, Vec<String>>, String> {
    // What is behind is for the test binary.
    let own: Vec<&str> =
        arguments.iter().take_while(|word| *word != "--").filter_map(|word| word.to_str()).collect();
    let configs = values(&own, "--config");
    if let Some(config) = configs.iter().find(|config| sets_runner(config)) {
        return Err(format!(
            "`--config {config}` sets a runner, which would win over childproof's: set it in `.cargo/config.toml` or in the \
             environment, and it is called below childproof"
        ));
    }
    let configuration = configuration(cargo, &configs)?;
    let host = host()?;
    let mut triples = vec![host.clone()];
    let asked = values(&own, "--target").into_iter().map(str::to_owned);
    let by_environment = env::var("CARGO_BUILD_TARGET").into_iter();
    let by_configuration = match &configuration["build"]["target"] {
        // One is a name, and may be a path with blanks.
        Value::String(one) => vec![one.clone()],
        list => texts(list).unwrap_or_default(),
    };
    for target in asked.chain(by_environment).chain(by_configuration) {
        // A custom target is a file.
        let name = Path::new(&target).file_stem().filter(|_| target.ends_with(".json"));
        let name = name.and_then(OsStr::to_str).unwrap_or(&target);
        triples.push(if name == "host-tuple" { host.clone() } else { name.to_owned() });
    }
    triples.into_iter().map(|triple| Ok((triple.clone(), existing(&triple, &configuration)?))).collect()
}

/// The variable that sets the runner of a triple.
pub(super) fn variable(triple: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace('-', "_"))
}

/// What the variable is set to: this program, and the file of the call. Cargo splits it at its blanks, and knows no
/// quotes.
pub(super) fn line(directory: &Path, file: &Path) -> Result<String, String> {
    let own = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    // Whatever the way to the program is called, this one has no blanks.
    let tool = directory.join("childproof");
    if !tool.is_symlink() {
        symlink(own, &tool).map_err(|error| format!("cannot make {}: {error}", tool.display()))?;
    }
    let line = [&*tool.to_string_lossy(), "__runner", &*file.to_string_lossy()].join(" ");
    if line.split_whitespace().count() != 3 {
        return Err(format!(
            "the directory for temporary files, {}, has blanks in its name, and cargo's runner cannot have: set TMPDIR",
            env::temp_dir().display()
        ));
    }
    Ok(line)
}

/// The values of an option, in both ways to write it.
fn values<'a>(arguments: &[&'a str], option: &str) -> Vec<&'a str> {
    let behind = arguments.iter().zip(arguments.iter().skip(1));
    let separate = behind.filter(|(word, _)| **word == option).map(|(_, value)| *value);
    let joined = arguments.iter().filter_map(|word| word.strip_prefix(option)?.strip_prefix('='));
    separate.chain(joined).collect()
}

/// Whether the value of `--config`, `KEY=VALUE` or a file, may set a runner.
fn sets_runner(config: &str) -> bool {
    let is_of_a_target = |text: &str| text.contains("target") && text.contains("runner");
    is_of_a_target(config) || std::fs::read_to_string(config).is_ok_and(|text| is_of_a_target(&text))
}

/// Cargo's configuration as cargo itself reads it: all files that count here, with what they include. Its command for
/// that is not stable yet, so it is asked to pass over that.
fn configuration(cargo: &OsStr, configs: &[&str]) -> Result<Value, String> {
    let mut command = Command::new(cargo);
    command.env("RUSTC_BOOTSTRAP", "1").args(["-Zunstable-options", "config", "get", "--format", "json"]);
    command.args(configs.iter().flat_map(|config| ["--config", config]));
    let output = output(&mut command)?;
    let configuration =
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten();
    configuration.ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!(
            "cargo does not say what its configuration is, and a runner may be set there: {command:?}: {said}"
        )
    })
}

/// The triple that programs are built for if none is asked for.
fn host() -> Result<String, String> {
    let mut rustc = rustc();
    let output = output(rustc.arg("-vV"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| format!("{rustc:?} does not say which host it is for: {said}"))
}

fn rustc() -> Command {
    Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

fn output(command: &mut Command) -> Result<Output, String> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run `{}`: {error}", command.get_program().display()))
}

/// The runner that cargo would use for a triple: that of the environment wins over that of the triple's own table, and
/// that over one with a condition.
fn existing(triple: &str, configuration: &Value) -> Result<Vec<String>, String> {
    if let Ok(line) = env::var(variable(triple)) {
        return Ok(line.split_whitespace().map(str::to_owned).collect());
    }
    let targets = &configuration["target"];
    if let Some(runner) = texts(&targets[triple]["runner"]) {
        return Ok(runner);
    }
    let conditional: Vec<(&String, &Value)> = targets
        .as_object()
        .map(|all| {
            all.iter().filter(|(key, table)| key.starts_with("cfg(") && !table["runner"].is_null()).collect()
        })
        .unwrap_or_default();
    if conditional.is_empty() {
        return Ok(Vec::new());
    }
    let output = output(rustc().args(["--print", "cfg", "--target", triple]))?;
    let facts: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    let mut matching = Vec::new();
    for (condition, table) in conditional {
        match cfg::holds(condition, &facts) {
            Some(true) => matching.extend(texts(&table["runner"])),
            Some(false) => {}
            None => {
                return Err(format!(
                    "the condition of a runner in cargo's configuration cannot be read: `{condition}`"
                ));
            }
        }
    }
    // Of several cargo takes none.
    if matching.len() > 1 {
        return Err("several conditions of cargo's configuration hold, and each sets a runner".to_owned());
    }
    Ok(matching.pop().unwrap_or_default())
}
