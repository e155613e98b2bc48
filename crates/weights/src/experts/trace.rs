//! What was demanded, a JSON object a line, for the simulator.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::Error;

/// A trace being written.
#[derive(Debug)]
pub(super) struct Trace(BufWriter<File>);

impl Trace {
    /// Starts with what a replay must know of the model.
    pub(super) fn new(path: &Path, about: &serde_json::Value) -> Result<Trace, Error> {
        let failed = |cause| Error::Read { path: path.to_owned(), cause };
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
