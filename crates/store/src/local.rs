//! What a local folder needs beyond `object_store`: modes, and the sweeping up of unfinished files.
//!
//! `object_store` writes a file under another name, syncs it, links or renames it and syncs the folder. It leaves modes
//! to the umask, and the unfinished file (`NAME#1`) of a writer that was killed where it is.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::local::LocalFileSystem;

use crate::Error;
use crate::files::Place;
use crate::store::MARKER;

/// How deep the files of a store lie.
const DEPTH: usize = 6;

fn access(action: &'static str, path: &Path, cause: io::Error) -> Error {
    Error::Access { action, place: path.display().to_string(), cause: Box::new(cause) }
}

/// Makes the folder if it is not there, for its owner only.
pub(crate) fn open(path: &Path) -> Result<Place, Error> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path).map_err(|e| access("make the folder", path, e))?;
    let path = fs::canonicalize(path).map_err(|e| access("open", path, e))?;
    check(&path)?;
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|e| Error::Access {
        action: "open",
        place: path.display().to_string(),
        cause: Box::new(e),
    })?;
    Ok(Place { store: Arc::new(store.clone().with_fsync(true)), quick: Arc::new(store), folder: Some(path) })
}

/// A folder with other things in it is somebody else's. An empty one or a store's is closed to others.
fn check(path: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(path).map_err(|e| access("list", path, e))? {
        let name = entry.map_err(|e| access("list", path, e))?.file_name();
        let name = name.to_string_lossy();
        // A disk's own folder, and the marker that another process is just writing.
        let neutral = name == "lost+found" || name.strip_prefix(MARKER).is_some_and(|rest| rest.starts_with('#'));
        // Asked for once the name was seen: whoever is making the store beside us writes its marker first.
        if !neutral && !path.join(MARKER).exists() {
            let problem = format!("holds {name:?} and is no store; give an empty or a new folder");
            return Err(Error::Location { place: path.display().to_string(), problem });
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).map_err(|e| access("open", path, e))?.permissions().mode();
        if mode & 0o077 != 0 {
            let closed = fs::set_permissions(path, fs::Permissions::from_mode(mode & !0o077));
            match closed {
                // A store that cannot be written can still be read.
                Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
                other => other.map_err(|e| access("close to others", path, e))?,
            }
        }
    }
    Ok(())
}

/// Makes a file its owner's only.
pub(crate) fn close(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let _ = path;
    Ok(())
}

/// The bytes of a file, or how many they are if that is more than `max`.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Result<Vec<u8>, u64>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > max {
        return Ok(Err(size));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    // It may have grown meanwhile.
    let size = bytes.len() as u64;
    Ok(if size > max { Err(size) } else { Ok(bytes) })
}

/// Deletes unfinished files older than `age`, and says how many bytes they had.
pub(crate) fn sweep(folder: &Path, age: Duration) -> Result<u64, Error> {
    let mut freed = 0;
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| access("list", &folder, e))? {
            let entry = entry.map_err(|e| access("list", &folder, e))?;
            let (Ok(kind), path) = (entry.file_type(), entry.path()) else { continue };
            if kind.is_dir() && depth < DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_file() && unfinished(&path) {
                let Ok(meta) = entry.metadata() else { continue };
                let idle = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                if idle.unwrap_or_default() >= age && fs::remove_file(&path).is_ok() {
                    freed += meta.len();
                }
            }
        }
    }
    Ok(freed)
}

fn unfinished(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('#').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_files_go_when_they_are_old() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        for name in ["x#1", "x#12", "x", "x#", "x#1a"] {
            fs::write(deep.join(name), b"abc").unwrap();
        }
        assert_eq!(sweep(folder.path(), Duration::from_secs(60)).unwrap(), 0);
        assert_eq!(sweep(folder.path(), Duration::ZERO).unwrap(), 6);
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_is_for_its_owner_and_for_a_store() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("some/new");
        open(&new).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        open(&new).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(new.join("fathom-store#1"), b"").unwrap();
        open(&new).unwrap();
        fs::write(new.join("fathom-store.txt"), b"").unwrap();
        assert!(open(&new).err().unwrap().to_string().contains("fathom-store.txt"));
        fs::remove_file(new.join("fathom-store.txt")).unwrap();
        fs::write(new.join("thesis.txt"), b"").unwrap();
        assert!(open(&new).err().unwrap().to_string().contains("thesis.txt"));
        assert!(open(&new.join("thesis.txt")).is_err());
    }
}
