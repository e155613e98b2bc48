//! The drive that a folder is on: file system, direct reads, speed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fathom_kernels::human;
use fathom_weights::synth::Random;

use super::mounts::{Mount, mount};
use super::{Finding, number, says};
use crate::drive::{existing, free_bytes};

/// Bytes of a read: about what an expert's matrix has.
const BLOCK: usize = 4 << 20;
/// Direct reads start and end at multiples of this, in the file and in memory.
const ALIGN: usize = 4096;
/// The file that is read, where the model has none: twice what drives keep in their own memory at least.
const SAMPLE: u64 = 256 << 20;
const READERS: usize = 8;
const LONGEST: Duration = Duration::from_millis(1500);
const MOST: u64 = 2 << 30;
const LOOKS: usize = 200;
/// Below this experts come slowly, bytes a second.
const SLOW: f64 = 1e9;
/// Discs take longer than this to turn to what is read, seconds.
const SEEK: f64 = 2e-3;
/// What V4-Flash reads of its experts for a token, where none is in memory: 6 in each of 43 layers.
const FLASH: f64 = 3.45e9;

/// What there is to say of the drive that `folder` is on. Speed is measured on the longest of `files`, or on one that is
/// written for it and removed.
pub fn drive(folder: &Path, files: &[PathBuf]) -> Vec<Finding> {
    let Ok(folder) = existing(folder).and_then(|folder| folder.canonicalize()) else { return Vec::new() };
    let place = mount(&says("/proc/self/mountinfo").unwrap_or_default(), &folder);
    let turns = place.as_ref().is_some_and(turns);
    let mut all: Vec<Finding> = [place.as_ref().map(file_system), room(&folder)].into_iter().flatten().collect();
    match longest(files) {
        Some((size, path)) => all.extend(measured(path, size, turns)),
        None => match Sample::write(&folder) {
            Ok((sample, _)) => all.extend(measured(&sample.0, SAMPLE, turns)),
            Err(e) => {
                let found = format!("not measured: cannot write a file of {} here: {e}", human(SAMPLE));
                all.push(Finding::good("drive speed", found));
            }
        },
    }
    all
}

/// How fast a drive is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Bytes a second that it gives to several large reads at once.
    pub read: f64,
    /// Bytes a second that it takes, where something was written to find that out.
    pub write: Option<f64>,
    /// Seconds of a small read.
    pub latency: f64,
}

/// Measures the drive that `folder` is on, on the longest of `files`, or on a file that is written for it and removed.
///
/// # Errors
/// What the system says.
pub fn pace(folder: &Path, files: &[PathBuf]) -> io::Result<Pace> {
    let of = |path: &Path, size: u64, write: Option<f64>| {
        let (direct, found) = rates(path, size);
        drop(direct);
        found.map(|(read, latency)| Pace { read, write, latency })
    };
    if let Some((size, path)) = longest(files) {
        return of(path, size, None);
    }
    let (sample, seconds) = Sample::write(&existing(folder)?)?;
    of(&sample.0, SAMPLE, Some(SAMPLE as f64 / seconds.max(1e-9)))
}

/// The longest of some files, if it is long enough to be read.
fn longest(files: &[PathBuf]) -> Option<(u64, &PathBuf)> {
    let sizes = files.iter().filter_map(|path| Some((fs::metadata(path).ok()?.len(), path)));
    sizes.max().filter(|(size, _)| *size >= SAMPLE)
}

fn file_system(place: &Mount) -> Finding {
    let found = format!("{} at {}", place.kind, place.at.display());
    match place.kind.as_str() {
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "virtiofs" | "ceph" | "lustre" => Finding::advice(
            "file system",
            found,
            "weights come over the network: experts are late, and a file that changes there ends the program here",
            "copy the model to a drive of this machine",
        ),
        kind if kind.starts_with("fuse") => Finding::advice(
            "file system",
            found,
            "each read goes by way of another program",
            "copy the model to a file system of the kernel's, such as ext4 or XFS",
        ),
        "tmpfs" | "ramfs" => Finding::advice(
            "file system",
            found,
            "the files are in memory that the model needs too, and gone after a restart",
            "copy the model to a drive",
        ),
        "overlay" => Finding::advice(
            "file system",
            found,
            "a container's own layers: reads go through two file systems",
            "mount a folder of the host into the container (docker: -v /models:/models)",
        ),
        _ => Finding::good("file system", found),
    }
}

/// Whether the system takes the drive for one with turning discs.
fn turns(place: &Mount) -> bool {
    let device = Path::new("/sys/dev/block").join(&place.device);
    // A partition has the queue of the drive that it is part of.
    let turns = number(device.join("queue/rotational")).or_else(|| number(device.join("../queue/rotational")));
    turns == Some(1)
}

fn room(folder: &Path) -> Option<Finding> {
    let free = free_bytes(folder).ok()?;
    Some(Finding::good("free room", format!("{} below {}", human(free), folder.display())))
}

/// A file that is there to be read.
struct Sample(PathBuf);

impl Sample {
    /// It, and the seconds that writing took.
    fn write(folder: &Path) -> io::Result<(Sample, f64)> {
        if free_bytes(folder)? < 4 * SAMPLE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = folder.join(format!(".fathom-doctor.{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let sample = Sample(path);
        // Random, so that nothing on the way can make it shorter.
        let mut random = Random::new(1);
        let mut block = vec![0; BLOCK];
        let mut seconds = 0.0;
        for _ in 0..SAMPLE / BLOCK as u64 {
            block.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = random.bits().to_le_bytes());
            let start = Instant::now();
            file.write_all(&block)?;
            seconds += start.elapsed().as_secs_f64();
        }
        let start = Instant::now();
        file.sync_all()?;
        Ok((sample, seconds + start.elapsed().as_secs_f64()))
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // If it cannot go, it is in nobody's way but for its room.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether direct reads work, then bytes a second and the seconds of a small read.
fn rates(path: &Path, size: u64) -> (io::Result<File>, io::Result<(f64, f64)>) {
    let tried = open(path, true).and_then(|file| read(&file, 0, ALIGN).map(|()| file));
    let direct = tried.is_ok();
    if !direct {
        // Written or read a moment ago, it would come from memory.
        let forget = |file: File| rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let _ = File::open(path).map(forget);
    }
    let found = speed(path, size, direct).and_then(|speed| Ok((speed, latency(path, size, direct)?)));
    (tried, found)
}

fn measured(path: &Path, size: u64, turns: bool) -> Vec<Finding> {
    let (direct, found) = rates(path, size);
    let mut all = vec![match &direct {
        Ok(_) => Finding::good("direct reads", "work"),
        Err(e) => Finding::advice(
            "direct reads",
            format!("do not work: {e}"),
            "what is read of the model pushes other things out of the page cache, and is copied once more",
            "put the model on ext4 or XFS",
        ),
    }];
    let direct = direct.is_ok();
    match found {
        Err(e) => all.push(Finding::wrong(
            "drive speed",
            format!("{}: {e}", path.display()),
            "the file cannot be read",
            "sudo dmesg | tail, and smartctl -a for the drive's own account",
        )),
        Ok((speed, seconds)) => {
            let found = format!(
                "{:.2} GB/s with {READERS} reads of 4 MiB at once, {:.0} µs for one of 4 KiB{}",
                speed / 1e9,
                seconds * 1e6,
                if direct { "" } else { " (by way of the page cache)" }
            );
            let cost = format!(
                "experts that are not in memory come at this speed: V4-Flash takes {:.1} s a token if none is",
                FLASH / speed
            );
            // Virtual drives often say that they turn; then they are as quick as what they stand for.
            if turns && seconds > SEEK {
                all.push(Finding::advice(
                    "drive",
                    "turning discs",
                    "every expert that is not in memory takes some 10 ms to be found",
                    "an NVMe drive for the model",
                ));
            }
            all.push(if speed < SLOW {
                let mend = "an NVMe drive for the model (PCIe 4 drives read 5 to 7 GB/s), or memory for all of it";
                Finding::advice("drive speed", found, cost, mend)
            } else {
                Finding::good("drive speed", found)
            });
        }
    }
    all
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if direct {
        options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    if direct {
        return Err(io::ErrorKind::Unsupported.into());
    }
    options.open(path)
}

thread_local! {
    /// Room for a block, wherever it starts.
    static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; BLOCK + ALIGN]);
}

/// Reads `bytes` at a position, both aligned.
fn read(file: &File, at: u64, bytes: usize) -> io::Result<()> {
    BUFFER.with_borrow_mut(|buffer| {
        let start = buffer.as_ptr().align_offset(ALIGN);
        file.read_exact_at(&mut buffer[start..start + bytes], at)
    })
}

/// Bytes a second of blocks from all over the file, several at once.
fn speed(path: &Path, size: u64, direct: bool) -> io::Result<f64> {
    let blocks = (size / BLOCK as u64).max(1);
    let (next, total, start) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let most = MOST.min(size) / BLOCK as u64;
    let reader = || -> io::Result<()> {
        let file = open(path, direct)?;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= most || start.elapsed() >= LONGEST {
                return Ok(());
            }
            // Each block once, in an order that is none: the step and the number of blocks have no common factor.
            let step = (blocks / 2 + 1..=blocks).find(|&s| common(s, blocks) == 1).unwrap_or(1);
            read(&file, i * step % blocks * BLOCK as u64, BLOCK)?;
            total.fetch_add(BLOCK as u64, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
        all.into_iter().try_for_each(|one| one.join().unwrap_or(Ok(())))
    })?;
    Ok(total.into_inner() as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

/// The greatest common divisor.
fn common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common(b, a % b) }
}

/// Seconds of a small read, the median.
fn latency(path: &Path, size: u64, direct: bool) -> io::Result<f64> {
    let file = open(path, direct)?;
    let mut random = Random::new(2);
    let pages = (size / ALIGN as u64) as usize;
    let one = |_| {
        let start = Instant::now();
        read(&file, (random.below(pages.max(1)) * ALIGN) as u64, ALIGN)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let mut all = (0..LOOKS).map(one).collect::<io::Result<Vec<f64>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all[LOOKS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems() {
        let place = |kind: &str| Mount { at: "/m".into(), kind: kind.into(), device: "8:1".into() };
        assert!(file_system(&place("ext4")).cost.is_none());
        for kind in ["nfs4", "fuse.sshfs", "overlay", "tmpfs"] {
            assert!(file_system(&place(kind)).mend.is_some(), "{kind}");
        }
    }

    #[test]
    fn a_file_is_measured_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, vec![7; 9 << 20]).unwrap();
        let all = measured(&path, 9 << 20, false);
        assert_eq!(all.iter().map(|f| f.name).collect::<Vec<_>>(), ["direct reads", "drive speed"]);
        assert!(all[1].found.contains("GB/s"), "{:?}", all[1]);
        let gone = measured(&folder.path().join("gone"), 9 << 20, true);
        assert!(gone[1].found.contains("gone"), "{gone:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
