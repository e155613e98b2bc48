//! `fathom chat`: a conversation in the terminal.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fathom_engine::{Finish, Request};
use rustyline::error::ReadlineError;
use rustyline::{
    Cmd, ConditionalEventHandler, DefaultEditor, Event, EventContext, EventHandler, KeyEvent, RepeatCount,
};

use super::Outcome;
use super::ask::{Reading, ask};
use super::model::{Files, Options, load};
use super::run::{SamplingArgs, Think, print};
use super::store::StoreOptions;
use crate::chat::{Effort, Message, Role};
use crate::ui::{out, say};

/// Flags of `fathom chat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with an official checkpoint [default: the embedded model]
    model: Option<PathBuf>,
    /// Instructions above the conversation
    #[arg(long)]
    system: Option<String>,
    /// Think before answering
    #[arg(long, value_enum, default_value_t = Think::Off)]
    think: Think,
    /// The most tokens of one answer
    #[arg(long)]
    max_tokens: Option<NonZeroUsize>,
    /// The most tokens of the conversation [default: what the model holds]
    #[arg(long)]
    context: Option<NonZeroUsize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    options: Options,
}

const HELP: &str = "\
/think off|low|high|max   how hard to think before an answer
/clear                    forget the conversation
/exit                     leave (or Ctrl-D)
Ctrl-C stops an answer; the part that was said is kept. At the prompt it drops the line.";

/// Ctrl-C at the prompt: notes whether there was anything to drop.
struct DropLine {
    was_empty: Arc<AtomicBool>,
}

impl ConditionalEventHandler for DropLine {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        self.was_empty.store(context.line().is_empty(), Ordering::Relaxed);
        Some(Cmd::Interrupt)
    }
}

/// Talks until the person leaves.
pub fn chat(args: &Args) -> Outcome {
    let files = Files::open(args.model.as_deref())?;
    let loaded = load(&files, &args.options, args.context.map(usize::from))?;
    let (vocab, eos) = (files.checkpoint.config().vocab_size, files.checkpoint.config().eos_token_id);
    let sampling = args.sampling.sampling();
    sampling.check(vocab)?;
    say!("{}", loaded.describe(&files.name, files.checkpoint.release()));
    let keep = args.store.keep(&files, &loaded.model)?;
    let prompter = files.prompter()?;
    let engine = loaded.engine(1, keep);
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    let mut effort = Effort::from(args.think);
    let beginning: Vec<Message> =
        args.system.iter().map(|text| Message { role: Role::System, text: text.clone() }).collect();
    let mut messages = beginning.clone();
    let mut editor = DefaultEditor::new()?;
    let was_empty = Arc::new(AtomicBool::new(true));
    let drop_line = DropLine { was_empty: Arc::clone(&was_empty) };
    editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(drop_line)));
    let mut out = out();
    say!("Type a message, or /help.");
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Interrupted) => {
                if was_empty.swap(true, Ordering::Relaxed) {
                    say!("(Ctrl-D or /exit leaves)");
                }
                continue;
            }
            Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                say!("fathom: standard input: a line that is not UTF-8 was left out");
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let line = line.trim();
        // History is a convenience: a line that cannot be kept is no reason to stop.
        let _ = editor.add_history_entry(line);
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => continue,
            ["/exit" | "/quit"] => return Ok(()),
            ["/help"] => {
                say!("{HELP}");
                continue;
            }
            ["/clear"] => {
                messages.clone_from(&beginning);
                say!("(forgotten)");
                continue;
            }
            ["/think", how] => {
                match <Think as clap::ValueEnum>::from_str(how, true) {
                    Ok(think) => effort = think.into(),
                    Err(_) => say!("/think takes off, low, high or max"),
                }
                continue;
            }
            [word, ..] if word.starts_with('/') => {
                say!("there is no {word}; /help lists what there is");
                continue;
            }
            _ => {}
        }
        messages.push(Message { role: Role::User, text: line.to_owned() });
        let (prompt, parsing) = prompter.chat(&messages, effort)?;
        let request = Request {
            prompt,
            max_tokens: args.max_tokens.map(usize::from),
            stop_tokens: vec![eos],
            sampling: sampling.clone(),
        };
        stop.store(false, Ordering::Relaxed);
        let mut thinking = false;
        let reading = Reading::Chat(parsing);
        match ask(&loaded, &engine, prompter.tokenizer(), request, reading, false, &stop, |shown| {
            thinking = print(&mut out, shown, thinking)?;
            Ok(())
        }) {
            Ok(answer) => {
                writeln!(out)?;
                let why = match answer.finish {
                    Finish::Cancelled => "stopped; ",
                    Finish::ContextFull => "the context is full; /clear starts over; ",
                    Finish::Length => "--max-tokens reached; ",
                    Finish::Stop => "",
                };
                say!("({why}{})", answer.numbers());
                messages.push(Message { role: Role::Assistant, text: answer.text });
            }
            Err(e) => {
                // The question did not go through; the conversation did.
                messages.pop();
                say!("fathom: {e}");
            }
        }
    }
}
