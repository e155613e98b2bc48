//! The command line.

mod ask;
mod bench;
mod chat;
mod config;
mod demo;
mod doctor;
mod experts;
pub(crate) mod model;
mod needle;
mod own;
mod pack;
mod plan;
mod pull;
mod run;
mod score;
mod serve;
mod simulate;
mod snapshot;
mod store;
mod synth;
mod targets;

use crate::ui::say;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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
    /// The APIs of OpenAI and Anthropic over HTTP, and sessions
    Serve(serve::Args),
    /// Logits of given tokens, to a file
    Score(score::Args),
    /// Saved sessions: list, show, pin, export, import, remove
    Snapshot(snapshot::Args),
    /// What fits, how fast, and what a session costs, before a model is loaded or bought for
    Plan(plan::Args),
    /// How fast decode would be with experts on given drives
    Simulate(simulate::Args),
    /// A copy of a checkpoint in which every expert is one read
    Pack(pack::Args),
    /// How fast a model reads and writes, and servers side by side
    Bench(bench::Args),
    /// What a model or a server finds in long texts, by length and depth
    Needle(needle::Args),
    /// Download a model: parallel, resumed, verified
    Pull(pull::Args),
    /// What this machine can do, and what is wrong with it or with a model
    Doctor(doctor::Args),
    /// Write a random checkpoint in the official layout, of any geometry
    Synth(synth::Args),
}

/// Runs the program. Exit code 2 means that something about the request or its files is wrong; the message says what.
pub fn main() -> ExitCode {
    fathom_kernels::give_memory_back();
    let mut program = match config::with(Cli::command(), config::named(std::env::args_os()).as_deref()) {
        Ok(program) => program,
        Err(e) => {
            say!("fathom: {e}");
            return ExitCode::from(2);
        }
    };
    let matches = program.get_matches_mut();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    let outcome = match cli.command {
        Command::Serve(args) if args.print_config => {
            let parts = (program.find_subcommand("serve"), matches.subcommand_matches("serve"));
            let text =
                parts.0.zip(parts.1).map_or_else(String::new, |(serve, matches)| config::resolved(serve, matches));
            write!(crate::ui::out(), "{text}").map_err(Into::into)
        }
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Score(args) => score::score(&args),
        Command::Snapshot(args) => snapshot::snapshot(&args),
        Command::Pack(args) => pack::pack(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Needle(args) => needle::needle(&args),
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
