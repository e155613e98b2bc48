//! `fathom pull`: a model from the Hugging Face hub or a mirror.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use fathom_kernels::human;
use serde_json::json;

use super::Outcome;
use crate::pull::{self, Hub, Room, environment};
use crate::ui::{Transfer, commas, out, say};

/// A connection that brings nothing for this long is given up.
const IDLE: Duration = Duration::from_secs(30);

/// Flags of `fathom pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A repository, such as deepseek-ai/DeepSeek-V4-Flash
    repo: String,
    /// The folder to fill [default: the repository's name, here]
    out: Option<PathBuf>,
    /// A branch, tag or commit
    #[arg(long, default_value = "main")]
    revision: String,
    /// The hub or a mirror [default: HF_ENDPOINT, or https://huggingface.co]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Ranges that are fetched at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Seconds to go on trying when nothing comes
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    patience: u32,
    /// Say what would be fetched, and fetch nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object for machines
    #[arg(long)]
    json: bool,
}

/// Fetches the repository's checkpoint.
pub fn pull(args: &Args) -> Outcome {
    let name = name(&args.repo)?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from(name));
    let endpoint = args.endpoint.clone().unwrap_or_else(environment::endpoint);
    let patience = Duration::from_secs(args.patience.into());
    let hub = Hub::new(&endpoint, environment::token()?, IDLE.min(patience), patience)?;
    // A thread for each connection: one that waits for the drive holds up no other.
    let threads = usize::from(args.connections) + 1;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let listing = runtime.block_on(hub.list(&args.repo, &args.revision))?;
    let wanted = pull::wanted(&listing);
    let bytes = wanted.iter().map(|file| file.size).fold(0, u64::saturating_add);
    let commit = &listing.commit;
    let left = listing.files.len() - wanted.len();
    if args.dry_run {
        let room = Room::for_checkpoint(&folder, commit, &wanted)?;
        let Room { to_come, free, missing } = room;
        if args.json {
            let files: Vec<_> = wanted.iter().map(|file| json!({"name": file.name, "size": file.size})).collect();
            let folder = folder.display().to_string();
            let object = json!({
                "repo": args.repo, "commit": commit, "folder": folder, "bytes": bytes, "to_come": to_come,
                "free": free, "missing": missing, "files": files
            });
            writeln!(out(), "{object}")?;
        } else {
            for file in &wanted {
                writeln!(out(), "{:>12}  {}", human(file.size), file.name)?;
            }
            let (count, bytes, to_come, free) = (commas(wanted.len()), human(bytes), human(to_come), human(free));
            writeln!(out(), "{count} files, {bytes}, {left} others left out; {to_come} are to come, {free} are free")?;
        }
        return Ok(room.check(&folder)?);
    }
    if !args.json {
        let short = &commit[..commit.len().min(12)];
        let to = folder.display();
        say!("{} at {short}: {} files, {}, to {to}", args.repo, commas(wanted.len()), human(bytes));
    }
    let mut shown = Transfer::new("pulling", args.json);
    let connections = usize::from(args.connections);
    let options = pull::Options { repo: args.repo.clone(), folder: folder.clone(), connections };
    let result = runtime.block_on(pull::pull(hub, &listing, &options, &mut |done, total| shown.update(done, total)));
    shown.finish();
    let report = result?;
    let seconds = shown.seconds();
    if args.json {
        let object = json!({
            "repo": args.repo,
            "commit": report.commit,
            "folder": folder.display().to_string(),
            "files": report.files,
            "bytes": report.bytes,
            "kept": report.kept,
            "fetched": report.fetched,
            "unverified": report.unverified,
            "seconds": seconds,
        });
        writeln!(out(), "{object}")?;
    } else {
        if !report.unverified.is_empty() {
            let files = report.unverified.join(", ");
            say!("the hub has no hashes of {files}: only their lengths are known to be right");
        }
        let (bytes, fetched) = (human(report.bytes), human(report.fetched));
        let (files, folder) = (commas(report.files), folder.display());
        let all = if report.unverified.is_empty() { "all right" } else { "all here" };
        writeln!(out(), "{folder}: {files} files, {bytes}, {all}; {fetched} fetched in {seconds:.0} s")?;
    }
    Ok(())
}

/// The last part of `owner/name`, if that is what it is.
fn name(repo: &str) -> Result<&str, String> {
    let good = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    match repo.rsplit_once('/') {
        Some((owner, name)) if good(owner) && good(name) => Ok(name),
        _ => {
            Err(format!("{repo:?} is no repository; they are called OWNER/NAME, such as deepseek-ai/DeepSeek-V4-Flash"))
        }
    }
}
