//! The document says what the router does.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::{Parrot, send};
use crate::server::document;

fn parts(of: &Value) -> Map<String, Value> {
    of.as_object().unwrap().clone()
}

/// Everything that a `$ref` may lead to.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(all) => {
            found.extend(all.get("$ref").and_then(Value::as_str));
            all.values().for_each(|value| references(value, found));
        }
        Value::Array(all) => all.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn it_is_served_and_whole() {
    let (status, text) = send(Parrot::new("").router(), "GET", "/openapi.json", "").await;
    let served: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &served), (StatusCode::OK, &document(&["parrot".to_owned()])));
    assert_eq!(served["components"]["schemas"]["Model"]["enum"][0], "parrot");
    let mut found = Vec::new();
    references(&served, &mut found);
    assert!(found.len() > 50);
    for name in found {
        assert!(served.pointer(name.trim_start_matches('#')).is_some(), "{name}");
    }
    let mut ids: Vec<Value> = Vec::new();
    for (path, methods) in parts(&served["paths"]) {
        for (method, operation) in parts(&methods) {
            assert!(
                operation["summary"].is_string()
                    && operation["responses"]["200"].is_object() | operation["responses"]["201"].is_object(),
                "{method} {path}"
            );
            ids.push(operation["operationId"].clone());
        }
    }
    let n = ids.len();
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!(ids.len(), n, "{ids:?}");
}

/// Of each address the router takes the methods of the document, and no others.
#[tokio::test]
async fn routes_are_those_of_the_router() {
    let parrot = Parrot::new("");
    for (path, methods) in parts(&document(&[])["paths"]) {
        let address = path.replace("{model}", "parrot").replace("{name}", "x").replace("{id}", "x");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let (status, text) = send(parrot.router(), method, &address, "").await;
            let is_there = status != StatusCode::METHOD_NOT_ALLOWED && !text.contains("\"not_found\"");
            assert_eq!(is_there, methods.get(method.to_lowercase()).is_some(), "{method} {path}: {status} {text}");
            assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR);
        }
    }
}

/// Refusals that the library makes by itself are in our form too, and of a status that the document has.
#[tokio::test]
async fn every_refusal_is_json() {
    let parrot = Parrot::new("");
    for (method, path, status) in [
        ("GET", "/v1/sessions/%ff", 400),
        ("GET", "/v1/sessions/x?tokens=maybe", 400),
        ("POST", "/v1/snapshots?name=a&name=b", 400),
        ("DELETE", "/v1/prefills/%c3%28", 400),
        ("GET", "/v1/models/%fe", 400),
        ("GET", "/v1//models", 404),
        ("GET", "/v1/sessions/../models", 404),
        ("GET", "/v1/sessions/..%2f..%2fetc%2fpasswd", 501),
        ("GET", "/v1/sessions/x/../../metrics", 404),
        ("BREW", "/health", 405),
        ("OPTIONS", "/v1/models", 405),
    ] {
        let (got, text) = send(parrot.router(), method, path, "").await;
        assert_eq!(got.as_u16(), status, "{method} {path}: {text}");
        let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {text}"));
        assert!(body["error"]["message"].is_string() && body["error"]["code"].is_string(), "{text}");
    }
}
