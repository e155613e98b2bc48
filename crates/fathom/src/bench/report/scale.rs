//! Axes: which numbers stand on them, and how they are written.

/// How a number stands on an axis.
pub type Format = fn(f64) -> String;

/// An axis.
#[derive(Clone, Copy)]
pub struct Axis {
    /// What it is, with its unit.
    pub label: &'static str,
    /// Whether equal steps are equal factors.
    pub log: bool,
    /// How its numbers are written.
    pub format: Format,
    /// The steps between numbers are powers of two, as lengths of contexts are.
    pub binary: bool,
}

/// A number in a few digits: `0.012`, `3.4`, `1,234`.
pub fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 1e6 => format!("{} M", trimmed(value / 1e6)),
        v if v >= 100.0 => crate::ui::commas(value.abs().round() as usize),
        _ => trimmed(value),
    }
}

/// Two or three digits, without zeros at the end.
fn trimmed(value: f64) -> String {
    let digits = (1 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.to_owned()
}

/// Tokens: `512`, `2 k`, `1 M`, where a k is 1,024.
pub fn tokens(value: f64) -> String {
    match value {
        v if v >= 1_048_576.0 => format!("{} M", trimmed(v / 1_048_576.0)),
        v if v >= 1024.0 => format!("{} k", trimmed(v / 1024.0)),
        v => plain(v),
    }
}

/// Mebibytes.
pub fn mebibytes(value: f64) -> String {
    plain(value / f64::from(1 << 20))
}

/// A scale from values to places.
pub struct Scale {
    /// The least value, and the greatest.
    pub low: f64,
    pub high: f64,
    /// Whether equal steps are equal factors.
    pub log: bool,
    /// Where the two stand.
    pub from: f64,
    pub to: f64,
}

impl Scale {
    /// Where a value stands.
    pub fn at(&self, value: f64) -> f64 {
        let f = |v: f64| if self.log { v.max(1e-12).ln() } else { v };
        let share = (f(value) - f(self.low)) / (f(self.high) - f(self.low)).max(1e-12);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }
}

/// Round numbers from about `low` to `high`; the first and the last hold all values.
pub fn ticks(low: f64, high: f64, axis: &Axis) -> Vec<f64> {
    if axis.log {
        return log_ticks(low.max(1e-9), high.max(1e-9), axis.binary);
    }
    let unit = if axis.binary { 1_048_576.0 } else { 1.0 };
    let step = nice((high - low).max(1e-9) / unit / 5.0) * unit;
    let first = (low / step).floor();
    let last = (high / step).ceil().max(first + 1.0);
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect()
}

fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let share = step / power;
    power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|&n| share <= n * 1.0001).unwrap_or(10.0)
}

fn log_ticks(low: f64, high: f64, binary: bool) -> Vec<f64> {
    let base: f64 = if binary { 2.0 } else { 10.0 };
    let first = (low.ln() / base.ln() + 1e-9).floor() as i32;
    let last = ((high.ln() / base.ln() - 1e-9).ceil() as i32).max(first + 1);
    let step = ((last - first) as usize).div_ceil(7).max(1);
    let decades: Vec<f64> = (first..=last).map(|power| base.powi(power)).collect();
    if binary {
        // From the end on, so that the longest is named.
        let mut kept: Vec<f64> = decades.into_iter().rev().step_by(step).collect();
        kept.reverse();
        return kept;
    }
    if decades.len() > 3 {
        return decades;
    }
    let all = decades.iter().flat_map(|&d| [d, 2.0 * d, 5.0 * d]);
    let all: Vec<f64> = all.collect();
    let from = all.iter().rposition(|&t| t <= low * 1.000001).unwrap_or(0);
    let to = all.iter().position(|&t| t >= high * 0.999999).unwrap_or(all.len() - 1).max(from + 1);
    all[from..=to.min(all.len() - 1)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(log: bool, binary: bool) -> Axis {
        Axis { label: "x", log, format: plain, binary }
    }

    #[test]
    fn ticks_are_round_and_hold_all() {
        assert_eq!(ticks(0.0, 97.0, &axis(false, false)), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(2048.0, 1_048_000.0, &axis(true, true)).last(), Some(&1_048_576.0));
        assert_eq!(ticks(0.3, 7.0, &axis(true, false)), [0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!(ticks(0.01, 500.0, &axis(true, false)), [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]);
        for (low, high) in [(5.0, 5.0), (0.0, 0.0), (1.0, 2.0), (3e-7, 3e-7), (2048.0, 2048.0)] {
            for axis in [axis(false, false), axis(true, false), axis(true, true), axis(false, true)] {
                let ticks = ticks(low, high, &axis);
                assert!(ticks.len() >= 2 && ticks.len() < 20 && ticks.is_sorted(), "{low} {high}: {ticks:?}");
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (0.01234, "0.012"),
            (3.456, "3.5"),
            (12.3, "12"),
            (100.0, "100"),
            (1234.5, "1,235"),
            (20.0, "20"),
        ] {
            assert_eq!(plain(value), expected);
        }
        assert_eq!([tokens(2048.0), tokens(1_048_576.0), tokens(100.0)], ["2 k", "1 M", "100"]);
    }
}
