//! Graphics processors.

use std::fs;

use super::{Finding, says};

/// Whether there is one.
pub fn gpu() -> Finding {
    let nvidia = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten().filter_map(|gpu| {
        let text = says(gpu.path().join("information"))?;
        Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
    });
    let mut found: Vec<String> = nvidia.collect();
    if found.is_empty() {
        let cards = fs::read_dir("/sys/class/drm").into_iter().flatten().flatten();
        found = cards.filter_map(|card| vendor(&says(card.path().join("device/vendor"))?)).map(str::to_owned).collect();
        found.dedup();
    }
    match found.is_empty() {
        true => Finding::good("GPU", "none; none is needed"),
        false => Finding::good("GPU", format!("{}; not used: fathom runs on the processor", found.join(", "))),
    }
}

fn vendor(id: &str) -> Option<&'static str> {
    match id {
        "0x10de" => Some("NVIDIA (no driver loaded)"),
        "0x1002" => Some("AMD"),
        "0x8086" => Some("Intel"),
        _ => None,
    }
}
