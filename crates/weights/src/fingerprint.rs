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
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::shard::Shard;
use crate::{Checkpoint, Error};

/// Bytes read and hashed at once, and between two reports.
const STEP: usize = 8 << 20;
/// Bytes of a cache file that are read at most, and shards that are remembered.
const MAX_CACHE: u64 = 1 << 20;
const MAX_KNOWN: usize = 4096;

/// What tells a file from others and from its own past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId([i128; 7]);

impl From<fs::Metadata> for FileId {
    fn from(m: fs::Metadata) -> FileId {
        let numbers = [i128::from(m.dev()), i128::from(m.ino()), i128::from(m.size())];
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()].map(i128::from);
        let mut id = [0; 7];
        id[..3].copy_from_slice(&numbers);
        id[3..].copy_from_slice(&times);
        FileId(id)
    }
}

impl FileId {
    pub(crate) fn of(file: &File) -> Option<FileId> {
        file.metadata().ok().map(FileId::from)
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

/// What an open file was when it was last looked at: tells a change of its bytes from one of its name.
#[derive(Debug)]
pub(crate) struct Watch(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    id: FileId,
    /// Whether the name it was opened by was its own.
    named: bool,
}

impl Watch {
    /// Of a file that was just opened by its name.
    pub(crate) fn new(id: FileId) -> Watch {
        Watch(Mutex::new(Seen { id, named: true }))
    }

    /// Which drive the file is on.
    pub(crate) fn drive(&self) -> i128 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).id.file()[0]
    }

    /// Whether the file's bytes are still those that were there when it was opened. Asked after every read, at `offset`: a
    /// write moves the times before it moves a byte.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub(crate) fn check(&self, file: &File, path: &Path, offset: u64) -> Result<(), Error> {
        let changed = |problem: String| Err(Error::Changed { path: path.to_owned(), offset, problem });
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A rename moves the time a moment before the name: what looks like a change is looked at once more.
        for pause in [Duration::ZERO, Duration::from_millis(2)] {
            std::thread::sleep(pause);
            let Some(id) = FileId::of(file) else { return changed("its size and times cannot be had".into()) };
            if id == seen.id {
                return Ok(());
            }
            if id.size() != seen.id.size() {
                return changed(format!("it has {} bytes, not {}", id.size(), seen.id.size()));
            }
            if id.modified() != seen.id.modified() {
                return changed("it was written to".into());
            }
            // A file that loses its name, or gets it back, has its change time moved, and not a byte. One whose name is
            // what it was has been changed, and its modification time put back.
            let named = fs::metadata(path).is_ok_and(|m| FileId::from(m).file() == id.file());
            if named != seen.named {
                *seen = Seen { id, named };
                return Ok(());
            }
        }
        changed("its change time moved".into())
    }
}

impl Checkpoint {
    /// The checkpoint's fingerprint. `cache` is a file of what is known of shards' contents, which is read and brought up to
    /// date; it may be missing, damaged or not writable. `progress` is told bytes done and bytes in all, of those that must
    /// be read. Files are read, not touched through their mappings, which would count as memory of this process. Where
    /// `leave_cached` is not set, they do not stay in the system's page cache either: that is for models whose weights are
    /// not going to be used from there.
    ///
    /// # Errors
    /// A shard cannot be read, or is not what it was when it was opened; then nothing is remembered of it.
    pub fn fingerprint(
        &self,
        cache: Option<&Path>,
        leave_cached: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<[u8; 32], Error> {
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
            let content = match find(&known, shard) {
                Some(content) => content,
                None => {
                    let mut hasher = blake3::Hasher::new();
                    shard.read_parts(0..shard.bytes.len(), STEP, |at, part| {
                        hasher.update(part);
                        if !leave_cached {
                            shard.uncache(at, part.len());
                        }
                        done += part.len() as u64;
                        progress(done, total);
                        Ok::<_, Error>(())
                    })?;
                    *hasher.finalize().as_bytes()
                }
            };
            if let Some(id) = shard.id {
                learned |= known.insert(id, content).is_none();
            }
            all.update(&content);
        }
        if let Some(path) = cache.filter(|_| learned) {
            write(path, &known);
        }
        Ok(*all.finalize().as_bytes())
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
        let hash = Checkpoint::open(folder).unwrap().fingerprint(cache, false, &mut |done, _| read = done).unwrap();
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

        // All bytes as one, as they were hashed from the first.
        let checkpoint = Checkpoint::open(here.path()).unwrap();
        let mut all = blake3::Hasher::new_derive_key("fathom checkpoint fingerprint 1");
        all.update(&checkpoint.config_hash);
        for shard in &checkpoint.shards {
            all.update(blake3::hash(&fs::read(&shard.path).unwrap()).as_bytes());
        }
        assert_eq!(all.finalize().as_bytes(), &changed);
        let memory = vec![("model.safetensors".to_owned(), fs::read(&shard).unwrap().into())];
        let text = fs::read(here.path().join("config.json")).unwrap();
        let memory = Checkpoint::from_memory(&text, memory).unwrap();
        assert_eq!(memory.fingerprint(None, false, &mut |_, _| {}).unwrap(), changed, "of bytes in memory");

        fs::write(&cache, "1 2 3 not a line\n\u{fffd}").unwrap();
        assert_eq!(fingerprint(here.path(), Some(&cache)).1, changed, "a damaged cache");
        assert_eq!(fingerprint(here.path(), Some(Path::new("/proc/none/cache"))).1, changed, "no cache");
    }

    /// A shard that changes while it is hashed has no fingerprint, and nothing is remembered.
    #[test]
    fn a_shard_that_changes_has_no_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("fingerprints");
        Synth::tiny(1).write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let path = &checkpoint.shards[0].path;
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::thread::sleep(Duration::from_millis(20));
        fs::write(path, bytes).unwrap();
        let error = checkpoint.fingerprint(Some(&cache), false, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("model.safetensors changed while") && error.contains("written to"), "{error}");
        assert!(!cache.exists());
    }

    /// Pages of a mapping that this process has touched count as its memory.
    #[cfg(target_os = "linux")]
    #[test]
    fn nothing_of_the_mapping_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        Synth::tiny(1).set("n_routed_experts", 64).write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let bytes = &checkpoint.shards[0].bytes;
        let resident = || {
            let start = format!("{:x}-", bytes.as_ptr() as usize);
            let text = fs::read_to_string("/proc/self/smaps").unwrap();
            let lines = text.lines().skip_while(|line| !line.starts_with(&start));
            let rss = lines.into_iter().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
        };
        checkpoint.forget_mapped();
        assert_eq!(resident(), 0);
        checkpoint.fingerprint(None, false, &mut |_, _| {}).unwrap();
        assert_eq!(resident(), 0);
        assert!(bytes.iter().any(|&byte| byte > 0) && resident() > 0, "the numbers are of this mapping");
    }

    /// A change time may move with a name that comes or goes, and not otherwise.
    #[test]
    fn a_name_that_comes_and_goes_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("shard"), folder.path().join("other"));
        fs::write(&path, [7; 10]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let watch = Watch::new(FileId::of(&file).unwrap());
        let tick = || std::thread::sleep(Duration::from_millis(20));
        let check = || watch.check(&file, &path, 5);
        for _ in 0..2 {
            tick();
            fs::rename(&path, &other).unwrap();
            check().unwrap();
            check().unwrap();
            tick();
            fs::rename(&other, &path).unwrap();
            check().unwrap();
        }
        tick();
        fs::rename(&path, &other).unwrap();
        check().unwrap();
        // Changed while its name is another, and its time put back.
        tick();
        let modified = file.metadata().unwrap().modified().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[8], 0).unwrap();
        file.set_modified(modified).unwrap();
        for _ in 0..2 {
            let error = check().unwrap_err().to_string();
            assert!(error.contains("its byte 5 was read: its change time moved"), "{error}");
        }
    }
}
