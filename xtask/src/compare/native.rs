//! Starts in turns, many of each: for a KVM that runs guests on the processor.
//!
//! Hardware times differ from run to run, and a machine's speed changes with its load and its
//! temperature. So every candidate is started once, then every one again: what changes meanwhile
//! meets all alike.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::candidates::Candidate;
use super::observe::{self, Field, Observed};
use super::report::Extra;
use super::statistics::Summary;
use super::table::milliseconds;
use crate::settle;

/// The moments that are summarized.
const MOMENTS: [(&str, &str, Field); 4] = [
    ("first run", "first_run_ns", |row| &mut row.first_run),
    ("kernel", "kernel_ns", |row| &mut row.kernel),
    ("init", "init_ns", |row| &mut row.init),
    ("end", "end_ns", |row| &mut row.end),
];

/// A candidate, and its moments of each run, in the order of the runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// All else that was observed of it, in other starts.
    pub row: Observed,
    times: [Vec<u64>; MOMENTS.len()],
}

/// Says what this machine lacks to measure starts, if anything.
pub fn check_host() -> Result<()> {
    if !rustix::process::getuid().is_root() {
        bail!("--host kvm reads the kernel's trace, as root only: run it by sudo");
    }
    super::tracer::check()?;
    if settle::machines()? > 0 {
        bail!("--host kvm: other virtual machines run here: end them first");
    }
    Ok(())
}

/// Starts all candidates in turns. Who fails once is left out from then on, and says why.
pub fn observe(candidates: &[Candidate], runs: u32) -> Vec<Sample> {
    let sample =
        |one: &Candidate| Sample { row: observe::candidate(one), times: Default::default() };
    let mut samples: Vec<_> = candidates.iter().map(sample).collect();
    for run in 1..=runs {
        eprintln!("compare: run {run} of {runs}");
        for (candidate, sample) in candidates.iter().zip(&mut samples) {
            if sample.row.failure.is_none()
                && let Err(error) = sample.add(candidate)
            {
                sample.row.failure = Some(format!("run {run}: {error:#}"));
            }
        }
    }
    samples
}

impl Sample {
    fn add(&mut self, candidate: &Candidate) -> Result<()> {
        let mut row = Observed::default();
        observe::moments(candidate, &mut row)?;
        for ((_, _, field), times) in MOMENTS.iter().zip(&mut self.times) {
            times.extend(*field(&mut row));
        }
        Ok(())
    }

    fn summaries(&self) -> [Option<Summary>; MOMENTS.len()] {
        self.times.each_ref().map(|times| Summary::of(times))
    }

    /// What was observed, with medians as its moments.
    pub fn median(&self) -> Observed {
        let mut row = self.row.clone();
        for ((_, _, field), summary) in MOMENTS.iter().zip(self.summaries()) {
            *field(&mut row) = summary.map(|summary| summary.median);
        }
        row
    }
}

/// The medians' intervals, and their drift.
pub fn extra(samples: &[Sample]) -> Extra {
    let mut head = vec!["ms".to_owned()];
    for (title, ..) in MOMENTS {
        head.extend([title, "95 %", "drift"].map(str::to_owned));
    }
    let line = |sample: &Sample| {
        let cells = sample.summaries().into_iter().flat_map(cells);
        [sample.row.name.clone()].into_iter().chain(cells).collect()
    };
    let json = |sample: &Sample| {
        let mut object = json!({ "name": sample.row.name });
        for ((_, key, _), (times, summary)) in
            MOMENTS.iter().zip(sample.times.iter().zip(sample.summaries()))
        {
            object[key] = json!({
                "runs": times,
                "median": summary.map(|summary| summary.median),
                "interval_95": summary.and_then(|summary| summary.interval),
                "halves": summary.map(|summary| summary.halves),
            });
        }
        object
    };
    Extra {
        key: "samples",
        title: "Medians, their intervals, and their drift",
        lines: [head].into_iter().chain(samples.iter().map(line)).collect(),
        json: samples.iter().map(json).collect(),
    }
}

fn cells(summary: Option<Summary>) -> [String; 3] {
    let Some(summary) = summary else { return ["-", "-", "-"].map(str::to_owned) };
    let interval = summary.interval.map(|bounds| bounds.map(|ns| milliseconds(Some(ns))));
    let (drift, sign) = (summary.drift(), if summary.drift() < 0 { '-' } else { '+' });
    let drift = drift.unsigned_abs();
    [
        milliseconds(Some(summary.median)),
        interval.map_or("-".to_owned(), |[low, high]| format!("{low}..{high}")),
        format!("{sign}{}.{}%", drift / 10, drift % 10),
    ]
}

/// What goes from the lab to who reports it.
pub fn to_json(samples: &[Sample]) -> Value {
    let times =
        |sample: &Sample| Value::from(sample.times.each_ref().map(|times| json!(times)).to_vec());
    let times: Value = samples.iter().map(times).collect();
    let rows: Vec<_> = samples.iter().map(|sample| sample.row.clone()).collect();
    json!({ "rows": observe::to_json(&rows), "times": times })
}

/// What came from there.
pub fn from_json(text: &Value) -> Result<Vec<Sample>> {
    let rows = observe::from_json(&text["rows"]).context("no rows of the lab")?;
    let times: Vec<_> = serde_json::from_value(text["times"].clone()).context("no times")?;
    if rows.len() != times.len() {
        bail!("the lab's report has rows without times");
    }
    Ok(rows.into_iter().zip(times).map(|(row, times)| Sample { row, times }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        let row = Observed { name: "x".into(), libraries: Some(3), ..Observed::default() };
        let runs = |ms: u64| (0..6).map(|run| (ms + run) * 1_000_000).collect::<Vec<_>>();
        Sample { row, times: [runs(1), runs(2), runs(10), Vec::new()] }
    }

    #[test]
    fn samples_come_back_as_they_were_sent() {
        assert_eq!(from_json(&to_json(&[sample()])).unwrap(), [sample()]);
        assert!(from_json(&json!({ "rows": [], "times": [[[], [], [], []]] })).is_err());
    }

    #[test]
    fn a_sample_is_reported_by_its_medians() {
        let median = sample().median();
        assert_eq!((median.init, median.end, median.libraries), (Some(12_500_000), None, Some(3)));
        let Extra { lines, json, .. } = extra(&[sample()]);
        assert_eq!(lines[1][7..10], ["12.50", "10.00..15.00", "+27.2%"]);
        assert_eq!(lines[1][10..], ["-", "-", "-"]);
        assert_eq!(lines[0].len(), lines[1].len());
        assert_eq!(json[0]["init_ns"]["interval_95"], json!([10_000_000, 15_000_000]));
        assert_eq!(json[0]["end_ns"]["median"], Value::Null);
    }
}
