//! A cache of manifests in one file, so that opening a large store reads one file instead of thousands.
//!
//! It holds manifests' files as they are, packed and encrypted, and they are verified like these: a wrong cache costs
//! time, nothing else. If another process has it, or if it is damaged, there is none.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, TableDefinition};

use crate::local;
use crate::store::lock;

const TABLE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("manifests");

/// Manifests' files by their paths.
pub(crate) struct Cache(Mutex<Option<Database>>);

impl Cache {
    pub(crate) fn open(path: Option<&Path>) -> Cache {
        Cache(Mutex::new(path.and_then(open)))
    }

    /// Runs something on the database. One that fails is not asked again; redb may panic over a damaged file.
    fn with<T>(&self, run: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Option<T> {
        let mut guard = lock(&self.0);
        let database = guard.as_ref()?;
        match catch_unwind(AssertUnwindSafe(|| run(database))) {
            Ok(Ok(value)) => Some(value),
            _ => {
                let broken = guard.take();
                let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
                None
            }
        }
    }

    /// The files of those paths that it has.
    pub(crate) fn get(&self, paths: &[String]) -> Vec<Option<Bytes>> {
        let found = self.with(|database| {
            let read = database.begin_read()?;
            let table = match read.open_table(TABLE) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                other => other?,
            };
            let mut all = Vec::with_capacity(paths.len());
            for path in paths {
                all.push(table.get(path.as_str())?.map(|file| Bytes::copy_from_slice(file.value())));
            }
            Ok(all)
        });
        let mut found = found.unwrap_or_default();
        found.resize(paths.len(), None);
        found
    }

    /// Adds files, and drops those of other paths.
    pub(crate) fn update(&self, add: &[(String, Bytes)], drop: &[String]) {
        if add.is_empty() && drop.is_empty() {
            return;
        }
        self.with(|database| {
            let write = database.begin_write()?;
            {
                let mut table = write.open_table(TABLE)?;
                for (path, file) in add {
                    table.insert(path.as_str(), file.as_ref())?;
                }
                for path in drop {
                    table.remove(path.as_str())?;
                }
            }
            write.commit()?;
            Ok(())
        });
    }
}

fn open(path: &Path) -> Option<Database> {
    let create = || catch_unwind(|| Database::create(path)).ok();
    let database = match create()? {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => return None,
        Err(DatabaseError::Storage(redb::StorageError::Io(_))) if File::options().write(true).open(path).is_err() => {
            return None;
        }
        // Damaged, or of another version: made anew.
        Err(_) => {
            fs::remove_file(path).ok()?;
            create()?.ok()?
        }
    };
    let _ = local::close(path);
    Some(database)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &'static str) -> (String, Bytes) {
        (text.to_owned(), Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn kept_locked_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.redb");
        let cache = Cache::open(Some(&path));
        assert_eq!(cache.get(&["a".into()]), [None]);
        cache.update(&[file("a"), file("b")], &[]);
        cache.update(&[], &["b".into()]);
        let other = Cache::open(Some(&path));
        other.update(&[file("c")], &[]);
        assert_eq!(other.get(&["a".into()]), [None]);
        drop((cache, other));
        let cache = Cache::open(Some(&path));
        assert_eq!(cache.get(&["b".into(), "a".into(), "c".into()]), [None, Some(file("a").1), None]);
        drop(cache);
        fs::remove_file(&path).unwrap();
        assert_eq!(Cache::open(Some(&path)).get(&["a".into()]), [None]);
    }

    #[test]
    fn damaged_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.redb");
        let cache = Cache::open(Some(&path));
        cache.update(&[file("a"), file("b")], &[]);
        drop(cache);
        let whole = fs::read(&path).unwrap();
        for (start, length) in [(0, 64), (0, 4096), (64, 64), (128, 128), (4096, 4096), (8192, 200_000)] {
            let mut wrong = whole.clone();
            let end = (start + length).min(wrong.len());
            if start < end {
                wrong[start..end].fill(0xa5);
            }
            fs::write(&path, &wrong).unwrap();
            let cache = Cache::open(Some(&path));
            let _ = cache.get(&["a".into(), "b".into()]);
            cache.update(&[file("c")], &[]);
        }
        for length in [0, 10, 5000] {
            fs::write(&path, &whole[..length]).unwrap();
            let cache = Cache::open(Some(&path));
            cache.update(&[file("c")], &[]);
        }
        // A folder where the file should be.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        Cache::open(Some(&path)).update(&[file("c")], &[]);
    }
}
