//! What a plan is of: a checkpoint's folder, a bare `config.json`, a released model by name, or the embedded one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fathom_weights::synth::Synth;
use fathom_weights::{Config, Sizes};
use serde_json::{Map, Value};

use crate::cli::model::{EMBEDDED, Files};

/// The longest `config.json` that is read, in bytes.
const LONGEST: u64 = 4 << 20;
/// Bytes of V4's tokenizer, where a model is planned without its files.
const TOKENIZER: u64 = 6_400_000;
/// Models that are planned by their names.
const NAMES: [&str; 2] = ["v4-flash", "v4-pro"];

/// A model, as far as a plan must know it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// How people call it.
    pub name: String,
    /// Its configuration.
    pub config: Config,
    /// Its weights.
    pub sizes: Sizes,
    /// Bytes of its tokenizer's file.
    pub text: u64,
    /// Where its files are, if it has some.
    pub folder: Option<PathBuf>,
}

impl Subject {
    /// Finds what `model` names; none is the embedded model.
    ///
    /// # Errors
    /// There is nothing of that name, it cannot be read, or it is no model that fathom runs.
    pub fn open(model: Option<&str>) -> Result<Subject, Box<dyn std::error::Error>> {
        let path = Path::new(model.unwrap_or(EMBEDDED));
        match model {
            Some(name) if NAMES.contains(&name) && !path.exists() => {
                let synth = Synth::named(name, 0).ok_or("a name that is no geometry")?;
                Ok(Subject::of(name.to_owned(), &synth, TOKENIZER)?)
            }
            Some(name) if path.is_file() => {
                let synth = Synth { config: read_config(path)?, seed: 0 };
                Ok(Subject::of(name.to_owned(), &synth, TOKENIZER).map_err(|e| named(path, &e))?)
            }
            Some(name) if name != EMBEDDED && !path.is_dir() => {
                let known = NAMES.join(", ");
                Err(format!("{name}: is no folder of a checkpoint, no config.json, and none of {known}, {EMBEDDED}")
                    .into())
            }
            _ => Subject::of_files(&Files::open(model.map(|_| path))?, path),
        }
    }

    /// Of files that are open.
    ///
    /// # Errors
    /// A tensor is not there, which opening has checked.
    pub fn of_files(files: &Files, path: &Path) -> Result<Subject, Box<dyn std::error::Error>> {
        Ok(Subject {
            name: files.name.clone(),
            config: files.checkpoint.config().clone(),
            sizes: Sizes::of(&files.checkpoint)?,
            text: files.text,
            folder: files.checkpoint.is_in_files().then(|| path.to_owned()),
        })
    }

    fn of(name: String, synth: &Synth, text: u64) -> Result<Subject, fathom_weights::Error> {
        Ok(Subject { name, config: synth.parse()?, sizes: synth.sizes()?, text, folder: None })
    }
}

/// Errors of a configuration name the field, but not which file's.
fn named(path: &Path, e: &dyn std::fmt::Display) -> String {
    let text = e.to_string();
    format!("{}: {}", path.display(), text.strip_prefix("config.json: ").unwrap_or(&text))
}

/// The fields of a `config.json`.
///
/// # Errors
/// In one line: it cannot be read, is too long or no JSON object.
pub fn read_config(path: &Path) -> Result<Map<String, Value>, String> {
    if !path.is_file() {
        return Err(format!("{}: is no config.json", path.display()));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("{}: is no config.json", path.display()));
    }
    serde_json::from_slice(&bytes).map_err(|e| format!("{}: is no JSON object: {e}", path.display()))
}
