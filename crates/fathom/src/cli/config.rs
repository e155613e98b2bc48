//! Options of `serve` from a TOML file and from the environment.
//!
//! A flag comes before a variable, and a variable before the file. All three have the names of the flags: `--prefill-chunk`,
//! `FATHOM_PREFILL_CHUNK`, `prefill-chunk`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// The variable and the flag that name the file.
const VARIABLE: &str = "FATHOM_CONFIG";
const FLAG: &str = "--config";

/// The file that the arguments of the program name, if they are `serve`'s.
pub fn named(args: impl IntoIterator<Item = OsString>) -> Option<PathBuf> {
    let mut args = args.into_iter().skip(1);
    if args.next()? != "serve" {
        return None;
    }
    while let Some(arg) = args.next() {
        if arg == FLAG {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix(FLAG)?.strip_prefix('=')) {
            return Some(path.into());
        }
    }
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// How an option is called in the file.
fn key(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string(), str::to_owned)
}

/// The program's command line, where `serve`'s options have variables, and what the file says as their defaults.
///
/// # Errors
/// The file cannot be read or is no TOML, or it has a key that is no option.
pub fn with(program: Command, file: Option<&Path>) -> Result<Command, String> {
    let mut values = match file {
        None => toml::Table::new(),
        Some(path) => {
            let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
            let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
            text.parse().map_err(|e| wrong(&e))?
        }
    };
    let mut failed = None;
    let program = program.mut_subcommand("serve", |serve| {
        serve.mut_args(|arg| {
            let key = key(&arg);
            let arg = match values.remove(&key) {
                None => arg,
                Some(value) => match words(&value) {
                    Some(words) => arg.default_values(words),
                    None => {
                        failed = Some(format!("{key} cannot be a {}", value.type_str()));
                        arg
                    }
                },
            };
            match arg.get_id().as_str() {
                "help" | "version" | "print_config" | "print_openapi" => arg,
                _ => arg.env(format!("FATHOM_{}", key.to_uppercase().replace('-', "_"))),
            }
        })
    });
    let unknown = values.keys().next().map(|key| format!("there is no option {key:?}; fathom serve --help lists them"));
    match (failed.or(unknown), file) {
        (Some(problem), Some(path)) => Err(format!("{}: {problem}", path.display())),
        _ => Ok(program),
    }
}

/// A value as it would stand on the command line.
fn words(value: &toml::Value) -> Option<Vec<String>> {
    Some(match value {
        toml::Value::String(text) => vec![text.clone()],
        toml::Value::Integer(n) => vec![n.to_string()],
        toml::Value::Float(x) => vec![x.to_string()],
        toml::Value::Boolean(yes) => vec![yes.to_string()],
        toml::Value::Array(all) => all.iter().map(words).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect(),
        toml::Value::Datetime(_) | toml::Value::Table(_) => return None,
    })
}

/// All options as they came to be, as a file that says the same, and where each is from.
pub fn resolved(serve: &Command, matches: &ArgMatches) -> String {
    let mut text = String::new();
    for arg in serve.get_arguments().filter(|arg| {
        !matches!(arg.get_id().as_str(), "help" | "version" | "print_config" | "print_openapi" | "config")
    }) {
        let (id, key) = (arg.get_id().as_str(), key(arg));
        let from = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            Some(_) => "file or default",
            None => {
                text += &format!("# {key} is not set\n");
                continue;
            }
        };
        let raw: Vec<String> =
            matches.get_raw(id).into_iter().flatten().map(|v| v.to_string_lossy().into_owned()).collect();
        let value = match &raw[..] {
            [one] if arg.get_num_args().is_none_or(|n| n.max_values() <= 1) => shown(one),
            all => format!("[{}]", all.iter().map(|one| shown(one)).collect::<Vec<_>>().join(", ")),
        };
        text += &format!("{key} = {value} # {from}\n");
    }
    text
}

fn shown(value: &str) -> String {
    let bare = value.parse::<i64>().is_ok() || matches!(value, "true" | "false");
    if bare { value.to_owned() } else { toml::Value::String(value.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use clap::{ArgAction, arg};

    use super::*;

    fn program() -> Command {
        Command::new("fathom").subcommand(
            Command::new("serve")
                .arg(arg!([model]))
                .arg(arg!(--port <N>).default_value("8080"))
                .arg(arg!(--think).action(ArgAction::SetTrue))
                .arg(arg!(--name <NAME>).value_delimiter(',').num_args(1..).required(false)),
        )
    }

    fn read(file: &str, args: &[&str]) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fathom.toml");
        std::fs::write(&path, file).unwrap();
        let mut program = with(program(), Some(&path))?;
        let matches =
            program.try_get_matches_from_mut([&["fathom", "serve"], args].concat()).map_err(|e| e.to_string())?;
        let serve = matches.subcommand_matches("serve").unwrap();
        Ok(resolved(program.find_subcommand("serve").unwrap(), serve))
    }

    #[test]
    fn flags_come_before_the_file() {
        let file = "model = \"/m\"\nport = 1\nthink = true\nname = [\"a\", \"b\"]\n";
        let got = read(file, &["--port", "2"]).unwrap();
        for line in ["model = \"/m\" #", "port = 2 # flag", "think = true #", "name = [\"a\", \"b\"] #"] {
            assert!(got.contains(line), "{line}: {got}");
        }
        // What is printed can be read.
        assert_eq!(read(&got, &[]).unwrap().replace("flag", ""), got.replace("flag", "file or default"));
        assert!(read("", &[]).unwrap().contains("# model is not set"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(read("prot = 1", &[]).unwrap_err().contains("\"prot\""));
        assert!(read("port = {a = 1}", &[]).unwrap_err().contains("port"));
        assert!(read("port", &[]).unwrap_err().contains("fathom.toml"));
    }

    #[test]
    fn the_file_is_the_serves() {
        let find = |args: &[&str]| named(args.iter().map(OsString::from));
        assert_eq!(find(&["fathom", "serve", "--config", "a"]), Some("a".into()));
        assert_eq!(find(&["fathom", "serve", "m", "--config=b"]), Some("b".into()));
        assert_eq!(find(&["fathom", "run", "--config", "a"]), None);
    }
}
