//! A random checkpoint as a folder of shards, of any size in little memory.
//!
//! Where every byte goes is known beforehand, so threads make strips of tensors and write them to their places. All is done
//! in `NAME.partial` beside the folder to be, `config.json` comes last there, and the folder takes its name when it is whole.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use super::noise::{Noise, Strip};
use super::tensors::Tensor;
use super::{Synth, header};
use crate::Error;

/// Tensors of a shard at most: a header has some 120 bytes for each, and 100 MB are the most that readers take.
const MAX_TENSORS: usize = 1 << 18;
const INDEX: &str = "model.safetensors.index.json";
const LOCK: &str = ".lock";

/// How to write a folder.
pub struct Folder<'a> {
    /// Its name to be. It must not be there, or be empty.
    pub path: &'a Path,
    /// Bytes of a shard's tensors, about.
    pub shard_bytes: u64,
    /// How many threads make noise.
    pub threads: usize,
    /// Files that are copied beside the shards, such as a tokenizer's.
    pub others: &'a [PathBuf],
    /// Set by others to stop.
    pub cancel: &'a AtomicBool,
}

/// What a checkpoint comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes of all shards, headers included.
    pub bytes: u64,
    /// Its weights, scales and tables aside.
    pub parameters: u64,
    /// Tensors as files have them: scales are tensors too.
    pub tensors: usize,
    /// Files of tensors.
    pub shards: usize,
}

/// Where things go.
struct Plan {
    tensors: Vec<Tensor>,
    /// For each tensor its shard, and where in that file its parts start.
    places: Vec<(usize, [u64; 2])>,
    /// Each shard's header, and its length in bytes.
    shards: Vec<(Vec<u8>, u64)>,
    size: Size,
}

impl Plan {
    fn new(tensors: Vec<Tensor>, shard_bytes: u64) -> Plan {
        let bytes = |tensor: &Tensor| tensor.parts().iter().map(|part| part.bytes).fold(0, u64::saturating_add);
        let mut groups: Vec<(std::ops::Range<usize>, u64)> = Vec::new();
        for (i, tensor) in tensors.iter().enumerate() {
            let more = bytes(tensor);
            match groups.last_mut() {
                Some((range, total)) if total.saturating_add(more) <= shard_bytes && range.len() < MAX_TENSORS => {
                    *range = range.start..i + 1;
                    *total += more;
                }
                _ => groups.push((i..i + 1, more)),
            }
        }
        let mut plan = Plan {
            size: Size {
                bytes: 0,
                parameters: tensors.iter().map(Tensor::parameters).fold(0, u64::saturating_add),
                tensors: tensors.iter().map(|tensor| tensor.parts().len()).sum(),
                shards: groups.len(),
            },
            tensors,
            places: Vec::new(),
            shards: Vec::new(),
        };
        for (shard, (range, total)) in groups.into_iter().enumerate() {
            let group = &plan.tensors[range];
            let header = header(group.iter().flat_map(Tensor::parts));
            let mut at = header.len() as u64;
            let length = at.saturating_add(total);
            for tensor in group {
                let mut place = [at; 2];
                for (part, start) in tensor.parts().iter().zip(&mut place) {
                    *start = at;
                    at = at.saturating_add(part.bytes);
                }
                plan.places.push((shard, place));
            }
            plan.shards.push((header, length));
            plan.size.bytes = plan.size.bytes.saturating_add(length);
        }
        plan
    }

    fn shard_name(&self, shard: usize) -> String {
        format!("model-{:05}-of-{:05}.safetensors", shard + 1, self.shards.len())
    }
}

impl Synth {
    /// What the checkpoint comes to in shards of about `shard_bytes`.
    ///
    /// # Errors
    /// The configuration is none that the model can run.
    pub fn size(&self, shard_bytes: u64) -> Result<Size, Error> {
        Ok(Plan::new(self.tensors()?, shard_bytes).size)
    }

    /// Writes the checkpoint to a folder: shards, an index, `config.json`. `progress` is told bytes as they are written, from
    /// any thread.
    ///
    /// # Errors
    /// As [`Synth::size`]; the folder is there already; what the system says, or [`io::ErrorKind::Interrupted`] after a
    /// `cancel`. What was written is removed again.
    pub fn write_folder(&self, folder: &Folder<'_>, progress: &(dyn Fn(u64) + Sync)) -> Result<Size, Error> {
        let plan = Plan::new(self.tensors()?, folder.shard_bytes);
        let partial = Partial::make(folder.path)?;
        let work = Work {
            plan: &plan,
            seed: self.seed,
            folder: &partial.path,
            cancel: folder.cancel,
            progress,
            next: Mutex::new((0, 0)),
            open: Mutex::new(HashMap::new()),
            failed: Mutex::new(None),
        };
        std::thread::scope(|scope| {
            for _ in 0..folder.threads.max(1) {
                scope.spawn(|| work.run());
            }
        });
        if let Some(e) = work.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(e);
        }
        let mut weight_map = BTreeMap::new();
        for (tensor, (shard, _)) in plan.tensors.iter().zip(&plan.places) {
            weight_map.extend(tensor.parts().into_iter().map(|part| (part.name, plan.shard_name(*shard))));
        }
        for other in folder.others {
            let name = other.file_name().unwrap_or_default();
            let bytes = fs::read(other).map_err(|cause| Error::Read { path: other.clone(), cause })?;
            partial.put(Path::new(name), &bytes)?;
        }
        let index = json!({"metadata": {"total_size": plan.size.bytes}, "weight_map": weight_map});
        partial.put(Path::new(INDEX), index.to_string().as_bytes())?;
        partial.put(Path::new("config.json"), format!("{:#}\n", self.fields()).as_bytes())?;
        partial.finish(folder.path)?;
        Ok(plan.size)
    }
}

/// What the threads share.
struct Work<'a> {
    plan: &'a Plan,
    seed: u64,
    folder: &'a Path,
    cancel: &'a AtomicBool,
    progress: &'a (dyn Fn(u64) + Sync),
    /// The tensor and the row to make next.
    next: Mutex<(usize, usize)>,
    /// Shards being written: the file, and its bytes to come.
    open: Mutex<HashMap<usize, (Arc<File>, u64)>>,
    failed: Mutex<Option<Error>>,
}

impl Work<'_> {
    fn run(&self) {
        let mut noise = Noise::new();
        while let Some((tensor, row)) = self.take() {
            if let Err(e) = self.strip(&mut noise, tensor, row) {
                lock(&self.failed).get_or_insert(e);
            }
        }
    }

    fn take(&self) -> Option<(usize, usize)> {
        if lock(&self.failed).is_some() {
            return None;
        }
        if self.cancel.load(Ordering::Relaxed) {
            let cause = io::Error::from(io::ErrorKind::Interrupted);
            lock(&self.failed).get_or_insert(Error::Write { path: self.folder.to_owned(), cause });
            return None;
        }
        let mut next = lock(&self.next);
        let (at, row) = *next;
        let tensor = self.plan.tensors.get(at)?;
        let after = row + tensor.strip_rows();
        *next = if after < tensor.size().0 { (at, after) } else { (at + 1, 0) };
        Some((at, row))
    }

    fn strip(&self, noise: &mut Noise, at: usize, row: usize) -> Result<(), Error> {
        let (tensor, (shard, [data_at, scales_at])) = (&self.plan.tensors[at], self.plan.places[at]);
        let Strip { data, scales } = noise.strip(tensor, self.seed, row);
        let path = || self.folder.join(self.plan.shard_name(shard));
        let failed = |cause| Error::Write { path: path(), cause };
        let file = self.file(shard).map_err(failed)?;
        file.write_all_at(&data, data_at + (row * tensor.row_bytes()) as u64).map_err(failed)?;
        if !scales.is_empty() {
            // Strips before this one were full, and their scales as many for each row as the first strip's.
            let before = row / tensor.strip_rows() * tensor.scales_of_strip();
            file.write_all_at(&scales, scales_at + before as u64).map_err(failed)?;
        }
        let written = (data.len() + scales.len()) as u64;
        (self.progress)(written);
        let mut open = lock(&self.open);
        if let Some((_, left)) = open.get_mut(&shard) {
            *left -= written;
            if *left == 0 {
                open.remove(&shard);
                drop(open);
                file.sync_all().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// A shard's file, opened by whoever needs it first.
    fn file(&self, shard: usize) -> io::Result<Arc<File>> {
        let mut open = lock(&self.open);
        if let Some((file, _)) = open.get(&shard) {
            return Ok(Arc::clone(file));
        }
        let (header, length) = &self.plan.shards[shard];
        let file = Arc::new(File::create_new(self.folder.join(self.plan.shard_name(shard)))?);
        file.set_len(*length)?;
        file.write_all_at(header, 0)?;
        (self.progress)(header.len() as u64);
        open.insert(shard, (Arc::clone(&file), length - header.len() as u64));
        Ok(file)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder while it is being written. It is removed when it is dropped before it was finished.
struct Partial {
    path: PathBuf,
    /// Held locked, so that nobody takes the folder for one that was left behind.
    _lock: File,
    done: bool,
}

impl Partial {
    fn make(folder: &Path) -> Result<Partial, Error> {
        let read = |cause| Error::Read { path: folder.to_owned(), cause };
        let taken = |path: &Path, problem: &str| Error::File { path: path.to_owned(), problem: problem.to_owned() };
        match fs::read_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(taken(folder, "is there already; name another folder"));
            }
            Err(e) => return Err(read(e)),
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(taken(folder, "is there already, and not empty; name another folder or delete it"));
                }
            }
        }
        let Some(name) = folder.file_name() else { return Err(taken(folder, "is no name for a folder")) };
        let mut partial = name.to_owned();
        partial.push(".partial");
        let path = folder.with_file_name(partial);
        let failed = |cause| Error::Write { path: path.clone(), cause };
        fs::create_dir_all(&path).map_err(failed)?;
        let lock = File::create(path.join(LOCK)).map_err(failed)?;
        if lock.try_lock().is_err() {
            return Err(taken(&path, "is being written by another process; wait for it, or name another folder"));
        }
        // What a killed run left, and nothing that somebody else put there.
        let mut old = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?.path();
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ours =
                name.starts_with("model-") && name.ends_with(".safetensors") || name.ends_with(".json") || name == LOCK;
            if !ours {
                return Err(taken(&entry, "is in a folder that fathom would write to; move it away"));
            }
            if name != LOCK {
                old.push(entry);
            }
        }
        old.iter().try_for_each(fs::remove_file).map_err(failed)?;
        Ok(Partial { path, _lock: lock, done: false })
    }

    fn put(&self, name: &Path, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|cause| Error::Write { path: path.clone(), cause })
    }

    /// Gives it its name.
    fn finish(mut self, folder: &Path) -> Result<(), Error> {
        let rename = || {
            fs::remove_file(self.path.join(LOCK))?;
            File::open(&self.path)?.sync_all()?;
            fs::rename(&self.path, folder)?;
            match folder.parent() {
                Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
                _ => File::open(".")?.sync_all(),
            }
        };
        rename().map_err(|cause| Error::Write { path: folder.to_owned(), cause })?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // The error that ended the writing is the one to tell.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
