//! What a guest prints of itself: `key=value` lines between two marks.

use std::collections::BTreeMap;

/// The facts of one guest run.
pub type Facts = BTreeMap<String, String>;

const BEGIN: &str = "guest-facts-begin";
const END: &str = "guest-facts-end";

/// The facts in a guest's console output; `None` when the block is not complete.
pub fn parse(console: &str) -> Option<Facts> {
    let (_, rest) = console.split_once(BEGIN)?;
    let (block, _) = rest.split_once(END)?;
    let line = |line: &str| {
        let (key, value) = line.trim_end_matches('\r').split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    Some(block.lines().filter_map(line).collect())
}

/// The keys whose values differ, each with both values, save `allowed`.
pub fn differences(a: &Facts, b: &Facts, allowed: &[&str]) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .filter(|key| !allowed.contains(&key.as_str()) && a.get(*key) != b.get(*key))
        .map(|key| format!("{key}: {:?} and {:?}", a.get(key), b.get(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_block_and_nothing_else() {
        let facts =
            parse("x=1\r\nguest-facts-begin\r\na=b=c\r\n[ 0.1] noise\nd=\r\nguest-facts-end")
                .unwrap();
        assert_eq!(facts.len(), 2);
        assert_eq!(facts["a"], "b=c");
        assert_eq!(facts["d"], "");
        assert_eq!(parse("guest-facts-begin\na=b\n"), None, "cut off");
    }

    #[test]
    fn differences_name_both_values() {
        let facts = |text: &str| parse(&format!("{BEGIN}\n{text}\n{END}")).unwrap();
        let (a, b) = (facts("x=1\ny=2\nz=3"), facts("x=1\ny=3"));
        assert_eq!(differences(&a, &b, &["z"]), [r#"y: Some("2") and Some("3")"#]);
    }
}
