//! `fathom score`: the logits of given tokens.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fathom_engine::{Owner, Resumed, prefill, resume, save};
use fathom_kernels::{Cpu, Device};
use fathom_model::{LogitsWanted, Model, Segment, State};
use fathom_store::{Namespace, NewSnapshot, Subject};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;

use super::Outcome;
use super::model::{Files, Options, load};
use super::run::bytes;
use super::store::{StoreOptions, subject};
use crate::ui::{Progress, out, peak_rss, say};

/// Flags of `fathom score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with an official checkpoint [default: the embedded model]
    model: Option<PathBuf>,
    /// A safetensors file with I32 `prompt` and `tokens`
    #[arg(long)]
    tokens: PathBuf,
    /// Where F32 `logits` [1 + len(tokens), vocab] go: row 0 follows the prompt, row i follows tokens[i−1]
    #[arg(long)]
    output: PathBuf,
    /// Run another sequence in the same passes; the logits are the same
    #[arg(long)]
    batch: bool,
    /// Save the session's state after so many of prompt and tokens
    #[arg(long, value_name = "P", requires = "store", conflicts_with = "batch")]
    save_at: Option<usize>,
    /// Go on from the longest stored state that the prompt begins with, and say on stderr how many tokens that were
    #[arg(long, requires = "store", conflicts_with = "batch")]
    resume: bool,
    /// One JSON object at the end about experts that were streamed and memory
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    options: Options,
}

/// Scores a file of tokens.
pub fn score(args: &Args) -> Outcome {
    // Before the work, not after it: what cannot be read, and a place that cannot be written to.
    let (prompt, tokens) = read(&args.tokens)?;
    let output = Output::new(&args.output, args.model.as_deref(), &args.tokens)?;
    let files = Files::open(args.model.as_deref())?;
    let vocab = files.checkpoint.config().vocab_size;
    for (name, ids) in [("prompt", &prompt), ("tokens", &tokens)] {
        if let Some(i) = ids.iter().position(|&id| id as usize >= vocab) {
            let (file, id) = (args.tokens.display(), ids[i]);
            return Err(format!("{file}: {name}[{i}] is {id}, outside the model's vocabulary of {vocab}").into());
        }
    }
    let total = prompt.len() + tokens.len();
    let limit = files.checkpoint.config().max_position_embeddings;
    if total > limit {
        let file = args.tokens.display();
        return Err(format!("{file}: {total} tokens, but the model's context is {limit}").into());
    }
    if let Some(at) = args.save_at.filter(|at| !(1..=total).contains(at)) {
        return Err(format!("--save-at is {at}; prompt and tokens are {total}, so it must be 1 to {total}").into());
    }
    let namespace = args.store.open()?.map(|store| store.namespace(&Owner::default().0)).transpose()?;
    let loaded = load(&files, &args.options, Some(total))?;
    if loaded.plan.experts.is_some() {
        say!("{}", loaded.describe(&files.name, files.checkpoint.release()));
        say!("memory: {}", loaded.plan);
    }
    let model = &loaded.model;
    let saved = match namespace {
        None => None,
        Some(namespace) => {
            let subject = subject(&files, model)?;
            Some(Stored { subject, namespace, save_at: args.save_at, resume: args.resume })
        }
    };
    if args.batch {
        // A second session of the same length, and room for its rows in every pass.
        let ledger = model.device().ledger();
        ledger.limit(fathom_kernels::Share::State, 2 * loaded.plan.state);
        ledger.limit(fathom_kernels::Share::Scratch, model.scratch_bytes(2 * loaded.chunk, 2));
    }
    let chunk = loaded.chunk;
    let logits = model.device().scope(|| match args.batch {
        true => with_another(model, &prompt, &tokens, chunk).map_err(Into::into),
        false => alone(model, &prompt, &tokens, chunk, saved.as_ref()),
    });
    let logits = logits.map_err(|e| e as Box<dyn std::error::Error>)?;
    output.write(&serialized(&logits, vocab)?)?;
    if args.json {
        let rss = peak_rss();
        writeln!(
            out(),
            "{}",
            json!({"experts": loaded.experts_json(), "peak_rss_bytes": rss, "planned_bytes": loaded.plan.total()})
        )?;
    }
    Ok(())
}

/// A store, and what to do with it.
struct Stored {
    namespace: Namespace,
    subject: Subject,
    save_at: Option<usize>,
    resume: bool,
}

impl Stored {
    /// The longest stored session that the prompt begins with; says how long it is and why not longer. One that is longer than
    /// what is to be saved is of no use.
    fn resume(&self, model: &Model<Cpu>, prompt: &[u32]) -> Result<Option<Resumed<Cpu>>, Failure> {
        if !self.resume {
            return Ok(None);
        }
        let wanted = &prompt[..prompt.len().min(self.save_at.unwrap_or(usize::MAX))];
        let found = resume(model, &self.namespace, &self.subject, wanted, 0);
        let (resumed, why) = match found {
            // What the store cannot give is computed.
            Err(e) => (None, Some(e.to_string())),
            Ok(found) => {
                let lost = found.lost.first().map(ToString::to_string);
                (found.resumed, lost.or_else(|| found.miss.map(|miss| miss.to_string())))
            }
        };
        // Without its logits, the last of the prompt's tokens would have to be read once more, and is in already.
        let resumed = resumed.filter(|r| r.state.position() < prompt.len() || !r.logits.is_empty());
        let reused = resumed.as_ref().map_or(0, |r| r.state.position());
        let mut report = json!({ "reused_tokens": reused });
        if let Some(why) = why.filter(|_| reused < prompt.len()) {
            report["why_not_more"] = why.into();
        }
        say!("{report}");
        Ok(resumed)
    }

    /// Saves the session if it has come to where it is to be saved.
    fn save(&self, model: &Model<Cpu>, state: &State<Cpu>, tokens: &[u32], logits: &[f32]) -> Result<(), Failure> {
        if self.save_at == Some(tokens.len()) {
            let new = NewSnapshot { tokens, ..NewSnapshot::default() };
            save(model, state, logits, &self.namespace, &self.subject, &new)?;
        }
        Ok(())
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn alone(
    model: &Model<Cpu>,
    prompt: &[u32],
    tokens: &[u32],
    chunk: usize,
    store: Option<&Stored>,
) -> Result<Vec<f32>, Failure> {
    let resumed = store.map(|store| store.resume(model, prompt)).transpose()?.flatten();
    let Resumed { mut state, logits: mut last } = match resumed {
        Some(resumed) => resumed,
        None => Resumed { state: model.new_state()?, logits: Vec::new() },
    };
    let first = state.position();
    let mut progress = Progress::new(prompt.len() - first, false);
    // What is to be saved on the way ends a stretch.
    let stop = store.and_then(|store| store.save_at).filter(|at| (first + 1..prompt.len()).contains(at));
    for end in stop.into_iter().chain([prompt.len()]) {
        let from = state.position();
        if from < end {
            let read = prefill(model, &mut state, &prompt[from..end], chunk, &mut |done| {
                progress.update(from - first + done, "");
                ControlFlow::Continue(())
            })?;
            last = read.unwrap_or_default();
        }
        if let Some(store) = store {
            store.save(model, &state, &prompt[..end], &last)?;
        }
    }
    progress.finish();
    let mut all = last;
    let mut seen = prompt.to_vec();
    for &token in tokens {
        let logits = LogitsWanted::Last;
        let out = model.forward(&mut [Segment { state: &mut state, tokens: &[token], logits }])?;
        let row = out.into_iter().next().unwrap_or_default();
        seen.push(token);
        if let Some(store) = store {
            store.save(model, &state, &seen, &row)?;
        }
        all.extend(row);
    }
    Ok(all)
}

/// As [`alone`], with the prompt backwards as a second session in every pass.
fn with_another(
    model: &Model<Cpu>,
    prompt: &[u32],
    tokens: &[u32],
    chunk: usize,
) -> Result<Vec<f32>, fathom_model::Error> {
    let (mut state, mut other) = (model.new_state()?, model.new_state()?);
    let backwards: Vec<u32> = prompt.iter().rev().copied().collect();
    let mut all = Vec::new();
    let mut done = 0;
    for (part, others) in prompt.chunks(chunk).zip(backwards.chunks(chunk)) {
        done += part.len();
        let logits = if done == prompt.len() { LogitsWanted::Last } else { LogitsWanted::None };
        let mut out = model.forward(&mut [
            Segment { state: &mut other, tokens: others, logits: LogitsWanted::None },
            Segment { state: &mut state, tokens: part, logits },
        ])?;
        all.extend(out.pop().unwrap_or_default());
    }
    for &token in tokens {
        let out = model.forward(&mut [
            Segment { state: &mut state, tokens: &[token], logits: LogitsWanted::Last },
            Segment { state: &mut other, tokens: &[token], logits: LogitsWanted::Last },
        ])?;
        all.extend(out.into_iter().next().unwrap_or_default());
    }
    Ok(all)
}

/// `prompt` and `tokens` of a file.
fn read(path: &Path) -> Result<(Vec<u32>, Vec<u32>), Box<dyn std::error::Error>> {
    let name = path.display();
    let file = File::open(path).map_err(|e| format!("cannot read {name}: {e}"))?;
    let bytes = bytes(&name.to_string(), file)?;
    fathom_weights::check_header(&bytes).map_err(|problem| format!("{name}: {problem}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| format!("{name}: {e}"))?;
    let tensor = |tensor: &str| -> Result<Vec<u32>, String> {
        let view = file.tensor(tensor).map_err(|_| format!("{name}: tensor {tensor} is missing"))?;
        if view.dtype() != Dtype::I32 || view.shape().len() != 1 {
            return Err(format!(
                "{name}: tensor {tensor} is {:?} {:?}; it must be I32 [n]",
                view.dtype(),
                view.shape()
            ));
        }
        let ids = view.data().chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        ids.enumerate()
            .map(|(i, id)| u32::try_from(id).map_err(|_| format!("{name}: {tensor}[{i}] is {id}, no token id")))
            .collect()
    };
    let (prompt, tokens) = (tensor("prompt")?, tensor("tokens")?);
    if prompt.is_empty() {
        return Err(format!("{name}: tensor prompt is empty").into());
    }
    Ok((prompt, tokens))
}

/// The bytes of a file with `logits`.
fn serialized(logits: &[f32], vocab: usize) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![logits.len() / vocab, vocab], &bytes)?;
    Ok(serialize([("logits", view)], None)?)
}

/// A file that is written whole or not at all.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    /// Where the file grows until it takes the place of `path`; none where that is a device or a pipe, which are written
    /// to as they are.
    partial: Option<PathBuf>,
}

impl Output {
    /// Checks that `path` can be written to and is none of the inputs.
    fn new(path: &Path, model: Option<&Path>, tokens: &Path) -> Result<Output, String> {
        let failed = |e: io::Error| format!("cannot write {}: {e}", path.display());
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            File::options().write(true).open(path).map_err(failed)?;
            return Ok(Output { path: path.to_owned(), partial: None });
        }
        // Through a link, what it points to is replaced, not the link. What is not there yet is no input either.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let model = model.and_then(|folder| folder.canonicalize().ok());
        let is_tokens = tokens.canonicalize().is_ok_and(|tokens| tokens == path);
        if is_tokens || path.exists() && model.is_some_and(|folder| path.parent() == Some(&folder)) {
            let path = path.display();
            return Err(format!("--output is {path}, which is there and one of the inputs; name another file"));
        }
        // Makes the file that will grow, and takes it away again.
        let partial = partial(&path);
        File::options().write(true).create_new(true).open(&partial).map_err(failed)?;
        fs::remove_file(&partial).map_err(failed)?;
        Ok(Output { path, partial: Some(partial) })
    }

    fn write(&self, bytes: &[u8]) -> Outcome {
        let failed = |e: io::Error| format!("cannot write {}: {e}", self.path.display());
        let Some(partial) = &self.partial else {
            File::options().write(true).open(&self.path).and_then(|mut file| file.write_all(bytes)).map_err(failed)?;
            return Ok(());
        };
        let write = || {
            File::options().write(true).create_new(true).open(partial)?.write_all(bytes)?;
            if let Ok(before) = fs::metadata(&self.path) {
                fs::set_permissions(partial, before.permissions())?;
            }
            fs::rename(partial, &self.path)
        };
        write().map_err(|e| {
            // What there is of it is of no use; that it may not even be there is no news.
            let _ = fs::remove_file(partial);
            failed(e).into()
        })
    }
}

/// The name of a file that grows.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(path: &Path) -> Result<Output, String> {
        Output::new(path, None, Path::new("tokens"))
    }

    #[test]
    fn outputs_are_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits");
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let first = output(&path).unwrap();
        assert_eq!(count(), 0, "nothing before it is written");
        first.write(b"before").unwrap();
        let second = output(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"before");
        second.write(b"after").unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), count()), (&b"after"[..], 1));
        assert!(output(&folder.path().join("none/logits")).is_err_and(|e| e.contains("none/logits")));
        assert!(output(folder.path()).is_err(), "a folder");
    }

    #[test]
    fn inputs_are_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let (shard, tokens) = (folder.path().join("model.safetensors"), folder.path().join("tokens"));
        fs::write(&shard, "weights").unwrap();
        fs::write(&tokens, "tokens").unwrap();
        for (path, model) in [(&shard, Some(folder.path())), (&tokens, None)] {
            let message = Output::new(path, model, &tokens).unwrap_err();
            assert!(message.contains("one of the inputs"), "{message}");
        }
        Output::new(&folder.path().join("logits"), Some(folder.path()), &tokens).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "before").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        output(&link).unwrap().write(b"after").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"after");
        let device = output(Path::new("/dev/null")).unwrap();
        assert_eq!(device.partial, None);
        device.write(b"gone").unwrap();
    }
}
