//! What a guest prints of itself: `key=value` lines between two marks.

use std::collections::BTreeMap;

pub use guest::facts::parse;

/// The facts of one guest run.
pub type Facts = BTreeMap<String, String>;

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
    fn differences_name_both_values() {
        let facts =
            |text: &str| parse(&format!("guest-facts-begin\n{text}\nguest-facts-end")).unwrap();
        let (a, b) = (facts("x=1\ny=2\nz=3"), facts("x=1\ny=3"));
        assert_eq!(differences(&a, &b, &["z"]), [r#"y: Some("2") and Some("3")"#]);
    }
}
