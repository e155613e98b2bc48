//! Joules, where the machine tells: Intel's and AMD's running average power limit counters (Linux).

use std::fs;
use std::path::{Path, PathBuf};

/// What the processor's packages have used since it was opened.
#[derive(Debug)]
pub struct Energy {
    packages: Vec<Package>,
}

#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// The counter starts over at this.
    range: u64,
    last: u64,
    /// Microjoules.
    used: u64,
}

impl Energy {
    /// The counters of this machine.
    ///
    /// # Errors
    /// Why it does not tell.
    pub fn open() -> Result<Energy, String> {
        Energy::open_at(Path::new("/sys/class/powercap"))
    }

    fn open_at(folder: &Path) -> Result<Energy, String> {
        let (mut packages, mut closed) = (Vec::new(), None);
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // intel-rapl:0 is a package; intel-rapl:0:0 a part of it, which is in its number.
            if !name.starts_with("intel-rapl:") || name.matches(':').count() != 1 {
                continue;
            }
            let is_package = fs::read_to_string(entry.path().join("name")).is_ok_and(|n| n.starts_with("package"));
            let counter = entry.path().join("energy_uj");
            match (is_package, number(&counter)) {
                (false, _) => {}
                (true, Ok(last)) => {
                    let range = number(&entry.path().join("max_energy_range_uj")).unwrap_or(u64::MAX);
                    packages.push(Package { counter, range, last, used: 0 });
                }
                (true, Err(e)) => closed = Some(format!("{}: {e}", counter.display())),
            }
        }
        match closed {
            Some(why) => Err(format!("the machine counts joules, but {why}")),
            None if packages.is_empty() => {
                Err("the machine does not count joules (no package in /sys/class/powercap)".into())
            }
            None => Ok(Energy { packages }),
        }
    }

    /// Joules since it was opened. To be asked more often than a counter starts over, which takes minutes.
    pub fn joules(&mut self) -> f64 {
        for package in &mut self.packages {
            if let Ok(now) = number(&package.counter) {
                let wrapped = if now < package.last { package.range } else { 0 };
                package.used += (now + wrapped).saturating_sub(package.last);
                package.last = now;
            }
        }
        self.packages.iter().map(|package| package.used).sum::<u64>() as f64 / 1e6
    }
}

fn number(path: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    text.trim().parse().map_err(|_| "is no number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_and_start_over() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Energy::open_at(folder.path()).unwrap_err().contains("does not count joules"));
        let write = |zone: &str, file: &str, text: &str| {
            fs::create_dir_all(folder.path().join(zone)).unwrap();
            fs::write(folder.path().join(zone).join(file), text).unwrap();
        };
        for (zone, name) in
            [("intel-rapl:0", "package-0\n"), ("intel-rapl:1", "package-1\n"), ("intel-rapl:0:0", "core\n")]
        {
            write(zone, "name", name);
            write(zone, "energy_uj", "5000000\n");
            write(zone, "max_energy_range_uj", "9000000\n");
        }
        let mut energy = Energy::open_at(folder.path()).unwrap();
        write("intel-rapl:0", "energy_uj", "7000000");
        write("intel-rapl:0:0", "energy_uj", "6000000");
        assert_eq!(energy.joules(), 2.0);
        write("intel-rapl:1", "energy_uj", "1000000");
        assert_eq!(energy.joules(), 7.0);
        write("intel-rapl:0", "energy_uj", "x");
        assert!(Energy::open_at(folder.path()).unwrap_err().contains("energy_uj"));
    }
}
