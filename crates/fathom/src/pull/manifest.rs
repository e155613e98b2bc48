//! What was pulled into a folder: `.fathom-pull/manifest.json`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Hash};

/// Where a pull keeps what is its own, inside the folder.
pub(super) const STATE: &str = ".fathom-pull";
const NAME: &str = "manifest.json";
/// The longest that is read, in bytes.
const MAX: u64 = 64 << 20;

/// Files that came from a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `owner/name`.
    pub repo: String,
    /// The commit that the files are of.
    pub commit: String,
    /// Files by name.
    pub files: BTreeMap<String, Pulled>,
}

/// A file that was pulled and found right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Bytes.
    pub size: u64,
    /// Its content, where the hub says.
    pub hash: Option<Hash>,
    /// When the file was last changed, in nanoseconds since 1970: if that is still so, it is taken to be as it was.
    pub changed: i128,
}

impl Manifest {
    /// That of a folder; none where nothing was pulled, or what is there cannot be read.
    pub fn read(folder: &Path) -> Option<Manifest> {
        let mut bytes = Vec::new();
        File::open(path(folder)).ok()?.take(MAX).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes it whole or not at all.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = path(folder);
        let partial = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path)).map_err(|e| Error::file(&path, &e))
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(STATE).join(NAME)
}

/// When a file was last changed, as [`Pulled::changed`] has it.
pub(super) fn changed(file: &fs::Metadata) -> i128 {
    i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec())
}
