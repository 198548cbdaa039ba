//! What measured times tell: their median, how sure it is, and whether it drifts.

/// How unsure an interval may be: one in twenty is wrong.
const UNSURE: f64 = 0.05;

/// What is known of one figure by many runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The median.
    pub median: u64,
    /// Where the median of all possible runs is, at 95 % confidence; six runs are the least that
    /// say so much. Nothing is assumed of how runs are distributed: the bounds are two of them,
    /// counted off by the binomial distribution.
    pub interval: Option<[u64; 2]>,
    /// The medians of the first half of the runs and of the second.
    pub halves: [u64; 2],
}

impl Summary {
    /// Summarizes runs in the order in which they were; nothing for none.
    pub fn of(runs: &[u64]) -> Option<Self> {
        let (first, second) = runs.split_at(runs.len().div_ceil(2));
        let second = if second.is_empty() { first } else { second };
        let halves = [median(&sorted(first))?, median(&sorted(second))?];
        let sorted = sorted(runs);
        Some(Self { median: median(&sorted)?, interval: interval(&sorted), halves })
    }

    /// By how much the second half is above the first, in tenths of a per cent.
    pub fn drift(&self) -> i64 {
        let [first, second] = self.halves.map(u64::cast_signed);
        (second - first) * 1000 / first.max(1)
    }
}

fn sorted(runs: &[u64]) -> Vec<u64> {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable();
    sorted
}

fn median(sorted: &[u64]) -> Option<u64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        0 => Some(sorted.get(sorted.len() / 2 - 1)?.midpoint(upper)),
        _ => Some(upper),
    }
}

fn interval(sorted: &[u64]) -> Option<[u64; 2]> {
    let rank = rank(u32::try_from(sorted.len()).ok()?)?;
    Some([*sorted.get(rank - 1)?, *sorted.get(sorted.len() - rank)?])
}

/// The largest rank, from 1 up, so that fewer of `runs` than that are below the true median in no
/// more cases than either bound may be wrong in. (Each run is below it with a chance of one half.)
fn rank(runs: u32) -> Option<usize> {
    let mut chance = 0.5_f64.powi(i32::try_from(runs).ok()?);
    let mut below = 0.0;
    let mut rank = 0;
    for fewer in 0..runs {
        below += chance;
        if 2.0 * below > UNSURE {
            break;
        }
        rank += 1;
        chance *= f64::from(runs - fewer) / f64::from(fewer + 1);
    }
    (rank > 0).then_some(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_binomial_distribution() {
        // Of 6 runs all are on one side in 2 of 64 cases, of 5 in 2 of 32.
        for (runs, expected) in
            [(0, None), (5, None), (6, Some(1)), (9, Some(2)), (20, Some(6)), (30, Some(10))]
        {
            assert_eq!(rank(runs), expected, "{runs}");
        }
        assert_eq!(rank(1000), Some(469));
    }

    #[test]
    fn runs_have_a_median_an_interval_and_halves() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary { median: 7, interval: None, halves: [7, 7] };
        assert_eq!(Summary::of(&[7]), Some(one));
        let summary = Summary::of(&[9, 1, 5, 30, 40, 20]).unwrap();
        assert_eq!(summary.median, (9 + 20) / 2);
        assert_eq!(summary.interval, Some([1, 40]));
        assert_eq!(summary.halves, [5, 30]);
        assert_eq!(summary.drift(), 5000);
        let steady = Summary::of(&[1000, 1001, 999, 1000, 1000, 1002, 1000, 995, 1000]).unwrap();
        assert_eq!(steady.interval, Some([999, 1001]));
        assert_eq!(steady.drift(), 0);
    }
}
