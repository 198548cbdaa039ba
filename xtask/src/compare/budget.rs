//! What our own starts may cost.

use anyhow::{Context, Result, bail};

use super::observe::Observed;

const BUDGET: &str = include_str!("budget.txt");
/// The rows, directly and by our BIOS.
const NAMES: [&str; 2] = ["directly", "our-BIOS"];
/// What a row is held to, and how many nanoseconds or other units one of the budget's is.
const LIMITS: [(&str, Limit, u64); 8] = [
    ("ms to the first run", |row| row.first_run, 1_000_000),
    ("ms to init", |row| row.init, 1_000_000),
    ("us from init to the end", |row| Some(row.end?.saturating_sub(row.init?)), 1000),
    ("exits of KVM", |row| row.to_end.exits, 1),
    ("exits to the VMM", |row| row.to_end.to_user, 1),
    ("KiB of its own", |row| row.own_kib, 1),
    ("KiB with the guest's", |row| row.pss_kib, 1),
    ("system calls", |row| row.to_end.calls, 1),
];
type Limit = fn(&Observed) -> Option<u64>;

/// Fails when a start costs more than its budget.
pub fn check(rows: &[Observed; 2]) -> Result<()> {
    let mut over = Vec::new();
    for (name, row) in NAMES.iter().zip(rows) {
        let limits = line(name)?;
        if limits.len() != LIMITS.len() {
            bail!("the budget of {name} has {} numbers, not {}", limits.len(), LIMITS.len());
        }
        for ((what, figure, unit), limit) in LIMITS.iter().zip(limits) {
            let figure = figure(row).with_context(|| format!("{name}: no {what}"))?;
            if figure > limit * unit {
                over.push(format!(
                    "{name}: {} {what}, {limit} at the most",
                    figure.div_ceil(*unit)
                ));
            }
        }
    }
    let [direct, firmware] = rows;
    let added = |figure: Limit| Some(figure(firmware)?.saturating_sub(figure(direct)?));
    let added = [
        added(|row| row.init.map(|ns| ns / 1000)),
        added(|row| row.to_end.to_user),
        added(|row| row.to_end.exits),
    ];
    let names = ["us to init", "exits to the VMM", "exits of KVM"];
    for ((what, added), limit) in names.iter().zip(added).zip(line("difference")?) {
        let added = added.context("a figure is missing")?;
        if added > limit {
            over.push(format!("the BIOS adds {added} {what}, {limit} at the most"));
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    bail!("a start costs more than xtask/src/compare/budget.txt allows:\n  {}", over.join("\n  "))
}

/// The numbers of a line of the budget.
fn line(name: &str) -> Result<Vec<u64>> {
    let rest = BUDGET.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let numbers: Option<Result<_, _>> =
        rest.map(|rest| rest.split_whitespace().map(str::parse).collect());
    numbers.with_context(|| format!("the budget has no line for {name}"))?.context("the budget")
}

#[cfg(test)]
mod tests {
    use super::super::observe::Counts;
    use super::*;

    fn row(share: u64, name: &str) -> Observed {
        let limits = line(name).unwrap();
        let part = |index: usize| Some(limits[index] * LIMITS[index].2 / 100 * share);
        Observed {
            first_run: part(0),
            init: part(1),
            end: Some(part(1).unwrap() + part(2).unwrap()),
            to_end: Counts { exits: part(3), to_user: part(4), calls: part(7) },
            own_kib: part(5),
            pss_kib: part(6),
            ..Observed::default()
        }
    }

    #[test]
    fn what_is_over_the_budget_is_named() {
        let [direct, firmware] = NAMES.map(|name| row(50, name));
        let (init, end) = (direct.init, direct.end);
        let firmware = Observed { init, end, to_end: direct.to_end, ..firmware };
        check(&[direct.clone(), firmware.clone()]).unwrap();
        let slow = Observed { init: row(300, NAMES[0]).init, ..firmware.clone() };
        let text = check(&[direct.clone(), slow]).unwrap_err().to_string();
        assert!(text.contains("our-BIOS: ") && text.contains("the BIOS adds "), "{text}");
        let much = row(200, NAMES[1]);
        let to_end = Counts { calls: much.to_end.calls, ..firmware.to_end };
        let large = Observed { pss_kib: much.pss_kib, to_end, ..firmware.clone() };
        let text = check(&[direct.clone(), large]).unwrap_err().to_string();
        assert!(text.contains("KiB with the guest's") && text.contains("system calls"), "{text}");
        let silent = Observed { end: None, ..firmware };
        assert!(
            check(&[direct, silent])
                .unwrap_err()
                .to_string()
                .contains("no us from init to the end")
        );
    }
}
