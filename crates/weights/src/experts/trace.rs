//! What was demanded, a JSON object a line, for the simulator.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Deserializer, json};

use crate::Error;

/// The longest first line of an older trace, in bytes: it has a count for each expert, of which there may be a million.
const MAX_ABOUT: u64 = 64 << 20;

/// A trace being written.
#[derive(Debug)]
pub(super) struct Trace(BufWriter<File>);

impl Trace {
    /// Starts with what a replay must know of the model. What is at `path` already is replaced if it is a trace or empty.
    pub(super) fn new(path: &Path, about: &serde_json::Value) -> Result<Trace, Error> {
        let failed = |cause| Error::Write { path: path.to_owned(), cause };
        let found = path.metadata();
        if found.as_ref().is_ok_and(|m| !m.is_file()) || found.is_ok_and(|m| m.len() > 0) && !is_trace(path) {
            let problem = "is there already and is no trace; name another file for --trace, or delete it".to_owned();
            return Err(Error::File { path: path.to_owned(), problem });
        }
        let mut out = BufWriter::new(File::create(path).map_err(failed)?);
        writeln!(out, "{about}").map_err(failed)?;
        Ok(Trace(out))
    }

    /// A layer of a pass: its experts and the tokens that went to each, and which had been guessed.
    pub(super) fn demand(&mut self, pass: u64, layer: u32, rows: usize, wanted: &[(u32, usize)], guessed: &[u32]) {
        let (experts, tokens): (Vec<u32>, Vec<usize>) = wanted.iter().copied().unzip();
        let line = json!({"pass": pass, "layer": layer, "rows": rows, "experts": experts, "tokens": tokens, "guessed": guessed});
        // A trace that cannot be written on is shorter.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Whether a file begins as [`Trace::new`] begins one. No more of it is read than is JSON.
fn is_trace(path: &Path) -> bool {
    #[derive(Deserialize)]
    #[allow(dead_code, reason = "that they are there is what is asked")]
    struct About {
        layers: usize,
        experts: usize,
        slots: usize,
        expert_bytes: u64,
    }
    let Ok(file) = File::open(path) else { return false };
    let begin = BufReader::new(file.take(MAX_ABOUT));
    Deserializer::from_reader(begin).into_iter::<About>().next().is_some_and(|about| about.is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn replaces_a_trace_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let about = json!({"counts": [1.0], "layers": 1, "experts": 2, "slots": 1, "expert_bytes": 3});
        let first = format!("{about}\n");
        let written = || fs::read_to_string(&path).unwrap();
        for _ in 0..2 {
            Trace::new(&path, &about).unwrap().demand(0, 0, 1, &[(1, 1)], &[]);
            assert!(written().starts_with(&first) && written().lines().count() == 2);
        }
        fs::write(&path, "").unwrap();
        drop(Trace::new(&path, &about).unwrap());
        assert_eq!(written(), first);
        for other in ["{\"layers\": 1}", "\u{8}\0\0\0\0\0\0\0{\"__metadata__\":{}}", "text", &first[..first.len() - 4]]
        {
            fs::write(&path, other).unwrap();
            let message = Trace::new(&path, &about).unwrap_err().to_string();
            assert!(message.contains("is no trace; name another file"), "{message}");
            assert_eq!(written(), other);
        }
        let message = Trace::new(folder.path(), &about).unwrap_err().to_string();
        assert!(message.contains("is no trace"), "{message}");
    }
}
