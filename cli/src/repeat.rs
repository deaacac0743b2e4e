//! `childproof run --repeat`: runs a command several times, and counts what it leaves.

use std::collections::HashMap;

use childproof::__engine::{Inherited, Report};
use serde_json::Value;

use crate::options::Run;
use crate::places::Places;
use crate::run::{self, Exit, is_coloured, say};

/// Runs the command until the rounds are over. Gives the exit code of the first round that failed.
pub(crate) fn run(options: &Run) -> u8 {
    let mut rounds = Rounds::default();
    let exit = match rounds.run(options) {
        Ok(exit) => exit,
        Err(why) => return run::fail(&why),
    };
    if !options.quiet {
        say(&rounds.text());
    }
    exit.take()
}

#[derive(Default)]
struct Rounds {
    count: u64,
    /// How many ended with another exit code than 0.
    failed: u64,
    places: Places,
    /// The first round with each report that was shown.
    shown: HashMap<String, u64>,
}

impl Rounds {
    fn run(&mut self, options: &Run) -> Result<Exit, String> {
        let mut json = options.json.as_deref().map(run::open).transpose()?;
        let inherited =
            Inherited::keep().map_err(|error| format!("the command cannot be run again: {error}"))?;
        let mut first: Option<Exit> = None;
        loop {
            self.count += 1;
            let places = &mut self.places;
            let (round, known) = (self.count, &mut self.shown);
            let shown = |report: &Report| say(&text_of(report, round, options.repeat, known));
            let noted = |report: &Report, _| {
                let report = serde_json::from_str(&report.json());
                places.add(&report.map_err(|error| format!("the report cannot be read: {error}"))?);
                Ok(())
            };
            let exit = run::guard(options, json.as_mut(), Some(&inherited), shown, noted)?;
            inherited.restore().map_err(|error| format!("the command cannot be run again: {error}"))?;
            self.failed += u64::from(exit.code != 0);
            let is_last = exit.is_final || options.until_failure && exit.code != 0;
            if exit.is_final || first.as_ref().is_none_or(|first| first.code == 0) {
                first = Some(exit);
            }
            if let Some(first) = first.take_if(|_| is_last || self.count >= options.repeat) {
                return Ok(first);
            }
        }
    }

    /// How often what was left.
    fn text(&self) -> String {
        let rounds = if self.count == 1 { "1 round".to_owned() } else { format!("{} rounds", self.count) };
        let failed = match self.failed {
            0 => "none failed or left anything".to_owned(),
            failed => format!("{failed} failed or left something"),
        };
        let mut out = format!("childproof: {rounds}, {failed}\n");
        for line in self.places.lines() {
            out += &format!("  {line}\n");
        }
        out
    }
}

/// The report of a round below its number: three lines if that of an earlier round says the same.
fn text_of(report: &Report, round: u64, rounds: u64, known: &mut HashMap<String, u64>) -> String {
    let of = if rounds == u64::MAX { String::new() } else { format!(" of {rounds}") };
    let text = match serde_json::from_str(&report.json()).map(|json| first_with(known, key(&json), round)) {
        Ok(Some(first)) => report.folded(&format!("round {first}"), is_coloured()),
        _ => report.text(is_coloured()),
    };
    format!("round {round}{of}\n{text}")
}

/// The earlier round with this key; `None` if this is the first one.
fn first_with(known: &mut HashMap<String, u64>, key: String, round: u64) -> Option<u64> {
    let first = *known.entry(key).or_insert(round);
    (first != round).then_some(first)
}

/// What a report says, without what differs from round to round: pids and times.
fn key(report: &Value) -> String {
    let mut places = Places::default();
    places.add(report);
    let is_number = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).parse::<f64>().is_ok();
    let no_list = Vec::new();
    let findings = report["findings"].as_array().unwrap_or(&no_list).iter();
    let sentences = findings.map(|finding| {
        let words = finding["sentence"].as_str().unwrap_or_default().split_whitespace();
        words.filter(|word| !is_number(word)).collect::<Vec<_>>().join(" ")
    });
    places
        .lines()
        .into_iter()
        .chain(sentences)
        .chain([report["body"]["outcome"].to_string()])
        .collect::<Vec<_>>()
        .join("\n")
}
