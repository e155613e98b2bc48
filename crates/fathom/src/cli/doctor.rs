//! `fathom doctor`: what this machine can do, and what is wrong with it or with a model.

use std::io::Write;
use std::path::{Path, PathBuf};

use fathom_kernels::{Cpu, CpuOptions, Device, Profile};
use serde_json::json;

use super::Outcome;
use super::model::{CONFIG, Files, Loaded, Options, load};
use crate::chat::Prompter;
use crate::doctor::{
    Finding, Heard, Verdict, drive, gpu, hashes, hear, memory, passage, processor, prompts, shard_files, system, usable,
};
use crate::ui::{Progress, Transfer, out};

/// Flags of `fathom doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model to check whole: a folder with an official checkpoint, or `demo` for the embedded model
    model: Option<PathBuf>,
    /// The folder whose drive is looked at [default: the model's, or this one]
    #[arg(long, value_name = "DIR")]
    drive: Option<PathBuf>,
    /// Leave out what reads the whole model: hashes and the text
    #[arg(long)]
    quick: bool,
    /// One JSON object for machines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

/// Looks at the machine, and at a model if there is one.
pub fn doctor(args: &Args) -> Outcome {
    if let Some(drive) = args.drive.as_deref().filter(|drive| !drive.is_dir()) {
        return Err(format!("--drive {}: no such folder", drive.display()).into());
    }
    let files = match args.model.as_ref().map(|model| (model, Files::open(Some(model)))) {
        // There is nothing to look at.
        Some((model, Err(e))) if !model.is_dir() => return Err(e),
        found => found.map(|(_, files)| files),
    };
    let mut report = Report { json: args.json, all: Vec::new() };
    let isa = args.options.isa.clone();
    let threads = args.options.threads.map(usize::from);
    let cpu = Cpu::new(CpuOptions { threads, isa, profile: Profile::Native })?;
    report.part("machine", processor(cpu.isa()))?;
    let weights = files.as_ref().and_then(|files| Some(files.as_ref().ok()?.checkpoint.weight_bytes()));
    report.part("machine", memory(weights))?;
    // It takes half a gigabyte to measure.
    if usable().is_none_or(|bytes| bytes > 4 << 30) {
        let peaks = cpu.peaks()?;
        let (memory, f32, int8) = (peaks.read_bytes / 1e9, peaks.f32_flops / 1e9, peaks.int8_ops / 1e12);
        let found = format!("memory {memory:.1} GB/s, f32 {f32:.0} Gflop/s, int8 {int8:.2} Top/s");
        report.part("machine", vec![Finding::good("speed", found)])?;
    }
    report.part("machine", system())?;
    report.part("machine", vec![gpu()])?;
    let folder = args.model.as_deref().filter(|model| model.is_dir());
    let shards = match folder {
        Some(folder) => shard_files(folder).map_err(|e| format!("{}: {e}", folder.display()))?,
        None => Vec::new(),
    };
    let place = args.drive.as_deref().or(folder).unwrap_or(Path::new("."));
    let samples = if args.drive.is_some() { &[][..] } else { &shards };
    report.part("drive", drive(place, samples))?;
    if let Some(files) = files {
        model(args, &mut report, files, folder, &shards)?;
    }
    report.end()
}

fn model(
    args: &Args,
    report: &mut Report,
    files: Result<Files, Box<dyn std::error::Error>>,
    folder: Option<&Path>,
    shards: &[PathBuf],
) -> Outcome {
    let files = match files {
        Ok(files) => files,
        Err(e) => {
            let mend = "fathom pull OWNER/NAME FOLDER fetches what is missing or damaged";
            let wrong = Finding::wrong("tensors", e.to_string(), "the model cannot be opened", mend);
            report.part("model", vec![wrong])?;
            return hash(args, report, folder, shards);
        }
    };
    let (count, tensors) = files.checkpoint.counts();
    let found = format!("{}, {tensors} in {count} shards, as config.json asks", files.checkpoint.release());
    report.part("model", vec![Finding::good("tensors", found)])?;
    hash(args, report, folder, shards)?;
    let loaded = load(&files, &args.options, None);
    let prompter = files.prompter();
    if let Ok(prompter) = &prompter {
        report.part("model", prompts(prompter))?;
    }
    let cannot =
        |name, e: &dyn std::fmt::Display, mend| Finding::wrong(name, e.to_string(), "the model cannot answer", mend);
    match (loaded, prompter) {
        (Err(e), _) => report.part("model", vec![cannot("weights", &e, "download the file again: fathom pull")]),
        (_, Err(e)) => {
            let mend = "take tokenizer.json and tokenizer_config.json from the release that the weights are of";
            report.part("model", vec![cannot("tokenizer", &e, mend)])
        }
        (Ok(_), Ok(_)) if args.quick => Ok(()),
        (Ok(loaded), Ok(prompter)) => {
            // A copy of the embedded model is one too.
            let own = |folder: &Path| std::fs::read(folder.join("config.json")).is_ok_and(|config| config == CONFIG);
            report.part("model", read(args, &loaded, &prompter, folder.is_none_or(own))?)
        }
    }
}

/// Reads all shards.
fn hash(args: &Args, report: &mut Report, folder: Option<&Path>, shards: &[PathBuf]) -> Outcome {
    let Some(folder) = folder.filter(|_| !args.quick) else { return Ok(()) };
    let total = shards.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
    let (mut shown, mut done) = (Transfer::new("checking", args.json), 0);
    let found = hashes(folder, shards, &mut |bytes| {
        done += bytes;
        shown.update(done, total);
    });
    shown.finish();
    report.part("model", found)
}

/// Has the model read a text, and answer where it is known what it should.
fn read(
    args: &Args,
    loaded: &Loaded,
    prompter: &Prompter,
    embedded: bool,
) -> Result<Vec<Finding>, Box<dyn std::error::Error>> {
    let passage = passage(prompter, embedded)?;
    let n = passage.tokens.len() - passage.answer;
    let mut progress = Progress::new(passage.tokens.len(), args.json);
    let (model, chunk) = (&loaded.model, loaded.chunk);
    let found = model.device().scope(|| hear(model, &passage, chunk, &mut |done| progress.update(done, "")));
    progress.finish();
    let mend = "the weights are noise or damaged: fathom pull OWNER/NAME FOLDER fetches and checks them";
    let Heard { perplexity: found, answer } = match found {
        Ok(heard) => heard,
        Err(e) => return Ok(vec![Finding::wrong("text", e.to_string(), "the model cannot answer", mend)]),
    };
    let (least, most) = (passage.sound.start(), passage.sound.end());
    let says = format!("perplexity {found:.2} on {n} tokens of a known text");
    let text = if passage.sound.contains(&found) {
        Finding::good("text", format!("{says}; sound models have {least} to {most}"))
    } else if found >= passage.broken || !found.is_finite() {
        let cost = format!("sound models have {least} to {most}: what it writes has no meaning");
        Finding::wrong("text", says, cost, mend)
    } else {
        let cost = format!("sound models have {least} to {most}: it may be damaged in part, or of another training");
        Finding::advice("text", says, cost, "compare the files' hashes: fathom pull OWNER/NAME FOLDER")
    };
    if passage.answer == 0 {
        return Ok(vec![text]);
    }
    // It takes CSA to find it, and CSA's indexer.
    let says = format!("gives the answer to a question about the text {:.1} % or more at each token", 100.0 * answer);
    Ok(vec![
        text,
        if answer > 0.5 {
            Finding::good("answer", says)
        } else {
            Finding::wrong("answer", says, "what is far back in a text is not found", mend)
        },
    ])
}

/// What was found, told as it is found.
struct Report {
    json: bool,
    all: Vec<(&'static str, Finding)>,
}

impl Report {
    fn part(&mut self, part: &'static str, found: Vec<Finding>) -> Outcome {
        for finding in found {
            if !self.json {
                if self.all.last().is_none_or(|(before, _)| *before != part) {
                    writeln!(out(), "{part}")?;
                }
                let mark = match finding.verdict {
                    Verdict::Good => "  ok ",
                    Verdict::Advice => "  -> ",
                    Verdict::Wrong => "  !! ",
                };
                writeln!(out(), "{mark} {:<18} {}", finding.name, finding.found)?;
                for (what, text) in [("costs", &finding.cost), ("mend", &finding.mend)] {
                    if let Some(text) = text {
                        writeln!(out(), "{:24} {what}: {text}", "")?;
                    }
                }
            }
            self.all.push((part, finding));
        }
        Ok(())
    }

    /// Something wrong is an error, and told as one.
    fn end(self) -> Outcome {
        let count = |verdict| self.all.iter().filter(|(_, finding)| finding.verdict == verdict).count();
        let (wrong, advice) = (count(Verdict::Wrong), count(Verdict::Advice));
        if self.json {
            let one = |(part, f): &(&str, Finding)| {
                json!({
                    "part": part, "name": f.name, "verdict": f.verdict, "found": f.found, "cost": f.cost, "mend": f.mend
                })
            };
            let all: Vec<_> = self.all.iter().map(one).collect();
            writeln!(out(), "{}", json!({"wrong": wrong, "advice": advice, "findings": all}))?;
        } else if wrong == 0 {
            writeln!(out(), "nothing is wrong; {advice} could be better")?;
        }
        match self.all.iter().find(|(_, finding)| finding.verdict == Verdict::Wrong) {
            None => Ok(()),
            Some((_, first)) => {
                let more = if wrong > 1 { format!(" (and {} more)", wrong - 1) } else { String::new() };
                Err(format!("{}: {}{more}", first.name, first.found).into())
            }
        }
    }
}
