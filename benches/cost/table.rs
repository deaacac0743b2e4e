//! The table of results: one line per measurement, printed as soon as it is known.

/// The unit of a number.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Time,
    Memory,
}

/// One line of the table.
pub(crate) struct Row {
    what: String,
    unit: Unit,
    samples: Vec<f64>,
    over: Option<(f64, &'static str)>,
    reach: Option<Reach>,
}

/// A target value.
#[derive(Clone, Copy)]
enum Reach {
    Ratio(f64),
    /// In the row's own unit.
    Most(f64),
}

/// A table that is being printed.
pub(crate) struct Table {
    met: u32,
    missed: Vec<String>,
    /// The group that is being printed.
    group: String,
    /// What is counted, for each group.
    counted: Vec<String>,
}

/// The widths of the columns.
const WIDTHS: [usize; 6] = [50, 9, 20, 6, 29, 18];

impl Table {
    /// Prints the head.
    pub(crate) fn new() -> Table {
        line(["measured", "median", "quartiles", "ratio", "over", "reach"]);
        line(WIDTHS.map(|width| "-".repeat(width)).each_ref().map(String::as_str));
        Table { met: 0, missed: Vec::new(), group: String::new(), counted: Vec::new() }
    }

    /// Prints the heading of the next rows. What is counted is explained below the table.
    pub(crate) fn group(&mut self, what: &str, counted: &str) {
        line([&format!("**{what}**"), "", "", "", "", ""]);
        self.group = what.to_owned();
        self.counted.push(format!("{what}: {counted}"));
    }

    /// Prints a row that was not measured, and why.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        line([what, "skipped", why.lines().next().unwrap_or_default(), "", "", ""]);
    }

    pub(crate) fn row(&mut self, row: &Row) {
        let median = median(&row.samples);
        let (low, high) = (quantile(&row.samples, 0.25), quantile(&row.samples, 0.75));
        let reached = row.reach.map(|reach| match reach {
            Reach::Ratio(most) => (format!("{most}"), row.over.is_some_and(|(ratio, _)| ratio <= most)),
            Reach::Most(most) => (row.unit.show(most), median <= most),
        });
        let reach = reached.map_or(String::new(), |(most, met)| {
            if met {
                self.met += 1;
            } else {
                self.missed.push(format!("{}: {}", self.group, row.what));
            }
            format!("{most} {}", if met { "met" } else { "**missed**" })
        });
        line([
            &row.what,
            &row.unit.show(median),
            &if row.samples.len() > 2 {
                format!("{} .. {}", row.unit.show(low), row.unit.show(high))
            } else {
                String::new()
            },
            &row.over.map_or(String::new(), |(ratio, _)| format!("{ratio:.3}")),
            row.over.map_or("", |(_, over)| over),
            &reach,
        ]);
    }

    /// Prints the summary.
    pub(crate) fn finish(&self) {
        println!("\nWhat is counted:");
        for counted in &self.counted {
            println!("* {counted}");
        }
        println!("\n{} reached, {} missed", self.met, self.missed.len());
        for missed in &self.missed {
            println!("* missed: {missed}");
        }
    }
}

impl Row {
    /// A row of times, in seconds.
    pub(crate) fn time(what: impl Into<String>, samples: &[f64]) -> Row {
        Row { what: what.into(), unit: Unit::Time, samples: samples.to_vec(), over: None, reach: None }
    }

    /// A row of sizes, in bytes.
    pub(crate) fn memory(what: impl Into<String>, samples: &[f64]) -> Row {
        Row { unit: Unit::Memory, ..Row::time(what, samples) }
    }

    /// Shows the ratio to another measurement: the median of the ratios per round, since a disturbance
    /// affects both in a round.
    pub(crate) fn over(mut self, others: &[f64], name: &'static str) -> Row {
        let ratios: Vec<f64> = self.samples.iter().zip(others).map(|(own, other)| own / other).collect();
        self.over = Some((median(&ratios), name));
        self
    }

    /// Sets the target: a ratio of at most `most`.
    pub(crate) fn reach(mut self, most: f64) -> Row {
        self.reach = Some(Reach::Ratio(most));
        self
    }

    /// Sets the target: a median of at most `most`.
    pub(crate) fn at_most(mut self, most: f64) -> Row {
        self.reach = Some(Reach::Most(most));
        self
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Time if value < 1e-3 => format!("{} us", three(value * 1e6)),
            Unit::Time if value < 1.0 => format!("{} ms", three(value * 1e3)),
            Unit::Time => format!("{} s", three(value)),
            Unit::Memory => format!("{} KiB", (value / 1024.0).round()),
        }
    }
}

/// A number with three significant digits.
fn three(value: f64) -> String {
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The quantile of the samples, interpolated linearly.
pub(crate) fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = part * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

fn line(cells: [&str; 6]) {
    let mut text = String::from("|");
    for (cell, width) in cells.iter().zip(WIDTHS) {
        text += &format!(" {cell:width$} |");
    }
    println!("{text}");
}
