//! Where snapshots are kept: the flags that commands share, and the fingerprint of the model they belong to.

use std::path::PathBuf;
use std::time::Duration;

use fathom_engine::{Keep, SnapshotError};
use fathom_kernels::Cpu;
use fathom_model::Model;
use fathom_store::{Key, Options, Store, Subject};

use super::model::Files;
use crate::ui::{Progress, say};

/// How to open a store.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreOptions {
    /// A folder of snapshots, made where it is not there, or s3://BUCKET/PREFIX if built for that
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<String>,
    /// A file of 32 random bytes, raw or as 64 hex digits, that encrypts all that the store holds
    #[arg(long, value_name = "FILE", global = true)]
    store_key: Option<PathBuf>,
    /// Compress what is written with zstd at this level
    #[arg(long, value_name = "LEVEL", global = true, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=22))]
    store_zstd: Option<i32>,
    /// Bytes that the store may hold, such as 100GiB; what was not used for longest goes first [default: 64GiB]
    #[arg(long, value_name = "BYTES", global = true, value_parser = bytes)]
    store_quota: Option<u64>,
    /// Bytes that may be written in a day (UTC), such as 50GiB, so that drives last [default: any number]
    #[arg(long, value_name = "BYTES", global = true, value_parser = bytes)]
    store_writes: Option<u64>,
    /// Days that a snapshot is kept after it was made, unless it is pinned [default: as long as there is room]
    #[arg(long, value_name = "DAYS", global = true, value_parser = clap::value_parser!(u32).range(1..))]
    store_days: Option<u32>,
}

/// Bytes with a unit or without: `1048576`, `64GiB`, `10 GB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [&str; 5] = ["", "k", "m", "g", "t"];
    let wrong = || "a number of bytes, such as 1048576, 64GiB or 50GB".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start().to_ascii_lowercase());
    let (base, prefix) = match (unit.strip_suffix("ib"), unit.strip_suffix('b')) {
        (Some(prefix), _) if !prefix.is_empty() => (1024.0, prefix),
        (_, Some(prefix)) => (1000.0, prefix),
        _ if unit.is_empty() => (1.0, ""),
        _ => return Err(wrong()),
    };
    let power = UNITS.iter().position(|known| *known == prefix).ok_or_else(wrong)?;
    let number = number.parse::<f64>().map_err(|_| wrong())? * f64::powi(base, power as i32);
    (number < u64::MAX as f64).then_some(number as u64).ok_or_else(wrong)
}

impl StoreOptions {
    /// Whether there is more than where it is.
    fn says_how(&self) -> bool {
        let limits = self.store_quota.is_some() || self.store_writes.is_some() || self.store_days.is_some();
        self.store_key.is_some() || self.store_zstd.is_some() || limits
    }

    /// Where the store is, if one is named.
    pub fn location(&self) -> Option<&str> {
        self.store.as_deref()
    }

    /// The store, if one is named.
    pub fn open(&self) -> Result<Option<Store>, Box<dyn std::error::Error>> {
        match &self.store {
            Some(location) => Ok(Some(self.open_at(location)?)),
            None if self.says_how() => Err("--store DIR says where that store is".into()),
            None => Ok(None),
        }
    }

    /// The store, or that of the user where none is named.
    pub fn open_own(&self) -> Result<Store, Box<dyn std::error::Error>> {
        match &self.store {
            Some(location) => Ok(self.open_at(location)?),
            None => {
                let folder =
                    sessions().ok_or("there is no home folder to keep sessions in; --store DIR names another")?;
                std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
                let location =
                    folder.to_str().ok_or("the home folder's name is not UTF-8; --store DIR names another")?;
                Ok(self.open_at(location)?)
            }
        }
    }

    fn open_at(&self, location: &str) -> Result<Store, fathom_store::Error> {
        let mut options = Options {
            compress: self.store_zstd,
            key: self.store_key.as_deref().map(Key::read).transpose()?,
            write_budget: self.store_writes,
            ..Options::default()
        };
        options.quota = self.store_quota.unwrap_or(options.quota);
        Store::open(location, options)
    }

    /// What an engine needs to keep its sessions in a store.
    ///
    /// # Errors
    /// As [`subject`].
    pub fn keep(&self, store: Store, files: &Files, model: &Model<Cpu>) -> Result<Keep, fathom_weights::Error> {
        let told = Box::new(|saved: &Result<_, SnapshotError>| {
            if let Err(e) = saved {
                say!("the session was not saved: {e}");
            }
        });
        let lasts = self.store_days.map(|days| Duration::from_secs(24 * 3600 * u64::from(days)));
        Ok(Keep { store, subject: subject(files, model)?, lasts, told })
    }

    /// The same, if a store is named.
    pub fn keep_if_named(&self, files: &Files, model: &Model<Cpu>) -> Result<Option<Keep>, Box<dyn std::error::Error>> {
        Ok(self.open()?.map(|store| self.keep(store, files, model)).transpose()?)
    }
}

/// What the model's states are stored under. Reads the checkpoint's every byte the first time.
///
/// # Errors
/// A shard cannot be read, or has changed since it was opened.
pub fn subject(files: &Files, model: &Model<Cpu>) -> Result<Subject, fathom_weights::Error> {
    const STEP: u64 = 1 << 20;
    let mut progress: Option<Progress> = None;
    // A mapped model computes from the page cache: what is read for the fingerprint need not be read again.
    let mapped = model.streaming().is_none();
    let fingerprint = files.checkpoint.fingerprint(cache().as_deref(), mapped, &mut |done, total| {
        let bar = progress.get_or_insert_with(|| Progress::of("fingerprint", "MiB", (total / STEP) as usize, false));
        bar.update((done / STEP) as usize, "");
    });
    if let Some(mut bar) = progress {
        bar.finish();
    }
    Ok(fathom_engine::subject(model, fingerprint?))
}

/// The file that remembers fingerprints.
fn cache() -> Option<PathBuf> {
    Some(cache_folder()?.join("fingerprints"))
}

/// Our part of the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    own_folder("XDG_CACHE_HOME", ".cache")
}

/// The folder of sessions that are kept by name and nobody said where.
fn sessions() -> Option<PathBuf> {
    Some(own_folder("XDG_DATA_HOME", ".local/share")?.join("sessions"))
}

/// fathom's folder in one of the user's.
fn own_folder(variable: &str, in_home: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    Some(folder(variable).or_else(|| Some(folder("HOME")?.join(in_home)))?.join("fathom"))
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_with_units() {
        for (text, n) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64GiB", 64 << 30),
            ("1.5 kb", 1500),
            ("10 GB", 10_000_000_000),
            ("7b", 7),
        ] {
            assert_eq!(bytes(text), Ok(n), "{text}");
        }
        for text in ["", "GiB", "-1", "1 G", "1e3", "1..2", "99999999TiB", "5 gibs", "5kkib"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
