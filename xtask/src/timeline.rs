//! Where the time of a start went: the VMM's boot trace as a waterfall.

use std::fmt::Write;

use serde_json::Value;

/// Characters of the longest bar.
const WIDTH: u64 = 44;

/// One bar: nanoseconds from the start of the process, and what else is known.
#[derive(Debug, PartialEq, Eq)]
struct Bar {
    name: String,
    start: u64,
    end: u64,
    exits: Option<u64>,
    page_faults: Option<u64>,
    /// Put into guest memory.
    bytes: Option<u64>,
}

/// The waterfall of a trace, of a process that was started at `start_ns`; `None` when the machine
/// never began.
pub fn waterfall(trace: &Value, start_ns: u64) -> Option<String> {
    let bars = bars(trace, start_ns)?;
    let total = bars.last()?.end.max(1);
    let mut text =
        format!("{:26}{:>10}{:>7}{:>8}{:>11}\n", "stage", "ms", "exits", "faults", "bytes");
    bars.iter().for_each(|bar| write_bar(&mut text, bar, total));
    let meanwhile = meanwhile(trace, start_ns);
    if !meanwhile.is_empty() {
        text.push_str("meanwhile, by another thread:\n");
        meanwhile.iter().for_each(|bar| write_bar(&mut text, bar, total));
    }
    if let Some(cost) = trace["trace_cost_ns"].as_u64() {
        let share = cost * 10_000 / total;
        let _ = writeln!(
            text,
            "The trace itself took about {} us, {}.{:02} % of this.",
            cost / 1000,
            share / 100,
            share % 100
        );
    }
    Some(text)
}

fn write_bar(text: &mut String, bar: &Bar, total: u64) {
    let Bar { name, start, end, exits, page_faults, bytes } = bar;
    let count = |count: &Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    let microseconds = (end - start) / 1000;
    let time = format!("{}.{:03}", microseconds / 1000, microseconds % 1000);
    let skip = usize::try_from(start * WIDTH / total).unwrap_or(0);
    let length = usize::try_from((end * WIDTH / total).saturating_sub(start * WIDTH / total));
    let line = "█".repeat(length.unwrap_or(0).max(1));
    let (exits, faults, bytes) = (count(exits), count(page_faults), count(bytes));
    let figures = format!("{exits:>7}{faults:>8}{bytes:>11}");
    let _ = writeln!(text, "{name:26}{time:>10}{figures}  {:skip$}{line}", "");
}

/// What was done beside the set-up's steps.
fn meanwhile(trace: &Value, start_ns: u64) -> Vec<Bar> {
    let steps = trace["boots"][0]["meanwhile"].as_array();
    let bar = |step: &Value| {
        let [start, end] = ["start_ns", "end_ns"].map(|key| step[key].as_u64());
        let start = start?.saturating_sub(start_ns);
        let end = end?.saturating_sub(start_ns).max(start);
        let name = step["name"].as_str()?.into();
        Some(Bar { name, start, end, exits: None, page_faults: None, bytes: None })
    };
    steps.into_iter().flatten().filter_map(bar).collect()
}

/// What was done one after the other, from the process's start to its end.
fn bars(trace: &Value, start_ns: u64) -> Option<Vec<Bar>> {
    let boot = trace["boots"].get(0)?;
    let since = |ns: &Value| Some(ns.as_u64()?.saturating_sub(start_ns));
    let mut bars = Vec::new();
    let mut push = |name: &str, end: u64, counts: [Option<u64>; 3]| {
        let start = bars.last().map_or(0, |bar: &Bar| bar.end);
        let [exits, page_faults, bytes] = counts;
        bars.push(Bar { name: name.into(), start, end: end.max(start), exits, page_faults, bytes });
    };
    push("exec", since(&trace["start_ns"])?, [None; 3]);
    let (mut faults, mut bytes) = (0, 0);
    for step in boot["setup"].as_array()? {
        let until = step["page_faults"].as_u64()?;
        let put = step["bytes"].as_u64()?;
        let counts = [Some(0), Some(until - faults), Some(put - bytes)];
        push(step["name"].as_str()?, since(&step["end_ns"])?, counts);
        (faults, bytes) = (until, put);
    }
    push("threads", since(&boot["first_run_ns"])?, [Some(0), None, None]);
    // A stage is named by the mark at its start. The first one of a BIOS comes after its reset.
    let marks = boot["marks"].as_array()?;
    let mut name = if boot["path"] == "firmware" { "reset" } else { "" };
    let mut exits = 0;
    for mark in marks {
        let until = mark["exits"].as_u64()?;
        if !name.is_empty() {
            let (fault, put) = (mark["page_faults"].as_u64()?, mark["bytes"].as_u64()?);
            let counts = [Some(until - exits), Some(fault - faults), Some(put - bytes)];
            push(name, since(&mark["ns"])?, counts);
            (faults, bytes) = (fault, put);
        }
        exits = until;
        name = mark["name"].as_str().unwrap_or("POST code");
    }
    let last = trace["exits"]["total"].as_u64().map(|total| total - exits);
    push(name, since(&trace["exit"]["ns"])?, [last, None, None]);
    Some(bars)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mark(name: &str, ns: u64, exits: u64, page_faults: u64, bytes: u64) -> Value {
        json!({
            "name": name, "ns": ns, "exits": exits, "page_faults": page_faults, "bytes": bytes,
        })
    }

    fn trace() -> Value {
        json!({
            "start_ns": 2_000_000,
            "boots": [{
                "path": "direct",
                "setup": [{ "name": "memory", "end_ns": 3_000_000, "page_faults": 4, "bytes": 9 }],
                "meanwhile": [{ "name": "images", "start_ns": 2_500_000, "end_ns": 3_000_000 }],
                "first_run_ns": 3_500_000,
                "marks": [
                    mark("kernel entry", 3_500_000, 0, 4, 9),
                    mark("guest init", 9_000_000, 50, 6, 12),
                ],
            }],
            "exit": { "ns": 11_000_000 },
            "exits": { "total": 60 },
            "trace_cost_ns": 50_000,
        })
    }

    #[test]
    fn stages_follow_each_other_without_gaps() {
        let bars = bars(&trace(), 1_000_000).unwrap();
        let names: Vec<_> = bars.iter().map(|bar| bar.name.as_str()).collect();
        assert_eq!(names, ["exec", "memory", "threads", "kernel entry", "guest init"]);
        assert!(bars.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(bars[0].end, 1_000_000);
        assert_eq!((bars[3].exits, bars[3].page_faults), (Some(50), Some(2)));
        assert_eq!((bars[1].bytes, bars[3].bytes), (Some(9), Some(3)));
        assert_eq!((bars[4].end, bars[4].exits), (10_000_000, Some(10)));
    }

    #[test]
    fn the_picture_has_a_bar_for_each_and_says_what_it_cost() {
        let text = waterfall(&trace(), 1_000_000).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 9);
        assert!(
            lines[2].starts_with("memory                         1.000      0       4          9"),
            "{text}"
        );
        assert!(lines[4].ends_with(&"█".repeat(24)), "{text}");
        assert!(lines[7].starts_with("images                         0.500      -"), "{text}");
        assert!(lines[8].contains("50 us, 0.50 %"), "{text}");
        assert_eq!(waterfall(&json!({ "boots": [] }), 0), None);
    }
}
