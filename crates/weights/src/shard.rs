//! One safetensors file: its header, checked, and the bytes behind it.

use std::fs::File;
#[cfg(target_os = "linux")]
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError};
use serde::Deserialize;
use serde_json::Value;

use crate::Error;
use crate::fingerprint::{FileId, Watch};

/// The longest header that is read, in bytes, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;

/// The longest header that is searched for what is wrong with it, in bytes; the releases' have less than 1 MB.
const LARGE_HEADER: usize = 8 << 20;

/// A tensor's place.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub shard: u32,
    pub dtype: Dtype,
    pub shape: Box<[usize]>,
    /// First byte in the file, and one past the last.
    pub range: (usize, usize),
}

/// A shard: the whole file.
#[derive(Debug)]
pub(crate) struct Shard {
    pub path: PathBuf,
    pub bytes: Bytes,
    /// Which file that was when it was mapped; none for bytes in memory.
    pub id: Option<FileId>,
    /// That file, open, and what it was when it was last read.
    pub file: Option<(File, Watch)>,
}

impl Shard {
    /// Of a mapped file.
    pub(crate) fn mapped(path: PathBuf, bytes: Bytes, file: File) -> Shard {
        let id = FileId::of(&file);
        Shard { path, bytes, id, file: id.map(|id| (file, Watch::new(id))) }
    }

    /// Copies bytes that start at `from`; of a file they are read, so that no page of the mapping is touched and no change
    /// after this reaches them.
    ///
    /// # Errors
    /// The file cannot be read, or is not what it was when it was opened.
    pub(crate) fn read(&self, from: usize, into: &mut [u8]) -> Result<(), Error> {
        let Some((file, watch)) = &self.file else {
            into.copy_from_slice(&self.bytes[from..from + into.len()]);
            return Ok(());
        };
        let read = file.read_exact_at(into, from as u64);
        // First: a file that was cut short does not read to its end.
        watch.check(file, &self.path, from as u64)?;
        read.map_err(|e| Error::ReadAt { path: self.path.clone(), offset: from as u64, cause: e.to_string() })
    }

    /// The bytes of a range in parts of at most `most`, each with where it begins in the file, as [`Shard::read`] reads
    /// them.
    ///
    /// # Errors
    /// As there, and what `part` says.
    pub(crate) fn read_parts<E: From<Error>>(
        &self,
        range: Range<usize>,
        most: usize,
        mut part: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = vec![0; most.min(range.len())];
        for at in range.clone().step_by(most) {
            let some = &mut bytes[..most.min(range.end - at)];
            self.read(at, some)?;
            part(at, some)?;
        }
        Ok(())
    }

    /// Tells the system that its cache need not keep these bytes of the file.
    pub(crate) fn uncache(&self, at: usize, len: usize) {
        // Advice: where it is not taken, the cache makes way when memory is needed.
        #[cfg(target_os = "linux")]
        if let (Some((file, _)), Some(len)) = (&self.file, NonZeroU64::new(len as u64)) {
            let _ = rustix::fs::fadvise(file, at as u64, Some(len), rustix::fs::Advice::DontNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (at, len);
    }
}

/// Checks the header at the start of a file's bytes: its length, its JSON, that tensors follow one another and end
/// where the file does.
///
/// # Errors
/// What is wrong, for people.
pub fn check_header(bytes: &[u8]) -> Result<(), String> {
    header(bytes).map(|_| ())
}

/// The header and where the data starts.
fn header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    let size = bytes.len() as u64;
    let Some(first) = bytes.first_chunk::<8>() else {
        return Err(format!("has {size} bytes, too few for a safetensors file; download it again"));
    };
    let length = u64::from_le_bytes(*first);
    if length > MAX_HEADER {
        return Err(format!("says its header has {length} bytes; this is no safetensors file, or it is damaged"));
    }
    if length > size - 8 {
        return Err(format!("says its header has {length} bytes, but has {size} itself; download it again"));
    }
    SafeTensors::read_metadata(bytes).map(|(n, metadata)| (8 + n, metadata)).map_err(|e| match e {
        SafeTensorError::MetadataIncompleteBuffer => truncated(&bytes[8..8 + length as usize], size - 8 - length),
        SafeTensorError::InvalidOffset(name) => format!(
            "has wrong offsets for tensor {name}: tensors must follow one another without gaps; download it again"
        ),
        other => match spoilt(&bytes[8..8 + length as usize]) {
            Some((name, problem)) => format!("tensor {name} {problem}"),
            None => format!("has a header that cannot be read: {other}"),
        },
    })
}

/// The first tensor of a header that the library refuses without naming it, and what is wrong with it.
fn spoilt(header: &[u8]) -> Option<(String, String)> {
    // Read once more, as a tree: many times its size.
    if header.len() > LARGE_HEADER {
        return None;
    }
    let value: Value = serde_json::from_slice(header).ok()?;
    let tensors = value.as_object()?.iter().filter(|(name, _)| *name != "__metadata__");
    tensors.into_iter().find_map(|(name, info)| Some((name.clone(), why_spoilt(info)?)))
}

/// What is wrong with one tensor's entry in a header, if something is.
fn why_spoilt(info: &Value) -> Option<String> {
    let Ok(dtype) = Dtype::deserialize(&info["dtype"]) else {
        return Some(format!("has the type {}, which safetensors does not know", info["dtype"]));
    };
    let (Ok(shape), Ok([start, end])) =
        (Vec::<usize>::deserialize(&info["shape"]), <[usize; 2]>::deserialize(&info["data_offsets"]))
    else {
        return Some(format!(
            "has shape {} and data_offsets {}; both must be whole numbers",
            info["shape"], info["data_offsets"]
        ));
    };
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
    let bytes = end.checked_sub(start);
    let fits = bits.is_some() && bits == bytes.and_then(|n| n.checked_mul(8));
    (!fits).then(|| format!("of type {dtype:?} and shape {shape:?} does not fit its data_offsets [{start}, {end}]"))
}

/// Which tensor a file that is too short or too long stops in.
fn truncated(header: &[u8], data: u64) -> String {
    let value: Value = serde_json::from_slice(header).unwrap_or_default();
    let end = |v: &Value| v["data_offsets"][1].as_u64().unwrap_or(0);
    let tensors = value.as_object().into_iter().flatten().filter(|(name, _)| *name != "__metadata__");
    let past = tensors.clone().filter(|(_, v)| end(v) > data).min_by_key(|(_, v)| end(v));
    match past {
        Some((name, v)) => format!(
            "is truncated: tensor {name} ends at byte {} of the data, of which there are {data}; download it again",
            end(v)
        ),
        None => {
            let last = tensors.map(|(_, v)| end(v)).max().unwrap_or(0);
            format!("has {data} bytes of data, but its tensors end at byte {last}; download it again")
        }
    }
}

/// All tensors of a shard, by the names in its header, with where they are.
pub(crate) fn tensors(shard: u32, path: &Path, bytes: &Bytes) -> Result<Vec<(String, Entry)>, Error> {
    let (start, metadata) = header(bytes).map_err(|problem| Error::File { path: path.to_owned(), problem })?;
    let mut all = Vec::new();
    for (name, info) in metadata.tensors() {
        let range = (start + info.data_offsets.0, start + info.data_offsets.1);
        all.push((name, Entry { shard, dtype: info.dtype, shape: info.shape.clone().into(), range }));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}"#;

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(check_header(&file(GOOD, 11)), Ok(()));
        for (bytes, expected) in [
            (file(GOOD, 9), "tensor b ends at byte 11"),
            (file(GOOD, 2), "tensor a ends at byte 8"),
            (file(GOOD, 30), "end at byte 11"),
            (vec![1, 2], "too few"),
            (u64::MAX.to_le_bytes().to_vec(), "no safetensors file"),
            (5000u64.to_le_bytes().to_vec(), "download it again"),
            (file("not json", 0), "cannot be read"),
            (
                file(r#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}"#, 8),
                "tensor a of type F32 and shape [9]",
            ),
            (file(r#"{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}}"#, 8), "tensor a has the type \"X9\""),
            (file(r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8), "tensor a has shape [-2]"),
            (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8), "tensor a"),
            (file(&"[".repeat(10_000), 0), "cannot be read"),
            (
                file(r#"{"a":{"dtype":"F32","shape":[18446744073709551615,8],"data_offsets":[0,8]}}"#, 8),
                "tensor a of type",
            ),
        ] {
            let message = check_header(&bytes).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), at: usize, byte: u8) {
            let _ = check_header(&bytes);
            let mut good = file(GOOD, 11);
            let at = at % good.len();
            good[at] = byte;
            let _ = check_header(&good);
        }
    }
}
