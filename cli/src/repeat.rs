//! `childproof run --repeat`: runs a command several times, and counts what it leaves.

use childproof::__engine::Inherited;

use crate::options::Run;
use crate::places::Places;
use crate::run::{self, Exit, say};

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
            let noted = |report: &childproof::__engine::Report, _| {
                let report = serde_json::from_str(&report.json());
                places.add(&report.map_err(|error| format!("the report cannot be read: {error}"))?);
                Ok(())
            };
            let exit = run::guard(options, json.as_mut(), Some(&inherited), noted)?;
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
