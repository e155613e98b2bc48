//! A file of answers, one line of JSON each, that a second run goes on from.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::bench::Cell;

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 30;

/// How a line begins.
const BEGIN: &str = "{\"key\":";

/// Answers that there are, and a file that takes more.
#[derive(Debug)]
pub struct Kept {
    cells: HashMap<String, Cell>,
    file: Option<(PathBuf, File)>,
}

impl Kept {
    /// None, and none is kept.
    pub fn nowhere() -> Kept {
        Kept { cells: HashMap::new(), file: None }
    }

    /// Those of a file, which is made where it is not there. A last line that was cut short is asked again.
    ///
    /// # Errors
    /// The file cannot be read and written, or is another one; it is named.
    pub fn open(path: &Path) -> Result<Kept, String> {
        let name = path.display();
        let failed = |e: std::io::Error| format!("cannot keep answers in {name}: {e}");
        let mut file = File::options().create(true).append(true).open(path).map_err(failed)?;
        // As long as this is there; where a file system has no locks, without.
        match file.try_lock() {
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => return Err(format!("{name}: another fathom needle is writing it")),
        }
        if file.metadata().map_err(failed)?.len() > LARGEST {
            return Err(format!("{name}: too large for a file of answers"));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let mut cells = HashMap::new();
        let (mut whole, mut last) = (0, true);
        for (i, line) in text.split_inclusive('\n').enumerate() {
            last = line.ends_with('\n');
            match serde_json::from_str::<Cell>(line.trim()) {
                _ if line.trim().is_empty() => {}
                Ok(cell) => drop(cells.insert(cell.key.clone(), cell)),
                // Somebody was ended while it was written.
                Err(_) if !last && line.starts_with(BEGIN) => break,
                Err(e) => {
                    return Err(format!("{name}: line {}: no answer of fathom needle: {e}; name another file", i + 1));
                }
            }
            whole += line.len() as u64;
        }
        if whole < text.len() as u64 {
            file.set_len(whole).map_err(failed)?;
        } else if !last {
            file.write_all(b"\n").map_err(failed)?;
        }
        Ok(Kept { cells, file: Some((path.to_owned(), file)) })
    }

    /// The answer to what a key stands for.
    pub fn get(&self, key: &str) -> Option<&Cell> {
        self.cells.get(key)
    }

    /// One more.
    ///
    /// # Errors
    /// It cannot be written; the file is named.
    pub fn add(&mut self, cell: &Cell) -> Result<(), String> {
        if let Some((path, file)) = &mut self.file {
            let mut line = serde_json::to_string(cell).map_err(|e| e.to_string())?;
            line.push('\n');
            file.write_all(line.as_bytes()).map_err(|e| format!("cannot keep answers in {}: {e}", path.display()))?;
        }
        self.cells.insert(cell.key.clone(), cell.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(key: &str) -> Cell {
        Cell {
            key: key.into(),
            target: "t".into(),
            model: "m".into(),
            kind: "single".into(),
            length: 1000,
            depth: 50,
            seed: 1,
            prompt_tokens: Some(990),
            expected: vec!["12345".into()],
            found: 1,
            right: true,
            answer: "12345\n".into(),
            first: Some(0.5),
            seconds: 1.0,
        }
    }

    #[test]
    fn what_is_there_is_not_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers");
        let mut kept = Kept::open(&path).unwrap();
        kept.add(&cell("a")).unwrap();
        kept.add(&cell("b")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        // Killed while it wrote the second.
        fs::write(&path, &text[..text.len() - 9]).unwrap();
        assert!(Kept::open(&path).unwrap_err().contains("another fathom needle"));
        drop(kept);
        let mut kept = Kept::open(&path).unwrap();
        assert_eq!((kept.get("a"), kept.get("b")), (Some(&cell("a")), None));
        kept.add(&cell("b")).unwrap();
        drop(kept);
        let again = Kept::open(&path).unwrap();
        assert_eq!((again.get("a"), again.get("b")), (Some(&cell("a")), Some(&cell("b"))));
    }

    #[test]
    fn other_files_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        for text in ["hello", "hello\nworld\n", "{\"key\":1}\n"] {
            fs::write(&path, text).unwrap();
            let message = Kept::open(&path).unwrap_err();
            assert!(message.contains("notes: line 1"), "{message}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert!(Kept::open(folder.path()).unwrap_err().contains("cannot keep answers"));
    }
}
