//! Memory: how much, what limits it, how it is mapped.

use std::path::{Path, PathBuf};

use fathom_kernels::human;

use super::{Finding, number, says};

const GROUPS: &str = "/sys/fs/cgroup";
const PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Locked memory that registered buffers for reading experts take.
const LOCKED: u64 = 64 << 20;

/// What there is to say of memory. `weights` are the bytes of the model that is to run.
pub fn memory(weights: Option<u64>) -> Vec<Finding> {
    [Some(size(weights)), group(), swap(), huge_pages(), Some(locked())].into_iter().flatten().collect()
}

/// A number of `/proc/meminfo`, in bytes.
fn info(name: &str) -> Option<u64> {
    meminfo(&says("/proc/meminfo")?, name)
}

fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Bytes that this process may have: the machine's, or a control group's limit.
pub fn usable() -> Option<u64> {
    [info("MemTotal"), group_limit()].into_iter().flatten().min()
}

/// The least limit of the control groups that this process is in.
fn group_limit() -> Option<u64> {
    // Version 1 has a number that is larger than any memory where there is no limit.
    let old = || number(Path::new(GROUPS).join("memory/memory.limit_in_bytes")).filter(|n| *n < 1 << 60);
    groups().iter().filter_map(|folder| number(folder.join("memory.max"))).min().or_else(old)
}

fn size(weights: Option<u64>) -> Finding {
    let Some(total) = info("MemTotal") else { return Finding::good("memory", "unknown") };
    let available = info("MemAvailable").unwrap_or(total);
    let found = format!("{}, {} available", human(total), human(available));
    match weights {
        Some(weights) if usable().is_some_and(|usable| usable < weights) => Finding::advice(
            "memory",
            found,
            format!("the weights are {}: what does not fit is read from the drive again and again", human(weights)),
            "a machine with more memory, or a faster drive",
        ),
        _ => Finding::good("memory", found),
    }
}

/// The folders of this process's control group and of those above it (version 2).
pub(super) fn groups() -> Vec<PathBuf> {
    let text = says("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
    let folder = Path::new(GROUPS).join(path.trim_start_matches('/'));
    // Seen from inside a container, the path may be the host's.
    let folder = if folder.is_dir() { folder } else { PathBuf::from(GROUPS) };
    folder.ancestors().take_while(|folder| folder.starts_with(GROUPS)).map(Path::to_owned).collect()
}

fn group() -> Option<Finding> {
    let total = info("MemTotal")?;
    Some(match group_limit().filter(|limit| *limit < total) {
        Some(limit) => Finding::advice(
            "memory limit",
            format!("{} of {} (control group)", human(limit), human(total)),
            "the page cache counts too: weights beyond it are read again and again; what is more than the limit ends the program",
            "raise it (docker: --memory; Kubernetes: resources.limits.memory; systemd: MemoryMax=)",
        ),
        None => Finding::good("memory limit", "none"),
    })
}

fn swap() -> Option<Finding> {
    let (total, free) = (info("SwapTotal")?, info("SwapFree")?);
    let used = total.saturating_sub(free);
    (used > 1 << 30).then(|| {
        Finding::advice(
            "swap",
            format!("{} of {} in use", human(used), human(total)),
            "sessions that are swapped out come back slowly",
            "end what else takes memory; sudo sysctl vm.swappiness=10",
        )
    })
}

/// The choice in brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(chosen, _)| chosen)
}

fn huge_pages() -> Option<Finding> {
    let text = says(PAGES)?;
    Some(match chosen(&text)? {
        "never" => Finding::advice(
            "huge pages",
            "never",
            "sessions and scratch lie in 4 KiB pages: a few per cent of the speed",
            format!("echo madvise | sudo tee {PAGES}"),
        ),
        other => Finding::good("huge pages", other),
    })
}

fn locked() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match limit {
        Some(bytes) if bytes < LOCKED => Finding::advice(
            "locked memory",
            format!("{} at most", human(bytes)),
            "buffers for direct reads cannot be registered with the system: some per cent more work for each read",
            "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1)",
        ),
        Some(bytes) => Finding::good("locked memory", format!("{} at most", human(bytes))),
        None => Finding::good("locked memory", "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    1 kB\nSwapTotal: x kB\n";
        assert_eq!((meminfo(text, "MemTotal"), meminfo(text, "Mem")), (Some(16 << 20), None));
        assert_eq!(meminfo(text, "SwapTotal"), None);
        assert_eq!((chosen("always [madvise] never"), chosen("none")), (Some("madvise"), None));
        assert!(groups().iter().all(|folder| folder.starts_with(GROUPS)));
    }
}
