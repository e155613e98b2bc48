//! The command line.

mod ask;
mod bench;
mod chat;
mod demo;
mod doctor;
mod model;
mod pull;
mod run;
mod score;
mod serve;
mod snapshot;
mod store;
mod synth;

use crate::ui::say;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a command returns: nothing, or the one message a person gets.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// DeepSeek V4 on machines people own.
#[derive(Debug, Parser)]
#[command(name = "fathom", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The embedded model finds a needle in a long text
    Demo(demo::Args),
    /// One answer
    Run(run::Args),
    /// A conversation in the terminal
    Chat(chat::Args),
    /// The OpenAI chat API over HTTP
    Serve(serve::Args),
    /// Logits of given tokens, to a file
    Score(score::Args),
    /// Saved sessions: list, show, pin, export, import, remove
    Snapshot(snapshot::Args),
    /// How fast a model reads and writes, beside what this machine could do
    Bench(bench::Args),
    /// Download a model: parallel, resumed, verified
    Pull(pull::Args),
    /// What this machine can do, and what is wrong with it or with a model
    Doctor(doctor::Args),
    /// Write a random checkpoint in the official layout, of any geometry
    Synth(synth::Args),
}

/// Runs the program. Exit code 2 means that something about the request or its files is wrong; the message says what.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Score(args) => score::score(&args),
        Command::Snapshot(args) => snapshot::snapshot(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Pull(args) => pull::pull(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Synth(args) => synth::synth(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_broken_pipe(e.as_ref()) => ExitCode::SUCCESS,
        Err(e) => {
            say!("fathom: {e}");
            ExitCode::from(2)
        }
    }
}

/// Whoever read our output has gone, as `head` does: nothing is wrong.
fn is_broken_pipe(e: &(dyn std::error::Error + 'static)) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
