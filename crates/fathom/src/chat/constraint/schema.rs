//! Schemas from outside, made ready for the library: checked where it would let something pass, and cut into an argument's parts.

use serde_json::{Map, Value, json};

use super::Refused;

/// JSON as models write it: a space, or a new line and its indentation, between what belongs together.
const SPACE: &str = r"[ \n]|\n[ \t]{1,40}";
/// The escapes of strings; those by number would let a key be spelled in two ways.
const ESCAPES: &str = "nrbtf\\\"";

/// Keys whose values are schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keys whose values are schemas, or lists of them.
const INNER: [&str; 8] =
    ["items", "additionalItems", "additionalProperties", "prefixItems", "anyOf", "oneOf", "allOf", "contains"];

/// Calls `f` with a schema and all schemas in it. JSON is not nested deeper than its reader allows.
fn each(schema: &mut Value, f: &mut impl FnMut(&mut Map<String, Value>) -> Result<(), String>) -> Result<(), String> {
    match schema {
        Value::Array(all) => all.iter_mut().try_for_each(|schema| each(schema, f)),
        Value::Object(map) => {
            f(map)?;
            for (key, value) in map.iter_mut() {
                if NAMED.contains(&key.as_str())
                    && let Value::Object(named) = value
                {
                    named.values_mut().try_for_each(|schema| each(schema, f))?;
                } else if INNER.contains(&key.as_str()) {
                    each(value, f)?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A schema with what the library is to write between values.
pub(super) fn with_options(mut schema: Value) -> Value {
    let options = json!({"whitespace_pattern": SPACE, "json_allowed_escapes": ESCAPES});
    if let Value::Object(map) = &mut schema {
        map.insert("x-guidance".to_owned(), options);
    }
    schema
}

/// A schema of `at`, ready for the library.
///
/// # Errors
/// It is no schema, matches nothing, or has what the library would not hold to.
pub(super) fn prepared(at: &str, schema: &Value) -> Result<Value, Refused> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        Value::Bool(false) => return Err(Refused::new(at, "nothing matches the schema false")),
        _ => return Err(Refused::new(at, "a schema is a JSON object")),
    };
    each(&mut schema, &mut tidy).map_err(|problem| Refused::new(at, problem))?;
    Ok(with_options(schema))
}

/// Takes out what asks for nothing, and refuses what would not hold.
fn tidy(schema: &mut Map<String, Value>) -> Result<(), String> {
    if schema.get("uniqueItems") == Some(&Value::Bool(false)) {
        schema.remove("uniqueItems");
    }
    let named = schema.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    let only_named = schema.get("additionalProperties") == Some(&Value::Bool(false));
    // Keys beside those named may be repeated, and count once.
    match schema.get("minProperties").and_then(Value::as_u64) {
        Some(least) if least > named + 1 && !only_named => {
            Err(format!("minProperties {least} is enforced only for keys that are named in properties and required"))
        }
        _ => Ok(()),
    }
}

/// How an argument may be written.
#[derive(Debug, PartialEq)]
pub(super) enum Spelling {
    /// As text, which a terminal of the grammar describes.
    Text(String),
    /// As JSON that a schema describes.
    Json(Value),
}

/// How the argument `key` of a schema of arguments may be written. Strings are text where that can be told; all else is JSON.
pub(super) fn spellings(root: &Value, key: &str, schema: &Value) -> Vec<Spelling> {
    let mut all = Vec::new();
    spell(root, schema, 8, &mut all);
    let pointer = format!("#/properties/{}", key.replace('~', "~0").replace('/', "~1"));
    let has_ref = |schema: &Value| {
        let mut found = pointer.contains('~');
        let mut copy = schema.clone();
        let _ = each(&mut copy, &mut |map| {
            found |= map.contains_key("$ref");
            Ok(())
        });
        found
    };
    for spelling in &mut all {
        if let Spelling::Json(schema) = spelling
            && has_ref(schema)
        {
            *schema = rooted(root, schema);
        }
    }
    all
}

/// Any text.
pub(super) const ANY_TEXT: &str = "/(?s:.*)/";

fn spell(root: &Value, schema: &Value, depth: usize, all: &mut Vec<Spelling>) {
    let mut other = |types: &[&str]| all.push(Spelling::Json(json!({"type": types})));
    let Value::Object(map) = schema else {
        // `true`; what `false` is worth, the library says.
        if schema == &Value::Bool(true) {
            other(&["null", "boolean", "number", "array", "object"]);
            all.push(Spelling::Text(ANY_TEXT.to_owned()));
        } else {
            all.push(Spelling::Json(schema.clone()));
        }
        return;
    };
    let asks: Vec<&str> = map.keys().map(String::as_str).filter(|key| !ANNOTATIONS.contains(key)).collect();
    let text = |map: &Map<String, Value>| text(map, &asks);
    match (asks.as_slice(), map.get("type")) {
        ([], _) => spell(root, &Value::Bool(true), depth, all),
        (["$ref"], _) if depth > 0 => match map["$ref"].as_str().and_then(|at| found(root, at)) {
            Some(schema) => spell(root, schema, depth - 1, all),
            None => all.push(Spelling::Json(schema.clone())),
        },
        (["anyOf"], _) if depth > 0 => match &map["anyOf"] {
            Value::Array(options) => options.iter().for_each(|option| spell(root, option, depth - 1, all)),
            _ => all.push(Spelling::Json(schema.clone())),
        },
        (["enum"], _) => enumerated(&map["enum"], all),
        (["const"], _) => enumerated(&json!([map["const"]]), all),
        (_, Some(Value::String(kind))) if kind == "string" => all.push(match text(map) {
            Some(terminal) => Spelling::Text(terminal),
            None => Spelling::Json(schema.clone()),
        }),
        (_, Some(Value::Array(kinds))) if kinds.iter().any(|kind| kind == "string") => {
            let of = |kinds: Vec<Value>| {
                let mut map = map.clone();
                map.insert("type".to_owned(), Value::Array(kinds));
                map
            };
            let (strings, others): (Vec<_>, Vec<_>) = kinds.iter().cloned().partition(|kind| kind == "string");
            match text(map) {
                Some(terminal) => {
                    all.push(Spelling::Text(terminal));
                    if !others.is_empty() {
                        all.push(Spelling::Json(of(others).into()));
                    }
                }
                None => all.push(Spelling::Json(of([strings, others].concat()).into())),
            }
        }
        _ => all.push(Spelling::Json(schema.clone())),
    }
}

/// Keys that ask for nothing.
const ANNOTATIONS: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$schema",
    "$defs",
    "definitions",
    "contentMediaType",
];

fn enumerated(values: &Value, all: &mut Vec<Spelling>) {
    let values = values.as_array().cloned().unwrap_or_default();
    let (texts, others): (Vec<Value>, Vec<Value>) = values.into_iter().partition(Value::is_string);
    if !texts.is_empty() {
        all.push(Spelling::Text(alternatives(&texts)));
    }
    if !others.is_empty() {
        all.push(Spelling::Json(json!({"enum": others})));
    }
}

/// A terminal for one of these strings. The grammar's strings are JSON's.
fn alternatives(texts: &[Value]) -> String {
    let texts: Vec<String> = texts.iter().map(Value::to_string).collect();
    format!("({})", texts.join(" | "))
}

/// The terminal of a string's schema, if it is a plain one.
fn text(map: &Map<String, Value>, asks: &[&str]) -> Option<String> {
    let known = ["type", "enum", "const", "pattern", "minLength", "maxLength"];
    if asks.iter().any(|key| !known.contains(key)) {
        return None;
    }
    let literal = map.get("enum").or(map.get("const"));
    if let Some(literal) = literal {
        let texts = literal.as_array().cloned().unwrap_or_else(|| vec![literal.clone()]);
        // Together with a length or a pattern, the library sorts it out.
        let plain = asks.len() == 2 && !texts.is_empty() && texts.iter().all(Value::is_string);
        return plain.then(|| alternatives(&texts));
    }
    let length = |key: &str| map.get(key).map(|value| value.as_u64().filter(|&n| n <= 100_000));
    let (least, most) = (length("minLength").unwrap_or(Some(0))?, length("maxLength"));
    let lengths = match most {
        Some(most) => format!("/(?s:.{{{least},{}}})/", most?),
        None if least > 0 => format!("/(?s:.{{{least},}})/"),
        None => ANY_TEXT.to_owned(),
    };
    match map.get("pattern") {
        None => Some(lengths),
        Some(pattern) => {
            let inner = whole(pattern.as_str()?)?;
            let regex = llguidance::regex_to_lark(inner, "dw");
            Some(if lengths == ANY_TEXT { format!("/({regex})/") } else { format!("({lengths} & /({regex})/)") })
        }
    }
}

/// The inside of a pattern that is anchored at both ends and has no alternatives outside of parentheses.
fn whole(pattern: &str) -> Option<&str> {
    let inner = pattern.strip_prefix('^')?.strip_suffix('$')?;
    let (mut depth, mut class, mut escaped) = (0, false, false);
    for c in inner.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => class = false,
            _ if class => {}
            '[' => class = true,
            '(' => depth += 1,
            ')' if depth == 0 => return None,
            ')' => depth -= 1,
            '|' if depth == 0 => return None,
            '^' | '$' => return None,
            _ => {}
        }
    }
    (!inner.is_empty() && !escaped && depth == 0).then_some(inner)
}

/// What a reference within a schema refers to.
fn found<'a>(root: &'a Value, at: &str) -> Option<&'a Value> {
    root.pointer(at.strip_prefix('#')?).filter(|schema| schema.is_object())
}

/// A schema that stands within another, by itself: with that, and its references into it.
fn rooted(root: &Value, schema: &Value) -> Value {
    let moved = |schema: &Value| {
        let mut schema = schema.clone();
        let _ = each(&mut schema, &mut |map| {
            if let Some(Value::String(at)) = map.get_mut("$ref")
                && let Some(rest) = at.strip_prefix('#')
            {
                *at = format!("#/$defs/arguments{rest}");
            }
            Ok(())
        });
        schema
    };
    let mut inner = moved(schema);
    if let Value::Object(map) = &mut inner {
        map.remove("$defs");
        map.remove("definitions");
    }
    json!({"allOf": [inner], "$defs": {"arguments": moved(root)}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_patterns_become_text() {
        assert_eq!(whole("^[A-Z|$]{3}$"), Some("[A-Z|$]{3}"));
        assert_eq!(whole("^(a|b)\\$$"), Some("(a|b)\\$"));
        for pattern in ["abc", "^a|b$", "^a\\$", "^(a$|^b)$", "^$", "^a)|(b$"] {
            assert_eq!(whole(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn arguments_are_text_or_json() {
        let root = json!({"$defs": {"level": {"enum": ["low", 3, null]}}});
        let spell = |schema: Value| spellings(&root, "a", &schema);
        assert_eq!(spell(json!({"type": "string"})), [Spelling::Text(ANY_TEXT.into())]);
        assert_eq!(
            spell(json!({"$ref": "#/$defs/level"})),
            [Spelling::Text("(\"low\")".into()), Spelling::Json(json!({"enum": [3, null]}))]
        );
        assert_eq!(
            spell(json!({"type": ["string", "null"], "maxLength": 4})),
            [Spelling::Text("/(?s:.{0,4})/".into()), Spelling::Json(json!({"type": ["null"], "maxLength": 4}))]
        );
        let dated = json!({"type": "string", "format": "date"});
        assert_eq!(spell(dated.clone()), [Spelling::Json(dated)]);
        let list = spell(json!({"type": "array", "items": {"$ref": "#/$defs/level"}}));
        let [Spelling::Json(list)] = list.as_slice() else { panic!("{list:?}") };
        assert_eq!(list["allOf"][0]["items"]["$ref"], "#/$defs/arguments/$defs/level");
        assert_eq!(list["$defs"]["arguments"]["$defs"]["level"]["enum"][0], "low");
    }

    #[test]
    fn what_would_not_hold_is_refused() {
        for (schema, word) in [
            (json!({"type": "object", "minProperties": 2}), "minProperties"),
            (json!(false), "nothing matches"),
            (json!(7), "JSON object"),
        ] {
            let refused = prepared("at", &schema).unwrap_err();
            assert!(refused.to_string().contains(word), "{refused}");
        }
        let plain = json!({"type": "array", "uniqueItems": false});
        assert!(prepared("at", &plain).unwrap().get("uniqueItems").is_none());
    }
}
