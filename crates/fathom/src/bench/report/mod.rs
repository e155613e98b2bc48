//! A report as files of a folder: a page, `report.json`, and tables as CSV. Each is written whole or not at all, and again after
//! every part of a run, so that what there is stays.

mod csv;
mod frontiers;
mod needle;
mod page;
mod scale;
mod servers;
mod svg;

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

pub use needle::{axes, groups, shares};

use super::Report;
use crate::ui::say;

/// Where a report goes.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A folder, made where it is not there, that can be written to.
    ///
    /// # Errors
    /// It cannot; the folder is named.
    pub fn open(path: &Path) -> Result<Folder, String> {
        let failed = |e: std::io::Error| format!("cannot write a report to {}: {e}", path.display());
        fs::create_dir_all(path).map_err(failed)?;
        let trial = partial(&path.join("report.json"));
        File::create(&trial).map_err(failed)?;
        fs::remove_file(&trial).map_err(failed)?;
        Ok(Folder { path: path.to_owned() })
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes all files.
    ///
    /// # Errors
    /// One cannot be written; it is named. The others stay what they were.
    pub fn write(&self, report: &Report) -> Result<(), String> {
        let json = serde_json::to_string(report).map_err(|e| e.to_string())?;
        write_whole(&self.file("report.json"), json.as_bytes())?;
        for (name, table) in csv::tables(report) {
            write_whole(&self.file(name), table.as_bytes())?;
        }
        write_whole(&self.file("index.html"), page::page(report).as_bytes())
    }
}

/// Writes the last of a report, whole or with the reason why it is not, and says where it is.
///
/// # Errors
/// That reason, and where the report is; or it cannot be written.
pub fn end(
    folder: Option<&Folder>,
    mut report: Report,
    outcome: Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let Some(folder) = folder else { return outcome };
    report.partial = outcome.as_ref().err().map(ToString::to_string);
    folder.write(&report)?;
    let page = folder.file("index.html");
    match outcome {
        Ok(()) => {
            say!("{}", page.display());
            Ok(())
        }
        Err(why) => Err(format!("{why}; what was measured is in {}, marked as not whole", page.display()).into()),
    }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// It cannot be written; it is named.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let partial = partial(path);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&partial, path)
    };
    write().map_err(|e| {
        // What there is of it is of no use.
        let _ = fs::remove_file(&partial);
        format!("cannot write {}: {e}", path.display())
    })
}

/// The name of a file that grows.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_cannot_be_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        for path in [file.join("below"), file.clone(), "/proc/none".into()] {
            assert!(Folder::open(&path).unwrap_err().contains("cannot write a report to"), "{path:?}");
        }
        let new = folder.path().join("a/b");
        Folder::open(&new).unwrap();
        assert_eq!(fs::read_dir(new).unwrap().count(), 0);
    }

    #[test]
    fn files_are_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write_whole(&path, b"before").unwrap();
        write_whole(&path, b"after").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert!(write_whole(&folder.path().join("none/x"), b"").unwrap_err().contains("none/x"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
