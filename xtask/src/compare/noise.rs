//! How much runs of the same comparison differ.

use serde_json::{Map, json};

use super::observe::{FIELDS, Observed};
use super::report::Extra;

/// The largest difference of a figure between runs, and whose it is.
struct Largest<'a> {
    field: &'static str,
    difference: u64,
    row: &'a str,
}

/// What differs between runs, figure by figure; nothing when there was one alone.
pub fn extra(runs: &[Vec<Observed>]) -> Option<Extra> {
    let [first, _, ..] = runs else { return None };
    let largest: Vec<_> = FIELDS.map(|(field, _)| largest(field, runs, first)).into();
    let mut lines =
        vec![[format!("in {} runs", runs.len()), "largest difference".into(), "of".into()].into()];
    let mut all = Map::new();
    all.insert("runs".into(), runs.len().into());
    for Largest { field, difference, row } in largest {
        let row = if difference == 0 { "" } else { row };
        lines.push(vec![field.to_owned(), difference.to_string(), row.to_owned()]);
        all.insert(field.into(), json!({ "largest_difference": difference, "row": row }));
    }
    let title = "Remaining noise: what differs between whole runs of the lab";
    Some(Extra { key: "noise", title, lines, json: all.into() })
}

/// The rows whose failure or want of a figure is not the same in all runs.
pub fn unsteady(runs: &[Vec<Observed>]) -> Vec<String> {
    let known = |row: &Observed| {
        let mut row = row.clone();
        FIELDS.map(|(_, field)| field(&mut row).is_some())
    };
    let Some((first, others)) = runs.split_first() else { return Vec::new() };
    let is_unsteady = |(index, row): &(usize, &Observed)| {
        others.iter().any(|run| run.get(*index).map(known) != Some(known(row)))
    };
    first.iter().enumerate().filter(is_unsteady).map(|(_, row)| row.name.clone()).collect()
}

fn largest<'a>(field: &'static str, runs: &[Vec<Observed>], rows: &'a [Observed]) -> Largest<'a> {
    let difference = |index: usize| {
        let values = runs.iter().filter_map(|run| figure(field, run.get(index)?));
        let (least, most) = values.fold((u64::MAX, 0), |(a, b), n| (a.min(n), b.max(n)));
        most.saturating_sub(least)
    };
    let all = rows.iter().enumerate().map(|(index, row)| (difference(index), row.name.as_str()));
    let (difference, row) = all.max_by_key(|(difference, _)| *difference).unwrap_or_default();
    Largest { field, difference, row }
}

fn figure(name: &str, row: &Observed) -> Option<u64> {
    let (_, field) = FIELDS.iter().find(|(field, _)| *field == name)?;
    *field(&mut row.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_difference_of_each_figure_is_named() {
        let run = |init, calls| {
            let row = |name: &str, init| {
                let mut row =
                    Observed { name: name.into(), init: Some(init), ..Observed::default() };
                row.to_end.calls = Some(calls);
                row
            };
            vec![row("a", init), row("b", init * 2)]
        };
        let Extra { lines, json, .. } = extra(&[run(10, 5), run(13, 5), run(12, 5)]).unwrap();
        assert!(lines.contains(&vec!["init_ns".into(), "6".into(), "b".into()]), "{lines:?}");
        assert!(lines.contains(&vec!["system_calls".into(), "0".into(), "".into()]), "{lines:?}");
        assert_eq!(json["init_ns"]["largest_difference"], 6);
        assert_eq!(json["runs"], 3);
        assert!(extra(&[run(1, 1)]).is_none());
    }

    #[test]
    fn a_row_that_fails_at_times_is_named() {
        let row = |init| vec![Observed { name: "a".into(), init, ..Observed::default() }];
        assert!(unsteady(&[row(Some(1)), row(Some(2))]).is_empty());
        assert_eq!(unsteady(&[row(Some(1)), row(None)]), ["a"]);
        assert_eq!(unsteady(&[row(Some(1)), Vec::new()]), ["a"]);
    }
}
