//! Progress of bytes that are written or fetched: a bar on a terminal, a line now and then elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use fathom_kernels::human;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{duration, say};

/// How often a line is written where there is no terminal, and a bar moves where there is one.
const LINES: Duration = Duration::from_secs(10);
const STEPS: Duration = Duration::from_millis(200);
/// The speed is that over this long.
const WINDOW: f64 = 15.0;

/// Shows how far bytes have come.
pub struct Transfer {
    what: &'static str,
    start: Instant,
    shown: Option<Instant>,
    bar: Option<ProgressBar>,
    terminal: bool,
    quiet: bool,
    /// (seconds, bytes), the last few.
    points: VecDeque<(f64, u64)>,
}

impl Transfer {
    /// `what` is being done; a quiet one shows nothing.
    pub fn new(what: &'static str, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Transfer { what, start: Instant::now(), shown: None, bar: None, terminal, quiet, points: VecDeque::new() }
    }

    /// `done` of `total` bytes are there. Those of the first call cost no time.
    pub fn update(&mut self, done: u64, total: u64) {
        let every = if self.terminal { STEPS } else { LINES };
        if self.quiet || self.shown.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        let first = self.shown.is_none();
        self.shown = Some(Instant::now());
        self.point(self.start.elapsed().as_secs_f64(), done);
        if first {
            return;
        }
        let message = self.message(done, total);
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template(&format!("{} {{wide_bar}} {{msg}}", self.what));
                let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
                bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            });
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(message);
        } else {
            say!("{}: {message}", self.what);
        }
    }

    fn point(&mut self, seconds: f64, done: u64) {
        // What turned out wrong is fetched again.
        if self.points.back().is_some_and(|&(_, before)| done < before) {
            self.points.clear();
        }
        self.points.push_back((seconds, done));
        while self.points.len() > 2 && self.points[1].0 < seconds - WINDOW {
            self.points.pop_front();
        }
    }

    fn message(&self, done: u64, total: u64) -> String {
        let (Some(&(t0, d0)), Some(&(t1, d1))) = (self.points.front(), self.points.back()) else {
            return String::new();
        };
        let speed = (d1 - d0) as f64 / (t1 - t0).max(1e-9);
        let left = if speed > 0.0 { duration(total.saturating_sub(done) as f64 / speed) } else { "?".to_owned() };
        format!("{} of {}, {}/s, {left} left", human(done), human(total), human(speed as u64))
    }

    /// The bar goes away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_that_of_the_last_seconds() {
        let mut t = Transfer::new("writing", true);
        t.point(0.0, 5 << 30);
        t.point(10.0, 6 << 30);
        assert_eq!(t.message(6 << 30, 10 << 30), "6.00 GiB of 10.00 GiB, 102.40 MiB/s, 40.0 s left");
        t.point(100.0, 6 << 30);
        t.point(110.0, 6 << 30);
        assert!(t.message(6 << 30, 10 << 30).ends_with("? left"), "{}", t.message(6 << 30, 10 << 30));
        // Started over.
        t.point(111.0, 0);
        t.point(112.0, 1 << 30);
        assert!(t.message(1 << 30, 10 << 30).ends_with("9.00 s left"), "{}", t.message(1 << 30, 10 << 30));
    }
}
