//! The comparison as a page of its own: no script, nothing from elsewhere.

use std::fmt::Write;

use super::observe::Observed;
use super::report::{Extra, Report};
use super::table;

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Starting one Linux</title><style>
body { font: 15px system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } pre { white-space: pre-wrap; font-size: 12px; }
svg { width: 100%; height: auto; } .a { fill: #d95f02; } .b { fill: #7570b3; } .c { fill: #1b9e77; }
.d { fill: #bbb; } text { font: 12px system-ui, sans-serif; }
</style></head><body><h1>Starting one Linux, every way</h1>
";
/// The parts of a bar: class, and what it is.
const PARTS: [(&str, &str); 4] = [
    ("a", "VMM, to the guest's first instruction"),
    ("b", "firmware, to the kernel's entry or first exit"),
    ("c", "kernel, to init's first byte"),
    ("d", "to the end of the process"),
];
/// Pixels: a bar's height with its gap, where bars begin, how long the longest is.
const ROW: u64 = 24;
const LEFT: u64 = 270;
const LENGTH: u64 = 600;

/// The page.
pub fn render(report: &Report) -> String {
    let mut page = HEAD.to_owned();
    page += "<p>Each bar is one start, from exec to the end of the process. ";
    page += "<code>cargo xtask compare</code> repeats it, figures and all.</p>\n";
    page += &plot(&report.rows);
    for columns in [&table::COLUMNS[..], &table::COUNTS] {
        page += &figures(&table::cells(columns, &report.rows));
    }
    for Extra { title, lines, .. } in &report.extras {
        let _ = writeln!(page, "<h2>{}</h2>", escape(title));
        page += &figures(lines);
    }
    page += "<h2>Conditions</h2>\n<table>\n";
    for (name, value) in &report.conditions {
        let _ = writeln!(page, "<tr><td>{name}</td><td>{}</td></tr>", escape(value));
    }
    page += "</table>\n";
    let _ = writeln!(page, "<p>{}</p>", escape(report.notes.trim()));
    page += "<h2>Commands</h2>\n<pre>";
    for command in &report.commands {
        let _ = writeln!(page, "{}", escape(command));
    }
    page + "</pre></body></html>\n"
}

/// The moments of a start, in order; what is not known is when the one before was.
fn moments(row: &Observed) -> [u64; 4] {
    let mut last = 0;
    [row.first_run, row.kernel, row.init, row.end].map(|moment| {
        last = moment.unwrap_or(last).max(last);
        last
    })
}

fn plot(rows: &[Observed]) -> String {
    let longest = rows.iter().map(|row| moments(row)[3]).max().unwrap_or(0).max(1);
    let height = ROW * (rows.len() as u64 + PARTS.len() as u64 + 1);
    let mut svg = format!("<svg viewBox=\"0 0 {} {height}\">\n", LEFT + LENGTH + 60);
    let mut y = 0;
    for row in rows {
        let _ = writeln!(svg, "<text x=\"0\" y=\"{}\">{}</text>", y + 14, escape(&row.name));
        let mut from = 0;
        for (moment, (class, _)) in moments(row).into_iter().zip(PARTS) {
            let [x, to] = [from, moment].map(|ns| LEFT + ns * LENGTH / longest);
            let width = to - x;
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"18\"/>"
            );
            from = moment;
        }
        let x = LEFT + from * LENGTH / longest + 6;
        let init = table::milliseconds(row.init);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\">{init}</text>", y + 14);
        y += ROW;
    }
    y += ROW / 2;
    for (class, what) in PARTS {
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"18\" height=\"18\"/>\
             <text x=\"{}\" y=\"{}\">{what}</text>",
            LEFT + 26,
            y + 14
        );
        y += ROW;
    }
    svg + "</svg>\n<p>Beside each bar: milliseconds to init, of the clock below.</p>\n"
}

/// A table, its first line the heading.
fn figures(lines: &[Vec<String>]) -> String {
    let mut html = "<table>\n".to_owned();
    for (index, line) in lines.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        let cells = line.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        let _ = writeln!(html, "<tr>{}</tr>", cells.collect::<String>());
    }
    html + "</table>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_what_they_show() {
        let row = |name: &str, end| Observed {
            name: name.into(),
            first_run: Some(end / 4),
            end: Some(end),
            ..Observed::default()
        };
        let svg = plot(&[row("a<b", 1000), row("c", 500)]);
        let bar = |class: &str, width: u64| {
            format!("class=\"{class}\" x=\"{LEFT}\" y=\"0\" width=\"{width}\"")
        };
        assert!(svg.contains(&bar("a", LENGTH / 4)), "{svg}");
        assert!(svg.contains("a&lt;b"));
        let rest = format!("x=\"{}\" y=\"{ROW}\" width=\"{}\"", LEFT + LENGTH / 8, LENGTH * 3 / 8);
        assert!(svg.contains(&rest), "{svg}");
    }

    #[test]
    fn a_table_has_a_heading_and_no_tags_of_its_cells() {
        let lines = [vec!["a".to_owned(), "b".to_owned()], vec!["<x>".to_owned(), "1".to_owned()]];
        let html = figures(&lines);
        assert!(html.contains("<tr><th>a</th><th>b</th></tr>"), "{html}");
        assert!(html.contains("<tr><td>&lt;x&gt;</td><td>1</td></tr>"), "{html}");
    }
}
