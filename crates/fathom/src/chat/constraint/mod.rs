//! What an answer must be like, and the masks that hold the model to it.
//!
//! A [`Form`] says it in plain data; [`Grammars`] makes a constraint of it that the engine asks token by token. Grammars are
//! `llguidance`'s; thinking and free text never see one.

mod dsml;
mod exponent;
mod guide;
mod schema;
mod trie;
mod watch;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;

use fathom_engine::Constraint;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use self::guide::Compiled;
use self::trie::Ready;
use super::Tokenizer;

/// The most bytes that all schemas of a request may have together, and a grammar.
const SCHEMA_BYTES: usize = 128 << 10;
/// The most bytes of a regular expression, a grammar, or all choices.
const GRAMMAR_BYTES: usize = 16 << 10;
/// Tools of one request.
const TOOLS: usize = 256;
/// Compilers of grammars call themselves for each level, and levels take bytes of the request: this is enough for the bytes above.
const STACK: usize = 128 << 20;

/// What an answer must be like.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// Whether thinking comes first; that is free.
    pub thinks: bool,
    /// What the answer may say.
    pub answer: Said,
    /// The calls that the answer may be, or end in.
    pub calls: Option<Calls>,
    /// What was said of the answer already, in a conversation that ends in its beginning.
    pub written: String,
}

/// What an answer may say.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// Anything, calls after it.
    Anything,
    /// Nothing: it must be calls.
    Nothing,
    /// What fits a format, named as the request names it.
    Like(String, Format),
}

/// A format of text.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// A JSON object.
    Object,
    /// JSON that a schema describes.
    Schema(Value),
    /// What a regular expression matches as a whole.
    Regex(String),
    /// What a grammar in llguidance's variant of Lark derives.
    Grammar(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// Calls of tools, in DSML.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    /// The tools that may be called.
    pub tools: Vec<Tool>,
    /// Whether there may be more than one.
    pub many: bool,
    /// Whether the prompt has their opening tag already.
    pub opened: bool,
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What the request calls the schema.
    pub at: String,
    /// What its arguments must match; where there is none, they may be anything that can be read.
    pub schema: Option<Value>,
}

/// Why something cannot be enforced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{at}' cannot be enforced: {problem}")]
pub struct Refused {
    /// The parameter.
    pub at: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Refused {
    fn new(at: &str, problem: impl Into<String>) -> Refused {
        Refused { at: at.to_owned(), problem: problem.into() }
    }

    fn library(at: &str, error: impl fmt::Display) -> Refused {
        Refused::new(at, told(error))
    }
}

/// What the library says, without its inner state, which comes in further lines.
fn told(error: impl fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    if line.contains("oneOf constraints are not supported") {
        return "oneOf is enforced only where its options cannot overlap; use anyOf".to_owned();
    }
    let line = line.replace("Unimplemented keys:", "there is no way to enforce the keys");
    line.chars().take(300).collect()
}

/// Makes constraints for one tokenizer. What that takes is built when it is first needed.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    ready: OnceLock<Result<Arc<Ready>, String>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("tokenizer", &self.tokenizer).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For answers in this tokenizer's tokens.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Grammars {
        Grammars { tokenizer, ready: OnceLock::new() }
    }

    /// The constraint of a form; none if it asks for nothing. This takes milliseconds, and some tenths of a second the first
    /// time.
    ///
    /// # Errors
    /// What cannot be enforced.
    pub fn compile(&self, form: &Form) -> Result<Option<Arc<dyn Constraint>>, Refused> {
        if form.answer == Said::Anything && form.calls.is_none() {
            return Ok(None);
        }
        check(form)?;
        let work = || {
            let ready = self.ready().map_err(|problem| Refused::new("model", problem))?;
            compile(&ready, form)
        };
        let compiled = thread::scope(|scope| {
            let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
            let running = thread.spawn_scoped(scope, work).map_err(|cause| Refused::new("model", cause.to_string()))?;
            running
                .join()
                .unwrap_or_else(|_| Err(Refused::new(at(form), "it is too much for the compiler of grammars")))
        })?;
        Ok(Some(Arc::new(compiled)))
    }

    fn ready(&self) -> Result<Arc<Ready>, String> {
        let build = || catch_unwind(AssertUnwindSafe(|| Ready::new(&self.tokenizer)));
        let ready = self.ready.get_or_init(|| match build() {
            Ok(ready) => ready.map(Arc::new),
            Err(_) => Err("its vocabulary is not one that answers can be held to anything in".to_owned()),
        });
        ready.clone()
    }
}

/// The parameter that asks for most.
fn at(form: &Form) -> &str {
    match (&form.answer, &form.calls) {
        (Said::Like(at, _), _) => at,
        (_, Some(calls)) if calls.tools.len() == 1 => &calls.tools[0].at,
        _ => "tools",
    }
}

/// Checks sizes, before anything is made of them.
fn check(form: &Form) -> Result<(), Refused> {
    let mut left = SCHEMA_BYTES;
    let mut take = |at: &str, schema: &Value| {
        let bytes = schema.to_string().len();
        left = left.checked_sub(bytes).ok_or_else(|| {
            Refused::new(
                at,
                format!("all schemas of a request may have {SCHEMA_BYTES} bytes together, and this is beyond"),
            )
        })?;
        Ok(())
    };
    if let Said::Like(at, format) = &form.answer {
        let bytes = match format {
            Format::Object => 0,
            Format::Schema(schema) => take(at, schema).map(|()| 0)?,
            Format::Regex(text) | Format::Grammar(text) => text.len(),
            Format::Choice(texts) if texts.is_empty() => {
                return Err(Refused::new(at, "there is nothing to choose from"));
            }
            Format::Choice(texts) => texts.iter().map(|text| text.len() + 4).sum(),
        };
        if bytes > GRAMMAR_BYTES {
            return Err(Refused::new(at, format!("it has {bytes} bytes; at most {GRAMMAR_BYTES} are taken")));
        }
    }
    let tools = form.calls.iter().flat_map(|calls| &calls.tools);
    for (n, tool) in tools.enumerate() {
        if n >= TOOLS {
            return Err(Refused::new("tools", format!("at most {TOOLS} tools are held to their schemas")));
        }
        tool.schema.iter().try_for_each(|schema| take(&tool.at, schema))?;
    }
    Ok(())
}

fn compile(ready: &Arc<Ready>, form: &Form) -> Result<Compiled, Refused> {
    let (grammar, parts) = grammar(ready, form)?;
    let parser = ready.factory.create_parser(grammar).map_err(|error| {
        // Which of the schemas it was, the library does not tell.
        let culprit = parts.iter().find_map(|(at, schema)| {
            let alone = ready.factory.create_parser(TopLevelGrammar::from_json_schema(schema.clone()));
            alone.err().map(|error| Refused::library(at, error))
        });
        culprit.unwrap_or_else(|| Refused::library(at(form), error))
    })?;
    Compiled::new(Arc::clone(ready), form, Matcher::new(Ok(parser)).into_cancellable())
}

/// The schemas in a grammar, with what the request calls them.
type Parts = Vec<(String, Value)>;

/// The grammar of what follows thinking and free text.
fn grammar(ready: &Ready, form: &Form) -> Result<(TopLevelGrammar, Parts), Refused> {
    let mut parts = Parts::new();
    let mut answer = None;
    if let Said::Like(at, format) = &form.answer {
        answer = Some(match format {
            Format::Object => GrammarWithLexer::from_json_schema(schema::with_options(json!({"type": "object"}))),
            Format::Schema(asked) => {
                let schema = schema::prepared(at, asked)?;
                parts.push((at.clone(), schema.clone()));
                GrammarWithLexer::from_json_schema(schema)
            }
            Format::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Format::Grammar(grammar) => GrammarWithLexer::from_lark(grammar.clone()),
            Format::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: {}", texts.join(" | ")))
            }
        });
    }
    let Some(calls) = &form.calls else {
        let answer = answer.ok_or_else(|| Refused::new(at(form), "there is nothing that may be said"))?;
        return Ok((TopLevelGrammar::from_grammar(answer), parts));
    };
    let dsml =
        ready.dsml.ok_or_else(|| Refused::new("tools", "this model's vocabulary has no token for tool calls"))?;
    let free = form.answer == Said::Anything;
    let mut grammars = dsml::grammars(dsml, calls, free, answer.is_some(), &mut parts)?;
    if let Some(mut answer) = answer {
        answer.name = Some(dsml::ANSWER.to_owned());
        grammars.push(answer);
    }
    Ok((TopLevelGrammar { grammars, max_tokens: None }, parts))
}

/// A factory with limits fit for what comes from outside.
fn limited(mut factory: ParserFactory) -> ParserFactory {
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_lexer_states = 20_000;
    limits.max_grammar_size = 200_000;
    limits.step_lexer_fuel = 50_000;
    limits.verbose_errors = false;
    factory
}
