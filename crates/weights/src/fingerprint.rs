//! The name of a checkpoint's content: what a saved session belongs to.
//!
//! BLAKE3 over `config.json` and every shard, header and data, in the order of their names; two copies of one checkpoint
//! have one fingerprint, whatever their folder is called. To read hundreds of gigabytes takes minutes, so what a shard's
//! content came to is remembered in a cache file by the shard's device, inode, size and times.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Checkpoint;
use crate::shard::Shard;

/// Bytes hashed between two reports.
const STEP: usize = 64 << 20;
/// Bytes of a cache file that are read at most, and shards that are remembered.
const MAX_CACHE: u64 = 1 << 20;
const MAX_KNOWN: usize = 4096;

/// What tells a file from others and from its own past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId([i128; 7]);

impl FileId {
    pub(crate) fn of(file: &File) -> Option<FileId> {
        let m = file.metadata().ok()?;
        let numbers = [i128::from(m.dev()), i128::from(m.ino()), i128::from(m.size())];
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()].map(i128::from);
        let mut id = [0; 7];
        id[..3].copy_from_slice(&numbers);
        id[3..].copy_from_slice(&times);
        Some(FileId(id))
    }

    /// Device and inode: which file it is, whatever happens to it.
    pub(crate) fn file(&self) -> [i128; 2] {
        [self.0[0], self.0[1]]
    }

    pub(crate) fn size(&self) -> i128 {
        self.0[2]
    }

    /// When its content was last changed.
    pub(crate) fn modified(&self) -> [i128; 2] {
        [self.0[3], self.0[4]]
    }
}

impl Checkpoint {
    /// The checkpoint's fingerprint. `cache` is a file of what is known of shards' contents, which is read and brought up to
    /// date; it may be missing, damaged or not writable. `progress` is told bytes done and bytes in all, of those that must
    /// be read.
    pub fn fingerprint(&self, cache: Option<&Path>, progress: &mut dyn FnMut(u64, u64)) -> [u8; 32] {
        let mut known = cache.map(read).unwrap_or_default();
        let find = |known: &Known, shard: &Shard| shard.id.and_then(|id| known.get(&id).copied());
        let unknown = self.shards.iter().filter(|shard| find(&known, shard).is_none());
        let total: u64 = unknown.map(|shard| shard.bytes.len() as u64).sum();
        let (mut done, mut learned) = (0, false);
        let mut shards: Vec<&Shard> = self.shards.iter().collect();
        shards.sort_by_key(|shard| shard.path.file_name());
        let mut all = blake3::Hasher::new_derive_key("fathom checkpoint fingerprint 1");
        all.update(&self.config_hash);
        for shard in shards {
            let content = find(&known, shard).unwrap_or_else(|| {
                let mut hasher = blake3::Hasher::new();
                for part in shard.bytes.chunks(STEP) {
                    hasher.update(part);
                    done += part.len() as u64;
                    progress(done, total);
                }
                *hasher.finalize().as_bytes()
            });
            if let Some(id) = shard.id {
                learned |= known.insert(id, content).is_none();
            }
            all.update(&content);
        }
        if let Some(path) = cache.filter(|_| learned) {
            write(path, &known);
        }
        *all.finalize().as_bytes()
    }
}

type Known = BTreeMap<FileId, [u8; 32]>;

/// One line for each file: seven numbers and the content's hash. What cannot be read is not known.
fn read(path: &Path) -> Known {
    let mut text = String::new();
    let whole = File::open(path).and_then(|file| file.take(MAX_CACHE).read_to_string(&mut text));
    if whole.is_err() {
        return Known::new();
    }
    let line = |line: &str| {
        let mut words = line.split(' ');
        let mut id = [0; 7];
        for number in &mut id {
            *number = words.next()?.parse().ok()?;
        }
        let hash = blake3::Hash::from_hex(words.next()?).ok()?;
        words.next().is_none().then_some((FileId(id), *hash.as_bytes()))
    };
    text.lines().filter_map(line).take(MAX_KNOWN).collect()
}

/// Another program may write at the same time: each writes a file of its own, and the last takes the name.
fn write(path: &Path, known: &Known) {
    let line = |(FileId(id), hash): (&FileId, &[u8; 32])| {
        let numbers: Vec<String> = id.iter().map(i128::to_string).collect();
        format!("{} {}\n", numbers.join(" "), blake3::Hash::from_bytes(*hash).to_hex())
    };
    let text: String = known.iter().rev().take(MAX_KNOWN).map(line).collect();
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&partial, text));
    // A cache that cannot be written is one that is not there.
    if written.and_then(|()| fs::rename(&partial, path)).is_err() {
        let _ = fs::remove_file(&partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Synth;

    /// What is read, and what comes out.
    fn fingerprint(folder: &Path, cache: Option<&Path>) -> (u64, [u8; 32]) {
        let mut read = 0;
        let hash = Checkpoint::open(folder).unwrap().fingerprint(cache, &mut |done, _| read = done);
        (read, hash)
    }

    #[test]
    fn follows_the_content_alone() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = here.path().join("cache/fingerprints");
        for folder in [&here, &there] {
            Synth::tiny(1).write(folder.path()).unwrap();
        }
        let (read, first) = fingerprint(here.path(), Some(&cache));
        assert!(read > 0);
        assert_eq!(fingerprint(here.path(), Some(&cache)), (0, first), "remembered");
        assert_eq!(fingerprint(there.path(), None), (read, first), "a copy is the same");

        // One byte of one tensor, in place.
        let shard = fs::read_dir(here.path()).unwrap().map(|e| e.unwrap().path());
        let shard = shard.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).min().unwrap();
        let mut bytes = fs::read(&shard).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&shard, bytes).unwrap();
        let (read, changed) = fingerprint(here.path(), Some(&cache));
        assert!(read > 0 && changed != first);

        let config = there.path().join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{text} ")).unwrap();
        assert_ne!(fingerprint(there.path(), None).1, first, "the configuration counts");

        fs::write(&cache, "1 2 3 not a line\n\u{fffd}").unwrap();
        assert_eq!(fingerprint(here.path(), Some(&cache)).1, changed, "a damaged cache");
        assert_eq!(fingerprint(here.path(), Some(Path::new("/proc/none/cache"))).1, changed, "no cache");
    }
}
