//! What a request asks of the form of its answer: formats, and tools that must, may or cannot be called.

use deepseek_recipe::request::ConversationRequest;
use deepseek_recipe_core::messages::InputMessage;
use deepseek_recipe_core::tools::ToolChoice;
use serde_json::{Value, json};

use super::ApiError;
use super::request::Served;
use crate::chat::constraint::{Calls, Form, Format, Refused, Said, Tool};

/// fathom's field for formats that a dialect has no field for; its name and keys are vLLM's.
pub(super) const FIELD: &str = "structured_outputs";

/// What a request asks, before it is converted.
#[derive(Debug)]
pub(super) struct Asked {
    pub choice: Choice,
    /// Whether there may be several calls.
    pub many: bool,
    pub format: Option<(String, Format)>,
    pub tools: Vec<Declared>,
}

/// Whether tools must be called.
#[derive(Debug, PartialEq)]
pub(super) enum Choice {
    /// As the model likes, or as conversion understands it.
    Free,
    /// At least one.
    Any,
    /// This one.
    Named(String),
}

/// A tool, as the request has it. Conversion leaves out what it does not know of schemas.
#[derive(Debug)]
pub(super) struct Declared {
    pub at: String,
    pub schema: Option<Value>,
    pub strict: bool,
}

impl Declared {
    /// A tool whose schema is `declared`'s `key`.
    pub(super) fn new(at: &str, declared: &Value, key: &str) -> Declared {
        let schema = declared.get(key).filter(|schema| !schema.is_null()).cloned();
        Declared { at: format!("{at}.{key}"), schema, strict: declared["strict"] == true }
    }
}

impl Asked {
    /// The form, once the request is converted with the model left to choose. The conversation takes what it needs to know.
    ///
    /// # Errors
    /// A call is asked for that there cannot be.
    pub(super) fn form(self, converted: &mut ConversationRequest, served: &Served) -> Result<Option<Form>, ApiError> {
        let at_choice = |message: &str| ApiError::bad(Some("tool_choice"), message);
        let forced = self.choice != Choice::Free;
        let conversation = &mut converted.conversation;
        if forced && conversation.tools.is_empty() {
            return Err(at_choice("tool_choice asks for a call, but there are no tools; send them as 'tools'."));
        }
        if forced && !served.tools {
            let message = "tool_choice cannot force a call: this model's vocabulary has no token for tool calls.";
            return Err(at_choice(message));
        }
        let strict = self.tools.iter().any(|tool| tool.strict);
        let declared = conversation.tools.iter().zip(self.tools);
        let mut tools: Vec<Tool> = declared
            .map(|(tool, declared)| {
                let none = || json!({"type": "object", "properties": {}});
                let schema = declared.strict.then(|| declared.schema.unwrap_or_else(none));
                Tool { name: tool.name.clone(), at: declared.at, schema }
            })
            .collect();
        if let Choice::Named(name) = &self.choice {
            tools.retain(|tool| tool.name == *name);
            conversation.tools.retain(|tool| tool.name == *name);
            if tools.is_empty() {
                return Err(at_choice(&format!("tool_choice asks for {name:?}, which is not among the tools.")));
            }
        }
        let opened = forced && !conversation.thinking_mode;
        if opened {
            // The prompt then has the tag that opens calls.
            conversation.tool_choice = ToolChoice::Required;
            converted.parsing_options.starts_in_tool_calls = true;
        }
        let held = forced || strict || !self.many || self.format.is_some();
        let calls = (held && served.tools && !tools.is_empty()).then_some(Calls { tools, many: self.many, opened });
        let answer = match self.format {
            _ if forced => Said::Nothing,
            Some((at, format)) => Said::Like(at, format),
            None => Said::Anything,
        };
        if answer == Said::Anything && calls.is_none() {
            return Ok(None);
        }
        let written = match converted.conversation.messages.last() {
            Some(InputMessage::Assistant { content, prefix: true, .. }) => content.clone(),
            _ => String::new(),
        };
        let stage = converted.parsing_options.thinking_initial_stage;
        Ok(Some(Form { thinks: stage.is_some_and(|stage| stage.starts_in_reasoning()), answer, calls, written }))
    }
}

/// Takes a body's choice of tools that must be called, and leaves it to the model: conversion knows no such choice for a model
/// that thinks. `named` is the name in a choice, if it names a tool.
pub(super) fn take_choice(body: &mut Value, named: fn(&Value) -> Option<&str>, auto: Value) -> Choice {
    let choice = &body["tool_choice"];
    let taken = match named(choice) {
        Some(name) => Choice::Named(name.to_owned()),
        None if choice == "required" || choice["type"] == "any" => Choice::Any,
        None => return Choice::Free,
    };
    body["tool_choice"] = auto;
    taken
}

/// A format of a dialect's own, if it is one of JSON.
pub(super) fn json_format(at: &str, format: &Value, schema_at: &str) -> Option<(String, Format)> {
    match format["type"].as_str()? {
        "json_object" => Some((at.to_owned(), Format::Object)),
        "json_schema" => {
            let schema = format.pointer(&format!("/{}", schema_at.replace('.', "/")))?;
            Some((format!("{at}.{schema_at}"), Format::Schema(schema.clone())))
        }
        "regex" => Some((format!("{at}.regex"), Format::Regex(format["regex"].as_str()?.to_owned()))),
        _ => None,
    }
}

/// The format that a body's `structured_outputs` asks for.
///
/// # Errors
/// It asks for something else, or for more than one.
pub(super) fn structured(body: &Value) -> Result<Option<(String, Format)>, ApiError> {
    let Some(asked) = body.get(FIELD).filter(|asked| !asked.is_null()) else { return Ok(None) };
    let keys = "'json', 'json_object', 'regex', 'choice' and 'grammar'";
    let one_of = || ApiError::bad(Some(FIELD), format!("{FIELD} is an object with one of {keys}."));
    let asked = asked.as_object().ok_or_else(one_of)?;
    let mut formats = asked.iter().filter(|(_, value)| !value.is_null() && **value != false);
    let (key, value) = formats.next().ok_or_else(one_of)?;
    if formats.next().is_some() {
        return Err(one_of());
    }
    let at = format!("{FIELD}.{key}");
    let text = || value.as_str().map(str::to_owned);
    let texts =
        || -> Option<Vec<String>> { value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect() };
    let format = match (key.as_str(), value) {
        ("json", Value::String(json)) => serde_json::from_str(json).ok().map(Format::Schema),
        ("json", schema) => Some(Format::Schema(schema.clone())),
        ("json_object", Value::Bool(true)) => Some(Format::Object),
        ("regex", _) => text().map(Format::Regex),
        ("grammar", _) => text().map(Format::Grammar),
        ("choice", _) => texts().map(Format::Choice),
        ("json_object", _) => None,
        _ => return Err(ApiError::bad(Some(&at), format!("'{at}' is not supported here; {FIELD} has {keys}."))),
    };
    let format = format.ok_or_else(|| ApiError::wrong_type(Some(at.clone()), format!("Invalid '{at}'.")))?;
    Ok(Some((at, format)))
}

/// One format of two that a request may ask for.
///
/// # Errors
/// It asks for both.
pub(super) fn one(
    own: Option<(String, Format)>,
    other: Option<(String, Format)>,
) -> Result<Option<(String, Format)>, ApiError> {
    match (&own, &other) {
        (Some((own, _)), Some((other, _))) => {
            Err(ApiError::bad(Some(other), format!("An answer has one format: send '{own}' or '{other}'.")))
        }
        _ => Ok(own.or(other)),
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        ApiError::bad(Some(&refused.at), format!("{refused}."))
    }
}
