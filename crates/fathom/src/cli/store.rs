//! Where snapshots are kept: the flags that commands share, and the fingerprint of the model they belong to.

use std::path::PathBuf;

use fathom_engine::{Keep, SnapshotError};
use fathom_kernels::Cpu;
use fathom_model::Model;
use fathom_store::{Key, Namespace, Options, Store, Subject};

use super::model::Files;
use crate::ui::{Progress, say};

/// The namespace of a program that nobody logs in to.
const NAMESPACE: &str = "default";

/// How to open a store.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreOptions {
    /// A folder of snapshots; made where it is not there
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<String>,
    /// A file of 32 random bytes, raw or as 64 hex digits, that encrypts all that the store holds
    #[arg(long, value_name = "FILE", requires = "store", global = true)]
    store_key: Option<PathBuf>,
    /// Compress what is written with zstd at this level
    #[arg(long, value_name = "LEVEL", requires = "store", global = true, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=22))]
    store_zstd: Option<i32>,
    /// Bytes that the store may hold [default: 64 GiB]
    #[arg(long, value_name = "BYTES", requires = "store", global = true)]
    store_quota: Option<u64>,
}

impl StoreOptions {
    /// The store's namespace, if there is a store.
    pub fn open(&self) -> Result<Option<Namespace>, fathom_store::Error> {
        let Some(location) = &self.store else { return Ok(None) };
        let mut options = Options {
            compress: self.store_zstd,
            key: self.store_key.as_deref().map(Key::read).transpose()?,
            ..Options::default()
        };
        options.quota = self.store_quota.unwrap_or(options.quota);
        Ok(Some(Store::open(location, options)?.namespace(NAMESPACE)?))
    }

    /// What an engine needs to keep its sessions there.
    pub fn keep(&self, files: &Files, model: &Model<Cpu>) -> Result<Option<Keep>, fathom_store::Error> {
        let Some(namespace) = self.open()? else { return Ok(None) };
        let told = Box::new(|saved: Result<_, SnapshotError>| {
            if let Err(e) = saved {
                say!("the session was not saved: {e}");
            }
        });
        Ok(Some(Keep { namespace, subject: subject(files, model), told }))
    }
}

/// What the model's states are stored under. Reads the checkpoint's every byte the first time.
pub fn subject(files: &Files, model: &Model<Cpu>) -> Subject {
    const STEP: u64 = 1 << 20;
    let mut progress: Option<Progress> = None;
    let fingerprint = files.checkpoint.fingerprint(cache().as_deref(), &mut |done, total| {
        let bar = progress.get_or_insert_with(|| Progress::of("fingerprint", "MiB", (total / STEP) as usize, false));
        bar.update((done / STEP) as usize, "");
    });
    if let Some(mut bar) = progress {
        bar.finish();
    }
    fathom_engine::subject(model, fingerprint)
}

/// The file that remembers fingerprints.
fn cache() -> Option<PathBuf> {
    Some(cache_folder()?.join("fingerprints"))
}

/// Our part of the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let caches = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(caches.join("fathom"))
}
