use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::net::TcpListener;

use super::Parrot;
use super::replies::CALL;
use crate::server::serve::serve_until;

/// Answers as a model would that likes to call tools.
fn obliging(prompt: &str) -> String {
    if prompt.contains("Available Tool Schemas") && !prompt.contains("<tool_result>") {
        return CALL.to_owned();
    }
    if prompt.ends_with("<think>") {
        return format!("Let me see.{}</think>It is 48213.", " And again.".repeat(20));
    }
    "The code of Anna is 48213. 🤭".to_owned()
}

/// Runs a script of `tests/clients` against the parrot, where its client is installed.
async fn content(module: &str, script: &str, suffix: &str, more: &[&str]) {
    let python = std::env::var("FATHOM_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_client = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if !has_client.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no module {module} (FATHOM_PYTHON names another Python)");
        return;
    }
    let mut parrot = Parrot::new("");
    parrot.reply_to = Some(obliging);
    parrot.pause = Duration::from_millis(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}{suffix}", listener.local_addr().unwrap());
    let server = tokio::spawn(serve_until(listener, parrot.small_service(), std::future::pending()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients").join(script);
    let more: Vec<String> = more.iter().map(|&arg| arg.to_owned()).collect();
    let talk = move || {
        Command::new(python).arg(script).args(["--expect-tool-call", "--base-url", &base_url]).args(more).output()
    };
    let output = tokio::task::spawn_blocking(talk).await.unwrap().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.abort();
}

#[tokio::test]
async fn the_openai_python_client_is_content() {
    content("openai", "openai_chat.py", "/v1", &[]).await;
}

#[tokio::test]
async fn the_anthropic_python_client_is_content() {
    content("anthropic", "anthropic_messages.py", "", &["--model", "parrot"]).await;
}
