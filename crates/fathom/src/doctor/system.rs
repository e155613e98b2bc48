//! The operating system: clock, files, asynchronous reads.

use super::{Finding, says};

const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0";
/// Shards, connections and what else is open.
const FILES: u64 = 1024;

/// What there is to say of the system.
pub fn system() -> Vec<Finding> {
    [clock(), Some(files()), io_uring()].into_iter().flatten().collect()
}

fn clock() -> Option<Finding> {
    let source = says(format!("{CLOCK}/current_clocksource"))?;
    let others = says(format!("{CLOCK}/available_clocksource")).unwrap_or_default();
    Some(match source.as_str() {
        "tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page" => Finding::good("clock", source),
        _ => {
            let cost = "every look at the clock is a call into the kernel, a microsecond or so";
            let mend = if others.split(' ').any(|other| other == "tsc") {
                format!("echo tsc | sudo tee {CLOCK}/current_clocksource")
            } else {
                "boot with tsc=reliable, if the machine's time-stamp counters are in step".to_owned()
            };
            Finding::advice("clock", source, cost, mend)
        }
    })
}

fn files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(most) if most < FILES => Finding::advice(
            "open files",
            format!("{most} at most"),
            "shards, connections and stored sessions are files: a busy server runs out of them",
            "ulimit -n 65536 (systemd: LimitNOFILE=65536)",
        ),
        Some(most) => Finding::good("open files", format!("{most} at most")),
        None => Finding::good("open files", "no limit"),
    }
}

#[cfg(target_os = "linux")]
fn io_uring() -> Option<Finding> {
    let cost = "reads from the drive go by way of threads instead: about a fifth slower with many at once";
    Some(match io_uring::IoUring::new(8) {
        Ok(_) => Finding::good("io_uring", "works"),
        Err(e) => {
            let disabled = says("/proc/sys/kernel/io_uring_disabled").is_some_and(|text| text != "0");
            let mend = if disabled {
                "sudo sysctl kernel.io_uring_disabled=0"
            } else if e.kind() == std::io::ErrorKind::OutOfMemory {
                "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)"
            } else {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
            };
            Finding::advice("io_uring", format!("does not work: {e}"), cost, mend)
        }
    })
}

#[cfg(not(target_os = "linux"))]
fn io_uring() -> Option<Finding> {
    None
}
