//! Faults for tests: disks that are full, read-only or unreadable.

use std::io;
use std::sync::Mutex;

type Rule = Box<dyn FnMut(&str, &str) -> Option<io::Error> + Send>;

/// What fails, and how.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Option<Rule>>);

impl Faults {
    /// From now on asks `rule` before every action on a path.
    pub(crate) fn set(&self, rule: impl FnMut(&str, &str) -> Option<io::Error> + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(rule));
    }

    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap() = None;
    }

    pub(crate) fn check(&self, action: &str, path: &str) -> Result<(), io::Error> {
        match self.0.lock().unwrap().as_mut().and_then(|rule| rule(action, path)) {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }
}

mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::store::lock;
    use crate::{Error, Namespace, NewSnapshot, Options, Saved, Store, Subject};

    const FULL: i32 = 28;

    fn new_folder() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    fn subject() -> Subject {
        Subject { model: [1; 32], profile: "p".into(), page: 2 }
    }

    fn open(folder: &tempfile::TempDir) -> (Store, Namespace) {
        let options =
            Options { refresh: Duration::ZERO, grace: Duration::ZERO, abandoned: Duration::ZERO, ..Options::default() };
        let store = Store::open(folder.path().to_str().unwrap(), options).unwrap();
        let namespace = store.namespace("a").unwrap();
        (store, namespace)
    }

    fn faults(store: &Store) -> Arc<Faults> {
        Arc::clone(&store.shared().backend.files().faults)
    }

    fn save(namespace: &Namespace, tokens: &[u32]) -> Result<Saved, Error> {
        let new = NewSnapshot { tokens, ..NewSnapshot::default() };
        namespace.save(&subject(), &new, &mut |i| Ok(vec![tokens[2 * i] as u8; 50]), b"tail")
    }

    fn load(namespace: &Namespace, saved: &Saved, tokens: &[u32]) {
        let loaded = namespace.load(&saved.id).unwrap();
        assert_eq!(loaded.tokens, tokens);
        for (i, page) in loaded.pages.enumerate() {
            assert_eq!(page.unwrap(), vec![tokens[2 * i] as u8; 50]);
        }
    }

    #[test]
    fn a_disk_that_fills_up_at_any_write() {
        let tokens = [1, 2, 3, 4, 5];
        for full_at in 0.. {
            let folder = new_folder();
            let (store, namespace) = open(&folder);
            let mut left = full_at;
            faults(&store).set(move |action, _| {
                let changes = matches!(action, "write" | "move");
                if changes && left == 0 {
                    return Some(io::Error::from_raw_os_error(FULL));
                }
                left -= usize::from(changes);
                None
            });
            let outcome = save(&namespace, &tokens);
            faults(&store).clear();
            let (_, other) = open(&folder);
            match outcome {
                Err(error) => {
                    assert!(error.to_string().contains("No space left"), "{error}");
                    // The count of the day's bytes comes when the snapshot is there already.
                    if other.list().unwrap().is_empty() {
                        assert!(store.usage().unwrap().snapshots == 0);
                        store.collect().unwrap();
                        assert_eq!(store.usage().unwrap().objects, 0);
                    }
                    load(&namespace, &save(&namespace, &tokens).unwrap(), &tokens);
                }
                Ok(saved) => {
                    load(&other, &saved, &tokens);
                    assert!(full_at > 4);
                    return;
                }
            }
        }
    }

    #[test]
    fn a_disk_that_fails_at_any_step_of_a_collection() {
        let (one, two) = ([1, 2, 3, 4, 5], [1, 2, 9, 9, 9]);
        for fails_at in 0.. {
            let folder = new_folder();
            let (store, namespace) = open(&folder);
            let (one_saved, two_saved) = (save(&namespace, &one).unwrap(), save(&namespace, &two).unwrap());
            let mut left = fails_at;
            faults(&store).set(move |_, _| {
                left -= 1;
                (left < 0).then(|| io::Error::from_raw_os_error(5))
            });
            let outcome = namespace.remove(&two_saved.id).and_then(|()| store.collect());
            faults(&store).clear();
            // As the next process sees it.
            let (store, namespace) = open(&folder);
            load(&namespace, &one_saved, &one);
            for snapshot in namespace.list().unwrap() {
                assert!(namespace.load(&snapshot.id).unwrap().pages.all(|page| page.is_ok()));
            }
            let _ = namespace.remove(&two_saved.id);
            store.collect().unwrap();
            load(&namespace, &one_saved, &one);
            assert_eq!(store.usage().unwrap().objects, 3, "at {fails_at}");
            if outcome.is_ok() {
                assert!(fails_at > 10);
                return;
            }
        }
    }

    #[test]
    fn a_store_that_cannot_be_written_can_be_read() {
        let folder = new_folder();
        let tokens = [1, 2, 3];
        let (store, namespace) = open(&folder);
        let saved = save(&namespace, &tokens).unwrap();
        drop(namespace);
        let read_only = |action: &str, _: &str| {
            matches!(action, "write" | "move" | "delete").then(|| io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
        };
        faults(&store).set(read_only);
        let namespace = store.namespace("a").unwrap();
        load(&namespace, &saved, &tokens);
        assert_eq!(namespace.find(&subject(), &tokens).unwrap().best.unwrap().position, 3);
        assert_eq!(save(&namespace, &tokens).unwrap().id, saved.id);
        for error in [
            save(&namespace, &[4, 5, 6]).unwrap_err(),
            namespace.pin(&saved.id, true).unwrap_err(),
            namespace.remove(&saved.id).unwrap_err(),
            store.namespace("b").unwrap_err(),
        ] {
            assert!(matches!(error, Error::Access { .. }) && error.to_string().contains("read-only"), "{error}");
        }
        faults(&store).clear();
        namespace.refresh().unwrap();
        load(&namespace, &saved, &tokens);
    }

    #[test]
    fn a_disk_that_cannot_be_read_now_and_then() {
        let folder = new_folder();
        let tokens = [1, 2, 3, 4, 5];
        let (store, namespace) = open(&folder);
        let saved = save(&namespace, &tokens).unwrap();
        for fails_at in 0..8 {
            let reads = AtomicUsize::new(0);
            faults(&store).set(move |action, _| {
                let fails = action == "read" && reads.fetch_add(1, Ordering::Relaxed) == fails_at;
                fails.then(|| io::Error::from_raw_os_error(5))
            });
            if let Ok(loaded) = namespace.load(&saved.id) {
                for page in loaded.pages {
                    let _ = page.map_err(|error| assert!(!error.is_lost()));
                }
            }
            faults(&store).clear();
            // What failed is not taken for damaged.
            assert!(lock(&namespace.space.index).broken.is_empty());
            load(&namespace, &saved, &tokens);
        }
    }
}
