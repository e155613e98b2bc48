//! `fathom chat`: a conversation in the terminal.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use fathom_engine::{Engine, EngineOptions, Finish, Owner, Request, Sessions};
use fathom_store::{Store, Subject};
use rustyline::error::ReadlineError;
use rustyline::{
    Cmd, ConditionalEventHandler, DefaultEditor, Event, EventContext, EventHandler, KeyEvent, RepeatCount,
};

use super::Outcome;
use super::ask::{Reading, ask};
use super::model::{Files, Options, load};
use super::run::{SamplingArgs, Think, earlier, print};
use super::store::StoreOptions;
use crate::chat::{Effort, Message, Prompter, Role, TextSeam};
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
    /// Go on with a session of this name, or begin one; it is kept in the store, or where none is named in the user's own
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
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
/rewind [N]               take back the last N questions and their answers [1]
/fork NAME                go on as another session; this one stays as it is
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
    let keep = match &args.session {
        Some(_) => Some(args.store.keep(args.store.open_own()?, &files, &loaded.model)?),
        None => args.store.keep_if_named(&files, &loaded.model)?,
    };
    let stored = keep.as_ref().map(|keep| (keep.store.clone(), keep.subject.clone()));
    let prompter = files.prompter()?;
    let engine = loaded.engine(EngineOptions::default(), keep);
    let before = args.session.as_deref().map(|name| earlier(&engine, stored.clone(), name)).transpose()?;
    let mut talk = Talk {
        beginning: args.system.iter().map(|text| Message { role: Role::System, text: text.clone() }).collect(),
        messages: prompter.messages(&before.unwrap_or_default())?,
        effort: Effort::from(args.think),
        session: args.session.clone(),
        prompter: prompter.clone(),
        engine: engine.clone(),
        stored,
    };
    talk.begin(args.system.is_some())?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    let mut editor = DefaultEditor::new()?;
    let was_empty = Arc::new(AtomicBool::new(true));
    let drop_line = DropLine { was_empty: Arc::clone(&was_empty) };
    editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(drop_line)));
    let mut out = out();
    say!("Type a message, or /help.");
    while let Some(line) = read_line(&mut editor, &was_empty)? {
        let line = line.trim();
        // History is a convenience: a line that cannot be kept is no reason to stop.
        let _ = editor.add_history_entry(line);
        match talk.command(line) {
            Said::Leave => break,
            Said::Done => continue,
            Said::Message => {}
        }
        talk.messages.push(Message { role: Role::User, text: line.to_owned() });
        let (prompt, parsing) = prompter.chat(&talk.messages, talk.effort)?;
        let request = Request {
            branch: prompter.branch(&prompt),
            prompt,
            max_tokens: args.max_tokens.map(usize::from),
            stop_tokens: vec![eos],
            sampling: sampling.clone(),
            session: talk.session.as_deref().map(Into::into),
            seam: Some(Arc::new(TextSeam(Arc::clone(prompter.tokenizer())))),
            explain: true,
            ..Request::default()
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
                    Finish::ContextFull => "the context is full; /clear starts over, /rewind takes back; ",
                    Finish::Length => "--max-tokens reached; ",
                    Finish::Stop => "",
                };
                say!("({why}{})", answer.numbers());
                talk.messages.push(Message { role: Role::Assistant, text: answer.text });
            }
            Err(e) => {
                // The question did not go through; the conversation did.
                talk.messages.pop();
                say!("fathom: {e}");
            }
        }
    }
    // What is still to be written is, before the program ends.
    engine.drain();
    Ok(())
}

/// The next line; none when the person leaves.
fn read_line(editor: &mut DefaultEditor, was_empty: &AtomicBool) -> Result<Option<String>, ReadlineError> {
    loop {
        match editor.readline("> ") {
            Ok(line) => return Ok(Some(line)),
            Err(ReadlineError::Eof) => return Ok(None),
            Err(ReadlineError::Interrupted) => {
                if was_empty.swap(true, Ordering::Relaxed) {
                    say!("(Ctrl-D or /exit leaves)");
                }
            }
            Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                say!("fathom: standard input: a line that is not UTF-8 was left out");
            }
            Err(e) => return Err(e),
        }
    }
}

/// What a line was.
enum Said {
    Message,
    Done,
    Leave,
}

/// A conversation under way.
struct Talk {
    /// What it begins with, and again after it was cleared.
    beginning: Vec<Message>,
    messages: Vec<Message>,
    effort: Effort,
    session: Option<String>,
    prompter: Prompter,
    engine: Engine,
    stored: Option<(Store, Subject)>,
}

impl Talk {
    /// Says where an earlier conversation stopped, or begins a new one.
    fn begin(&mut self, has_system: bool) -> Outcome {
        let Some(name) = self.session.as_ref().filter(|_| !self.messages.is_empty()) else {
            self.messages.clone_from(&self.beginning);
            return Ok(());
        };
        if has_system && !self.messages.starts_with(&self.beginning) {
            return Err("--system stands at the beginning of a session, and this one began without it".into());
        }
        self.beginning = self.messages.iter().take_while(|message| message.role == Role::System).cloned().collect();
        say!("(session {name}, after {})", questions(&self.messages));
        if let Some(at) = self.messages.iter().rposition(|message| message.role == Role::User) {
            for message in &self.messages[at..] {
                let mark = if message.role == Role::User { "> " } else { "" };
                say!("{mark}{}", message.text.trim_end());
            }
        }
        // A question that was not answered is asked again by whoever wants to know.
        if self.messages.last().is_some_and(|message| message.role == Role::User) {
            self.messages.pop();
        }
        Ok(())
    }

    /// Does what a line that begins with a slash says.
    fn command(&mut self, line: &str) -> Said {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            ["/exit" | "/quit"] => return Said::Leave,
            ["/help"] => say!("{HELP}"),
            ["/clear"] => {
                self.messages.clone_from(&self.beginning);
                self.cut(0);
                say!("(forgotten)");
            }
            ["/rewind"] => self.rewind(1),
            ["/rewind", n] => match n.parse::<usize>() {
                Ok(n) if n > 0 => self.rewind(n),
                _ => say!("/rewind takes a number of questions"),
            },
            ["/fork", name] => self.fork(name),
            ["/fork"] => say!("/fork takes a name for the new session"),
            ["/think", how] => match <Think as clap::ValueEnum>::from_str(how, true) {
                Ok(think) => self.effort = think.into(),
                Err(_) => say!("/think takes off, low, high or max"),
            },
            [word, ..] if word.starts_with('/') => say!("there is no {word}; /help lists what there is"),
            _ => return Said::Message,
        }
        Said::Done
    }

    fn rewind(&mut self, n: usize) {
        let asked = |messages: &[Message]| messages.iter().filter(|message| message.role == Role::User).count();
        let left = asked(&self.messages).saturating_sub(n);
        while asked(&self.messages) > left {
            self.messages.pop();
        }
        self.cut(left);
        say!("(back to after {})", questions(&self.messages));
    }

    /// Takes what is stored of the session after so many questions away, so that it is not what a later chat goes on from.
    fn cut(&self, questions: usize) {
        let (Some(name), Some(_)) = (&self.session, &self.stored) else { return };
        let sessions = Sessions::new(self.engine.clone(), self.stored.clone());
        let owner = Owner::default();
        // What is stored last is what was said last.
        sessions.settle(&owner, name);
        let cut = sessions.tokens(&owner, name).and_then(|tokens| {
            let (tell, told) = mpsc::channel();
            let all = questions == 0 && self.beginning.is_empty();
            let position = if all { 0 } else { self.prompter.question(&tokens, questions) };
            sessions.rewind(
                &owner,
                name,
                position,
                |_| ControlFlow::Continue(()),
                move |stored| {
                    let _ = tell.send(stored);
                },
            )?;
            told.recv().unwrap_or(Err(fathom_engine::Error::ShuttingDown))
        });
        match cut {
            Ok(()) | Err(fathom_engine::Error::NoSession { .. }) => {}
            Err(e) => say!("fathom: what was taken back is still stored: {e}"),
        }
    }

    /// The tokens are the same, so the state is: nothing needs to be copied.
    fn fork(&mut self, name: &str) {
        match earlier(&self.engine, self.stored.clone(), name) {
            Ok(tokens) if tokens.is_empty() && self.stored.is_some() => {
                self.session = Some(name.to_owned());
                say!("(session {name} from here; it is stored with its first answer)");
            }
            Ok(_) if self.stored.is_none() => say!("nothing is kept here; start with --session NAME or --store DIR"),
            Ok(_) => say!("there is a session {name} already"),
            Err(e) => say!("fathom: {e}"),
        }
    }
}

fn questions(messages: &[Message]) -> String {
    match messages.iter().filter(|message| message.role == Role::User).count() {
        1 => "1 question".to_owned(),
        n => format!("{n} questions"),
    }
}
