//! Medians and tails.

use serde::Serialize;

/// The value that a share `q` of the sorted values does not exceed (nearest rank); none of none.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// The middle value, or the mean of the two in the middle; none of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
}

/// A middle and a tail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many values there were.
    pub count: usize,
    /// Half do not exceed it.
    pub p50: Option<f64>,
    /// 95 of 100 do not exceed it.
    pub p95: Option<f64>,
    /// 99 of 100 do not exceed it.
    pub p99: Option<f64>,
    /// The greatest.
    pub max: Option<f64>,
}

impl Quantiles {
    /// Of values in any order.
    pub fn of(mut values: Vec<f64>) -> Quantiles {
        values.sort_by(f64::total_cmp);
        let at = |q| quantile(&values, q);
        Quantiles { count: values.len(), p50: at(0.5), p95: at(0.95), p99: at(0.99), max: values.last().copied() }
    }
}

/// A median and what lies around it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of values, if there are any.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let min = values.iter().copied().fold(f64::INFINITY, f64::min);
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        median(values).map(|median| Spread { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let q = Quantiles::of(hundred);
        assert_eq!((q.p50, q.p95, q.p99, q.max), (Some(50.0), Some(95.0), Some(99.0), Some(100.0)));
        let one = Quantiles::of(vec![7.0]);
        assert_eq!((one.p50, one.p99, one.max), (Some(7.0), Some(7.0), Some(7.0)));
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(&[]), None);
    }
}
