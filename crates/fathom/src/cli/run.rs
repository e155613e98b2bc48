//! `fathom run`: one answer.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::builder::NonEmptyStringValueParser;
use fathom_engine::{Engine, EngineOptions, Owner, Request, Sampling, Session, Sessions};
use fathom_kernels::human;
use fathom_store::{Store, Subject};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;

use super::Outcome;
use super::ask::{Reading, Shown, ask};
use super::model::{EMBEDDED, Files, Options, load_for};
use super::store::StoreOptions;
use crate::chat::{Effort, Message, Role, TextSeam};
use crate::ui::{out, say};

/// The most bytes of one file that are read: some fifty times a million tokens.
const LARGEST_TEXT: u64 = 256 << 20;

/// How tokens are chosen.
#[derive(Debug, Clone, clap::Args)]
pub struct SamplingArgs {
    /// 0 takes the likeliest token always
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Keep the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// The same seed gives the same text
    #[arg(long)]
    seed: Option<u64>,
    /// Taken off tokens that were said before
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    presence_penalty: f32,
    /// Taken off tokens for each time they were said
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    frequency_penalty: f32,
}

impl SamplingArgs {
    /// As the engine takes them.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

/// How hard to think.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Think {
    /// Answer at once
    Off,
    /// A little
    Low,
    /// As trained by default
    High,
    /// As long as it takes
    Max,
}

impl From<Think> for Effort {
    fn from(think: Think) -> Effort {
        match think {
            Think::Off => Effort::None,
            Think::Low => Effort::Low,
            Think::High => Effort::High,
            Think::Max => Effort::Max,
        }
    }
}

/// Flags of `fathom run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// MODEL, a folder with an official checkpoint (the embedded model where left out), then the prompt; a word - stands for
    /// standard input, which is read without it only where there is no other prompt
    #[arg(value_name = "MODEL] [PROMPT")]
    words: Vec<String>,
    /// A file or folder to put before the prompt, or - for standard input; may be given again
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Instructions above the conversation
    #[arg(long)]
    system: Option<String>,
    /// Think before answering
    #[arg(long, value_enum, default_value_t = Think::Off)]
    think: Think,
    /// Continue the prompt as it stands: no template around it
    #[arg(long, conflicts_with_all = ["system", "think", "stop"])]
    raw: bool,
    /// The most tokens to generate
    #[arg(long)]
    max_tokens: Option<NonZeroUsize>,
    /// A text that ends the answer; may be given again
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// The most tokens of prompt and answer [default: what the model holds]
    #[arg(long)]
    context: Option<NonZeroUsize>,
    /// One JSON object at the end instead of text
    #[arg(long)]
    json: bool,
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

/// Answers one prompt.
pub fn run(args: &Args) -> Outcome {
    let (folder, words) = model_and_prompt(&args.words)?;
    let files = Files::open(folder)?;
    let prompt = prompt(words, &args.file)?;
    if prompt.trim().is_empty() {
        return Err("there is no prompt; give one as an argument, with --file or on standard input".into());
    }
    let loaded = load_for(&files, &args.options, args.context.map(usize::from), 1, 0, true)?;
    let (vocab, eos) = (files.checkpoint.config().vocab_size, files.checkpoint.config().eos_token_id);
    let sampling = args.sampling.sampling();
    sampling.check(vocab)?;
    let about = loaded.describe(&files.name, files.checkpoint.release());
    let keep = match &args.session {
        Some(_) => Some(args.store.keep(args.store.open_own()?, &files, &loaded.model)?),
        None => args.store.keep_if_named(&files, &loaded.model)?,
    };
    let stored = keep.as_ref().map(|keep| (keep.store.clone(), keep.subject.clone()));
    let prompter = files.prompter()?;
    let engine = loaded.engine(EngineOptions::default(), keep);
    let before = args.session.as_deref().map(|name| earlier(&engine, stored, name)).transpose()?.unwrap_or_default();
    let (tokens, reading) = if args.raw {
        match before.is_empty() {
            true => (prompter.raw(&prompt)?, Reading::Raw),
            false => ([before, prompter.tokenizer().encode(&prompt)?].concat(), Reading::Raw),
        }
    } else {
        let mut messages = prompter.messages(&before)?;
        if let Some(text) = &args.system {
            let system = Message { role: Role::System, text: text.clone() };
            match messages.first() {
                None => messages.push(system),
                Some(first) if *first == system => {}
                Some(_) => {
                    return Err("--system stands at the beginning of a session, and this one began without it".into());
                }
            }
        }
        messages.push(Message { role: Role::User, text: prompt });
        let (tokens, mut parsing) = prompter.chat(&messages, args.think.into())?;
        parsing.stop_sequences.clone_from(&args.stop);
        (tokens, Reading::Chat(parsing))
    };
    say!("{about}");
    if loaded.plan.experts.is_some() {
        say!("memory: {}", loaded.plan);
    }
    if let Some(forecast) = &loaded.forecast {
        say!("{}", forecast.of_prompt(0, tokens.len()));
    }
    let request = Request {
        branch: prompter.branch(&tokens),
        prompt: tokens,
        max_tokens: args.max_tokens.map(usize::from),
        stop_tokens: vec![eos],
        sampling,
        session: args.session.as_deref().map(Into::into),
        seam: Some(Arc::new(TextSeam(Arc::clone(prompter.tokenizer())))),
        explain: true,
        ..Request::default()
    };
    let mut out = out();
    let mut thinking = false;
    let cancel = Arc::new(AtomicBool::new(false));
    let answer = ask(&loaded, &engine, prompter.tokenizer(), request, reading, false, &cancel, |shown| {
        if !args.json {
            thinking = print(&mut out, shown, thinking)?;
        }
        Ok(())
    })?;
    if args.json {
        let mut json = answer.json();
        json["experts"] = loaded.experts_json();
        writeln!(out, "{json}")?;
    } else {
        writeln!(out)?;
    }
    say!("{}", answer.numbers());
    if let Some(forecast) = &loaded.forecast {
        say!("{}", answer.against(forecast));
    }
    if let Some(line) = loaded.experts_line() {
        say!("{line}");
    }
    answer.say_why(prompter.tokenizer());
    // What is still to be written is, before the program ends.
    engine.drain();
    Ok(())
}

/// The tokens of a session that is to go on, none if it is new.
pub fn earlier(
    engine: &Engine,
    stored: Option<(Store, Subject)>,
    name: &str,
) -> Result<Vec<u32>, fathom_engine::Error> {
    Session::check_name(name)?;
    match Sessions::new(engine.clone(), stored).tokens(&Owner::default(), name) {
        Ok(tokens) => Ok(tokens.to_vec()),
        Err(fathom_engine::Error::NoSession { .. }) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The model's folder, if one is named, and the words of the prompt. Of two words or more the first is the model; a word
/// alone is one if it is `demo` or a folder, or looks like a path. `-`, standard input, is always part of the prompt.
fn model_and_prompt(words: &[String]) -> Result<(Option<&Path>, &[String]), String> {
    let Some((first, rest)) = words.split_first().filter(|(first, _)| *first != "-") else {
        return Ok((None, words));
    };
    let path = Path::new(first);
    let exists = first == EMBEDDED || path.is_dir();
    let path_like = ["/", "./", "../", "~"].iter().any(|start| first.starts_with(start));
    match (exists, rest.is_empty()) {
        (true, _) => Ok((Some(path), rest)),
        (false, true) if !path_like => Ok((None, words)),
        (false, true) => Err(format!("{first}: no such folder; MODEL is the folder of a checkpoint")),
        (false, false) => Err(format!(
            "{first}: no such folder; the first of several words is MODEL, the folder of a checkpoint or {EMBEDDED}, and a \
             prompt of several words stands in quotes"
        )),
    }
}

/// Prints part of an answer, thinking set apart; returns whether it was thinking.
pub fn print(out: &mut impl Write, shown: Shown<'_>, thinking: bool) -> io::Result<bool> {
    let (dim, plain) = if io::stdout().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let now = match shown {
        Shown::Thinking(text) => {
            write!(out, "{dim}{text}{plain}")?;
            true
        }
        Shown::Answer(text) => {
            let gap = if thinking { "\n\n" } else { "" };
            write!(out, "{gap}{text}")?;
            false
        }
    };
    out.flush()?;
    Ok(now)
}

/// Files, then standard input where it is piped in or asked for with `-`, then the words.
fn prompt(words: &[String], files: &[PathBuf]) -> Result<String, Box<dyn std::error::Error>> {
    let mut parts = Vec::new();
    let stdin = || text("standard input", io::stdin());
    for path in files {
        if path == Path::new("-") {
            parts.push(stdin()?);
        } else if path.is_dir() {
            let (mut found, mut left_out) = (Vec::new(), Vec::new());
            walk(path, &mut found, &mut left_out)?;
            if let Some(first) = left_out.first() {
                say!("left out {} that are no UTF-8 text, such as {}", count(left_out.len()), first.display());
            }
            if found.is_empty() {
                return Err(format!("{}: no text files in this folder", path.display()).into());
            }
            parts.append(&mut found);
        } else {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|e| format!("cannot read {name}: {e}"))?;
            parts.push(text(&name, file)?);
        }
    }
    let (dash, words): (Vec<&String>, Vec<&String>) = words.iter().partition(|word| *word == "-");
    if !dash.is_empty() || (words.is_empty() && files.is_empty() && !io::stdin().is_terminal()) {
        parts.push(stdin()?);
    } else if !files.iter().any(|path| path == Path::new("-")) && stdin_has_data() {
        say!("standard input was not read; put a word - into the prompt where it should go");
    }
    if !words.is_empty() {
        parts.push(words.into_iter().map(String::as_str).collect::<Vec<_>>().join(" "));
    }
    Ok(parts.join("\n\n"))
}

/// Whether somebody piped something in that nobody asked for. Not whether somebody will: a pipe that a parent left open
/// stays silent for ever, so it is not waited for.
fn stdin_has_data() -> bool {
    let stdin = io::stdin();
    let mut asked = [PollFd::new(&stdin, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_pipe = rustix::fs::fstat(&stdin).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo);
    is_pipe && poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0) && asked[0].revents().contains(PollFlags::IN)
}

/// A folder's files in order, each under its name. Hidden ones, links and what is no file are passed over; files that are
/// no UTF-8 text are `left_out`.
fn walk(folder: &Path, found: &mut Vec<String>, left_out: &mut Vec<PathBuf>) -> Outcome {
    let failed = |path: &Path, e: io::Error| format!("cannot read {}: {e}", path.display());
    let entries = fs::read_dir(folder).map_err(|e| failed(folder, e))?;
    let mut entries: Vec<PathBuf> =
        entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(|e| failed(folder, e))?;
    entries.sort();
    for entry in entries {
        if entry.is_symlink() || entry.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
            continue;
        }
        if entry.is_dir() {
            walk(&entry, found, left_out)?;
        } else if entry.is_file() {
            let name = entry.display().to_string();
            let bytes = bytes(&name, File::open(&entry).map_err(|e| failed(&entry, e))?)?;
            match String::from_utf8(bytes) {
                Ok(content) => found.push(format!("# {name}\n\n{content}")),
                Err(_) => left_out.push(entry),
            }
        }
    }
    Ok(())
}

/// All there is to read, unless it is more than any prompt.
pub fn bytes(name: &str, from: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    from.take(LARGEST_TEXT + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot read {name}: {e}"))?;
    if bytes.len() as u64 > LARGEST_TEXT {
        return Err(format!("{name}: more than {}, longer than any prompt", human(LARGEST_TEXT)));
    }
    Ok(bytes)
}

fn text(name: &str, from: impl Read) -> Result<String, String> {
    String::from_utf8(bytes(name, from)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        format!("{name}: not UTF-8 from byte {at} on; convert it or leave it out")
    })
}

fn count(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_or_a_prompt() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        fs::create_dir(&folder).unwrap();
        let folder = folder.to_str().unwrap();
        let split = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            model_and_prompt(&words).map(|(model, prompt)| (model.map(Path::to_owned), prompt.join(" ")))
        };
        let model = |model: &str, prompt: &str| Ok((Some(model.into()), prompt.to_owned()));
        let prompt = |prompt: &str| Ok((None, prompt.to_owned()));
        assert_eq!(split(&[]), prompt(""));
        assert_eq!(split(&["demo"]), model("demo", ""));
        assert_eq!(split(&["demo", "and/or", "-"]), model("demo", "and/or -"));
        assert_eq!(split(&[folder]), model(folder, ""));
        assert_eq!(split(&[folder, "why?"]), model(folder, "why?"));
        for text in ["and/or", "https://example.org/a", "-", "What is a fathom?", ".5", "DeepSeek-V4-Flash"] {
            assert_eq!(split(&[text]), prompt(text));
        }
        assert_eq!(split(&["-", "why?"]), prompt("- why?"));
        fs::remove_dir(folder).unwrap();
        for words in [&[folder][..], &["./none"], &["../none"], &["~/none"], &["none", "why?"], &["no/ne", "why?"]] {
            let message = split(words).unwrap_err();
            assert!(message.starts_with(&format!("{}: no such folder", words[0])), "{message}");
        }
    }

    #[test]
    fn prompts_are_put_together() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(folder.path().join("src/a.txt"), "first").unwrap();
        fs::write(folder.path().join(".hidden"), [0xff]).unwrap();
        fs::write(folder.path().join("b.txt"), "second").unwrap();
        let all = prompt(&["and".into(), "then?".into()], &[folder.path().to_owned()]).unwrap();
        assert!(all.contains("b.txt\n\nsecond") && all.contains("a.txt\n\nfirst") && all.ends_with("\n\nand then?"));
        let one = prompt(&[], &[folder.path().join("b.txt")]).unwrap();
        assert_eq!(one, "second");
        fs::write(folder.path().join("b.txt"), b"ab\xffc").unwrap();
        let message = prompt(&[], &[folder.path().join("b.txt")]).unwrap_err().to_string();
        assert!(message.contains("b.txt: not UTF-8 from byte 2"), "{message}");
        let message = prompt(&[], &[folder.path().join("none.txt")]).unwrap_err().to_string();
        assert!(message.contains("none.txt"), "{message}");
        // In a folder such a file is left out, not fatal: a whole codebase has pictures in it.
        let rest = prompt(&[], &[folder.path().to_owned()]).unwrap();
        assert!(rest.ends_with("a.txt\n\nfirst") && !rest.contains("b.txt"), "{rest}");
        let endless = text("endless", io::repeat(b'a')).unwrap_err();
        assert!(endless.contains("endless: more than"), "{endless}");
    }
}
