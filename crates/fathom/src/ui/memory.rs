//! Memory that the process holds and has held.

/// The most memory this process has held at once, in bytes, where the system tells (Linux).
pub fn peak_rss() -> Option<u64> {
    status("VmHWM:")
}

/// The memory this process holds now, in bytes, where the system tells (Linux).
pub fn rss() -> Option<u64> {
    status("VmRSS:")
}

/// Memory of this process that is no file's, where the system tells: what was allocated, without mapped weights.
pub fn anonymous_rss() -> Option<u64> {
    status("RssAnon:")
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
