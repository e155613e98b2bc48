//! Progress of a prefill, or of something else that takes long: a bar on a terminal, a line now and then elsewhere.

use super::say;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{commas, duration};

/// Nothing is shown before this; most prompts are read by then.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(10);

/// Shows how a prompt is being read.
pub struct Progress {
    /// What is done, and to how many of what.
    what: &'static str,
    unit: &'static str,
    total: usize,
    start: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
    last_line: Instant,
    /// (tokens done, seconds) at every call.
    points: Vec<(usize, f64)>,
}

impl Progress {
    /// For a prompt of `total` tokens; a quiet one shows nothing.
    pub fn new(total: usize, quiet: bool) -> Self {
        Progress::of("reading", "tokens", total, quiet)
    }

    /// For `total` of some unit that something is done to.
    pub fn of(what: &'static str, unit: &'static str, total: usize, quiet: bool) -> Self {
        let now = Instant::now();
        Progress { what, unit, total, start: now, bar: None, quiet, last_line: now, points: vec![(0, 0.0)] }
    }

    /// `done` tokens have been read; `memory` is said beside it.
    pub fn update(&mut self, done: usize, memory: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        if done == 0 || self.points.last().is_some_and(|&(before, _)| done <= before) {
            self.points = vec![(done, seconds)];
            return;
        }
        self.points.push((done, seconds));
        if self.quiet || self.start.elapsed() < PATIENCE {
            return;
        }
        let message = self.message(memory);
        if std::io::stderr().is_terminal() {
            let total = self.total as u64;
            let bar = self.bar.get_or_insert_with(|| {
                let template = format!("{} {{wide_bar}} {{human_pos}}/{{human_len}} {}  {{msg}}", self.what, self.unit);
                let style = ProgressStyle::with_template(&template);
                let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
                bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            });
            bar.set_position(done as u64);
            bar.set_message(message);
        } else if self.last_line.elapsed() >= LINES {
            self.last_line = Instant::now();
            let (done, total) = (commas(done), commas(self.total));
            say!("{}: {done} of {total} {}, {message}", self.what, self.unit);
        }
    }

    /// Speed, time left and, where there is something to say, memory.
    fn message(&self, memory: &str) -> String {
        let comma = if memory.is_empty() { "" } else { ", " };
        format!("{}/s, {} left{comma}{memory}", commas(self.speed() as usize), duration(self.left()))
    }

    /// The bar goes away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Tokens a second over the last few seconds.
    fn speed(&self) -> f64 {
        let Some(&(done, now)) = self.points.last() else { return 0.0 };
        let from = self.points.partition_point(|&(_, t)| t < now - 3.0).min(self.points.len() - 2);
        let (before, then) = self.points[from];
        (done - before) as f64 / (now - then).max(1e-9)
    }

    /// Seconds that the rest will take. A token costs more the more stand before it: a straight line is fitted to the
    /// cost of the tokens so far, and summed over those to come.
    fn left(&self) -> f64 {
        let costs: Vec<(f64, f64)> = self
            .points
            .windows(2)
            .map(|w| {
                let tokens = (w[1].0 - w[0].0) as f64;
                ((w[1].0 + w[0].0) as f64 / 2.0, (w[1].1 - w[0].1) / tokens)
            })
            .collect();
        let n = costs.len() as f64;
        let (x, y) = costs.iter().fold((0.0, 0.0), |(a, b), &(x, y)| (a + x / n, b + y / n));
        let (top, bottom) =
            costs.iter().fold((0.0, 0.0), |(a, b), &(u, v)| (a + (u - x) * (v - y), b + (u - x) * (u - x)));
        let slope = if bottom > 0.0 { (top / bottom).max(0.0) } else { 0.0 };
        let done = self.points.last().map_or(0, |p| p.0) as f64;
        let middle = (done + self.total as f64) / 2.0;
        ((self.total as f64 - done) * (y + slope * (middle - x))).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_estimated_from_growing_costs() {
        let mut p = Progress::new(1000, true);
        // A token at position x costs 1 + x/100 seconds: the first 400 took 400 + 800, the rest takes 600 + 4,200.
        p.points = (0..=4).map(|i| (i * 100, (i * 100) as f64 + (i * 100 * i * 100) as f64 / 200.0)).collect();
        assert!((p.left() - 4800.0).abs() < 1.0, "{}", p.left());
        assert!(p.message("").ends_with(" left"), "{}", p.message(""));
        assert!(p.message("state 1 MB").ends_with(" left, state 1 MB"), "{}", p.message("state 1 MB"));
    }
}
