//! Memory: how much, what limits it, how it is mapped.

use fathom_kernels::human;

use super::{Finding, says};
use crate::plan::{group_limit, meminfo, own_groups};

const PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Locked memory that registered buffers for reading experts take.
const LOCKED: u64 = 64 << 20;

/// What there is to say of memory. `weights` are the bytes of the model that is to run.
pub fn memory(weights: Option<u64>) -> Vec<Finding> {
    [Some(size(weights)), group(), swap(), huge_pages(), Some(locked())].into_iter().flatten().collect()
}

/// Bytes that this process may have: the machine's, or a control group's limit.
pub fn usable() -> Option<u64> {
    [meminfo("MemTotal"), least_limit()].into_iter().flatten().min()
}

/// The least limit of the control groups that this process is in.
fn least_limit() -> Option<u64> {
    own_groups().iter().filter_map(|folder| group_limit(folder)).min()
}

fn size(weights: Option<u64>) -> Finding {
    let Some(total) = meminfo("MemTotal") else { return Finding::good("memory", "unknown") };
    let available = meminfo("MemAvailable").unwrap_or(total);
    let found = format!("{}, {} available", human(total), human(available));
    match weights {
        Some(weights) if usable().is_some_and(|usable| usable < weights) => Finding::advice(
            "memory",
            found,
            format!(
                "the weights are {}: experts that do not fit are read from the drive as they are needed",
                human(weights)
            ),
            "a machine with more memory, or a faster drive",
        ),
        _ => Finding::good("memory", found),
    }
}

fn group() -> Option<Finding> {
    let total = meminfo("MemTotal")?;
    Some(match least_limit().filter(|limit| *limit < total) {
        Some(limit) => Finding::advice(
            "memory limit",
            format!("{} of {} (control group)", human(limit), human(total)),
            "experts beyond it are read from the drive as they are needed; a program that holds more is ended",
            "raise it (docker: --memory; Kubernetes: resources.limits.memory; systemd: MemoryMax=)",
        ),
        None => Finding::good("memory limit", "none"),
    })
}

fn swap() -> Option<Finding> {
    let (total, free) = (meminfo("SwapTotal")?, meminfo("SwapFree")?);
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
        assert_eq!((chosen("always [madvise] never"), chosen("none")), (Some("madvise"), None));
    }
}
