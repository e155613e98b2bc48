//! The folder that files are pulled into: one pull at a time, what is there already, room for what is not.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fathom_kernels::human;

use super::manifest::{STATE, changed};
use super::partial::{self, Partial};
use super::wanted::LAST;
use super::{Error, Manifest, Pulled, Remote, environment};
use crate::drive::free_bytes;

/// Room that is left for others, in bytes.
pub(super) const SPARE: u64 = 64 << 20;

pub(super) struct Folder {
    path: PathBuf,
    state: PathBuf,
    /// Held locked while we are at it.
    _lock: File,
    manifest: Mutex<Manifest>,
}

impl Folder {
    /// Makes the folder where it is not there, and keeps other pulls out.
    pub fn open(path: &Path, repo: &str, commit: &str) -> Result<Folder, Error> {
        let state = path.join(STATE);
        fs::create_dir_all(&state).map_err(|e| Error::file(&state, &e))?;
        let lock_path = state.join("lock");
        let lock = File::create(&lock_path).map_err(|e| Error::file(&lock_path, &e))?;
        if lock.try_lock().is_err() {
            let problem = "another pull writes to it; wait for that, or name another folder".to_owned();
            return Err(Error::File { path: path.to_owned(), problem });
        }
        let mut manifest = Manifest::read(path).unwrap_or_default();
        if !manifest.repo.is_empty() && manifest.repo != repo {
            let problem = format!("holds files of {}; name another folder for {repo}", manifest.repo);
            return Err(Error::File { path: path.to_owned(), problem });
        }
        manifest.repo = repo.to_owned();
        manifest.commit = commit.to_owned();
        Ok(Folder { path: path.to_owned(), state, _lock: lock, manifest: Mutex::new(manifest) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file is there as the repository has it. `progress` is told bytes read to find out.
    pub fn has(&self, remote: &Remote, progress: &mut dyn FnMut(u64)) -> Result<bool, Error> {
        let path = self.path.join(&remote.name);
        let failed = |e: std::io::Error| Error::file(&path, &e);
        let found = match fs::metadata(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(failed(e)),
        };
        let known = self.manifest().files.get(&remote.name).cloned();
        let ours = known.filter(|known| known.changed == changed(&found) && known.size == found.len());
        if let Some(known) = &ours {
            if known.size == remote.size && known.hash == remote.hash {
                return Ok(true);
            }
            // Of another commit, as it was pulled: it may be replaced.
            return Ok(false);
        }
        if found.is_file() && found.len() == remote.size {
            let right = match &remote.hash {
                None => true,
                Some(hash) => {
                    let file = File::open(&path).map_err(failed)?;
                    hash.of(file, remote.size, &mut *progress).map_err(failed)? == *hash
                }
            };
            if right {
                self.note(remote, &path)?;
                return Ok(true);
            }
        }
        let problem = "is there, and is not what the repository has; move it away, or name another folder".to_owned();
        Err(Error::File { path, problem })
    }

    /// A file on its way here.
    pub fn partial(&self, commit: &str, remote: &Remote) -> Result<Partial, Error> {
        Partial::open(&self.state, &key(commit, remote), remote.size).map_err(|e| Error::file(&self.state, &e))
    }

    /// Fills a file from the cache of `huggingface_hub`, if it is there. What comes of it is checked as all is.
    pub fn take_from_cache(&self, repo: &str, remote: &Remote, partial: &Partial) -> bool {
        let Some(hash) = &remote.hash else { return false };
        let Some(blob) = environment::cached_blobs(repo).map(|blobs| blobs.join(hash.hex())) else { return false };
        let fits = fs::metadata(&blob).is_ok_and(|found| found.is_file() && found.len() == remote.size);
        fits && partial.total() == 0 && partial.fill(&blob).is_ok()
    }

    /// Whether a file that has come is what it should be.
    pub fn is_right(&self, remote: &Remote, partial: &Partial) -> Result<bool, Error> {
        let Some(hash) = &remote.hash else { return Ok(true) };
        let failed = |e: std::io::Error| Error::file(&partial.path, &e);
        let file = File::open(&partial.path).map_err(failed)?;
        Ok(hash.of(file, remote.size, |_| {}).map_err(failed)? == *hash)
    }

    /// Gives a file that is right its name.
    pub fn finish(&self, remote: &Remote, partial: &Partial) -> Result<(), Error> {
        let path = self.path.join(&remote.name);
        partial.finish(&path).map_err(|e| Error::file(&path, &e))?;
        self.note(remote, &path)
    }

    fn note(&self, remote: &Remote, path: &Path) -> Result<(), Error> {
        let found = fs::metadata(path).map_err(|e| Error::file(path, &e))?;
        let entry = Pulled { size: remote.size, hash: remote.hash.clone(), changed: changed(&found) };
        let mut manifest = self.manifest();
        manifest.files.insert(remote.name.clone(), entry);
        manifest.write(&self.path)
    }

    /// All is here: files on their way to nowhere go.
    pub fn complete(&self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.state).map_err(|e| Error::file(&self.state, &e))?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "part" || e == "map") {
                fs::remove_file(&path).map_err(|e| Error::file(&path, &e))?;
            }
        }
        let synced = File::open(&self.path).and_then(|folder| folder.sync_all());
        synced.map_err(|e| Error::file(&self.path, &e))
    }
}

/// What files need of a drive, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What is still to come.
    pub to_come: u64,
    /// What this user may still write.
    pub free: u64,
    /// How much more there should be: nothing where all has room.
    pub missing: u64,
}

impl Room {
    /// For files that are not in a folder, which need not be there, but of which parts may be. Nothing is read of them.
    ///
    /// # Errors
    /// What the system says of the drive.
    pub fn for_files(folder: &Path, commit: &str, files: &[&Remote]) -> Result<Room, Error> {
        let state = folder.join(STATE);
        let held = |file: &Remote| {
            let found = fs::metadata(partial::path(&state, &key(commit, file)));
            found.map_or(0, |found| found.blocks().saturating_mul(512))
        };
        let to_come = files.iter().map(|file| file.size.saturating_sub(held(file))).fold(0, u64::saturating_add);
        let free = free_bytes(folder).map_err(|e| Error::file(folder, &e))?;
        let needed = if to_come > 0 { to_come.saturating_add(SPARE) } else { 0 };
        Ok(Room { to_come, free, missing: needed.saturating_sub(free) })
    }

    /// The same for all files of a checkpoint; one that is there with the length that it should have is taken to be right.
    ///
    /// # Errors
    /// As [`Room::for_files`].
    pub fn for_checkpoint(folder: &Path, commit: &str, files: &[&Remote]) -> Result<Room, Error> {
        let is_here = |file: &Remote| fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.len() == file.size);
        let files: Vec<&Remote> = files.iter().copied().filter(|file| !is_here(file)).collect();
        Room::for_files(folder, commit, &files)
    }

    /// An error if there is too little.
    ///
    /// # Errors
    /// [`Error::Space`].
    pub fn check(&self, folder: &Path) -> Result<(), Error> {
        if self.missing == 0 {
            return Ok(());
        }
        let (free, needed, missing) = (human(self.free), human(self.to_come), human(self.missing));
        Err(Error::Space { folder: folder.to_owned(), free, needed, missing })
    }
}

/// What a file is called on its way: by its content, so that what has come serves another commit that has the same file.
fn key(commit: &str, remote: &Remote) -> String {
    match &remote.hash {
        Some(hash) => hash.hex().to_owned(),
        None => blake3::hash(format!("{commit}/{}", remote.name).as_bytes()).to_hex().to_string(),
    }
}

/// Whether a file waits for all others.
pub(super) fn is_last(remote: &Remote) -> bool {
    remote.name == LAST
}
