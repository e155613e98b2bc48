//! The grammar of V4's tool calls.
//!
//! ```text
//! <｜DSML｜tool_calls>
//! <｜DSML｜invoke name="NAME">
//! <｜DSML｜parameter name="KEY" string="true|false">VALUE</｜DSML｜parameter>
//! </｜DSML｜invoke>
//! </｜DSML｜tool_calls>
//! ```
//!
//! ｜DSML｜ is a token that no text has, so a text goes on until "</" and that token: whatever else is in it is its own.

use std::fmt::Write;

use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

use super::schema::{ANY_TEXT, Spelling, prepared, spellings, with_options};
use super::{Calls, Parts, Refused, Tool};

/// The grammar of an answer that is no call.
pub(super) const ANSWER: &str = "answer";

/// What a schema of arguments may say beside its properties.
const KNOWN: [&str; 12] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "title",
    "description",
    "$comment",
    "examples",
];

/// Grammars of calls, the first of which is where to start. `after_text`: the text before has the opening "<｜DSML｜" already.
/// `or_answer`: there may be the grammar [`ANSWER`] instead.
pub(super) fn grammars(
    dsml: u32,
    calls: &Calls,
    after_text: bool,
    or_answer: bool,
    parts: &mut Parts,
) -> Result<Vec<GrammarWithLexer>, Refused> {
    let mut book = Book { dsml, rules: String::new(), schemas: Vec::new(), any: None };
    let start = match (calls.opened, after_text) {
        (true, _) => "calls".to_owned(),
        (false, true) => "\"tool_calls>\\n\" calls".to_owned(),
        (false, false) => format!("\"\\n\\n<\" <[{dsml}]> \"tool_calls>\\n\" calls"),
    };
    let answer = if or_answer { format!(" | @{ANSWER}") } else { String::new() };
    book.rule("start", &format!("{start}{answer}"));
    let many = if calls.many { "+" } else { "" };
    book.rule("calls", &format!("call{many} \"</\" <[{dsml}]> \"tool_calls>\""));
    let names: Vec<String> = (0..calls.tools.len()).map(|n| format!("tool_{n}")).collect();
    book.rule(
        "call",
        &format!("\"<\" <[{dsml}]> \"invoke name=\\\"\" ({}) \"</\" <[{dsml}]> \"invoke>\\n\"", names.join(" | ")),
    );
    for (n, tool) in calls.tools.iter().enumerate() {
        book.tool(n, tool)?;
    }
    let mut grammars =
        vec![GrammarWithLexer { name: Some("calls".to_owned()), lark_grammar: Some(book.rules), ..Default::default() }];
    for (name, at, schema) in book.schemas {
        parts.push((at, schema.clone()));
        grammars.push(GrammarWithLexer { name: Some(name), json_schema: Some(schema), ..Default::default() });
    }
    Ok(grammars)
}

/// A grammar that is being written.
struct Book {
    dsml: u32,
    rules: String,
    /// Grammars of JSON: their names, what the request calls them, their schemas.
    schemas: Vec<(String, String, Value)>,
    /// The name of that of any JSON.
    any: Option<String>,
}

impl Book {
    fn rule(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    fn tool(&mut self, n: usize, tool: &Tool) -> Result<(), Refused> {
        // A name has letters, digits, dashes and underscores.
        let name = Value::from(format!("{}\">\n", tool.name));
        let Some(schema) = &tool.schema else {
            self.free(n);
            self.rule(&format!("tool_{n}"), &format!("{name} free_{n}*"));
            return Ok(());
        };
        let arguments = arguments(tool, schema)?;
        let mut body = name.to_string();
        for (i, (key, schema, required)) in arguments.iter().enumerate() {
            let rule = format!("argument_{n}_{i}");
            self.argument(&rule, tool, key, schema)?;
            let _ = write!(body, " {rule}{}", if *required { "" } else { "?" });
        }
        self.rule(&format!("tool_{n}"), &body);
        Ok(())
    }

    /// An argument of any name and value.
    fn free(&mut self, n: usize) {
        let dsml = self.dsml;
        let any = self.json(None);
        self.rule(
            &format!("free_{n}"),
            &format!(
                "\"<\" <[{dsml}]> \"parameter name=\\\"\" KEY_{n} \"\\\" string=\" (\"\\\"true\\\">\" TEXT_{n} | \
                 \"\\\"false\\\">\" @{any} \"</\") <[{dsml}]> \"parameter>\\n\""
            ),
        );
        self.rule(&format!("KEY_{n}"), r#"/[^"\\ \x00-\x1F\x7F<>]{1,64}/"#);
        self.rule(&format!("TEXT_{n}"), &format!("{ANY_TEXT} \"</\""));
    }

    fn argument(&mut self, rule: &str, tool: &Tool, key: &str, schema: &Value) -> Result<(), Refused> {
        let at = format!("{}.properties.{key}", tool.at);
        let root = tool.schema.as_ref().unwrap_or(&Value::Null);
        let mut ways = Vec::new();
        for (i, spelling) in spellings(root, key, schema).into_iter().enumerate() {
            ways.push(match spelling {
                Spelling::Text(terminal) => {
                    let name = format!("{}_{i}", rule.to_uppercase());
                    self.rule(&name, &format!("{terminal} \"</\""));
                    format!("\"\\\"true\\\">\" {name}")
                }
                Spelling::Json(schema) => {
                    let name = self.json(Some((at.clone(), prepared(&at, &schema)?)));
                    format!("\"\\\"false\\\">\" @{name} \"</\"")
                }
            });
        }
        if ways.is_empty() {
            return Err(Refused::new(&at, "nothing matches the schema"));
        }
        let dsml = self.dsml;
        let name = Value::from(format!("parameter name=\"{key}\" string="));
        self.rule(rule, &format!("\"<\" <[{dsml}]> {name} ({}) <[{dsml}]> \"parameter>\\n\"", ways.join(" | ")));
        Ok(())
    }

    /// The name of a grammar of JSON; of any JSON, where no schema is given.
    fn json(&mut self, schema: Option<(String, Value)>) -> String {
        let name = format!("json_{}", self.schemas.len());
        match schema {
            Some((at, schema)) => self.schemas.push((name.clone(), at, schema)),
            None => {
                if let Some(name) = &self.any {
                    return name.clone();
                }
                self.any = Some(name.clone());
                self.schemas.push((name.clone(), "tools".to_owned(), with_options(json!({}))));
            }
        }
        name
    }
}

/// The arguments of a strict tool: name, schema, and whether it must be there.
fn arguments<'a>(tool: &Tool, schema: &'a Value) -> Result<Vec<(&'a str, &'a Value, bool)>, Refused> {
    let refuse = |problem: String| Err(Refused::new(&tool.at, problem));
    let Value::Object(map) = schema else { return refuse("a schema is a JSON object".to_owned()) };
    if map.get("type").is_some_and(|kind| kind != "object") {
        return refuse("arguments are an object".to_owned());
    }
    if let Some(key) = map.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return refuse(format!("there is no way to enforce the key {key:?} beside the properties of arguments"));
    }
    let required = map.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let properties = match map.get("properties") {
        None => None,
        Some(Value::Object(properties)) => Some(properties),
        Some(_) => return refuse("'properties' is an object".to_owned()),
    };
    let named = |name: &str| properties.is_some_and(|properties| properties.contains_key(name));
    if let Some(name) = required.iter().find(|name| name.as_str().is_none_or(|name| !named(name))) {
        return refuse(format!("{name} is required, and is not among the properties"));
    }
    let bad = |c: char| matches!(c, '"' | '\\' | ' ' | '<' | '>') || c.is_control();
    let properties = || properties.into_iter().flatten();
    if let Some((key, _)) = properties().find(|(key, _)| key.is_empty() || key.contains(bad)) {
        return refuse(format!("a call cannot name the property {key:?}: it has a space, a quote or the like"));
    }
    let is_required = |key: &str| required.iter().any(|name| name == key);
    Ok(properties().map(|(key, schema)| (key.as_str(), schema, is_required(key))).collect())
}
