//! `fathom score`: the logits of given tokens.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fathom_engine::prefill;
use fathom_kernels::{Cpu, Device};
use fathom_model::{LogitsWanted, Model, Segment};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use super::Outcome;
use super::model::{Files, Options, load};
use crate::ui::Progress;

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
    #[command(flatten)]
    options: Options,
}

/// Scores a file of tokens.
pub fn score(args: &Args) -> Outcome {
    let (prompt, tokens) = read(&args.tokens)?;
    let files = Files::open(args.model.as_deref())?;
    let total = prompt.len() + tokens.len();
    let limit = files.checkpoint.config().max_position_embeddings;
    if total > limit {
        let file = args.tokens.display();
        return Err(format!("{file}: {total} tokens, but the model's context is {limit}").into());
    }
    let loaded = load(&files, &args.options, Some(total))?;
    let model = &loaded.model;
    if args.batch {
        // A second session of the same length, and room for its rows in every pass.
        let ledger = model.device().ledger();
        ledger.limit(fathom_kernels::Share::State, 2 * loaded.plan.state);
        ledger.limit(fathom_kernels::Share::Scratch, model.scratch_bytes(2 * loaded.chunk));
    }
    let chunk = loaded.chunk;
    let logits = model.device().scope(|| {
        if args.batch { with_another(model, &prompt, &tokens, chunk) } else { alone(model, &prompt, &tokens, chunk) }
    })?;
    write(&args.output, &logits, files.checkpoint.config().vocab_size)
}

fn alone(model: &Model<Cpu>, prompt: &[u32], tokens: &[u32], chunk: usize) -> Result<Vec<f32>, fathom_model::Error> {
    let mut state = model.new_state()?;
    let mut progress = Progress::new(prompt.len(), false);
    let mut all = prefill(model, &mut state, prompt, chunk, &mut |done| {
        progress.update(done, "");
        ControlFlow::Continue(())
    })?
    .unwrap_or_default();
    progress.finish();
    for &token in tokens {
        let logits = LogitsWanted::Last;
        let out = model.forward(&mut [Segment { state: &mut state, tokens: &[token], logits }])?;
        out.into_iter().for_each(|row| all.extend(row));
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
    let bytes = std::fs::read(path).map_err(|e| format!("cannot read {name}: {e}"))?;
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

/// Writes a file whole or not at all.
fn write(path: &Path, logits: &[f32], vocab: usize) -> Outcome {
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![logits.len() / vocab, vocab], &bytes)?;
    let file = serialize([("logits", view)], None)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    std::fs::write(&partial, file).map_err(failed)?;
    std::fs::rename(&partial, path).map_err(failed)?;
    Ok(())
}
