//! Which file system and which drive a folder is on.

use std::path::{Path, PathBuf};

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub at: PathBuf,
    /// Such as ext4.
    pub kind: String,
    /// `major:minor`.
    pub device: String,
}

/// The mount that a path is on, of what `/proc/self/mountinfo` says.
pub(super) fn mount(text: &str, path: &Path) -> Option<Mount> {
    // A later one hides an earlier one at the same place.
    let all = text.lines().filter_map(parse).filter(|mount| path.starts_with(&mount.at));
    all.fold(None, |best: Option<Mount>, mount| match best {
        Some(best) if best.at.as_os_str().len() > mount.at.as_os_str().len() => Some(best),
        _ => Some(mount),
    })
}

/// A line: `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`.
fn parse(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut fields = head.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let at = fields.nth(1)?.replace("\\040", " ");
    Some(Mount { at: at.into(), kind: tail.split(' ').next()?.to_owned(), device })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_that_holds_the_path() {
        let text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    2 1 8:2 / /data rw,noatime master:1 - xfs /dev/sdb rw\n\
                    3 1 0:5 / /my\\040data rw - nfs4 host:/x rw\nnonsense\n4 5\n";
        let kind = |path: &str| mount(text, Path::new(path)).unwrap().kind;
        assert_eq!(
            (kind("/data/x"), kind("/database"), kind("/my data/x")),
            ("xfs".into(), "ext4".into(), "nfs4".into())
        );
        assert_eq!(mount(text, Path::new("/data")).unwrap().device, "8:2");
        assert_eq!(mount("", Path::new("/")), None);
    }
}
