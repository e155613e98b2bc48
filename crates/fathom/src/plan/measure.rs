//! This machine, measured, and remembered for those who cannot wait.

use std::fs;
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

/// A measurement, and of what.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Seconds since 1970.
    measured: u64,
    processor: String,
    probe: u64,
    machine: Machine,
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

/// Remembers a measurement in a folder. That it cannot be kept is nobody's trouble.
pub fn remember(folder: &Path, machine: &Machine, probe: u64) {
    let all = Remembered { measured: now(), processor: processor_name(), probe, machine: machine.clone() };
    let Ok(text) = toml::to_string(&all) else { return };
    let part = folder.join(format!("{FILE}.{}", std::process::id()));
    let _ = fs::create_dir_all(folder)
        .and_then(|()| fs::write(&part, text))
        .and_then(|()| fs::rename(&part, folder.join(FILE)));
}

/// What was measured not long ago of this processor with as many threads and the same instructions, by reading `probe` bytes
/// at least.
pub fn remembered(folder: &Path, cpu: &Cpu, probe: u64) -> Option<Machine> {
    let text = fs::read_to_string(folder.join(FILE)).ok()?;
    let found: Remembered = toml::from_str(&text).ok()?;
    let fresh = now().saturating_sub(found.measured) < BELIEVED && found.probe >= probe;
    let same = found.processor == processor_name();
    let machine = Machine::parse(&found.machine.describe()).ok()?;
    (fresh && same && machine.threads == cpu.threads() && machine.isa == cpu.isa()).then_some(machine)
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
        fs::write(folder.path().join(FILE), "measured = 1").unwrap();
        assert_eq!(remembered(folder.path(), &one, 1 << 20), None);
    }
}
