//! A file on its way, and how far each of its segments has come.
//!
//! `KEY.part` has the bytes at their places, `KEY.map` how many bytes of each segment are there: a magic number, the size, and
//! four bytes for each segment. Bytes are written before they are counted, so that a killed process has not counted what it
//! has not written. After a power failure that may not hold; then the file's hash is wrong, and it is fetched again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a segment, which is what a request asks for.
pub(super) const SEGMENT: u64 = 8 << 20;
const MAGIC: &[u8; 8] = b"fathompl";

/// The longest file that is fetched, in bytes: its map has four megabytes.
const MOST: u64 = 8 << 40;

/// Where a file is while it is on its way.
pub(super) fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.part"))
}

pub(super) struct Partial {
    pub path: PathBuf,
    map_path: PathBuf,
    data: File,
    map: File,
    size: u64,
    done: Vec<AtomicU32>,
}

impl Partial {
    /// Opens what is there for a key, or starts anew.
    pub fn open(folder: &Path, key: &str, size: u64) -> io::Result<Partial> {
        if size > MOST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("a file of {size} bytes is too large")));
        }
        let path = path(folder, key);
        let map_path = folder.join(format!("{key}.map"));
        let fresh = !path.is_file();
        let open = |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let (data, map) = (open(&path)?, open(&map_path)?);
        let segments = size.div_ceil(SEGMENT) as usize;
        let mut partial = Partial { path, map_path, data, map, size, done: Vec::new() };
        partial.done = match partial.read_map(segments) {
            Some(done) if !fresh => done.into_iter().map(AtomicU32::new).collect(),
            _ => (0..segments).map(|_| AtomicU32::new(0)).collect(),
        };
        if fresh || partial.data.metadata()?.len() != size {
            partial.data.set_len(size)?;
        }
        partial.write_map()?;
        Ok(partial)
    }

    fn read_map(&mut self, segments: usize) -> Option<Vec<u32>> {
        let mut bytes = Vec::new();
        (&self.map).take(16 + 4 * segments as u64 + 1).read_to_end(&mut bytes).ok()?;
        let (head, rest) = bytes.split_first_chunk::<16>()?;
        if head[..8] != *MAGIC || head[8..] != self.size.to_le_bytes() || rest.len() != 4 * segments {
            return None;
        }
        let all: Vec<u32> = rest.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        all.iter().enumerate().all(|(i, &n)| u64::from(n) <= self.length(i)).then_some(all)
    }

    fn write_map(&self) -> io::Result<()> {
        let mut bytes = [&MAGIC[..], &self.size.to_le_bytes()].concat();
        bytes.extend(self.done.iter().flat_map(|n| n.load(Ordering::Relaxed).to_le_bytes()));
        self.map.set_len(bytes.len() as u64)?;
        self.map.write_all_at(&bytes, 0)
    }

    pub fn segments(&self) -> usize {
        self.done.len()
    }

    /// Bytes of a segment.
    pub fn length(&self, segment: usize) -> u64 {
        let start = segment as u64 * SEGMENT;
        self.size.min(start + SEGMENT) - start
    }

    /// Bytes of a segment that are there.
    pub fn done(&self, segment: usize) -> u64 {
        u64::from(self.done[segment].load(Ordering::Relaxed))
    }

    /// Bytes that are there.
    pub fn total(&self) -> u64 {
        (0..self.segments()).map(|segment| self.done(segment)).sum()
    }

    /// Puts bytes at a position and counts those that were not there. They must follow what their segments have, or repeat it.
    pub fn put(&self, mut at: u64, mut bytes: &[u8]) -> io::Result<u64> {
        let mut new = 0;
        while !bytes.is_empty() {
            let segment = (at / SEGMENT) as usize;
            let within = at % SEGMENT;
            let (now, rest) = bytes.split_at(bytes.len().min((self.length(segment) - within) as usize));
            self.data.write_all_at(now, at)?;
            let (before, after) = (self.done(segment), within + now.len() as u64);
            if after > before {
                self.map.write_all_at(&(after as u32).to_le_bytes(), 16 + 4 * segment as u64)?;
                self.done[segment].store(after as u32, Ordering::Relaxed);
                new += after - before;
            }
            at += now.len() as u64;
            bytes = rest;
        }
        Ok(new)
    }

    /// Takes all of it from a file of the same size.
    pub fn fill(&self, from: &Path) -> io::Result<()> {
        let (mut from, mut to) = (File::open(from)?, &self.data);
        io::copy(&mut from, &mut to)?;
        for segment in 0..self.segments() {
            self.done[segment].store(self.length(segment) as u32, Ordering::Relaxed);
        }
        self.write_map()
    }

    /// Nothing of it is there any more.
    pub fn clear(&self) -> io::Result<()> {
        self.done.iter().for_each(|n| n.store(0, Ordering::Relaxed));
        self.write_map()
    }

    /// To the drive, and to its name.
    pub fn finish(&self, name: &Path) -> io::Result<()> {
        self.data.sync_all()?;
        std::fs::rename(&self.path, name)?;
        std::fs::remove_file(&self.map_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let size = 2 * SEGMENT + 5;
        let open = || Partial::open(folder.path(), "k", size).unwrap();
        let partial = open();
        assert_eq!((partial.segments(), partial.length(2), partial.total()), (3, 5, 0));
        assert_eq!(partial.put(0, &[1; 100]).unwrap(), 100);
        // Over a border, and what was there counts once.
        assert_eq!(partial.put(2 * SEGMENT, b"abc").unwrap(), 3);
        assert_eq!(partial.put(90, &[2; 20]).unwrap(), 10);
        drop(partial);
        let partial = open();
        assert_eq!((partial.done(0), partial.done(1), partial.done(2)), (110, 0, 3));

        // Another size, a map that is damaged, a file that is gone: from the start.
        assert_eq!(Partial::open(folder.path(), "k", size + 1).unwrap().total(), 0);
        let partial = open();
        partial.put(0, &[1; 7]).unwrap();
        let map = folder.path().join("k.map");
        for damage in [&b""[..], b"fathompl", &[0xff; 28]] {
            std::fs::write(&map, damage).unwrap();
            assert_eq!(open().total(), 0);
        }
        open().put(0, &[1; 7]).unwrap();
        let mut bytes = std::fs::read(&map).unwrap();
        bytes[27] = 0xff;
        std::fs::write(&map, bytes).unwrap();
        assert_eq!(open().total(), 0, "more than a segment has");
        open().put(0, &[1; 7]).unwrap();
        std::fs::remove_file(folder.path().join("k.part")).unwrap();
        assert_eq!(open().total(), 0);
    }
}
