//! The processor: instruction set, cores, what limits them.

use std::path::Path;

use super::{Finding, number, says};

const CPUS: &str = "/sys/devices/system/cpu";

/// What there is to say of the processor. `isa` is the instruction set that kernels run with.
pub fn processor(isa: &str) -> Vec<Finding> {
    [Some(instructions(isa)), Some(cores()), quota(), governor(), limits(), throttled(), nodes()]
        .into_iter()
        .flatten()
        .collect()
}

/// What the processor calls itself.
pub fn processor_name() -> String {
    let info = says("/proc/cpuinfo").unwrap_or_default();
    field(&info, "model name").unwrap_or("processor of unknown name").to_owned()
}

fn instructions(isa: &str) -> Finding {
    let info = says("/proc/cpuinfo").unwrap_or_default();
    let model = processor_name();
    let found = format!("{model}, {isa}");
    match isa {
        "plain" => Finding::wrong(
            "instructions",
            found,
            "neither AVX2 nor NEON: plain code, the same results many times slower",
            "run it on an x86-64 processor with AVX2 (Intel since 2013, AMD since 2015) or a 64-bit Arm one; in a virtual \
             machine, give it the host's processor (QEMU: -cpu host)",
        ),
        "avx2" if field(&info, "flags").is_some_and(|flags| flags.contains("avx512f")) => Finding::advice(
            "instructions",
            found,
            "the processor has AVX-512, but not all of what fathom uses of it (F, BW, DQ, VL, VNNI): about half the prefill",
            "in a virtual machine, give it the host's processor (QEMU: -cpu host)",
        ),
        _ => Finding::good("instructions", found),
    }
}

/// The value of a field of `/proc/cpuinfo`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    Some(line.split_once(':')?.1.trim())
}

fn cores() -> Finding {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let online = says(format!("{CPUS}/online")).map(|list| count(&list));
    let twins = says(format!("{CPUS}/smt/active")).is_some_and(|active| active == "1");
    let twins = if twins { ", two hardware threads to a core" } else { "" };
    match online {
        Some(all) if all > usable => Finding::advice(
            "cores",
            format!("{usable} of {all} usable{twins}"),
            "an affinity mask or a container's limit keeps fathom from the others",
            "taskset -c 0- fathom …, or give the container more CPUs (docker: --cpus, --cpuset-cpus)",
        ),
        _ => Finding::good("cores", format!("{usable}{twins}")),
    }
}

/// How many numbers a list such as `0-3,8` has.
fn count(list: &str) -> usize {
    let one = |part: &str| match part.split_once('-') {
        Some((a, b)) => Some((b.trim().parse::<usize>().ok()? + 1).saturating_sub(a.trim().parse().ok()?)),
        None => part.trim().parse::<usize>().ok().map(|_| 1),
    };
    list.split(',').filter_map(one).sum()
}

/// A share of the processor's time, where a control group gives less than there are cores.
fn quota() -> Option<Finding> {
    let group = crate::plan::own_groups();
    let shares = group.iter().filter_map(|folder| share(&says(folder.join("cpu.max"))?));
    let share = shares.fold(f64::INFINITY, f64::min);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (share < cores as f64).then(|| {
        Finding::advice(
            "CPU quota",
            format!("{share:.1} cores' time for {cores} threads"),
            "when the share is used up all threads wait for the period's end: tokens come in jerks",
            format!(
                "fathom … --threads {:.0}, or raise the limit (docker: --cpus; systemd: CPUQuota=)",
                share.floor().max(1.0)
            ),
        )
    })
}

/// `cpu.max` in cores: `150000 100000` is 1.5, `max 100000` none.
fn share(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.trim().parse::<f64>().ok().filter(|p| *p > 0.0)?)
}

fn governor() -> Option<Finding> {
    let folder = format!("{CPUS}/cpu0/cpufreq");
    let governor = says(format!("{folder}/scaling_governor"))?;
    let driver = says(format!("{folder}/scaling_driver")).unwrap_or_default();
    // The processor's own governor goes up at once under load, whatever the policy is called.
    let own = driver.contains("pstate") || driver.contains("cppc");
    let slow = governor == "powersave" && !own || governor == "conservative";
    let found = format!("{governor} ({driver})");
    Some(if slow {
        Finding::advice(
            "frequency governor",
            found,
            "the clock stays low or rises late",
            "sudo cpupower frequency-set -g performance",
        )
    } else {
        Finding::good("frequency governor", found)
    })
}

fn limits() -> Option<Finding> {
    let folder = format!("{CPUS}/cpu0/cpufreq");
    let (most, allowed) =
        (number(format!("{folder}/cpuinfo_max_freq"))?, number(format!("{folder}/scaling_max_freq"))?);
    let ghz = |khz: u64| format!("{:.2} GHz", khz as f64 / 1e6);
    let turbo = says(format!("{CPUS}/intel_pstate/no_turbo")).is_some_and(|off| off == "1")
        || says(format!("{CPUS}/cpufreq/boost")).is_some_and(|on| on == "0");
    Some(if allowed * 100 < most * 95 {
        Finding::advice(
            "frequency limit",
            format!("{} of {}", ghz(allowed), ghz(most)),
            format!("up to {} % of the prefill's speed", 100 - allowed * 100 / most.max(1)),
            format!("sudo cpupower frequency-set -u {most}"),
        )
    } else if turbo {
        let mend = if Path::new(&format!("{CPUS}/intel_pstate/no_turbo")).exists() {
            format!("echo 0 | sudo tee {CPUS}/intel_pstate/no_turbo")
        } else {
            format!("echo 1 | sudo tee {CPUS}/cpufreq/boost")
        };
        Finding::advice("frequency limit", "boost is off", "10 to 40 % of the prefill's speed", mend)
    } else {
        Finding::good("frequency limit", format!("none below {}", ghz(most)))
    })
}

fn throttled() -> Option<Finding> {
    let cpus = std::fs::read_dir(CPUS).ok()?.flatten();
    let counts: Vec<u64> =
        cpus.filter_map(|cpu| number(cpu.path().join("thermal_throttle/core_throttle_count"))).collect();
    let most = *counts.iter().max()?;
    Some(if most > 0 {
        Finding::advice(
            "heat",
            format!("cores have slowed down for heat {} times since the start", counts.iter().sum::<u64>()),
            "speed drops after minutes of load",
            "look after fans and dust; watch with: turbostat --quiet --interval 5",
        )
    } else {
        Finding::good("heat", "no core has slowed down for it")
    })
}

fn nodes() -> Option<Finding> {
    let nodes = count(&says("/sys/devices/system/node/online")?);
    (nodes > 1).then(|| {
        Finding::advice(
            "memory nodes",
            format!("{nodes} (NUMA)"),
            "weights that lie at one node are read at that node's speed",
            "numactl --interleave=all fathom …",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_shares() {
        assert_eq!((count("0-3,8"), count("0"), count(""), count("5-2"), count("x-y")), (5, 1, 0, 0, 0));
        assert_eq!(
            (share("150000 100000"), share("max 100000"), share("1 0"), share("")),
            (Some(1.5), None, None, None)
        );
        let info = "processor\t: 0\nmodel name\t: A processor: fast\nflags\t\t: fpu avx2\n";
        assert_eq!((field(info, "model name"), field(info, "flags")), (Some("A processor: fast"), Some("fpu avx2")));
        assert_eq!(field(info, "model"), None);
    }

    #[test]
    fn plain_code_is_named() {
        let finding = instructions("plain");
        assert!(finding.mend.is_some_and(|mend| mend.contains("-cpu host")));
    }
}
