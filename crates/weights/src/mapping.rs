//! Mapped files, and what happens when one shrinks while it is mapped.
//!
//! Touching a page that its file no longer has raises SIGBUS. The handler looks the address up among our mappings and
//! names the file before it ends the program; a SIGBUS from anywhere else does what it always did.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use bytes::Bytes;
use memmap2::Mmap;

use crate::Error;

/// A mapping that the handler knows. Entries are never freed; a mapping that ends gives its entry back.
struct Entry {
    start: AtomicUsize,
    /// 0 while the entry is free.
    len: AtomicUsize,
    /// Bytes of the path, and how many.
    path: AtomicPtr<u8>,
    path_len: AtomicUsize,
    next: AtomicPtr<Entry>,
}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());

/// A mapped file that is registered with the handler.
struct Mapping {
    map: Mmap,
    entry: &'static Entry,
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.entry.len.store(0, Ordering::Release);
    }
}

/// Maps a whole file, read-only.
///
/// # Errors
/// [`Error::Read`], and [`Error::File`] where there is nothing to map.
pub(crate) fn map(path: &Path) -> Result<(Bytes, File), Error> {
    let read = |cause| Error::Read { path: path.to_owned(), cause };
    let wrong = |problem: &str| Error::File { path: path.to_owned(), problem: problem.to_owned() };
    // Asked before opening: to open a pipe is to wait for its writer.
    if !fs::metadata(path).map_err(read)?.is_file() {
        return Err(wrong("is not a regular file"));
    }
    let file = File::open(path).map_err(read)?;
    if file.metadata().map_err(read)?.len() == 0 {
        return Err(wrong("is empty; download it again"));
    }
    // SAFETY: the map is only read. A file that others change gives other bytes, which no code here relies on for
    // memory safety; one that shrinks raises SIGBUS, which `handle` reports.
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    // Where the file system has large folios, pages that are read from now on come two megabytes at a time, and are mapped so.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    install();
    let entry = register(map.as_ptr() as usize, map.len(), path);
    Ok((Bytes::from_owner(Mapping { map, entry }), file))
}

/// Tells the system that nothing of a mapped file is in use.
pub(crate) fn forget(bytes: &Bytes) {
    const PAGE: usize = 4096;
    let start = bytes.as_ptr() as usize;
    // Memory of others' making, such as a part of the program, starts anywhere and is left alone.
    if cfg!(target_os = "linux") && start.is_multiple_of(PAGE) && is_ours(start, bytes.len()) {
        // SAFETY: the mapping is of a file and read-only: pages come back from the file when they are touched again.
        unsafe { libc::madvise(start as *mut c_void, bytes.len(), libc::MADV_DONTNEED) };
    }
}

/// Whether that is a mapping of ours.
fn is_ours(start: usize, len: usize) -> bool {
    let mut next = ENTRIES.load(Ordering::Acquire);
    // SAFETY: entries are never freed.
    while let Some(entry) = unsafe { next.as_ref() } {
        if entry.start.load(Ordering::Relaxed) == start && entry.len.load(Ordering::Acquire) == len {
            return true;
        }
        next = entry.next.load(Ordering::Relaxed);
    }
    false
}

fn register(start: usize, len: usize, path: &Path) -> &'static Entry {
    let name: &'static [u8] = Box::leak(path.as_os_str().as_bytes().to_vec().into_boxed_slice());
    let entry: &'static Entry = Box::leak(Box::new(Entry {
        start: AtomicUsize::new(start),
        len: AtomicUsize::new(len),
        path: AtomicPtr::new(name.as_ptr().cast_mut()),
        path_len: AtomicUsize::new(name.len()),
        next: AtomicPtr::new(std::ptr::null_mut()),
    }));
    let mut head = ENTRIES.load(Ordering::Acquire);
    loop {
        entry.next.store(head, Ordering::Relaxed);
        let new = std::ptr::from_ref(entry).cast_mut();
        match ENTRIES.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return entry,
            Err(now) => head = now,
        }
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid, and `handle` does only what a signal handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    });
}

/// Only async-signal-safe calls: atomics, write, signal, _exit.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo; entries are never freed.
    unsafe {
        let address = (*info).si_addr() as usize;
        let mut next = ENTRIES.load(Ordering::Acquire);
        while let Some(entry) = next.as_ref() {
            let (start, len) = (entry.start.load(Ordering::Relaxed), entry.len.load(Ordering::Acquire));
            if address >= start && address < start + len {
                let path = entry.path.load(Ordering::Relaxed);
                say(b"\nfathom: ".as_ptr(), 9);
                say(path, entry.path_len.load(Ordering::Relaxed));
                const WHAT: &[u8] = b": the file shrank or could not be read while it was in use. \
                    Restore or download it again, then start over.\n";
                say(WHAT.as_ptr(), WHAT.len());
                libc::_exit(2);
            }
            next = entry.next.load(Ordering::Relaxed);
        }
        // Not ours: let it happen again without us.
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// # Safety
/// `len` readable bytes.
unsafe fn say(bytes: *const u8, len: usize) {
    // SAFETY: by the caller's word.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.cast(), len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The child half of the test below; alone it does nothing.
    #[test]
    fn shrink_in_child() {
        let Ok(path) = std::env::var("FATHOM_TEST_SHRINK") else { return };
        let (bytes, _) = map(Path::new(&path)).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1).unwrap();
        println!("{}", bytes[bytes.len() - 1]);
        unreachable!("the byte is gone");
    }

    #[test]
    fn a_file_that_shrinks_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model-00007.safetensors");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "mapping::tests::shrink_in_child", "--nocapture"])
            .env("FATHOM_TEST_SHRINK", &path)
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(2), "{message}");
        assert!(message.contains("model-00007.safetensors: the file shrank"), "{message}");
    }
}
