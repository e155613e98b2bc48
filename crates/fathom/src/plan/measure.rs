//! This machine, measured, and remembered for those who cannot wait.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fathom_kernels::{Cpu, Error};
use serde::{Deserialize, Serialize};

use super::free_memory;
use super::machine::{Drive, Machine};
use crate::clock::now;
use crate::doctor::{pace, processor_name};

/// Bytes that are read to measure memory, where there is room for that.
pub const PROBE: u64 = 512 << 20;
/// How long a measurement is believed, in seconds.
const BELIEVED: u64 = 30 * 24 * 3600;
const FILE: &str = "machine.toml";

/// The most measurements of a kind that are kept: far more than there can be that are each the best in something.
const MOST: usize = 64;

/// A measurement, and of what.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measurement<T> {
    /// Seconds since 1970.
    measured: u64,
    /// The processor's name, or the number of the device that a folder is on.
    of: String,
    /// Bytes of memory that were read; none for a drive.
    probe: u64,
    found: T,
}

/// What the file has. Of each rate the best that was measured within a month counts: a machine under load is measured as slower
/// than it is, and never as faster.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Measurements {
    #[serde(default)]
    processors: Vec<Measurement<Machine>>,
    #[serde(default)]
    drives: Vec<Measurement<Drive>>,
}

/// Measures processor and memory, for about a second, reading `probe` bytes of memory again and again.
///
/// # Errors
/// There is no memory for that.
pub fn measure(cpu: &Cpu, probe: u64) -> Result<Machine, Error> {
    let peaks = cpu.peaks_of(probe as usize)?;
    let round = |x: f64| (x * 100.0).round() / 100.0;
    Ok(Machine {
        name: processor_name(),
        source: "measured".into(),
        isa: cpu.isa().to_owned(),
        threads: cpu.threads(),
        memory_gib: round(free_memory().unwrap_or(1 << 40) as f64 / (1u64 << 30) as f64).max(0.0625),
        read_gbps: round(peaks.read_bytes / 1e9),
        f32_gflops: round(peaks.f32_flops / 1e9),
        int8_tops: (peaks.int8_ops / 1e9).round() / 1e3,
        drive: None,
    })
}

/// Measures the drive that a folder is on, for two seconds, by the longest of `files` or by one that is written and removed.
///
/// # Errors
/// What the system says.
pub fn measure_drive(folder: &Path, files: &[PathBuf]) -> std::io::Result<Drive> {
    let found = pace(folder, files)?;
    let round = |x: f64| (x * 1000.0).round() / 1000.0;
    Ok(Drive {
        count: 1,
        read_gbps: round(found.read / 1e9).max(0.001),
        write_gbps: found.write.map(|write| round(write / 1e9).max(0.001)),
        latency_us: (found.latency * 1e6).round(),
        endurance_tb: None,
    })
}

/// The best of two measurements; what is no rate is the later one's.
fn best(earlier: Machine, later: Machine) -> Machine {
    Machine {
        read_gbps: earlier.read_gbps.max(later.read_gbps),
        f32_gflops: earlier.f32_gflops.max(later.f32_gflops),
        int8_tops: earlier.int8_tops.max(later.int8_tops),
        ..later
    }
}

fn best_drive(earlier: Drive, later: Drive) -> Drive {
    let write_gbps = match (earlier.write_gbps, later.write_gbps) {
        (Some(earlier), Some(later)) => Some(earlier.max(later)),
        (earlier, later) => later.or(earlier),
    };
    let read_gbps = earlier.read_gbps.max(later.read_gbps);
    Drive { read_gbps, write_gbps, latency_us: earlier.latency_us.min(later.latency_us), ..later }
}

impl<T: Clone + PartialEq> Measurement<T> {
    fn is_believed(&self) -> bool {
        now().saturating_sub(self.measured) < BELIEVED
    }

    /// Adds it to others, of which those go that are too old, or better in nothing. `is_like` says whether two can be compared.
    fn add_to(self, all: &mut Vec<Self>, is_like: impl Fn(&T, &T) -> bool, best: impl Fn(T, T) -> T) {
        all.retain(|old| {
            let replaced = old.of == self.of
                && old.probe <= self.probe
                && is_like(&old.found, &self.found)
                && best(old.found.clone(), self.found.clone()) == self.found;
            old.is_believed() && !replaced
        });
        all.push(self);
        all.drain(..all.len().saturating_sub(MOST));
    }
}

impl Measurements {
    /// Those of a folder; none where there is no file, or another one.
    fn read(folder: &Path) -> Measurements {
        fs::read_to_string(folder.join(FILE)).ok().and_then(|text| toml::from_str(&text).ok()).unwrap_or_default()
    }

    /// That they cannot be kept is nobody's trouble.
    fn write(&self, folder: &Path) {
        let Ok(text) = toml::to_string(self) else { return };
        let part = folder.join(format!("{FILE}.{}", std::process::id()));
        let _ = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&part, text))
            .and_then(|()| fs::rename(&part, folder.join(FILE)));
    }
}

fn is_like(a: &Machine, b: &Machine) -> bool {
    (a.threads, &a.isa) == (b.threads, &b.isa)
}

/// Remembers in a folder what was measured by reading `probe` bytes.
pub fn remember(folder: &Path, machine: &Machine, probe: u64) {
    let mut all = Measurements::read(folder);
    let found = Machine { drive: None, ..machine.clone() };
    Measurement { measured: now(), of: processor_name(), probe, found }.add_to(&mut all.processors, is_like, best);
    all.write(folder);
}

/// Remembers in a folder what was measured of the drive that `place` is on.
pub fn remember_drive(folder: &Path, place: &Path, drive: Drive) {
    let Some(of) = device(place) else { return };
    let mut all = Measurements::read(folder);
    Measurement { measured: now(), of, probe: 0, found: drive }.add_to(&mut all.drives, |_, _| true, best_drive);
    all.write(folder);
}

/// Forgets all that was measured.
pub fn forget(folder: &Path) {
    let _ = fs::remove_file(folder.join(FILE));
}

/// The best that was measured not long ago of this processor with as many threads and the same instructions, by reading
/// `probe` bytes at least. Memory's rate is that of the longest probe: a shorter one may have been read from caches.
pub fn remembered(folder: &Path, cpu: &Cpu, probe: u64) -> Option<Machine> {
    let processor = processor_name();
    let fits = |m: &Measurement<Machine>| {
        let same = m.of == processor && m.found.threads == cpu.threads() && m.found.isa == cpu.isa();
        m.is_believed() && same && m.probe >= probe && Machine::parse(&m.found.describe()).is_ok()
    };
    let all: Vec<_> = Measurements::read(folder).processors.into_iter().filter(fits).collect();
    let longest = all.iter().map(|m| m.probe).max()?;
    let rates = all.into_iter().map(|m| {
        let read_gbps = if m.probe == longest { m.found.read_gbps } else { 0.0 };
        Machine { read_gbps, ..m.found }
    });
    rates.reduce(best)
}

/// The best that was measured not long ago of the drive that `place` is on.
pub fn remembered_drive(folder: &Path, place: &Path) -> Option<Drive> {
    let of = device(place)?;
    let is_right = |drive: &Drive| drive.check().is_ok();
    let all = Measurements::read(folder).drives.into_iter();
    all.filter(|m| m.is_believed() && m.of == of && is_right(&m.found)).map(|m| m.found).reduce(best_drive)
}

/// The number of the device that a folder is on.
fn device(place: &Path) -> Option<String> {
    Some(fs::metadata(place).ok()?.dev().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_kernels::CpuOptions;

    #[test]
    fn what_was_measured_is_remembered_for_the_same_machine() {
        let folder = tempfile::tempdir().unwrap();
        let cpu = |threads| Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
        let one = cpu(1);
        assert_eq!(remembered(folder.path(), &one, 1 << 20), None);
        // A probe may have any length.
        let machine = measure(&one, (1 << 20) + 1).unwrap();
        assert!(machine.read_gbps > 0.1 && machine.f32_gflops > 0.1 && machine.int8_tops > 0.0001, "{machine:?}");
        remember(folder.path(), &machine, 1 << 20);
        assert_eq!(remembered(folder.path(), &one, 1 << 20), Some(machine));
        assert_eq!(remembered(folder.path(), &one, 1 << 21), None);
        assert_eq!(remembered(folder.path(), &cpu(2), 1 << 20), None);
        forget(folder.path());
        assert_eq!(remembered(folder.path(), &one, 1 << 20), None);
        fs::write(folder.path().join(FILE), "measured = 1").unwrap();
        assert_eq!(remembered(folder.path(), &one, 1 << 20), None);
    }

    #[test]
    fn the_best_of_each_rate_counts_for_a_month() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let one = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let machine = |read_gbps, f32_gflops, int8_tops| Machine {
            name: "this".into(),
            source: "measured".into(),
            isa: one.isa().to_owned(),
            threads: 1,
            memory_gib: 1.0,
            read_gbps,
            f32_gflops,
            int8_tops,
            drive: None,
        };
        let rates = |probe| remembered(folder, &one, probe).map(|m| (m.read_gbps, m.f32_gflops, m.int8_tops));
        let kept = || Measurements::read(folder).processors.len();
        remember(folder, &machine(10.0, 100.0, 1.0), 100);
        // Slower, under load; then faster in one thing; then in all.
        remember(folder, &machine(5.0, 50.0, 0.5), 100);
        assert_eq!((rates(100), kept()), (Some((10.0, 100.0, 1.0)), 2));
        remember(folder, &machine(8.0, 120.0, 0.7), 100);
        assert_eq!((rates(100), kept()), (Some((10.0, 120.0, 1.0)), 2));
        remember(folder, &Machine { threads: 2, ..machine(99.0, 999.0, 9.0) }, 100);
        assert_eq!(rates(100), Some((10.0, 120.0, 1.0)));
        // What a short probe read may have been in caches.
        remember(folder, &machine(90.0, 90.0, 0.9), 10);
        assert_eq!(rates(1), Some((10.0, 120.0, 1.0)));
        remember(folder, &machine(11.0, 130.0, 1.1), 100);
        assert_eq!((rates(100), kept()), (Some((11.0, 130.0, 1.1)), 3));
        // After a month what was measured since then counts.
        let mut all = Measurements::read(folder);
        all.processors.iter_mut().for_each(|m| m.measured = now() - BELIEVED - 1);
        all.write(folder);
        assert_eq!(rates(1), None);
        remember(folder, &machine(7.0, 70.0, 0.7), 100);
        assert_eq!((rates(100), kept()), (Some((7.0, 70.0, 0.7)), 1));

        let drive =
            |read_gbps, latency_us| Drive { count: 1, read_gbps, write_gbps: None, latency_us, endurance_tb: None };
        assert_eq!(remembered_drive(folder, folder), None);
        remember_drive(folder, folder, drive(2.0, 90.0));
        remember_drive(folder, folder, Drive { write_gbps: Some(0.5), ..drive(1.0, 80.0) });
        assert_eq!(remembered_drive(folder, folder), Some(Drive { write_gbps: Some(0.5), ..drive(2.0, 80.0) }));
        assert_eq!(remembered_drive(folder, Path::new("/proc")), None, "another device");
        assert_eq!(rates(100), Some((7.0, 70.0, 0.7)));
    }
}
