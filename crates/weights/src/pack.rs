//! An expert-major copy of a checkpoint: every expert one stretch that starts at a multiple of 4 KiB.
//!
//! The copy is a checkpoint like the original, of the same tensors under their official names: `dense.safetensors`,
//! `drafts.safetensors` where there are drafts, and `experts-LLLLL.safetensors` for each layer. Gaps between experts, which the
//! format does not allow, are tensors called `pad.N`. A file takes its name when it is whole and on the drive; `config.json`
//! comes last, and without it the folder is no checkpoint. What is there already of an interrupted run is kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fathom_kernels::FRAME_ALIGN;
use serde_json::{Map, Value, json};

use crate::checkpoint::PAD;
use crate::{Checkpoint, Error};

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
    /// Something cannot be read or written, or `out` is a checkpoint of another model.
    pub fn pack(&self, source: &Path, out: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Packed, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Write { path, cause }
        };
        fs::create_dir_all(out).map_err(failed(out))?;
        let real = |path: &Path| path.canonicalize().map_err(failed(path));
        if real(out)? == real(source)? {
            let problem = "is the model's own folder; name another".to_owned();
            return Err(Error::File { path: out.to_owned(), problem });
        }
        let shards = self.packed_shards()?;
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
        others(source, out)?;
        whole(&out.join("model.safetensors.index.json"), |file| file.write_all(index.to_string().as_bytes()))?;
        let config = source.join("config.json");
        let config = fs::read(&config).map_err(|cause| Error::Read { path: config, cause })?;
        whole(&out.join("config.json"), |file| file.write_all(&config))?;
        Ok(Packed { bytes: total, kept })
    }

    /// Tensors by shard, in the order in which they are read.
    fn packed_shards(&self) -> Result<Vec<Shard>, Error> {
        let c = self.config();
        let mut names: Vec<&str> = self.names().collect();
        names.sort_unstable();
        let routed = |name: &&str| name.starts_with("layers.") && name.contains(".ffn.experts.");
        let (experts, others): (Vec<&str>, Vec<&str>) = names.into_iter().partition(routed);
        let (drafts, dense): (Vec<&str>, Vec<&str>) = others.into_iter().partition(|name| name.starts_with("mtp."));
        let one = |names: Vec<&str>| vec![names.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        let mut all = vec![self.packed_shard("dense.safetensors".into(), one(dense))?];
        if !drafts.is_empty() {
            all.push(self.packed_shard("drafts.safetensors".into(), one(drafts))?);
        }
        let mut by_expert: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
        for name in experts {
            let numbers = || {
                let (layer, rest) = name.strip_prefix("layers.")?.split_once(".ffn.experts.")?;
                Some((layer.parse().ok()?, rest.split_once('.')?.0.parse().ok()?))
            };
            by_expert.entry(numbers().unwrap_or((usize::MAX, 0))).or_default().push(name.to_owned());
        }
        for layer in (0..c.num_hidden_layers).chain([usize::MAX]) {
            let groups: Vec<Vec<String>> =
                by_expert.range((layer, 0)..=(layer, usize::MAX)).map(|(_, n)| n.clone()).collect();
            if !groups.is_empty() {
                all.push(self.packed_shard(format!("experts-{:05}.safetensors", layer.min(99_999)), groups)?);
            }
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
        let mut failed = None;
        let written = whole(path, |file| {
            file.write_all(&shard.header)?;
            for part in &shard.parts {
                let copied = match part {
                    Part::Pad(bytes) => file.write_all(&vec![0; *bytes]).map_err(Copy::Write),
                    Part::Tensor(name) => self.read_parts(name, |_, bytes| {
                        file.write_all(bytes).map_err(Copy::Write)?;
                        done += bytes.len() as u64;
                        progress(done);
                        Ok(())
                    }),
                };
                match copied {
                    Ok(()) => {}
                    Err(Copy::Write(e)) => return Err(e),
                    Err(Copy::Read(e)) => {
                        failed = Some(e);
                        return Err(io::Error::other("the original"));
                    }
                }
            }
            Ok(())
        });
        failed.map_or(written, Err)
    }
}

/// Which end of a copy failed.
enum Copy {
    Read(Error),
    Write(io::Error),
}

impl From<Error> for Copy {
    fn from(e: Error) -> Self {
        Copy::Read(e)
    }
}

/// Whether a file is there, whole, from the same original: it has its name only once it is.
fn is_there(path: &Path, shard: &Shard) -> bool {
    let header = || {
        let mut found = vec![0; shard.header.len()];
        io::Read::read_exact(&mut File::open(path)?, &mut found)?;
        Ok::<_, io::Error>(found)
    };
    fs::metadata(path).is_ok_and(|m| m.len() == shard.bytes) && header().is_ok_and(|found| found == shard.header)
}

/// Writes a file that takes its name when all of it is on the drive.
fn whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = || {
        let mut file = File::create(&partial)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(|cause| {
        let _ = fs::remove_file(&partial);
        Error::Write { path: path.to_owned(), cause }
    })
}

/// Copies what else is in the model's folder: tokenizers, licences.
fn others(source: &Path, out: &Path) -> Result<(), Error> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |cause| Error::Read { path, cause }
    };
    for entry in fs::read_dir(source).map_err(read(source))? {
        let path = entry.map_err(read(source))?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        let shard = path.extension().is_some_and(|e| e == "safetensors") || name == "model.safetensors.index.json";
        let small = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_OTHER);
        if small && !shard && name != "config.json" {
            let bytes = fs::read(&path).map_err(read(&path))?;
            whole(&out.join(name), |file| file.write_all(&bytes))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
}
