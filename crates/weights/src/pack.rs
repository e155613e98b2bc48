//! An expert-major copy of a checkpoint: every expert one stretch that starts at a multiple of 4 KiB.
//!
//! The copy is a checkpoint like the original, of the same tensors under their official names: `dense.safetensors`,
//! `drafts.safetensors` where there are drafts, and `experts-LLLLL.safetensors` for each layer. Gaps between experts, which the
//! format does not allow, are tensors called `pad.N`. A file takes its name when it is whole and on the drive; `config.json`
//! comes last, and without it the folder is no checkpoint. What is there already of an interrupted run is kept. Shards name
//! the original's files in their headers, so that a folder is never written to that has anything else's.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use fathom_kernels::FRAME_ALIGN;
use serde_json::{Map, Value, json};

use crate::checkpoint::PAD;
use crate::fingerprint::FileId;
use crate::{Checkpoint, Error};

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
/// Locked while a copy is being written. It stays: whoever removed it might remove it from under another run.
const LOCK: &str = ".lock";

/// The longest file beside the shards that is copied along, in bytes: tokenizers have some 10 MB.
const MAX_OTHER: u64 = 256 << 20;

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the copy's shards.
    pub bytes: u64,
    /// Of those, the ones that were there already.
    pub kept: u64,
}

/// A shard to be: its name, its header and its tensors in order.
struct Shard {
    name: String,
    header: Vec<u8>,
    /// A tensor's name, or how many bytes of nothing.
    parts: Vec<Part>,
    bytes: u64,
}

enum Part {
    Tensor(String),
    Pad(usize),
}

impl Checkpoint {
    /// Writes an expert-major copy into the folder `out`. `source` is the original's folder, whose other files are copied too;
    /// `progress` is told bytes done and bytes in all.
    ///
    /// # Errors
    /// Something cannot be read or written, the original changes meanwhile, `out` has another model's files or another copy
    /// of this one, or another run writes to it.
    pub fn pack(&self, source: &Path, out: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Packed, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Write { path, cause }
        };
        fs::create_dir_all(out).map_err(failed(out))?;
        let real = |path: &Path| path.canonicalize().map_err(failed(path));
        if real(out)? == real(source)? {
            return Err(refused(out, "is the model's own folder; name another"));
        }
        let shards = self.packed_shards()?;
        // Before anything is put there, even a lock; and again when no other run can be at it.
        self.check_folder(source, out)?;
        let _lock = lock(out)?;
        self.check_folder(source, out)?;
        self.check_source()?;
        if !shards.iter().all(|shard| is_there(&out.join(&shard.name), shard)) {
            // They would make a checkpoint of what is replaced and what is not yet.
            for name in [CONFIG, INDEX] {
                remove(&out.join(name)).map_err(failed(&out.join(name)))?;
            }
            sync_folder(out).map_err(failed(out))?;
        }
        let total = shards.iter().map(|shard| shard.bytes).sum();
        let (mut done, mut kept) = (0, 0);
        for shard in &shards {
            let path = out.join(&shard.name);
            if is_there(&path, shard) {
                kept += shard.bytes;
            } else {
                self.write_shard(&path, shard, &mut |bytes| progress(done + bytes, total))?;
            }
            done += shard.bytes;
            progress(done, total);
        }
        let mut weight_map = Map::new();
        for shard in &shards {
            for part in &shard.parts {
                if let Part::Tensor(name) = part {
                    weight_map.insert(name.clone(), shard.name.clone().into());
                }
            }
        }
        let index = json!({"metadata": {"total_size": self.weight_bytes()}, "weight_map": weight_map});
        for path in others(source)? {
            let bytes = fs::read(&path).map_err(|cause| Error::Read { path: path.clone(), cause })?;
            whole(&beside(out, &path), |file| Ok(file.write_all(&bytes)?))?;
        }
        whole(&out.join(INDEX), |file| Ok(file.write_all(index.to_string().as_bytes())?))?;
        let path = source.join(CONFIG);
        let config = fs::read(&path).map_err(|cause| Error::Read { path: path.clone(), cause })?;
        if *blake3::hash(&config).as_bytes() != self.config_hash {
            return Err(changed(&path));
        }
        whole(&out.join(CONFIG), |file| {
            file.write_all(&config)?;
            Ok(self.check_source()?)
        })?;
        Ok(Packed { bytes: total, kept })
    }

    /// Bytes that [`Checkpoint::pack`] would still have to find room for in `out`, which need not be there.
    ///
    /// # Errors
    /// The copy's layout cannot be made.
    pub fn pack_needs(&self, out: &Path) -> Result<u64, Error> {
        let needs = |shard: &Shard| {
            let path = out.join(&shard.name);
            // What an interrupted run left of a file makes way before the file is begun again.
            let left = fs::symlink_metadata(partial(&path)).map_or(0, |m| m.len());
            if is_there(&path, shard) { 0 } else { shard.bytes.saturating_sub(left) }
        };
        Ok(self.packed_shards()?.iter().map(needs).sum())
    }

    /// What `out` has of checkpoints was packed from these very files, and a first run replaces nothing.
    fn check_folder(&self, source: &Path, out: &Path) -> Result<(), Error> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Read { path, cause }
        };
        let key = self.source_key();
        let foreign = |path: &Path| {
            let name = path.file_name().unwrap_or_default().display();
            let problem = format!("has a {name} that is not of a packed copy; name another folder, or empty this one");
            Err(refused(out, &problem))
        };
        let (mut copied, mut described) = (false, None);
        for entry in fs::read_dir(out).map_err(read(out))? {
            let path = entry.map_err(read(out))?.path();
            let name = path.file_name().unwrap_or_default();
            if name == CONFIG || name == INDEX {
                described = Some(path);
            } else if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
                match packed_from(&path).map_err(read(&path))? {
                    Some(other) if other == key.as_bytes() => copied = true,
                    Some(_) => {
                        let problem = "has a copy of another model, or of this one before its files changed; \
                                       delete that, or name another folder";
                        return Err(refused(out, problem));
                    }
                    None => return foreign(&path),
                }
            }
        }
        // A copy's own come after its shards.
        if copied {
            return Ok(());
        }
        let others = others(source)?;
        let theirs = others.iter().find(|path| is_other(path, &beside(out, path))).map(|path| beside(out, path));
        described.or(theirs).map_or(Ok(()), |path| foreign(&path))
    }

    /// The original's files are those that were opened, as they were then.
    fn check_source(&self) -> Result<(), Error> {
        let now = |path: &Path| FileId::of(&File::open(path).ok()?);
        match self.shards.iter().find(|shard| shard.id.is_some() && now(&shard.path) != shard.id) {
            None => Ok(()),
            Some(shard) => Err(changed(&shard.path)),
        }
    }

    /// Tensors by shard, in the order in which they are read.
    fn packed_shards(&self) -> Result<Vec<Shard>, Error> {
        let mut names: Vec<&str> = self.names().collect();
        names.sort_unstable();
        let numbers = |name: &str| {
            let (layer, rest) = name.strip_prefix("layers.")?.split_once(".ffn.experts.")?;
            Some((layer.parse().ok()?, rest.split_once('.')?.0.parse().ok()?))
        };
        let (experts, others): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|name| numbers(name).is_some());
        let (drafts, dense): (Vec<&str>, Vec<&str>) = others.into_iter().partition(|name| name.starts_with("mtp."));
        let one = |names: Vec<&str>| vec![names.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        let mut all = vec![self.packed_shard("dense.safetensors".into(), one(dense))?];
        if !drafts.is_empty() {
            all.push(self.packed_shard("drafts.safetensors".into(), one(drafts))?);
        }
        // Of layers that the configuration has, and of drafts that third parties number on from them.
        let mut layers: BTreeMap<usize, BTreeMap<usize, Vec<String>>> = BTreeMap::new();
        for name in experts {
            if let Some((layer, expert)) = numbers(name) {
                layers.entry(layer).or_default().entry(expert).or_default().push(name.to_owned());
            }
        }
        for (layer, groups) in layers {
            let groups = groups.into_values().collect();
            all.push(self.packed_shard(format!("experts-{layer:05}.safetensors"), groups)?);
        }
        Ok(all)
    }

    /// A shard of groups of tensors, each of which starts at a multiple of [`FRAME_ALIGN`].
    fn packed_shard(&self, name: String, groups: Vec<Vec<String>>) -> Result<Shard, Error> {
        let (mut header, mut parts, mut at, mut pads) = (Map::new(), Vec::new(), 0usize, 0);
        header.insert("__metadata__".into(), json!({"packed_from": self.source_key()}));
        for group in groups {
            let gap = at.next_multiple_of(FRAME_ALIGN) - at;
            if gap > 0 {
                header.insert(
                    format!("{PAD}{pads}"),
                    json!({"dtype": "U8", "shape": [gap], "data_offsets": [at, at + gap]}),
                );
                parts.push(Part::Pad(gap));
                (at, pads) = (at + gap, pads + 1);
            }
            for name in group {
                let entry = self.entry(&name)?;
                let end = at + (entry.range.1 - entry.range.0);
                header.insert(
                    name.clone(),
                    json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, end]}),
                );
                parts.push(Part::Tensor(name));
                at = end;
            }
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize((text.len() + 8).next_multiple_of(FRAME_ALIGN) - 8, b' ');
        let header = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        let bytes = (header.len() + at) as u64;
        Ok(Shard { name, header, parts, bytes })
    }

    /// What tells this checkpoint's files from others of the same shapes, without reading them.
    fn source_key(&self) -> String {
        let mut key = blake3::Hasher::new_derive_key("fathom pack source 1");
        key.update(&self.config_hash);
        for shard in &self.shards {
            let modified = shard.id.map(|id| (id.size(), id.modified()));
            key.update(format!("{:?} {modified:?}\n", shard.path.file_name()).as_bytes());
        }
        key.finalize().to_hex().to_string()
    }

    fn write_shard(&self, path: &Path, shard: &Shard, progress: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let mut done = shard.header.len() as u64;
        whole(path, |file| {
            file.write_all(&shard.header)?;
            for part in &shard.parts {
                match part {
                    Part::Pad(bytes) => file.write_all(&vec![0; *bytes])?,
                    Part::Tensor(name) => self.read_parts(name, |_, bytes| {
                        file.write_all(bytes)?;
                        done += bytes.len() as u64;
                        progress(done);
                        Ok::<_, Failed>(())
                    })?,
                }
            }
            // What was read above is of one state of the original.
            Ok(self.check_source()?)
        })
    }
}

/// Which end of a copy failed.
enum Failed {
    Read(Error),
    Write(io::Error),
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Failed::Read(e)
    }
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Failed::Write(e)
    }
}

fn refused(path: &Path, problem: &str) -> Error {
    Error::File { path: path.to_owned(), problem: problem.to_owned() }
}

fn changed(path: &Path) -> Error {
    refused(
        path,
        "changed while it was being copied; delete the copy and begin it again when nothing writes to the model",
    )
}

/// Keeps other runs out of a folder for as long as the file is open.
fn lock(out: &Path) -> Result<File, Error> {
    let path = out.join(LOCK);
    let failed = |cause| Error::Write { path: path.clone(), cause };
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(refused(out, "is being written by another fathom pack; wait for that, or name another folder"))
        }
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}

/// What a packed shard says that it was packed from: its header begins with that.
fn packed_from(path: &Path) -> io::Result<Option<Vec<u8>>> {
    const BEGIN: &[u8] = br#"{"__metadata__":{"packed_from":""#;
    const KEY: usize = 2 * blake3::OUT_LEN;
    let mut begin = Vec::new();
    File::open(path)?.take((8 + BEGIN.len() + KEY) as u64).read_to_end(&mut begin)?;
    let key = begin.get(8..).and_then(|text| text.strip_prefix(BEGIN));
    Ok(key.filter(|key| key.len() == KEY).map(<[u8]>::to_vec))
}

/// Whether a file is there, whole, from the same original: it has its name only once it is.
fn is_there(path: &Path, shard: &Shard) -> bool {
    let header = || {
        let mut found = vec![0; shard.header.len()];
        File::open(path)?.read_exact(&mut found)?;
        Ok::<_, io::Error>(found)
    };
    fs::metadata(path).is_ok_and(|m| m.len() == shard.bytes) && header().is_ok_and(|found| found == shard.header)
}

/// What a file is called until it is whole.
fn partial(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}

/// Writes a file that takes its name when all of it is on the drive.
fn whole(path: &Path, write: impl FnOnce(&mut File) -> Result<(), Failed>) -> Result<(), Error> {
    let partial = partial(path);
    let written = || {
        // What a killed run left is unlinked, never written into: somebody may have it open.
        remove(&partial)?;
        let mut file = File::create_new(&partial)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path.parent().unwrap_or(Path::new(".")))?;
        Ok(())
    };
    written().map_err(|failed| {
        let _ = fs::remove_file(&partial);
        match failed {
            Failed::Read(e) => e,
            Failed::Write(cause) => Error::Write { path: path.to_owned(), cause },
        }
    })
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Puts on the drive which names a folder has.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What else is in the model's folder and is copied along: tokenizers, licences.
fn others(source: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |cause| Error::Read { path: source.to_owned(), cause };
    let mut found = Vec::new();
    for entry in fs::read_dir(source).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        // Our own, and what belongs to whoever writes to the original.
        let not = [CONFIG, INDEX, LOCK].iter().any(|not| name == *not)
            || path.extension().is_some_and(|e| e == "safetensors" || e == "partial");
        if !not && fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_OTHER) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Where a file of that name is in the folder.
fn beside(out: &Path, path: &Path) -> PathBuf {
    out.join(path.file_name().unwrap_or_default())
}

/// Whether there is something of that name, and not the same file's copy.
fn is_other(ours: &Path, theirs: &Path) -> bool {
    let length = |path| fs::metadata(path).ok().map(|m| m.len());
    let same = || length(ours) == length(theirs) && fs::read(ours).ok() == fs::read(theirs).ok();
    theirs.symlink_metadata().is_ok() && !same()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;
    use crate::experts::Places;
    use crate::synth::Synth;

    #[test]
    fn a_copy_has_the_same_tensors_one_stretch_an_expert() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (seed, kind) in [(1, "fp4"), (2, "fp8")] {
            let out = there.path().join(kind);
            Synth::tiny(seed).set("expert_dtype", kind).write(here.path()).unwrap();
            fs::write(here.path().join("tokenizer.json"), "{}").unwrap();
            let original = Checkpoint::open(here.path()).unwrap();
            let first = original.pack(here.path(), &out, &mut |_, _| ()).unwrap();
            assert_eq!(first.kept, 0);
            let copy = Checkpoint::open(&out).unwrap();
            for name in original.names() {
                assert_eq!(original.bytes(name).unwrap(), copy.bytes(name).unwrap(), "{name}");
            }
            let places = Places::new(&copy).unwrap();
            let (layers, experts) = places.counts();
            assert_eq!(places.reads(), layers * experts);
            for i in 0..layers * experts {
                // Aligned at both ends as far as there is more to come: no byte is read that is not the expert's.
                let run = &places.get(i).runs[0];
                assert!(places.frame_bytes() < run.need + FRAME_ALIGN && run.at == 0);
            }
            assert!(out.join("tokenizer.json").is_file());

            // Interrupted: a shard is not there, and one is half.
            fs::remove_file(out.join("config.json")).unwrap();
            fs::remove_file(out.join("dense.safetensors")).unwrap();
            File::options().write(true).open(out.join("experts-00003.safetensors")).unwrap().set_len(9000).unwrap();
            assert!(Checkpoint::open(&out).is_err());
            let again = original.pack(here.path(), &out, &mut |_, _| ()).unwrap();
            assert!(again.kept > 0 && again.kept < again.bytes && again.bytes == first.bytes);
            let copy = Checkpoint::open(&out).unwrap();
            assert!(original.names().all(|name| original.bytes(name).unwrap() == copy.bytes(name).unwrap()));
        }
        let message =
            Checkpoint::open(here.path()).unwrap().pack(here.path(), here.path(), &mut |_, _| ()).unwrap_err();
        assert!(message.to_string().contains("own folder"), "{message}");
    }

    /// A model's folder, its files last written at a time that is the same for all.
    fn model(seed: u64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        Synth::tiny(seed).write(folder.path()).unwrap();
        touch(&folder.path().join("model.safetensors"), 1);
        folder
    }

    fn touch(path: &Path, seconds: u64) {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn pack(source: &Path, out: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Packed, String> {
        let packed = Checkpoint::open(source).unwrap().pack(source, out, &mut progress);
        packed.map_err(|e| e.to_string())
    }

    #[test]
    fn an_interrupted_repack_is_no_checkpoint() {
        // Two models that nothing tells apart but their bits.
        let (a, b, there) = (model(1), model(2), tempfile::tempdir().unwrap());
        let out = there.path().join("out");
        pack(a.path(), &out, |_, _| ()).unwrap();
        for name in ["dense.safetensors", "experts-00003.safetensors"] {
            File::options().write(true).open(out.join(name)).unwrap().set_len(9000).unwrap();
        }
        let source = File::options().write(true).open(b.path().join("model.safetensors")).unwrap();
        let mut replaced = false;
        let message = pack(b.path(), &out, |_, _| {
            if is_whole(&out.join("dense.safetensors")) {
                replaced = true;
                source.set_len(0).unwrap();
            }
        });
        assert!(replaced && message.clone().unwrap_err().contains("model.safetensors"), "{message:?}");
        let message = Checkpoint::open(&out).unwrap_err().to_string();
        assert!(message.contains("config.json"), "{message}");
        assert!(!out.join(INDEX).exists());
    }

    fn is_whole(path: &Path) -> bool {
        fs::metadata(path).unwrap().len() > 9000
    }

    #[test]
    fn one_run_at_a_time_writes_to_a_folder() {
        let (a, there) = (model(1), tempfile::tempdir().unwrap());
        let held = lock(there.path()).unwrap();
        let message = pack(a.path(), there.path(), |_, _| ()).unwrap_err();
        assert!(message.contains("another fathom pack"), "{message}");
        drop(held);
        // What was there under a name of ours, and open, is not written into.
        let old = there.path().join("dense.safetensors.partial");
        fs::write(&old, "old").unwrap();
        let mut open = File::open(&old).unwrap();
        pack(a.path(), there.path(), |_, _| ()).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert!(text == "old" && !old.exists());
        // A copy of a copy has a lock of its own.
        let second = tempfile::tempdir().unwrap();
        pack(there.path(), second.path(), |_, _| ()).unwrap();
        Checkpoint::open(second.path()).unwrap();
    }

    #[test]
    fn an_original_that_changes_is_not_copied() {
        for (name, at_the_end) in [("model.safetensors", false), ("model.safetensors", true), ("config.json", true)] {
            let (a, there) = (model(1), tempfile::tempdir().unwrap());
            let (out, path) = (there.path().join("out"), a.path().join(name));
            let mut writes = 0;
            let message = pack(a.path(), &out, |done, total| {
                if writes == 0 && (done == total || !at_the_end) {
                    writes += 1;
                    let mut bytes = fs::read(&path).unwrap();
                    bytes.push(b' ');
                    fs::write(&path, &bytes).unwrap();
                }
            });
            let message = message.unwrap_err();
            assert!(message.contains(name) && message.contains("changed while"), "{message}");
            assert!(!out.join("config.json").exists());
            assert_eq!(out.join("dense.safetensors").exists(), at_the_end);
        }
    }

    #[test]
    fn what_is_another_models_stays() {
        let (a, b, there) = (model(1), model(2), tempfile::tempdir().unwrap());
        touch(&b.path().join("model.safetensors"), 2);
        let read = |name: &str| fs::read(b.path().join(name)).unwrap();
        let before = (read("config.json"), read("model.safetensors"));
        let message = pack(a.path(), b.path(), |_, _| ()).unwrap_err();
        assert!(message.contains("not of a packed copy; name another folder"), "{message}");
        assert!(before == (read("config.json"), read("model.safetensors")) && !b.path().join(LOCK).exists());

        let out = there.path().join("out");
        pack(a.path(), &out, |_, _| ()).unwrap();
        let message = pack(b.path(), &out, |_, _| ()).unwrap_err();
        assert!(message.contains("copy of another model") && message.contains("delete"), "{message}");
        Checkpoint::open(&out).unwrap();
        let again = pack(a.path(), &out, |_, _| ()).unwrap();
        assert_eq!(again.kept, again.bytes);

        fs::write(a.path().join("README.md"), "the model").unwrap();
        for name in ["config.json", INDEX, "other.safetensors", "README.md"] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), "{}").unwrap();
            let message = pack(a.path(), folder.path(), |_, _| ()).unwrap_err();
            assert!(message.contains(name), "{message}");
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "{}");
        }
        // What is the same, or is not in the model's folder, does not matter.
        fs::write(there.path().join("README.md"), "the model").unwrap();
        fs::write(there.path().join("notes"), "mine").unwrap();
        pack(a.path(), there.path(), |_, _| ()).unwrap();
        assert_eq!(fs::read_to_string(there.path().join("notes")).unwrap(), "mine");
    }

    /// Drafts that are numbered on from the layers, and what is called like an expert and is none.
    #[test]
    fn no_tensor_is_left_out() {
        let (a, there) = (model(1), tempfile::tempdir().unwrap());
        let path = a.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let more = ["layers.7.enorm.weight", "layers.7.ffn.experts.3.w1.weight", "layers.1.ffn.experts.x"];
        let more = more.map(|name| (name.to_owned(), TensorView::new(Dtype::U8, vec![5], &[7; 5]).unwrap()));
        let tensors = file.tensors().into_iter().chain(more);
        fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let original = Checkpoint::open(a.path()).unwrap();
        original.pack(a.path(), there.path(), &mut |_, _| ()).unwrap();
        let copy = Checkpoint::open(there.path()).unwrap();
        for name in original.names() {
            assert_eq!(original.bytes(name).unwrap(), copy.bytes(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn needs_what_is_not_there_of_the_copy() {
        let (a, there) = (model(1), tempfile::tempdir().unwrap());
        let checkpoint = Checkpoint::open(a.path()).unwrap();
        let all = checkpoint.pack_needs(&there.path().join("none")).unwrap();
        assert!(all > checkpoint.weight_bytes());
        fs::write(there.path().join("film.mkv"), vec![0; 1 << 20]).unwrap();
        assert_eq!(checkpoint.pack_needs(there.path()).unwrap(), all);
        let packed = checkpoint.pack(a.path(), there.path(), &mut |_, _| ()).unwrap();
        assert_eq!((packed.bytes, checkpoint.pack_needs(there.path()).unwrap()), (all, 0));
        let dense = there.path().join("dense.safetensors");
        let bytes = fs::metadata(&dense).unwrap().len();
        fs::rename(&dense, partial(&dense)).unwrap();
        File::options().write(true).open(partial(&dense)).unwrap().set_len(bytes - 1).unwrap();
        assert_eq!(checkpoint.pack_needs(there.path()).unwrap(), 1);
    }
}
