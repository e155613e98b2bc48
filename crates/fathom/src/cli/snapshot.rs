//! `fathom snapshot`: what a store holds.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use fathom_kernels::human;
use fathom_store::{Id, Namespace, Snapshot};
use serde_json::{Value, json};

use super::Outcome;
use super::store::StoreOptions;
use crate::ui::{commas, duration, out};

/// Flags of `fathom snapshot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// One JSON object for each snapshot
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    store: StoreOptions,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All snapshots, the last used first
    Ls,
    /// One snapshot
    Show {
        /// Its identity, as `ls` shows it
        id: Id,
    },
    /// Keep it whatever the quota and its time limit
    Pin {
        /// Its identity
        id: Id,
    },
    /// Undo `pin`
    Unpin {
        /// Its identity
        id: Id,
    },
    /// To a file that another store can import
    Export {
        /// Its identity
        id: Id,
        /// Where it goes; must not be there yet
        file: PathBuf,
    },
    /// From a file that `export` wrote
    Import {
        /// The file
        file: PathBuf,
    },
    /// Remove it, and erase what no other snapshot uses
    Rm {
        /// Their identities
        #[arg(required = true)]
        ids: Vec<Id>,
    },
}

/// Does what was asked with a store.
pub fn snapshot(args: &Args) -> Outcome {
    let Some(namespace) = args.store.open()? else {
        return Err("--store DIR says where the snapshots are".into());
    };
    match &args.action {
        Action::Ls => list(&namespace, args.json)?,
        Action::Show { id } => show(&namespace.show(id)?, args.json)?,
        Action::Pin { id } => namespace.pin(id, true)?,
        Action::Unpin { id } => namespace.pin(id, false)?,
        Action::Export { id, file } => export(&namespace, id, file)?,
        Action::Import { file } => {
            let failed = |e| format!("cannot read {}: {e}", file.display());
            let saved = namespace.import(&mut BufReader::new(File::open(file).map_err(failed)?))?;
            writeln!(out(), "{}", saved.id)?;
        }
        Action::Rm { ids } => {
            for id in ids {
                namespace.show(id)?;
                namespace.remove(id)?;
            }
            namespace.store().collect()?;
        }
    }
    Ok(())
}

fn list(namespace: &Namespace, as_json: bool) -> Outcome {
    let all = namespace.list()?;
    if as_json {
        for snapshot in &all {
            writeln!(out(), "{}", described(snapshot))?;
        }
        return Ok(());
    }
    if all.is_empty() {
        writeln!(out(), "no snapshots")?;
        return Ok(());
    }
    writeln!(out(), "{:32} {:>10} {:>12} {:>12} {:>6}  NAME", "SNAPSHOT", "TOKENS", "SIZE", "USED", "PINNED")?;
    for s in &all {
        let pinned = if s.pinned { "yes" } else { "" };
        let name = s.name.as_deref().unwrap_or_default().escape_debug();
        let used = format!("{} ago", duration(now().saturating_sub(s.used) as f64));
        let id = s.id.to_string();
        writeln!(out(), "{id:32} {:>10} {:>12} {used:>12} {pinned:>6}  {name}", commas(s.position), human(s.bytes))?;
    }
    Ok(())
}

fn show(s: &Snapshot, as_json: bool) -> Outcome {
    let described = described(s);
    if as_json {
        writeln!(out(), "{described}")?;
        return Ok(());
    }
    for (field, value) in described.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) => writeln!(out(), "{field:10} {}", text.escape_debug())?,
            value => writeln!(out(), "{field:10} {value}")?,
        }
    }
    Ok(())
}

fn described(s: &Snapshot) -> Value {
    let model: String = s.subject.model.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "id": s.id.to_string(),
        "name": s.name,
        "tokens": s.position,
        "pages": s.pages,
        "bytes": s.bytes,
        "pinned": s.pinned,
        "created": s.created,
        "used": s.used,
        "expires": s.expires,
        "parent": s.parent.map(|id| id.to_string()),
        "model": model,
        "profile": s.subject.profile,
    })
}

/// To a file that is there only if it is whole.
fn export(namespace: &Namespace, id: &Id, file: &PathBuf) -> Outcome {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", file.display());
    let mut to = BufWriter::new(File::create_new(file).map_err(failed)?);
    let written = namespace.export(id, &mut to).map_err(|e| e.to_string());
    let written = written.and_then(|_| {
        to.flush().map_err(failed)?;
        to.get_ref().sync_all().map_err(failed)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(file);
    }
    Ok(written?)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
