//! A pull from the repository's name to a folder that opens.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fetch::Download;
use super::folder::{Folder, Room, is_last};
use super::wanted::{INDEX, is_shard, shards};
use super::workers::Work;
use super::{Error, Hub, Listing, Remote, wanted};

/// How often the progress is told.
const TICK: Duration = Duration::from_millis(200);

/// What to pull, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// `owner/name`.
    pub repo: String,
    /// Where to.
    pub folder: PathBuf,
    /// How many ranges are fetched at once.
    pub connections: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The commit.
    pub commit: String,
    /// How many files the checkpoint has.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, the ones that were here before.
    pub kept: u64,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Files of which the hub does not say what they should be: only their length is known to be right.
    pub unverified: Vec<String>,
}

/// Fetches what a checkpoint needs of a repository. `progress` is told bytes that are there and bytes in all.
///
/// # Errors
/// The first thing that will not get better, by name. What has come stays, and the next pull goes on from there.
pub async fn pull(
    hub: Hub,
    listing: &Listing,
    options: &Options,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report, Error> {
    let all = wanted(listing);
    let (others, mut tensors): (Vec<&Remote>, Vec<&Remote>) = all.into_iter().partition(|file| !is_shard(&file.name));
    if !others.iter().any(|file| is_last(file)) || tensors.is_empty() {
        let problem = "has no config.json or no .safetensors files: it is no checkpoint that fathom can run".to_owned();
        return Err(Error::Hub { place: options.repo.clone(), problem });
    }
    let folder = Folder::open(&options.folder, &options.repo, &listing.commit)?;
    let work = Arc::new(Work::new(hub, folder));
    let mut pull = Pull { work, listing, options, last: None, here: 0, kept: 0, total: 0, progress };
    pull.stage(&others).await?;
    if others.iter().any(|file| file.name == INDEX) {
        let path = pull.work.folder.path().join(INDEX);
        let named = shards(&std::fs::read(&path).map_err(|e| Error::file(&path, &e))?)?;
        if let Some(missing) = named.iter().find(|name| !tensors.iter().any(|file| file.name == **name)) {
            let problem = format!("names the shard {missing}, which the repository does not have");
            return Err(Error::Hub { place: INDEX.to_owned(), problem });
        }
        tensors.retain(|file| named.contains(&file.name));
    }
    pull.stage(&tensors).await?;
    let folder = &pull.work.folder;
    if let Some(last) = &pull.last {
        folder.finish(&last.remote, &last.partial)?;
    }
    folder.complete()?;
    let files = others.iter().chain(&tensors);
    Ok(Report {
        commit: listing.commit.clone(),
        files: others.len() + tensors.len(),
        bytes: pull.total,
        kept: pull.kept,
        fetched: pull.work.counters.fetched.load(Ordering::Relaxed),
        unverified: files.filter(|file| file.hash.is_none()).map(|file| file.name.clone()).collect(),
    })
}

struct Pull<'a> {
    work: Arc<Work>,
    listing: &'a Listing,
    options: &'a Options,
    /// `config.json`, which takes its name when all else is there.
    last: Option<Arc<Download>>,
    /// Bytes of files that were there, whole.
    here: u64,
    kept: u64,
    /// Bytes of all files so far.
    total: u64,
    progress: &'a mut (dyn FnMut(u64, u64) + Send),
}

impl Pull<'_> {
    /// Fetches some of the files, those that are not here.
    async fn stage(&mut self, files: &[&Remote]) -> Result<(), Error> {
        let size = files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        self.total = self.total.saturating_add(size);
        let folder = &self.work.folder;
        let mut missing = Vec::new();
        for &remote in files {
            let before = self.here + self.work.counters.done.load(Ordering::Relaxed);
            let (mut read, progress, total) = (0, &mut *self.progress, self.total);
            let mut tell = |bytes| {
                read += bytes;
                progress(before + read, total);
            };
            if folder.has(remote, &mut tell)? {
                self.here += remote.size;
                self.kept += remote.size;
            } else {
                missing.push(remote);
            }
        }
        // Before anything is made as large as the hub says.
        Room::for_files(folder.path(), &self.listing.commit, &missing)?.check(folder.path())?;
        let mut downloads = Vec::new();
        for remote in missing {
            let partial = folder.partial(&self.listing.commit, remote)?;
            folder.take_from_cache(&self.options.repo, remote, &partial);
            self.kept += partial.total();
            self.work.counters.done.fetch_add(partial.total(), Ordering::Relaxed);
            let home = self.work.hub.file(&self.options.repo, &self.listing.commit, &remote.name);
            downloads.push(Arc::new(Download::new(remote.clone(), partial, home)));
        }
        if let Some(last) = downloads.iter().find(|file| is_last(&file.remote)) {
            self.last = Some(Arc::clone(last));
        }
        let work = Arc::clone(&self.work);
        let connections = self.options.connections;
        let mut run = std::pin::pin!(work.run(downloads, connections));
        loop {
            let done = tokio::time::timeout(TICK, &mut run).await;
            (self.progress)(self.here + self.work.counters.done.load(Ordering::Relaxed), self.total);
            if let Ok(result) = done {
                return result;
            }
        }
    }
}
