//! `fathom snapshot`: what a store holds.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use fathom_engine::{Owner, Session};
use fathom_kernels::human;
use fathom_store::{Id, ImportLimits, Namespace, Snapshot, Store};
use serde_json::{Value, json};

use super::Outcome;
use super::store::StoreOptions;
use crate::clock::now;
use crate::ui::{commas, duration, out};

/// Flags of `fathom snapshot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// One JSON object for each snapshot
    #[arg(long, global = true)]
    json: bool,
    /// Whose snapshots [default: those of run and chat, and of a server without keys]
    #[arg(long, global = true)]
    namespace: Option<String>,
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
        /// As the session of this name, which must not be there; without it, it has no name
        #[arg(long, value_name = "NAME")]
        session: Option<String>,
    },
    /// Remove it, and erase what no other snapshot uses
    Rm {
        /// Their identities
        #[arg(required_unless_present = "session")]
        ids: Vec<Id>,
        /// All of the session of this name
        #[arg(long, value_name = "NAME", conflicts_with = "ids")]
        session: Option<String>,
    },
    /// What the store holds, all namespaces together
    Usage,
    /// Read everything, and say what is damaged
    Verify,
}

/// Does what was asked with a store.
pub fn snapshot(args: &Args) -> Outcome {
    let makes = matches!(args.action, Action::Import { .. });
    // Who only asks makes nothing.
    if let Some(location) = args.store.location().filter(|at| !makes && !at.contains("://") && !Path::new(at).exists())
    {
        return Err(format!("{location}: there is no store").into());
    }
    let store = args.store.open_own()?;
    if let Some(name) = args.namespace.as_ref().filter(|_| !makes)
        && !store.namespaces()?.contains(name)
    {
        return Err(format!("the store has no namespace {name:?}; it has {}", store.namespaces()?.join(", ")).into());
    }
    let owner = args.namespace.clone().map_or_else(Owner::default, |name| Owner(name.into()));
    let namespace = store.namespace(&owner.0)?;
    match &args.action {
        Action::Ls => list(&namespace, args.json)?,
        Action::Show { id } => show(&namespace.show(id)?, args.json)?,
        Action::Pin { id } => namespace.pin(id, true)?,
        Action::Unpin { id } => namespace.pin(id, false)?,
        Action::Export { id, file } => export(&namespace, id, file)?,
        Action::Import { file, session } => {
            if let Some(name) = session {
                Session::check_name(name)?;
                if namespace.list()?.iter().any(|snapshot| snapshot.name.as_ref() == Some(name)) {
                    return Err(format!("there is a session {name:?} already; take another name").into());
                }
            }
            let failed = |e| format!("cannot read {}: {e}", file.display());
            let mut from = BufReader::new(File::open(file).map_err(failed)?);
            let saved = namespace.import_as(&mut from, ImportLimits::default(), |_| Ok(session.clone()))?;
            writeln!(out(), "{}", saved.id)?;
        }
        Action::Rm { ids, session: None } => {
            for id in ids {
                namespace.show(id)?;
                namespace.remove(id)?;
            }
            store.collect()?;
        }
        Action::Rm { session: Some(name), .. } => {
            let all = namespace.list()?;
            let named: Vec<_> = all
                .iter()
                .filter(|snapshot| snapshot.name.as_deref().is_some_and(|its| Session::of_stored(its).0 == name))
                .collect();
            if named.is_empty() {
                return Err(format!("there is no session {name:?}; `fathom snapshot ls` lists them").into());
            }
            named.iter().try_for_each(|snapshot| namespace.remove(&snapshot.id))?;
            store.collect()?;
        }
        Action::Usage => usage(&store, args.json)?,
        Action::Verify => verify(&store)?,
    }
    Ok(())
}

fn usage(store: &Store, as_json: bool) -> Outcome {
    let usage = store.usage()?;
    if as_json {
        let json = json!({
            "bytes": usage.bytes,
            "quota": usage.quota,
            "objects": usage.objects,
            "snapshots": usage.snapshots,
            "pinned": usage.pinned,
            "written_today": usage.written_today,
            "write_budget": usage.write_budget,
        });
        writeln!(out(), "{json}")?;
        return Ok(());
    }
    let (snapshots, pinned) = (commas(usage.snapshots), commas(usage.pinned));
    writeln!(out(), "held           {} of {}", human(usage.bytes), human(usage.quota))?;
    writeln!(out(), "snapshots      {snapshots} ({pinned} pinned), of {} objects", commas(usage.objects))?;
    let budget = usage.write_budget.map_or_else(String::new, |budget| format!(" of {}", human(budget)));
    writeln!(out(), "written today  {}{budget} (since midnight UTC)", human(usage.written_today))?;
    Ok(())
}

fn verify(store: &Store) -> Outcome {
    let flaws = store.verify()?;
    for flaw in &flaws {
        writeln!(out(), "{flaw}")?;
    }
    match flaws.len() {
        0 => Ok(writeln!(out(), "everything is as it was written")?),
        n => Err(format!("{n} flaws; what is damaged is not used, and is made again when it is needed").into()),
    }
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
        "model": s.subject.fingerprint(),
        "profile": s.subject.profile,
    })
}

/// To a file that is there only if it is whole.
fn export(namespace: &Namespace, id: &Id, file: &PathBuf) -> Outcome {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", file.display());
    let mut options = File::options();
    options.write(true).create_new(true);
    // What it says is its owner's, as in the store.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut to = BufWriter::new(options.open(file).map_err(failed)?);
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
