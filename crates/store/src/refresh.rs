//! Bringing the index to what the files say: listing them, and reading only what is new.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::Error;
use crate::files::Listed;
use crate::manifest::{self, Manifest};
use crate::marks::{self, Mark, USED};
use crate::name::{Id, Name};
use crate::sealed::{Kind, Problem, max_file};
use crate::space::Space;
use crate::store::lock;

/// How many manifests are read at a time.
const TOGETHER: usize = 64;

/// What a listing found besides the snapshots.
#[derive(Default)]
pub(crate) struct Seen {
    /// Objects that unfinished snapshots name.
    pub(crate) awaited: HashSet<Name>,
    /// Marks of snapshots that are not there.
    pub(crate) orphans: Vec<Listed>,
    /// Unfinished snapshots.
    pub(crate) unfinished: Vec<Listed>,
    /// Manifests that this program cannot read and another might: what they name is not known.
    pub(crate) foreign: Option<String>,
}

impl Space {
    /// Refreshes, unless that was just done.
    pub(crate) fn refresh_if_stale(&self) -> Result<(), Error> {
        let fresh = |listed: Option<Instant>| listed.is_some_and(|at| at.elapsed() < self.shared.options.refresh);
        if !fresh(lock(&self.index).listed) {
            self.refresh()?;
        }
        Ok(())
    }

    pub(crate) fn refresh(&self) -> Result<Seen, Error> {
        let _one = lock(&self.refreshing);
        // Only what was known before the listing can have vanished in it.
        let before: HashSet<Id> = lock(&self.index).entries.keys().copied().collect();
        let backend = &self.shared.backend;
        // In this order: a snapshot that is finished meanwhile is among the manifests, if not among the unfinished; a
        // mark whose manifest is not there was left over.
        let mut seen = Seen { unfinished: backend.list(self.path("pending"))?, ..Seen::default() };
        self.read_unfinished(&mut seen)?;
        let marks = backend.list(self.path("marks"))?;
        let listed = backend.list(self.path("manifests"))?;
        let ids: HashMap<Id, Listed> =
            listed.into_iter().filter_map(|file| Some((Id::from_hex(&file.name)?, file))).collect();
        let (new, vanished) = {
            let index = lock(&self.index);
            let known = |id: &Id| index.entries.contains_key(id) || index.unreadable.contains_key(id);
            let new: Vec<Id> = ids.keys().filter(|id| !known(id)).copied().collect();
            let vanished: Vec<Id> = before.into_iter().filter(|id| !ids.contains_key(id)).collect();
            (new, vanished)
        };
        let new: Vec<&Listed> = new.iter().map(|id| &ids[id]).collect();
        for some in new.chunks(TOGETHER) {
            self.read_new(some)?;
        }
        let mut index = lock(&self.index);
        for id in &vanished {
            index.remove(*id);
        }
        index.unreadable.retain(|id, _| ids.contains_key(id));
        index.marks_read.retain(|name, _| marks::parse_name(name).is_some_and(|(id, _)| ids.contains_key(&id)));
        seen.foreign = index.unreadable.iter().find(|(_, (_, foreign))| *foreign).map(|(_, (why, _))| why.clone());
        index.listed = Some(Instant::now());
        drop(index);
        self.shared.cache.update(&[], &vanished.iter().map(|id| self.manifest_path(*id)).collect::<Vec<_>>());
        self.read_marks(marks, &mut seen)?;
        Ok(seen)
    }

    fn read_unfinished(&self, seen: &mut Seen) -> Result<(), Error> {
        let mut unfinished = Vec::new();
        for file in std::mem::take(&mut seen.unfinished) {
            let Some(id) = Id::from_hex(&file.name) else { continue };
            // One that is gone was finished, or given up.
            let Some(bytes) = self.shared.backend.get(file.path.clone(), max_file(manifest::MAX))? else { continue };
            match self.open_manifest(id, &bytes) {
                Ok(manifest) => seen.awaited.extend(manifest.objects().map(|object| object.name)),
                // Nobody can finish it.
                Err(Problem::Damaged(_)) => {}
                Err(other) => return Err(other.at(&self.place(&file.path))),
            }
            unfinished.push(file);
        }
        seen.unfinished = unfinished;
        Ok(())
    }

    /// Reads manifests, from the cache where it has them.
    fn read_new(&self, new: &[&Listed]) -> Result<(), Error> {
        let paths: Vec<String> = new.iter().map(|file| file.path.clone()).collect();
        let cached = self.shared.cache.get(&paths);
        let mut waiting = Vec::new();
        for (listed, cached) in new.iter().zip(cached) {
            let Some(id) = Id::from_hex(&listed.name) else { continue };
            if let Some(manifest) = cached.and_then(|file| self.open_manifest(id, &file).ok()) {
                self.list_manifest(id, manifest, listed);
                continue;
            }
            let (files, at) = (self.shared.backend.files().clone(), listed.path.clone());
            let read = async move { files.get(&at, max_file(manifest::MAX)).await };
            waiting.push((id, listed, self.shared.backend.start(read)));
        }
        let mut fresh: Vec<(String, Bytes)> = Vec::new();
        for (id, listed, read) in waiting {
            let problem = match read.wait() {
                // Removed since it was listed.
                Ok(None) => continue,
                Ok(Some(file)) => match self.open_manifest(id, &file) {
                    Ok(manifest) => {
                        self.list_manifest(id, manifest, listed);
                        fresh.push((listed.path.clone(), file));
                        continue;
                    }
                    Err(problem) => {
                        (problem.clone().at(&self.place(&listed.path)), !matches!(problem, Problem::Damaged(_)))
                    }
                },
                Err(error @ Error::Damaged { .. }) => (error, false),
                Err(error) => return Err(error),
            };
            lock(&self.index).unreadable.insert(id, (problem.0.to_string(), problem.1));
        }
        self.shared.cache.update(&fresh, &[]);
        Ok(())
    }

    /// A manifest that is what its name says.
    pub(crate) fn open_manifest(&self, id: Id, file: &Bytes) -> Result<Manifest, Problem> {
        let opened = self.shared.sealer.open(Kind::Manifest, file, manifest::MAX)?;
        if self.id(&opened.plain, opened.hash) != id {
            return Err(Problem::Damaged("its bytes are not those that its name stands for".into()));
        }
        Manifest::decode(&opened.plain).map_err(Problem::Damaged)
    }

    /// The identity of the snapshot with this manifest.
    pub(crate) fn id(&self, plain: &[u8], known: Option<[u8; 32]>) -> Id {
        let mut id = [0; 16];
        id.copy_from_slice(&self.namer.name(plain, known).0[..16]);
        Id(id)
    }

    fn list_manifest(&self, id: Id, manifest: Manifest, listed: &Listed) {
        let root = self.secret.root(&manifest.subject);
        lock(&self.index).insert(id, Arc::new(manifest), root, listed.modified);
    }

    fn read_marks(&self, marks: Vec<Listed>, seen: &mut Seen) -> Result<(), Error> {
        for file in marks {
            let Some((id, ending)) = marks::parse_name(&file.name) else { continue };
            let state = (file.modified, file.tag.clone());
            let mut index = lock(&self.index);
            let Some(entry) = index.entries.get_mut(&id) else {
                if !index.unreadable.contains_key(&id) {
                    seen.orphans.push(file);
                }
                continue;
            };
            if ending == USED {
                entry.marks.used = file.modified;
                continue;
            }
            if index.marks_read.get(&file.name) == Some(&state) {
                continue;
            }
            drop(index);
            let mark: Option<Mark> = match self.read_mark(id, ending) {
                Ok(mark) => mark,
                // What the manifest says holds; `verify` reports the mark.
                Err(Error::Damaged { .. } | Error::Newer { .. } | Error::Key { .. }) => None,
                Err(other) => return Err(other),
            };
            let mut index = lock(&self.index);
            if let (Some(mark), Some(entry)) = (mark, index.entries.get_mut(&id)) {
                entry.marks.set(mark);
            }
            index.marks_read.insert(file.name, state);
        }
        Ok(())
    }
}
