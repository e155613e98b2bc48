//! Memory: the plan made before the start, and what it came to.

use fathom_kernels::human;

/// Bytes that fathom expects to hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Mapped weights: all of them, though the system keeps only what is used and fits.
    pub weights: u64,
    /// A session's state at the context's end, and what an engine keeps beside it for others to go on from.
    pub state: u64,
    /// One pass over the layers.
    pub scratch: u64,
    /// The program, the tokenizer, the prompt's text and tokens.
    pub program: u64,
}

impl Plan {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.state + self.scratch + self.program
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { weights, state, scratch, program } = *self;
        write!(
            f,
            "{} = weights {} + state {} + scratch {} + program {}",
            human(self.total()),
            human(weights),
            human(state),
            human(scratch),
            human(program)
        )
    }
}

/// The most memory this process has held at once, in bytes, where the system tells (Linux).
pub fn peak_rss() -> Option<u64> {
    status("VmHWM:")
}

/// The memory this process holds now, in bytes, where the system tells (Linux).
pub fn rss() -> Option<u64> {
    status("VmRSS:")
}

fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Counts the most memory held from here on, where the system can (Linux).
pub fn forget_peak() {
    // It is a number in a report: where it cannot be reset it is the larger one.
    if cfg!(target_os = "linux") {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
}
