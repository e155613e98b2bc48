//! Streamed experts in the text format of Prometheus.

use std::fmt::Write;

use fathom_weights::experts::{Phase, Stats};

/// What one phase has of a number.
type Of = fn(&Phase) -> f64;

/// Numbers of each phase: name, what it is, and how to get it.
const PHASES: [(&str, &str, Of); 16] = [
    ("passes", "Passes over the layers.", |p| p.passes as f64),
    ("tokens", "Tokens.", |p| p.tokens as f64),
    ("demanded", "Experts needed, each once for a pass and layer.", |p| p.demanded as f64),
    ("hits", "Of those, in memory when the pass began.", |p| p.hits as f64),
    ("prefetched_in_time", "Of the others, read ahead and there in time.", |p| p.in_time as f64),
    ("prefetched_late", "Of the others, being read ahead when they were needed.", |p| p.late as f64),
    ("missed_bytes", "Bytes of needed experts not in memory when the pass began.", |p| p.missed_bytes as f64),
    ("missed_known_bytes", "Of those, in layers that route by token id.", |p| p.missed_known_bytes as f64),
    ("wasted_prefetches", "Experts read ahead for nothing.", |p| p.wasted as f64),
    ("wasted_bytes", "Their bytes.", |p| p.wasted_bytes as f64),
    ("read_twice", "Experts read a second time in one pass.", |p| p.reread as f64),
    ("guessed", "Experts that the next layer was guessed to need.", |p| p.guessed as f64),
    ("guessed_right", "Of those, the ones that it needed.", |p| p.guessed_right as f64),
    ("stall_seconds", "Time with nothing to compute until a read ended.", |p| p.stalled.as_secs_f64()),
    ("stall_known_seconds", "Of that, in layers that route by token id.", |p| p.stalled_known.as_secs_f64()),
    ("pass_seconds", "Time that passes took.", |p| p.time.as_secs_f64()),
];

/// All numbers of streamed experts.
pub(super) fn experts(stats: &Stats) -> String {
    let mut text = String::new();
    for (name, kind, about, value) in [
        ("expert_read_bytes_total", "counter", "Bytes of experts read.", stats.read_bytes as f64),
        ("expert_reads_total", "counter", "Reads of them.", stats.reads as f64),
        ("expert_failed_reads_total", "counter", "Reads that failed.", stats.failed as f64),
        ("expert_reading_seconds_total", "counter", "Time with a read under way.", stats.reading.as_secs_f64()),
        ("experts_held", "gauge", "Experts in memory.", stats.held as f64),
        ("experts_room", "gauge", "Experts that memory has room for.", stats.room as f64),
    ] {
        head(&mut text, name, kind, about);
        let _ = writeln!(text, "fathom_{name} {value}");
    }
    for (name, about, of) in PHASES {
        let name = format!("expert_{name}_total");
        head(&mut text, &name, "counter", about);
        for (phase, numbers) in [("prefill", &stats.prefill), ("decode", &stats.decode)] {
            let _ = writeln!(text, "fathom_{name}{{phase=\"{phase}\"}} {}", of(numbers));
        }
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, about: &str) {
    // A string takes all that is written.
    let _ = write!(text, "# HELP fathom_{name} {about}\n# TYPE fathom_{name} {kind}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_number() {
        let decode = Phase { tokens: 5, hits: 7, reread: 3, ..Phase::default() };
        let text = experts(&Stats { decode, read_bytes: 1 << 40, ..Stats::default() });
        assert!(text.contains("fathom_expert_hits_total{phase=\"decode\"} 7\n"), "{text}");
        assert!(text.contains("fathom_expert_read_twice_total{phase=\"decode\"} 3\n"), "{text}");
        assert!(text.contains("fathom_expert_read_bytes_total 1099511627776\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (name, value) = line.split_once(' ').unwrap();
            assert!(name.starts_with("fathom_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
