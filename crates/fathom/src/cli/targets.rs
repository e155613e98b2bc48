//! The servers that a command measures or asks: those at addresses, and fathom's own with a model.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::model::{EMBEDDED, Files, Options};
use super::own::Own;
use super::store::StoreOptions;
use crate::bench::{Client, Target, parse_target};
use crate::ui::say;

/// The longest key that is read, in bytes.
const LONGEST_KEY: u64 = 64 << 10;

/// Flags that say which servers are asked, and how.
#[derive(Debug, clap::Args)]
pub struct ServerFlags {
    /// A server that speaks OpenAI's API, with a name for it if you like: http://127.0.0.1:8000 or vllm=http://10.0.0.7:8000/v1;
    /// may be given again; a MODEL is served beside them
    #[arg(long, value_name = "[NAME=]URL")]
    pub url: Vec<String>,
    /// Seconds of silence after which a server is given up
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    timeout: u32,
    /// The model to ask servers for [default: the first that each lists]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// A file with the API key that the servers at --url want
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl ServerFlags {
    /// How long servers may be silent.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

/// Who is to be asked, and how.
pub struct Asking<'a> {
    /// A model that fathom serves itself; the embedded one where there is none and no address either.
    pub model: Option<&'a Path>,
    /// Servers at addresses.
    pub servers: &'a ServerFlags,
    /// How to run fathom's own.
    pub options: &'a Options,
    /// Where its sessions are kept.
    pub store: &'a StoreOptions,
    /// Tokens that it holds.
    pub context: usize,
    /// Whether to tell its weights by their content, which is read for that the first time.
    pub identify: bool,
}

/// Servers, connected to.
pub struct Targets {
    /// What talks to them.
    pub runtime: Runtime,
    /// They.
    pub clients: Vec<Client>,
    own: Option<Own>,
}

impl Targets {
    /// Starts fathom's own server, if it is to be one of them, and connects to all.
    ///
    /// # Errors
    /// The first that cannot be asked, and why.
    pub fn connect(asking: &Asking<'_>) -> Result<Targets, Box<dyn std::error::Error>> {
        let ServerFlags { url: urls, model_name, key, .. } = asking.servers;
        let timeout = asking.servers.timeout();
        let parsed = urls.iter().map(|url| parse_target(url)).collect::<Result<Vec<_>, _>>()?;
        let runs_own = asking.model.is_some() || parsed.is_empty();
        let mut names: Vec<&str> = parsed.iter().map(|(name, _)| name.as_str()).collect();
        names.extend(runs_own.then_some("fathom"));
        if let Some((i, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            let given = urls.get(i).map_or("MODEL, which is served as fathom", String::as_str);
            return Err(format!("two servers are called {name}; give {given} another name: NAME=URL").into());
        }
        let key = key.as_deref().map(read_key).transpose()?;
        // The model needs the cores; passing tokens on needs little.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        // Those at addresses first: a model takes longer to load than a wrong address to be found.
        let mut clients = Vec::new();
        for (name, url) in parsed {
            let model = model_name.clone();
            let target = runtime.block_on(Target::connect(name, url, model, key.clone(), timeout))?;
            clients.push(Client { target, ledger: None });
        }
        let mut own = None;
        if runs_own {
            let files = Files::open(asking.model.or(Some(Path::new(EMBEDDED))))?;
            let served = Own::start(&runtime, files, asking)?;
            say!("fathom: {}", served.about);
            let (_, url) = parse_target(&format!("http://{}", served.address))?;
            let connected = runtime.block_on(Target::connect("fathom".to_owned(), url, None, None, timeout));
            let mut target = connected?;
            target.pid = Some(std::process::id());
            target.weights.clone_from(&served.weights);
            target.software =
                Some(concat!("fathom ", env!("CARGO_PKG_VERSION"), ", in the process that measures").into());
            clients.insert(0, Client { target, ledger: Some(served.ledger.clone()) });
            own = Some(served);
        }
        for Client { target, .. } in &clients {
            let software = target.software.as_deref().map_or_else(String::new, |s| format!(", {s}"));
            say!("{}: {} at {}{software}", target.name, target.model, target.url);
        }
        Ok(Targets { runtime, clients, own })
    }

    /// How they are called.
    pub fn names(&self) -> Vec<&str> {
        self.clients.iter().map(|client| client.target.name.as_str()).collect()
    }

    /// Stops fathom's own.
    pub fn end(self) {
        if let Some(own) = self.own {
            own.end();
        }
    }
}

fn read_key(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let failed = |e: std::io::Error| format!("cannot read the key in {}: {e}", path.display());
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(LONGEST_KEY).read_to_string(&mut text).map_err(failed)?;
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{}: no key; a file has one, in one line of letters, digits and signs", path.display()));
    }
    Ok(key.to_owned())
}
