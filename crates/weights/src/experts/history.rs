//! How often experts were used, kept from one run to the next.
//!
//! A file in the user's cache folder for each model, by what its routers are: `magic, layers, experts` (u32), a count for each
//! expert (f32), all little-endian, and BLAKE3 of it. What cannot be read is not there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Checkpoint, Error};

const MAGIC: &[u8; 8] = b"fathomE1";

/// Where a model's counts are kept.
#[derive(Debug)]
pub(super) struct History {
    path: PathBuf,
    counts: (usize, usize),
}

impl History {
    /// In a folder of counts.
    pub(super) fn new(folder: &Path, checkpoint: &Checkpoint) -> Result<History, Error> {
        let c = checkpoint.config();
        let mut key = blake3::Hasher::new_derive_key("fathom expert counts 1");
        key.update(&checkpoint.config_hash);
        for layer in 0..c.num_hidden_layers {
            let name = format!("layers.{layer}.ffn.gate");
            key.update(&checkpoint.read(&format!("{name}.weight"))?);
            for part in ["bias", "tid2eid"] {
                if let Ok(bytes) = checkpoint.read(&format!("{name}.{part}")) {
                    key.update(&bytes);
                }
            }
        }
        let path = folder.join(key.finalize().to_hex().as_str());
        Ok(History { path, counts: (c.num_hidden_layers, c.n_routed_experts) })
    }

    fn header(&self) -> Vec<u8> {
        let (layers, experts) = self.counts;
        [&MAGIC[..], &(layers as u32).to_le_bytes(), &(experts as u32).to_le_bytes()].concat()
    }

    /// What an earlier run left.
    pub(super) fn read(&self) -> Option<Vec<f32>> {
        let header = self.header();
        let len = header.len() + self.counts.0 * self.counts.1 * 4;
        let found = fs::metadata(&self.path).ok()?;
        if !found.is_file() || found.len() != len as u64 + 32 {
            return None;
        }
        let bytes = fs::read(&self.path).ok()?;
        let (body, hash) = bytes.split_at_checked(len)?;
        if blake3::hash(body).as_bytes() != hash || !body.starts_with(&header) {
            return None;
        }
        let counts = body[header.len()..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        counts.map(|count| (count.is_finite() && count >= 0.0).then_some(count)).collect()
    }

    /// Leaves counts to later runs. A folder that cannot be written to is one without counts.
    pub(super) fn write(&self, counts: impl Iterator<Item = f64>) {
        let mut bytes = self.header();
        bytes.extend(counts.flat_map(|count| (count as f32).to_le_bytes()));
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        let partial = self.path.with_extension(format!("{}.partial", std::process::id()));
        let written = self.path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&partial, &bytes));
        if written.and_then(|()| fs::rename(&partial, &self.path)).is_err() {
            let _ = fs::remove_file(&partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Synth;

    #[test]
    fn counts_come_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Synth::tiny(1).checkpoint().unwrap();
        let history = History::new(&folder.path().join("a/b"), &checkpoint).unwrap();
        assert_eq!(history.read(), None);
        let counts: Vec<f64> = (0..7 * 16).map(f64::from).collect();
        history.write(counts.iter().copied());
        assert_eq!(history.read().unwrap(), counts.iter().map(|&c| c as f32).collect::<Vec<_>>());
        let good = fs::read(&history.path).unwrap();
        for bad in [&good[1..], &good[..40], b"", &[good.as_slice(), b"x"].concat()] {
            fs::write(&history.path, bad).unwrap();
            assert_eq!(history.read(), None);
        }
        let mut flipped = good.clone();
        flipped[30] ^= 1;
        fs::write(&history.path, flipped).unwrap();
        assert_eq!(history.read(), None);
        let other = History::new(folder.path(), &Synth::tiny(2).checkpoint().unwrap()).unwrap();
        assert_ne!(other.path.file_name(), history.path.file_name());
    }
}
