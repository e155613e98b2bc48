//! `fathom serve`: the APIs of OpenAI and Anthropic, and sessions, over HTTP.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;

use super::Outcome;
use super::model::{EMBEDDED, Files, Options, folder_name, load_for};
use super::store::StoreOptions;
use crate::server::{
    BodyLimits, KeyLimits, Keys, Limits, Log, Origins, Service, Tls, Traces, document, serve as listen,
};
use crate::ui::{out, peak_rss, say};
use fathom_engine::{EngineOptions, Sessions};
use fathom_weights::experts::ExpertCache;

/// Answers that one request may ask for, and that wait in the engine's queue: how many requests wait is the server's to limit.
const CHOICES: usize = 128;

/// Flags of `fathom serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with an official checkpoint [default: the embedded model]
    model: Option<PathBuf>,
    /// The address to listen on; anything but loopback lets others in, and takes --keys
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A file of lines NAMESPACE KEY: who may ask. Sessions and reuse stay inside a namespace. A key may be given by its hash,
    /// as blake3: and 64 hex digits
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// The model's names in the API, for clients that ask for one of their own; replies have the first [default: the folder's
    /// name]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    served_model_name: Vec<String>,
    /// Requests that run or wait at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    requests: u16,
    /// Requests that run at once, in one pass over the weights for all
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
    /// The milliseconds from one token to the next of those who speak that prompts read beside them keep to
    #[arg(long, value_name = "MS", default_value_t = 250)]
    stall: u32,
    /// The seconds that a prompt is read on after its client has left, for the same request to find it read
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    linger: u32,
    /// Requests in a minute that one key may send [default: any number]
    #[arg(long, value_name = "N")]
    key_rate: Option<NonZeroU32>,
    /// Requests of one key that run or wait at once [default: as many as of all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    key_requests: Option<u16>,
    /// The seconds that requests go on once the server is told to stop; those left are ended then, and 30 seconds later so is the
    /// program, whatever it does
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=86400))]
    drain: u32,
    /// Origins whose pages may use the API from a browser, such as https://chat.example.org, or * for all [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    cors: Vec<String>,
    /// A file of the server's certificate and those that vouch for it, PEM; connections are taken over TLS then
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// A file of the certificate's private key, PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// A collector of OpenTelemetry that spans of requests are sent to, such as http://localhost:4318
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// How replies are logged, on standard error
    #[arg(long, value_enum, default_value_t = Log::None)]
    log: Log,
    /// A TOML file of these options, by their names; flags come before the environment (FATHOM_PORT for --port), and that before
    /// the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the options as they came to be, as such a file, and end
    #[arg(long)]
    pub(super) print_config: bool,
    /// Print the API's OpenAPI document, and end
    #[arg(long)]
    print_openapi: bool,
    /// Think before answering where a request does not say
    #[arg(long)]
    think: bool,
    /// The most tokens of prompt and answer [default: what the model holds]
    #[arg(long)]
    context: Option<NonZeroUsize>,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    options: Options,
}

/// Serves until Ctrl-C.
pub fn serve(args: &Args) -> Outcome {
    if args.print_openapi {
        let names = match &args.served_model_name[..] {
            [] => vec![args.model.as_deref().map_or_else(|| EMBEDDED.to_owned(), folder_name)],
            names => names.to_vec(),
        };
        return Ok(writeln!(out(), "{:#}", document(&names))?);
    }
    let keys = args.keys.as_deref().map(Keys::read).transpose()?.unwrap_or_default();
    if !args.host.is_loopback() && !keys.are_asked_for() {
        return Err(format!("--host {} lets others in: say who may ask with --keys FILE", args.host).into());
    }
    let tls = match (&args.tls_cert, &args.tls_key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(Tls::read(certificate, key)?),
        _ => return Err("--tls-cert and --tls-key go together".into()),
    };
    let origins = Origins::new(&args.cors)?;
    let traces = args.otlp.as_deref().map(Traces::open).transpose()?;
    let files = Files::open(args.model.as_deref())?;
    let parallel = usize::from(args.parallel);
    let most = files.checkpoint.config().max_position_embeddings;
    let bodies = BodyLimits::of_context(args.context.map_or(most, |context| most.min(context.into())));
    let context = args.context.map(usize::from);
    let loaded = load_for(&files, &args.options, context, parallel, bodies.memory(), true)?;
    let eos = files.checkpoint.config().eos_token_id;
    let mut names = args.served_model_name.iter().cloned();
    let name = names.next().unwrap_or_else(|| files.name.clone());
    say!("{}", loaded.describe(&files.name, files.checkpoint.release()));
    say!("memory: {}", loaded.plan);
    if let Some(forecast) = &loaded.forecast {
        say!("{}", forecast.of_server(loaded.context));
    }
    let keep = args.store.keep_if_named(&files, &loaded.model)?;
    let stored = keep.as_ref().map(|keep| (keep.store.clone(), keep.subject.clone()));
    let prompter = files.prompter()?;
    let stall = Duration::from_millis(args.stall.into());
    let options = EngineOptions { stall, queue: CHOICES * usize::from(args.requests), ..EngineOptions::default() };
    let engine = loaded.engine(options, keep);
    let linger = Duration::from_secs(args.linger.into());
    let each_key = KeyLimits { rate: args.key_rate, at_once: args.key_requests.map(usize::from) };
    let drain = Duration::from_secs(args.drain.into());
    let limits = Limits { requests: usize::from(args.requests), bodies, drain, linger, each_key, ..Limits::default() };
    let sessions = Sessions::new(engine.clone(), stored);
    let service = Service::new(engine.clone(), prompter, &name, eos, args.think, limits);
    let mut service = service
        .with_aliases(names.collect())
        .with_keys(keys)
        .with_sessions(sessions)
        .with_plan(loaded.plan.total())
        .with_log(args.log)
        .with_origins(origins);
    if let Some(tls) = tls {
        service = service.with_tls(tls);
    }
    if let Some(traces) = traces {
        service = service.with_traces(traces);
    }
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    if loaded.model.streaming().is_some() {
        let model = Arc::clone(&loaded.model);
        service = service.with_experts(move || model.streaming().map(ExpertCache::stats).unwrap_or_default());
    }
    listen(service, SocketAddr::new(args.host, args.port), |address| {
        say!("{name} at {scheme}://{address}/v1 (Ctrl-C finishes what runs and stops)");
    })?;
    engine.drain();
    if let Some(forecast) = &loaded.forecast {
        let counts = engine.counts();
        say!("{}", forecast.of_counts(&counts, &loaded.used(&counts), peak_rss()));
    }
    if let Some(line) = loaded.experts_line() {
        say!("{line}");
    }
    Ok(())
}
