//! A model at growing depths, in one session: at each it is probed with forks, and goes on.

use std::ops::ControlFlow;
use std::time::Instant;

use fathom_engine::{Sampler, Sampling, prefill, resume, save};
use fathom_kernels::{Cpu, Device, Share};
use fathom_model::{LogitsWanted, Model, Segment, State};
use fathom_store::{Namespace, NewSnapshot, Subject};

use super::depths::Tokens;
use super::{Args, show};
use crate::bench::{
    About, Energy, Folder, Frontier, Frontiers, INTERRUPTED, Needle, Planned, Report, Spread, Watch, end, interrupted,
    stop_on_ctrl_c,
};
use crate::chat::{Effort, Message, Prompter, Role};
use crate::cli::Outcome;
use crate::cli::model::{Files, Loaded, load};
use crate::cli::store::subject;
use crate::demo::{Document, document};
use crate::ui::{Progress, commas, rss, say};

/// The first depth.
const FIRST: usize = 2048;
const RUNS: u32 = 3;
/// Tokens that the turn's marks and the answer may take.
const ROOM: usize = 64;
/// The most tokens of the answer.
const ANSWER: usize = 32;
/// The namespace of the store that the states go to.
const NAMESPACE: &str = "bench";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A session that grows.
struct Growing<'a> {
    args: &'a Args,
    loaded: &'a Loaded,
    /// All tokens, and the question behind them where there is a tokenizer.
    prompt: Vec<u32>,
    asked: Option<(Document, Prompter, u32)>,
    store: Option<(Namespace, Subject)>,
    /// Tokens of a prefill probe and of a decode probe.
    probes: [usize; 2],
    noise: Tokens,
    state: State<Cpu>,
    /// What follows the last token.
    logits: Vec<f32>,
    /// To the first token at this depth: all reading and restoring so far.
    seconds: f64,
    report: Report,
    folder: Option<Folder>,
}

/// Measures a model up to `context` tokens.
pub fn frontiers(args: &Args, context: usize) -> Outcome {
    let folder = args.report.as_deref().map(Folder::open).transpose()?;
    let files = Files::open(args.model.as_deref())?;
    let longest = |lengths: &[u32]| lengths.iter().max().map_or(0, |&n| n as usize);
    let probes = [longest(&args.prefill), longest(&args.decode)];
    let after = probes[0].max(probes[1]).max(ROOM);
    if after * 2 > context {
        return Err(format!(
            "--context {context} has no room for probes of {after} tokens; see --prefill and --decode"
        )
        .into());
    }
    stop_on_ctrl_c();
    let loaded = load(&files, &args.options, Some(context))?;
    let model = &loaded.model;
    // A fork owns its open page and those it adds; the rest it shares.
    let forked = model.state_bytes((after + 2048).min(context));
    model.device().ledger().limit(Share::State, loaded.plan.state + forked);
    let about = loaded.describe(&files.name, files.checkpoint.release());
    say!("{about}");
    say!("memory: {}", loaded.plan);
    let store = match args.store.open()? {
        None => None,
        Some(store) => Some((store.namespace(NAMESPACE)?, subject(&files, model)?)),
    };
    let mut noise = Tokens::new(model.config().vocab_size);
    let eos = files.checkpoint.config().eos_token_id;
    let (prompt, asked) = match files.prompter() {
        Ok(prompter) => {
            let tokenizer = prompter.tokenizer();
            let count = |text: &str| tokenizer.encode(text).map_or(0, |ids| ids.len());
            let text = document(args.seed, context - after - ROOM, true, count);
            let message = Message { role: Role::User, text: text.prompt.clone() };
            let prompt = prompter.chat(&[message], Effort::None)?.0;
            (prompt, Some((text, prompter, eos)))
        }
        Err(e) => {
            say!("random tokens and no question: {e}");
            (noise.take(context - after), None)
        }
    };
    let plan = &loaded.plan;
    let planned = Planned {
        weights: plan.weights + plan.experts.unwrap_or(0),
        state: plan.state,
        scratch: plan.scratch,
        total: plan.total(),
    };
    let runs = args.runs.unwrap_or(RUNS);
    let frontiers = Frontiers { model: about, context, runs, probes, planned, ..Frontiers::default() };
    let report = Report {
        title: format!("{}: up to {} tokens", files_name(args), commas(context)),
        about: About::this_run(),
        partial: Some("it is still running".to_owned()),
        method: method(args, asked.is_some()),
        servers: None,
        frontiers: Some(frontiers),
        needle: None,
    };
    let state = model.new_state()?;
    let logits = Vec::new();
    let mut growing = Growing {
        args,
        loaded: &loaded,
        prompt,
        asked,
        store,
        probes,
        noise,
        state,
        logits,
        seconds: 0.0,
        report,
        folder,
    };
    let watch = Watch::start(None, Some(model.device().ledger().clone()));
    let mut energy = Energy::open();
    let grown = model.device().scope(|| growing.all(runs, energy.as_mut().ok()));
    growing.end(watch, energy, grown)
}

/// How people call the model.
fn files_name(args: &Args) -> String {
    let name = args.model.as_ref().and_then(|folder| folder.file_name());
    name.map_or_else(|| "The embedded model".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn method(args: &Args, asks: bool) -> Vec<String> {
    let text = if asks {
        format!(
            "The text is made-up sentences of seed {} with a code in one of them, which is asked for at the end.",
            args.seed
        )
    } else {
        "The tokens are random, as there is no tokenizer.".to_owned()
    };
    let store = if args.store.location().is_some() {
        "At each depth the state is taken from the store if it is there, else all tokens since the depth before are read, and it \
         is written."
    } else {
        "At each depth all tokens since the depth before are read; nothing is read twice."
    };
    vec![
        text,
        store.to_owned(),
        "Then forks of the session are probed, which share its state: random tokens are read at once, and one by one. Each probe \
         runs once to warm up. The time to the first token is that of reading and restoring alone, without probes and writing."
            .to_owned(),
        "Memory is what the operating system says of this process, ten times a second or as often as fits the chart, and what the \
         ledger has given out."
            .to_owned(),
    ]
}

impl Growing<'_> {
    fn model(&self) -> &Model<Cpu> {
        &self.loaded.model
    }

    fn numbers(&mut self) -> &mut Frontiers {
        self.report.frontiers.get_or_insert_default()
    }

    /// All depths, and the question.
    fn all(&mut self, runs: u32, mut energy: Option<&mut Energy>) -> Result<(), Failure> {
        let end = self.prompt.len();
        let mut depths: Vec<usize> =
            std::iter::successors(Some(FIRST), |d| Some(d * 2)).take_while(|&d| d < end).collect();
        depths.push(end);
        if !self.args.json {
            show::head()?;
        }
        for depth in depths {
            let restored = self.restore(depth)?;
            let (from, before) = (self.state.position(), self.seconds);
            if !restored && self.read(depth)?.is_break() {
                return Err(INTERRUPTED.into());
            }
            let read_per_second = (!restored).then(|| (depth - from) as f64 / (self.seconds - before).max(1e-9));
            let saved_seconds = if restored { None } else { self.save()? };
            let prefill_per_second = self.probe(runs, self.probes[0], true)?;
            let decode_per_second = self.probe(runs, self.probes[1], false)?;
            let frontier = Frontier {
                tokens: depth,
                restored,
                first: self.seconds,
                read_per_second,
                prefill_per_second,
                decode_per_second,
                rss: rss(),
                state: self.model().device().ledger().holding(Share::State).held,
                saved_seconds,
            };
            self.numbers().frontiers.push(frontier);
            self.numbers().joules = energy.as_deref_mut().map(Energy::joules);
            show::frontier(&frontier, self.args.json)?;
            if let Some(folder) = &self.folder {
                folder.write(&self.report)?;
            }
            if interrupted() {
                return Err(INTERRUPTED.into());
            }
        }
        self.question()
    }

    /// Takes the state at `depth` from the store, if it is there.
    fn restore(&mut self, depth: usize) -> Result<bool, Failure> {
        let Some((namespace, subject)) = &self.store else { return Ok(false) };
        let tokens = &self.prompt[..depth];
        let start = Instant::now();
        if namespace.find(subject, tokens)?.best.is_none_or(|best| best.position != depth) {
            return Ok(false);
        }
        // There is room for one of that length.
        let shorter = std::mem::replace(&mut self.state, self.loaded.model.new_state()?);
        let position = shorter.position();
        drop(shorter);
        match resume(&self.loaded.model, namespace, subject, tokens, position)?.resumed {
            Some(resumed) if resumed.state.position() == depth && !resumed.logits.is_empty() => {
                (self.state, self.logits) = (resumed.state, resumed.logits);
                self.seconds = start.elapsed().as_secs_f64();
                Ok(true)
            }
            // It was there and cannot be read: what was before has to be read again.
            _ => {
                self.seconds = 0.0;
                Ok(false)
            }
        }
    }

    /// Reads on to `depth`; breaks off if somebody wants it to end.
    fn read(&mut self, depth: usize) -> Result<ControlFlow<()>, Failure> {
        let from = self.state.position();
        let (model, chunk) = (&self.loaded.model, self.loaded.chunk);
        let mut progress = Progress::new(depth - from, false);
        let start = Instant::now();
        let read = prefill(&**model, &mut self.state, &self.prompt[from..depth], chunk, &mut |done| {
            progress.update(done, "");
            if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        progress.finish();
        self.seconds += start.elapsed().as_secs_f64();
        Ok(match read {
            Some(logits) => {
                self.logits = logits;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        })
    }

    /// Writes the state to the store; returns how long that took.
    fn save(&mut self) -> Result<Option<f64>, Failure> {
        let Some((namespace, subject)) = &self.store else { return Ok(None) };
        let start = Instant::now();
        let tokens = &self.prompt[..self.state.position()];
        let new = NewSnapshot { tokens, ..NewSnapshot::default() };
        let saved = save(&self.loaded.model, &self.state, &self.logits, namespace, subject, &new)?;
        let seconds = start.elapsed().as_secs_f64();
        *self.numbers().stored_bytes.get_or_insert(0) += saved.bytes_written;
        Ok(Some(seconds))
    }

    /// Tokens a second of `n` random ones from here on, at once or one by one.
    fn probe(&mut self, runs: u32, n: usize, at_once: bool) -> Result<Option<Spread>, Failure> {
        let mut speeds = Vec::new();
        for run in 0..=runs {
            let tokens = self.noise.take(n);
            let (model, chunk) = (self.model(), self.loaded.chunk);
            let mut state = model.fork(&self.state)?;
            let start = Instant::now();
            if at_once {
                prefill(model, &mut state, &tokens, chunk, &mut |_| ControlFlow::Continue(()))?;
            } else {
                for token in &tokens {
                    let tokens = std::slice::from_ref(token);
                    model.forward(&mut [Segment { state: &mut state, tokens, logits: LogitsWanted::Last }])?;
                }
            }
            // The first warms caches.
            speeds.extend((run > 0).then(|| n as f64 / start.elapsed().as_secs_f64()));
            if interrupted() {
                break;
            }
        }
        Ok(Spread::of(&speeds))
    }

    /// What the model answers to the prompt.
    fn question(&mut self) -> Result<(), Failure> {
        let Some((text, prompter, eos)) = &self.asked else { return Ok(()) };
        let model = self.model();
        let (mut state, mut logits) = (model.fork(&self.state)?, self.logits.clone());
        let (mut sampler, mut answer) = (Sampler::new(Sampling::greedy()), Vec::new());
        while answer.len() < ANSWER {
            let token = sampler.choose(&logits, None).map_or(*eos, |choice| choice.id);
            if token == *eos {
                break;
            }
            answer.push(token);
            let out =
                model.forward(&mut [Segment { state: &mut state, tokens: &[token], logits: LogitsWanted::Last }])?;
            logits = out.into_iter().next().unwrap_or_default();
        }
        let answer = prompter.tokenizer().decode(&answer);
        let right = answer.contains(&text.code);
        let needle =
            Needle { tokens: self.prompt.len(), depth: text.depth, expected: text.expected.clone(), answer, right };
        self.numbers().needle = Some(needle);
        Ok(())
    }

    /// The last words, and the report.
    fn end(mut self, watch: Watch, energy: Result<Energy, String>, grown: Result<(), Failure>) -> Outcome {
        let json = self.args.json;
        let numbers = self.numbers();
        numbers.memory = watch.end();
        numbers.peak_rss = numbers.memory.iter().filter_map(|point| point.rss).max();
        numbers.no_joules = energy.err();
        show::last(numbers, json)?;
        end(self.folder.as_ref(), self.report, grown.map_err(|e| e as Box<dyn std::error::Error>))
    }
}
