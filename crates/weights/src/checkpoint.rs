//! A checkpoint: a configuration and its tensors by official name.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use fathom_kernels::{Format, Matrix};
use safetensors::tensor::Dtype;

use crate::layout::{self, Shape};
use crate::names::official;
use crate::shard::{self, Entry, Shard};
use crate::{Config, Error, mapping};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The largest `config.json` that is read, in bytes; those of the releases have 2 KB.
const MAX_CONFIG: u64 = 4 << 20;
/// What tensors are called that only fill gaps in a packed copy.
pub(crate) const PAD: &str = "pad.";
/// The largest index that is read, in bytes; V4-Pro's has 20 MB.
const MAX_INDEX: u64 = 256 << 20;

/// Which release of V4 the files are, by the tensors they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The preview of April 2026: FP4 experts, at most one MTP block.
    Preview,
    /// Flash-0731 and Pro-0813: FP4 experts and DSpark draft stages, more than one `mtp.M`.
    Dspark,
    /// A `-Base` model: FP8 experts.
    Base,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Release::Preview => "V4 preview",
            Release::Dspark => "V4 0731/0813 (DSpark)",
            Release::Base => "V4 Base (FP8 experts)",
        })
    }
}

/// A checkpoint whose every tensor was found where and as it must be.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    /// BLAKE3 of `config.json`.
    pub(crate) config_hash: [u8; 32],
    pub(crate) shards: Vec<Shard>,
    tensors: HashMap<Box<str>, Entry>,
}

impl Checkpoint {
    /// Opens a folder: reads `config.json`, the index and the shards' headers, and checks them. Nothing else is read.
    ///
    /// # Errors
    /// The first thing that is wrong, by name.
    pub fn open(folder: &Path) -> Result<Checkpoint, Error> {
        let config = read_json(&folder.join("config.json"), MAX_CONFIG)?;
        let parsed = Config::parse(&config)?;
        let (files, index) = shard_files(folder)?;
        let mut shards = Vec::new();
        for path in files {
            let (bytes, file) = mapping::map(&path)?;
            shards.push(Shard::mapped(path, bytes, file));
        }
        Checkpoint::new(parsed, &config, shards, index)
    }

    /// A checkpoint from bytes in memory: `config.json` and named shards.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_memory(config: &[u8], shards: Vec<(String, Bytes)>) -> Result<Checkpoint, Error> {
        let shards =
            shards.into_iter().map(|(name, bytes)| Shard { path: name.into(), bytes, id: None, file: None }).collect();
        Checkpoint::new(Config::parse(config)?, config, shards, None)
    }

    /// `source` is what `config` was parsed from.
    fn new(config: Config, source: &[u8], shards: Vec<Shard>, index: Option<Index>) -> Result<Checkpoint, Error> {
        let mut tensors: HashMap<Box<str>, Entry> = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for (name, entry) in shard::tensors(i as u32, &shard.path, &shard.bytes)? {
                if name.starts_with(PAD) {
                    continue;
                }
                let name = official(&name).into_boxed_str();
                if let Some(other) = tensors.get(&name) {
                    let problem = format!("has tensor {name}, which {} has too", file_name(&shards, other.shard));
                    return Err(Error::File { path: shard.path.clone(), problem });
                }
                tensors.insert(name, entry);
            }
        }
        if let Some(index) = index {
            index.check(&shards, &tensors)?;
        }
        let config_hash = *blake3::hash(source).as_bytes();
        let checkpoint = Checkpoint { config, config_hash, shards, tensors };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Every tensor of the layout is there, of a type and shape that will do.
    fn check(&self) -> Result<(), Error> {
        let mut first: Option<(String, String, String)> = None;
        let mut wrong = 0;
        layout::tensors(&self.config, |name, shape| {
            let problem = match &shape {
                Shape::Vector(shape) => self.check_vector(&name, shape),
                Shape::Matrix(rows, cols) => self.check_matrix(&name, *rows, *cols),
                Shape::Table(rows, cols) => self.check_plain(&name, &[Dtype::I64], &[*rows, *cols]),
            };
            if let Err((tensor, problem)) = problem {
                wrong += 1;
                if first.is_none() {
                    let file = self.tensors.get(tensor.as_str()).map(|e| file_name(&self.shards, e.shard));
                    first = Some((tensor, problem, file.unwrap_or_else(|| self.place())));
                }
            }
        });
        match first {
            None => self.check_extent(),
            Some((tensor, problem, file)) => Err(Error::Tensor { tensor, file, problem, others_too: wrong - 1 }),
        }
    }

    /// No layer has more than the configuration gives it: then one of the two is another model's.
    fn check_extent(&self) -> Result<(), Error> {
        let foreign = self.tensors.keys().filter_map(|name| Some((name, self.foreign(name)?)));
        match foreign.min_by_key(|(name, _)| *name) {
            None => Ok(()),
            Some((name, (field, says))) => {
                let file = file_name(&self.shards, self.tensors[name].shard);
                let problem = format!("{says}, but {file} has tensor {name}");
                Err(Error::Config { field: field.to_owned(), problem })
            }
        }
    }

    /// The field that has no room for this tensor, and what it says.
    fn foreign(&self, name: &str) -> Option<(&'static str, String)> {
        let c = &self.config;
        let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        if layer >= c.num_hidden_layers {
            // Third parties number their draft blocks on from the layers.
            let draft = self.tensors.contains_key(format!("layers.{layer}.enorm.weight").as_str());
            return (!draft).then(|| ("num_hidden_layers", format!("is {}", c.num_hidden_layers)));
        }
        let ratio = c.compress_ratios[layer];
        let kept = match rest.strip_prefix("attn.")?.split('.').next()? {
            "compressor" => ratio > 0,
            "indexer" => ratio == 4,
            _ => true,
        };
        (!kept).then(|| ("compress_ratios", format!("has {ratio} for layer {layer}")))
    }

    /// Where a missing tensor was looked for.
    fn place(&self) -> String {
        match self.shards.len() {
            1 => file_name(&self.shards, 0),
            n => format!("all {n} shards"),
        }
    }

    fn check_vector(&self, name: &str, shape: &[usize]) -> Result<(), (String, String)> {
        self.check_plain(name, &[Dtype::BF16, Dtype::F32], shape)
    }

    fn check_plain(&self, name: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<(), (String, String)> {
        let Some(entry) = self.tensors.get(name) else { return Err((name.to_owned(), "is missing".to_owned())) };
        if *entry.shape != *shape {
            return Err((name.to_owned(), format!("has shape {:?}; config.json asks for {shape:?}", entry.shape)));
        }
        if !dtypes.contains(&entry.dtype) {
            return Err((name.to_owned(), format!("is {:?}; it must be one of {dtypes:?}", entry.dtype)));
        }
        Ok(())
    }

    fn check_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<(), (String, String)> {
        let full = self.full_name(name);
        let Some(entry) = self.tensors.get(full.as_str()) else { return Err((full, "is missing".to_owned())) };
        if let Some(problem) = self.unfit(name, entry) {
            return Err((full, problem));
        }
        let scale = format!("{name}.scale");
        let scales = [Dtype::F8_E8M0, Dtype::U8];
        match entry.dtype {
            Dtype::F32 | Dtype::BF16 if self.tensors.contains_key(scale.as_str()) => {
                Err((scale, format!("is there, but {full} is {:?}, which has no scales", entry.dtype)))
            }
            Dtype::F32 | Dtype::BF16 => self.check_plain(&full, &[entry.dtype], &[rows, cols]),
            Dtype::F8_E4M3 => {
                self.check_plain(&full, &[entry.dtype], &[rows, cols])?;
                self.check_plain(&scale, &scales, &[rows.div_ceil(128), cols.div_ceil(128)])
            }
            Dtype::I8 | Dtype::U8 | Dtype::F4 => {
                if !cols.is_multiple_of(32) {
                    return Err((full, format!("is FP4 with {cols} columns, which is no multiple of 32")));
                }
                let stored = if entry.dtype == Dtype::F4 { cols } else { cols / 2 };
                if *entry.shape == [rows, cols] && stored < cols {
                    let dtype = entry.dtype;
                    return Err((
                        full,
                        format!("is {dtype:?}, which is FP4, two to a byte, but has shape [{rows}, {cols}]"),
                    ));
                }
                self.check_plain(&full, &[entry.dtype], &[rows, stored])?;
                self.check_plain(&scale, &scales, &[rows, cols / 32])
            }
            other => Err((full, format!("is {other:?}; a matrix must be BF16, F32, F8_E4M3 or FP4 in I8 with scales"))),
        }
    }

    /// Why a matrix of this type cannot stand in this place, whatever its shape: experts of a layer are multiplied together,
    /// and two matrices are not multiplied as others are.
    fn unfit(&self, name: &str, entry: &Entry) -> Option<String> {
        let dtype = entry.dtype;
        if name == "embed" && (dtype == Dtype::F8_E4M3 || is_fp4(dtype)) {
            return Some(format!("is {dtype:?}; embeddings must be BF16 or F32"));
        }
        if name.ends_with(".attn.wo_a") && is_fp4(dtype) {
            return Some(format!("is {dtype:?}, which is FP4; it must be FP8, BF16 or F32"));
        }
        let (layer, _) = name.split_once(".ffn.experts.")?;
        let first = format!("{layer}.ffn.experts.0.w1.weight");
        let other = self.tensors.get(first.as_str())?.dtype;
        let same = other == dtype || is_fp4(other) && is_fp4(dtype);
        (!same).then(|| format!("is {dtype:?}, but {first} is {other:?}; a layer's experts must be of one format"))
    }

    /// `name.weight`, or `name` for those that have no such ending.
    fn full_name(&self, name: &str) -> String {
        let bare = name.ends_with("_fn") || self.tensors.contains_key(name);
        if bare { name.to_owned() } else { format!("{name}.weight") }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Which release the files are.
    pub fn release(&self) -> Release {
        let expert = self.tensors.get("layers.0.ffn.experts.0.w1.weight");
        if expert.is_some_and(|e| e.dtype == Dtype::F8_E4M3) {
            Release::Base
        } else if self.draft_stages() > 1 {
            Release::Dspark
        } else {
            Release::Preview
        }
    }

    /// How many `mtp.M` blocks the files have: MTP (one) or DSpark (three) drafts, recognised and left alone.
    pub fn draft_stages(&self) -> usize {
        let stage = |name: &str| name.strip_prefix("mtp.")?.split('.').next()?.parse::<u32>().ok();
        self.tensors.keys().filter_map(|name| stage(name)).collect::<BTreeSet<_>>().len()
    }

    /// Bytes of all tensors.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|e| (e.range.1 - e.range.0) as u64).sum()
    }

    /// Bytes of the drafts' tensors.
    pub fn draft_bytes(&self) -> u64 {
        let drafts = self.tensors.iter().filter(|(name, _)| name.starts_with("mtp."));
        drafts.map(|(_, e)| (e.range.1 - e.range.0) as u64).sum()
    }

    /// The names of all tensors, in no order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(AsRef::as_ref)
    }

    /// Whether its shards are files, rather than bytes in memory.
    pub fn is_in_files(&self) -> bool {
        self.shards.iter().all(|shard| shard.file.is_some())
    }

    /// How many shards and tensors there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.shards.len(), self.tensors.len())
    }

    pub(crate) fn entry(&self, name: &str) -> Result<&Entry, Error> {
        self.tensors.get(name).ok_or_else(|| Error::Tensor {
            tensor: name.to_owned(),
            file: self.place(),
            problem: "is missing".into(),
            others_too: 0,
        })
    }

    /// A tensor's bytes, where they lie.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn bytes(&self, name: &str) -> Result<Bytes, Error> {
        let entry = self.entry(name)?;
        Ok(self.shards[entry.shard as usize].bytes.slice(entry.range.0..entry.range.1))
    }

    /// A tensor's bytes, copied: what is read of a file this way is not mapped, and nobody else's change can reach it later.
    ///
    /// # Errors
    /// There is no such tensor, it cannot be read, or its file is not what it was when it was opened.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let entry = self.entry(name)?;
        let (shard, (from, to)) = (&self.shards[entry.shard as usize], entry.range);
        let mut bytes = vec![0; to - from];
        shard.read(from, &mut bytes)?;
        Ok(bytes)
    }

    /// A tensor's bytes in parts, each with where it begins, copied as [`Checkpoint::read`] does; none is longer than 8 MiB.
    ///
    /// # Errors
    /// As there, and what `part` says.
    pub fn read_parts<E: From<Error>>(
        &self,
        name: &str,
        mut part: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        const PART: usize = 8 << 20;
        let entry = self.entry(name)?;
        let (shard, (from, to)) = (&self.shards[entry.shard as usize], entry.range);
        shard.read_parts(from..to, PART, |at, bytes| part(at - from, bytes))
    }

    /// Bytes of a tensor.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn len(&self, name: &str) -> Result<usize, Error> {
        self.entry(name).map(|entry| entry.range.1 - entry.range.0)
    }

    /// Bytes of the tensors that a run holds whatever tokens come: those of the layers and the head, without routed experts
    /// and drafts. Vectors count as f32, which they are held as.
    pub fn dense_bytes(&self) -> u64 {
        let held = |name: &str, entry: &Entry| {
            let bf16_vector = entry.dtype == Dtype::BF16 && entry.shape.len() == 1;
            crate::sizes::dense(name, (entry.range.1 - entry.range.0) as u64, bf16_vector)
        };
        self.tensors.iter().map(|(name, entry)| held(name, entry)).sum()
    }

    /// Gives back what the system keeps mapped of files: nothing after this should touch more of them than it must.
    pub fn forget_mapped(&self) {
        self.shards.iter().for_each(|shard| mapping::forget(&shard.bytes));
    }

    /// The file that has a tensor, or was looked through for it.
    pub fn file(&self, name: &str) -> String {
        self.tensors.get(name).map_or_else(|| self.place(), |e| file_name(&self.shards, e.shard))
    }

    /// A BF16 or F32 tensor of any rank, as f32.
    ///
    /// # Errors
    /// There is no such tensor, it is of another type, or has values that are no numbers.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, Error> {
        let bytes = self.read(name)?;
        let wrong =
            |problem| Err(Error::Tensor { tensor: name.to_owned(), file: self.file(name), problem, others_too: 0 });
        let values: Vec<f32> = match self.entry(name)?.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::BF16 => {
                let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                bytes.chunks_exact(2).map(wide).collect()
            }
            other => return wrong(format!("is {other:?}; it must be BF16 or F32")),
        };
        match values.iter().find(|v| !v.is_finite()) {
            None => Ok(values),
            Some(v) => wrong(format!("has the value {v}; it is damaged, download it again")),
        }
    }

    /// A matrix `[out, in]` as stored, by its name without `.weight`, with its scales, where they lie.
    ///
    /// # Errors
    /// There is no such tensor, or a scale of a dense FP8 matrix is no number.
    pub fn matrix(&self, name: &str) -> Result<Matrix<Bytes>, Error> {
        self.matrix_with(name, |tensor| self.bytes(tensor))
    }

    /// [`Checkpoint::matrix`] with its tensors, by their full names, wherever `get` puts them.
    ///
    /// # Errors
    /// As there, and what `get` says.
    pub fn matrix_with<B, E: From<Error>>(
        &self,
        name: &str,
        mut get: impl FnMut(&str) -> Result<B, E>,
    ) -> Result<Matrix<B>, E> {
        let full = self.full_name(name);
        let entry = self.entry(&full)?;
        if entry.shape.len() != 2 {
            let file = file_name(&self.shards, entry.shard);
            let problem = format!("has shape {:?}; it must be a matrix", entry.shape);
            return Err(Error::Tensor { tensor: full, file, problem, others_too: 0 }.into());
        }
        let (format, rows, cols) = stored_as(entry);
        let scale = matches!(format, Format::Fp8 | Format::Fp4).then(|| format!("{name}.scale"));
        // The dense matrices' scales are few. The experts' are not looked at: they lie all over the files.
        if let Some(tensor) = scale.as_ref().filter(|_| format == Format::Fp8 && !name.contains(".experts."))
            && self.read(tensor)?.contains(&u8::MAX)
        {
            let (tensor, problem) = (tensor.clone(), "has a scale that is no number (255); download it again");
            return Err(
                Error::Tensor { file: self.file(&tensor), tensor, problem: problem.into(), others_too: 0 }.into()
            );
        }
        Ok(Matrix { format, rows, cols, data: get(&full)?, scale: scale.map(|tensor| get(&tensor)).transpose()? })
    }
}

/// Format, rows and columns of a tensor with two dimensions.
pub(crate) fn stored_as(entry: &Entry) -> (Format, usize, usize) {
    let (rows, stored) = (entry.shape[0], entry.shape[1]);
    match entry.dtype {
        Dtype::F32 => (Format::F32, rows, stored),
        Dtype::F8_E4M3 => (Format::Fp8, rows, stored),
        Dtype::I8 | Dtype::U8 => (Format::Fp4, rows, stored * 2),
        Dtype::F4 => (Format::Fp4, rows, stored),
        _ => (Format::Bf16, rows, stored),
    }
}

/// Two values to a byte, or a type of their own.
fn is_fp4(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::I8 | Dtype::U8 | Dtype::F4)
}

fn file_name(shards: &[Shard], shard: u32) -> String {
    shards[shard as usize].path.display().to_string()
}

fn read_json(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let read = |cause| Error::Read { path: path.to_owned(), cause };
    let wrong = |problem: String| Error::File { path: path.to_owned(), problem };
    let found = std::fs::metadata(path).map_err(read)?;
    // Asked before opening: to open a pipe is to wait for its writer, and a device may never end.
    if !found.is_file() {
        return Err(wrong("is not a regular file".into()));
    }
    if found.len() > most {
        return Err(wrong(format!("has {} bytes, too many for a JSON file of a checkpoint", found.len())));
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    File::open(path).map_err(read)?.take(most).read_to_end(&mut bytes).map_err(read)?;
    Ok(bytes)
}

/// `model.safetensors.index.json`: which shard has which tensor.
struct Index {
    path: PathBuf,
    weight_map: Vec<(String, String)>,
}

impl Index {
    fn read(path: PathBuf) -> Result<Index, Error> {
        #[derive(serde::Deserialize)]
        struct Raw {
            weight_map: HashMap<String, String>,
        }
        match serde_json::from_slice::<Raw>(&read_json(&path, MAX_INDEX)?) {
            Ok(raw) if raw.weight_map.is_empty() => {
                Err(Error::File { problem: "has an empty weight_map; download it again".into(), path })
            }
            Ok(raw) => Ok(Index { path, weight_map: raw.weight_map.into_iter().collect() }),
            Err(e) => Err(Error::File { problem: format!("is no index of shards: {e}"), path }),
        }
    }

    /// Every tensor of the index is in the shard that it says.
    fn check(self, shards: &[Shard], tensors: &HashMap<Box<str>, Entry>) -> Result<(), Error> {
        let mut wrong: Vec<&str> = Vec::new();
        for (name, file) in &self.weight_map {
            let found = tensors.get(official(name).as_str());
            if !found.is_some_and(|e| shards[e.shard as usize].path.ends_with(file)) {
                wrong.push(name);
            }
        }
        wrong.sort_unstable();
        match wrong.first() {
            None => Ok(()),
            Some(&name) => {
                let file = self.weight_map.iter().find(|(n, _)| n == name).map_or("", |(_, file)| file);
                let more = if wrong.len() > 1 { format!(" (and {} more)", wrong.len() - 1) } else { String::new() };
                let problem = format!("says that {file} has tensor {name}, but it has not{more}");
                Err(Error::File { path: self.path, problem })
            }
        }
    }
}

/// The shards of a folder, and the index where there is one.
fn shard_files(folder: &Path) -> Result<(Vec<PathBuf>, Option<Index>), Error> {
    let index = folder.join(INDEX);
    // Even a link to nothing: what it should have said is missing.
    if index.symlink_metadata().is_ok() {
        let index = Index::read(index)?;
        let names: HashSet<&str> = index.weight_map.iter().map(|(_, file)| file.as_str()).collect();
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            if !matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
                let problem = format!("names the shard {name:?}, which is not a file of this folder");
                return Err(Error::File { path: index.path, problem });
            }
            let path = folder.join(name);
            if !path.exists() {
                let problem = format!("names the shard {name}, which is not there; download it");
                return Err(Error::File { path: index.path, problem });
            }
            files.push(path);
        }
        files.sort();
        return Ok((files, Some(index)));
    }
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok((vec![single], None));
    }
    let read = |cause| Error::Read { path: folder.to_owned(), cause };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let problem = format!("has neither {INDEX} nor a .safetensors file; is this the model's folder?");
        return Err(Error::File { path: folder.to_owned(), problem });
    }
    Ok((files, None))
}

#[cfg(test)]
mod tests;
