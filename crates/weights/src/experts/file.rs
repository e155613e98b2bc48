//! Shards opened to read experts from, past the page cache where the file system lets us.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fathom_kernels::{FRAME_ALIGN, Frame};

use super::place::Run;
use crate::Error;
use crate::fingerprint::{FileId, Watch};

/// A shard that stays open: whatever happens to its name, the bytes are those of the file that was opened.
#[derive(Debug)]
pub(crate) struct ShardFile {
    pub path: PathBuf,
    pub file: File,
    /// Why reads go through the page cache, if they do.
    pub buffered: Option<String>,
    /// What the file was when the checkpoint was opened, but for its name.
    watch: Watch,
}

impl ShardFile {
    /// Opens a shard again. `known` is what it was when its header was read.
    pub(crate) fn open(path: &Path, known: FileId, direct: bool, probe: Option<&mut Frame>) -> Result<Self, Error> {
        let (file, buffered) = match direct {
            true => open_direct(path, probe)?,
            false => (open_buffered(path)?, Some("direct I/O was not asked for".to_owned())),
        };
        let shard = ShardFile { path: path.to_owned(), file, buffered, watch: Watch::new(known) };
        if FileId::of(&shard.file).map(|id| id.file()) != Some(known.file()) {
            let problem = "it is another file than the one whose header was read".to_owned();
            return Err(Error::Changed { path: path.to_owned(), offset: 0, problem });
        }
        shard.check(0)?;
        Ok(shard)
    }

    /// Which drive it is on.
    pub(crate) fn drive(&self) -> i128 {
        self.watch.drive()
    }

    /// Reads a run; for the pool.
    pub(crate) fn read(&self, run: &Run, into: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < run.need {
            match self.file.read_at(&mut into[run.at + done..run.at + run.len], run.from + done as u64) {
                Ok(0) => return Err(self.ended(run.from + done as u64)),
                // Direct reads go on at a multiple of what they must be aligned to.
                Ok(n) if done + n < run.need && self.buffered.is_none() && !n.is_multiple_of(FRAME_ALIGN) => {
                    return Err(self.ended(run.from + (done + n) as u64));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(run.from + done as u64, &e.to_string())),
            }
        }
        Ok(())
    }

    pub(crate) fn failed(&self, offset: u64, cause: &str) -> Error {
        let cause = format!("{cause}; this request ends, later ones try again");
        Error::ReadAt { path: self.path.clone(), offset, cause }
    }

    /// The file has no more bytes there: it was cut short, or the read was.
    pub(crate) fn ended(&self, offset: u64) -> Error {
        self.check(offset).err().unwrap_or_else(|| self.failed(offset, "the file gave fewer bytes than it has"))
    }

    /// Whether what was read came out of the file that was opened, unchanged.
    pub(crate) fn check(&self, offset: u64) -> Result<(), Error> {
        self.watch.check(&self.file, &self.path, offset)
    }
}

fn open_buffered(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|cause| Error::Read { path: path.to_owned(), cause })
}

/// For direct I/O, or else with the reason why not.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path, probe: Option<&mut Frame>) -> Result<(File, Option<String>), Error> {
    let opened = File::options().read(true).custom_flags(libc::O_DIRECT).open(path);
    let tried = opened.and_then(|file| {
        if let Some(frame) = probe {
            file.read_at(&mut frame.as_mut()[..FRAME_ALIGN], 0)?;
        }
        Ok(file)
    });
    match tried {
        Ok(file) => Ok((file, None)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) || e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Ok((open_buffered(path)?, Some(format!("{} refuses direct I/O ({e})", file_system(path)))))
        }
        Err(cause) => Err(Error::Read { path: path.to_owned(), cause }),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_direct(path: &Path, _probe: Option<&mut Frame>) -> Result<(File, Option<String>), Error> {
    Ok((open_buffered(path)?, Some("direct I/O is used on Linux only".to_owned())))
}

/// What the file system is called, where it is one that is known to refuse.
#[cfg(target_os = "linux")]
fn file_system(path: &Path) -> &'static str {
    match rustix::fs::statfs(path).map(|fs| fs.f_type) {
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x6969) => "NFS",
        Ok(0x6573_5546) => "FUSE",
        Ok(0x0102_1997) => "9p",
        Ok(0x794c_7630) => "overlayfs",
        _ => "the file system",
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::experts::reader::ways;

    /// Between two openings of a shard anything may happen to it; what it was is said.
    #[test]
    fn a_shard_that_changed_since_its_header_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("shard"), folder.path().join("other"));
        std::fs::write(&path, [1; 9]).unwrap();
        let known = FileId::of(&File::open(&path).unwrap()).unwrap();
        let open = || ShardFile::open(&path, known, false, None).map_err(|e| e.to_string());
        open().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::hard_link(&path, &other).unwrap();
        assert!(open().unwrap_err().contains("its change time moved"));
        std::fs::write(&path, [2; 9]).unwrap();
        assert!(open().unwrap_err().contains("it was written to"));
        std::fs::write(&path, [1; 8]).unwrap();
        assert!(open().unwrap_err().contains("it has 8 bytes, not 9"));
        std::fs::write(&other, [1; 9]).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::copy(&other, &path).unwrap();
        assert!(open().unwrap_err().contains("it is another file"));
    }

    /// Shards may be on several file systems, of which one refuses.
    #[test]
    fn what_is_read_by_way_of_the_page_cache_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = ["a", "b"].map(|name| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            let known = FileId::of(&File::open(&path).unwrap()).unwrap();
            ShardFile::open(&path, known, false, None).unwrap()
        });
        assert_eq!(ways(&files), "the page cache: direct I/O was not asked for");
        files[0].buffered = None;
        let text = ways(&files);
        assert!(text.starts_with("direct I/O, but the page cache for 1 of 2 files") && text.contains("/b: "), "{text}");
        files[1].buffered = None;
        assert_eq!(ways(&files), "direct I/O");
    }

    /// The kernel's own files refuse direct I/O, as tmpfs and network file systems may.
    #[test]
    fn where_direct_io_is_refused_the_page_cache_is_used_and_says_why() {
        let (file, why) = open_direct(Path::new("/proc/version"), None).unwrap();
        assert!(file.read_at(&mut [0; 8], 0).is_ok());
        let why = why.unwrap();
        assert!(why.contains("the file system refuses direct I/O (Invalid argument"), "{why}");
        assert_eq!(file_system(Path::new("/dev/shm")), "tmpfs");
        let error = open_direct(Path::new("/no/such/file"), None).unwrap_err().to_string();
        assert!(error.contains("cannot read /no/such/file"), "{error}");
    }
}
