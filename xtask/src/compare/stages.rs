//! What our BIOS adds to a direct start, stage by stage.

use serde_json::{Map, Value, json};

use super::candidates::{DIRECTLY, OUR_BIOS};
use super::observe::Observed;
use super::report::Extra;
use super::table::milliseconds;

/// What is compared: for people, for programs, and whether it is nanoseconds.
const STAGES: [(&str, &str, bool, Figure); 8] = [
    ("ms to the first run", "first_run_ns", true, |row| row.first_run),
    ("ms to the kernel", "kernel_ns", true, |row| row.kernel),
    ("ms to init", "init_ns", true, |row| row.init),
    ("ms to the end", "end_ns", true, |row| row.end),
    ("exits of KVM to init", "exits_to_init", false, |row| row.to_init.exits),
    ("exits of KVM to the end", "exits", false, |row| row.to_end.exits),
    ("exits to the VMM to the end", "exits_to_user", false, |row| row.to_end.to_user),
    ("system calls to the end", "system_calls", false, |row| row.to_end.calls),
];
type Figure = fn(&Observed) -> Option<u64>;

/// The kernel's forms.
const FORMS: [&str; 2] = ["vmlinux", "bzImage"];

/// The differences, of each form of the kernel that was started both ways.
pub fn extra(rows: &[Observed]) -> Option<Extra> {
    let find = |name: &str, form| rows.iter().find(|row| row.name == format!("{name}, {form}"));
    let pair = |form| Some((form, find(DIRECTLY, form)?, find(OUR_BIOS, form)?));
    let pairs: Vec<_> = FORMS.into_iter().filter_map(pair).collect();
    if pairs.is_empty() {
        return None;
    }
    let mut head = vec![String::new()];
    for (form, ..) in &pairs {
        head.push(format!("{form}, directly"));
        head.extend(["by our BIOS", "added", "%"].map(str::to_owned));
    }
    let mut lines = vec![head];
    let mut all = Map::new();
    for (title, key, is_time, figure) in STAGES {
        let mut line = vec![title.to_owned()];
        for (form, direct, bios) in &pairs {
            let added = Added { direct: figure(direct), bios: figure(bios) };
            line.extend(added.cells(is_time));
            all.entry(*form).or_insert_with(|| json!({}))[key] = added.to_json();
        }
        lines.push(line);
    }
    let title = "Our BIOS against a direct start";
    Some(Extra { key: "firmware", title, lines, json: all.into() })
}

/// A figure of both starts.
struct Added {
    direct: Option<u64>,
    bios: Option<u64>,
}

impl Added {
    fn difference(&self) -> Option<i64> {
        Some(self.bios?.cast_signed() - self.direct?.cast_signed())
    }

    fn cells(&self, is_time: bool) -> [String; 4] {
        let show = |value: Option<u64>| match value {
            Some(count) if !is_time => count.to_string(),
            time => milliseconds(time),
        };
        let (added, share) = match (self.difference(), self.direct) {
            (Some(added), Some(direct)) => {
                let sign = if added < 0 { '-' } else { '+' };
                let share = share(added.unsigned_abs(), direct);
                (format!("{sign}{}", show(Some(added.unsigned_abs()))), format!("{sign}{share}"))
            }
            _ => ("-".to_owned(), "-".to_owned()),
        };
        [show(self.direct), show(self.bios), added, share]
    }

    fn to_json(&self) -> Value {
        json!({ "direct": self.direct, "bios": self.bios, "difference": self.difference() })
    }
}

/// Hundredths of a per cent.
fn share(part: u64, whole: u64) -> String {
    let share = part * 10_000 / whole.max(1);
    format!("{}.{:02}", share / 100, share % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_what_the_bios_adds() {
        let row = |name: &str, init, exits| {
            let name = format!("{name}, vmlinux");
            let mut row = Observed { name, init: Some(init), ..Observed::default() };
            row.to_end.exits = Some(exits);
            row
        };
        let rows = [row(DIRECTLY, 80_000_000, 1431), row(OUR_BIOS, 80_400_000, 1400)];
        let Extra { lines, json, .. } = extra(&rows).unwrap();
        let line = |title: &str| lines.iter().find(|line| line[0] == title).unwrap()[1..].to_vec();
        assert_eq!(line("ms to init"), ["80.00", "80.40", "+0.40", "+0.50"]);
        assert_eq!(line("exits of KVM to the end"), ["1431", "1400", "-31", "-2.16"]);
        assert_eq!(line("ms to the end"), ["-", "-", "-", "-"]);
        assert_eq!(json["vmlinux"]["exits"]["difference"], -31);
        assert!(lines.iter().all(|line| line.len() == 5));
        assert!(extra(&rows[..1]).is_none());
    }
}
