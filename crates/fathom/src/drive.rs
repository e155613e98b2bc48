//! What a folder's drive has room for.

use std::io;
use std::path::{Path, PathBuf};

/// Bytes that this user may still write below `path`, which need not be there yet.
///
/// # Errors
/// What the system says.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let room = rustix::fs::statvfs(&existing(path)?)?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// The path, or the nearest folder above it that is there.
///
/// # Errors
/// What the system says of the current folder.
pub fn existing(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let found = path.ancestors().find(|folder| folder.exists());
    Ok(found.unwrap_or(Path::new("/")).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_to_be_have_their_parents_room() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        assert_eq!(existing(&deep).unwrap(), folder.path());
        assert!(free_bytes(&deep).unwrap() > 0);
    }
}
