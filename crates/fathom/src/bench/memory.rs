//! Memory over time: of a process, by part of the ledger, and the page cache.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fathom_kernels::{Ledger, Share};
use serde::Serialize;

use crate::plan::meminfo;

const FIRST_STEP: Duration = Duration::from_millis(100);
/// When there are so many points, every second one goes and the step doubles.
const MOST: usize = 1200;

/// What was held at a time, in bytes, as far as the system tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the watch began.
    pub seconds: f64,
    /// The process's resident memory: the two below, and what it shares.
    pub rss: Option<u64>,
    /// Of that, memory of its own.
    pub anonymous: Option<u64>,
    /// Of that, pages of mapped files: weights. The system may drop them.
    pub mapped: Option<u64>,
    /// The machine's page cache, whoever filled it.
    pub page_cache: Option<u64>,
    /// What the ledger holds: dense weights, experts, state, scratch; for fathom in this process.
    pub ledger: Option<[u64; 4]>,
}

/// Looks at a process's memory now and then, on a thread.
#[derive(Debug)]
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Point>>,
}

impl Watch {
    /// Of a process, or of this one, and a ledger where there is one.
    pub fn start(pid: Option<u32>, ledger: Option<Ledger>) -> Watch {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (start, mut step, mut points) = (Instant::now(), FIRST_STEP, Vec::new());
            loop {
                points.push(look(start.elapsed().as_secs_f64(), pid, ledger.as_ref()));
                if points.len() >= MOST {
                    points = points.into_iter().step_by(2).collect();
                    step *= 2;
                }
                if stopped.recv_timeout(step) != Err(RecvTimeoutError::Timeout) {
                    points.push(look(start.elapsed().as_secs_f64(), pid, ledger.as_ref()));
                    return points;
                }
            }
        });
        Watch { stop, thread }
    }

    /// What was seen.
    pub fn end(self) -> Vec<Point> {
        drop(self.stop);
        // It does nothing that panics.
        self.thread.join().unwrap_or_default()
    }
}

fn look(seconds: f64, pid: Option<u32>, ledger: Option<&Ledger>) -> Point {
    let path = pid.map_or_else(|| "/proc/self/status".to_owned(), |pid| format!("/proc/{pid}/status"));
    let status = fs::read_to_string(path).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    Point {
        seconds,
        rss: field("VmRSS"),
        anonymous: field("RssAnon"),
        mapped: field("RssFile"),
        page_cache: meminfo("Cached"),
        ledger: ledger.map(|ledger| Share::ALL.map(|share| ledger.holding(share).held)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn sees_what_is_held() {
        let ledger = Ledger::default();
        let watch = Watch::start(Some(std::process::id()), Some(ledger.clone()));
        let held = ledger.reserve(Share::State, 12345).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let points = watch.end();
        drop(held);
        assert!(points.len() >= 3, "{points:?}");
        let last = points.last().unwrap();
        assert_eq!(last.ledger, Some([0, 0, 12345, 0]));
        assert!(last.rss > Some(1 << 20) && last.anonymous <= last.rss && last.page_cache.is_some());
        assert!(points.is_sorted_by(|a, b| a.seconds <= b.seconds));
    }
}
