//! How much memory the machine, and the control groups that we are in, have and have free.

use std::fs;
use std::path::{Path, PathBuf};

/// What is left to others: a tenth, and this at least.
const MARGIN: u64 = 512 << 20;

/// Bytes that the machine and its control groups have free, less a margin; none where the system does not tell.
pub fn free_memory() -> Option<u64> {
    let free = meminfo("MemAvailable")?;
    let free = own_groups().iter().filter_map(|group| group_free(group)).fold(free, u64::min);
    Some(free - (free / 10).max(MARGIN).min(free))
}

/// A number of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(name: &str) -> Option<u64> {
    in_meminfo(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn in_meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The folders of the control groups that this process is in, and of those around them. In a container the path may be the
/// host's: then only the root's is there.
pub(crate) fn own_groups() -> Vec<PathBuf> {
    groups(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default()).collect()
}

/// The most that a control group may have.
pub(crate) fn group_limit(folder: &Path) -> Option<u64> {
    // Version 1 has a number that is larger than any memory where there is no limit.
    let limit = number(folder, "memory.max").or_else(|| number(folder, "memory.limit_in_bytes"));
    limit.filter(|limit| *limit < 1 << 60)
}

fn number(folder: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

/// The folders of the control groups that `/proc/self/cgroup` names, of either version, and of those around them.
fn groups(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    text.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (kind, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let root = match kind {
            "" => Some("/sys/fs/cgroup"),
            kind if kind.split(',').any(|name| name == "memory") => Some("/sys/fs/cgroup/memory"),
            _ => None,
        };
        let around = Path::new(path).ancestors().map(|path| path.strip_prefix("/").unwrap_or(path));
        let all: Vec<PathBuf> =
            root.into_iter().flat_map(|root| around.clone().map(|p| Path::new(root).join(p))).collect();
        all
    })
}

/// What a control group may take more than it has; files that are only cached do not count.
fn group_free(folder: &Path) -> Option<u64> {
    let limit = group_limit(folder)?;
    let used = number(folder, "memory.current").or_else(|| number(folder, "memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let cached = cached("total_inactive_file ").or_else(|| cached("inactive_file ")).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_machine() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    1 kB\nSwapTotal: x kB\n";
        assert_eq!((in_meminfo(text, "MemTotal"), in_meminfo(text, "Mem")), (Some(16 << 20), None));
        assert_eq!(in_meminfo(text, "SwapTotal"), None);
        assert!(own_groups().iter().all(|folder| folder.starts_with("/sys/fs/cgroup")));
    }

    #[test]
    fn groups_of_both_versions() {
        let text = "9:name=systemd:/\n4:memory:/a/b\n0::/user.slice/c\n";
        let folders: Vec<PathBuf> = groups(text).collect();
        assert_eq!(
            folders,
            ["memory/a/b", "memory/a", "memory/", "user.slice/c", "user.slice", ""]
                .map(|path| Path::new("/sys/fs/cgroup").join(path))
        );
    }

    #[test]
    fn a_limit_less_what_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(group_free(folder.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(group_free(folder.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(group_free(folder.path()), Some(300));
        write("memory.stat", "active_file 9\ninactive_file 200\n");
        assert_eq!(group_free(folder.path()), Some(500));
        assert!(free_memory().is_none_or(|free| free < 1 << 50));
    }
}
