//! What a person or a program sees of a model at growing depths.

use std::io::Write;

use fathom_kernels::human;
use serde_json::{Value, json};

use crate::bench::{Frontier, Frontiers};
use crate::cli::Outcome;
use crate::ui::{commas, duration, out, say};

/// The table's head.
pub fn head() -> std::io::Result<()> {
    let [tokens, first, state, read] = ["tokens", "first token", "state", "read (t/s)"];
    let [prefill, decode, rss, held] = ["prefill", "decode", "RSS", "held state"];
    writeln!(out(), "{tokens:>10} {first:>12} {state:>10} {read:>12} {prefill:>12} {decode:>12} {rss:>12} {held:>12}")
}

/// A depth.
pub fn frontier(f: &Frontier, json: bool) -> std::io::Result<()> {
    if json {
        return writeln!(out(), "{}", named("frontier", serde_json::to_value(f)?));
    }
    let speed = |s: Option<f64>| s.map_or_else(|| "–".to_owned(), |s| format!("{s:.1}"));
    writeln!(
        out(),
        "{:>10} {:>12} {:>10} {:>12} {:>12} {:>12} {:>12} {:>12}",
        commas(f.tokens),
        duration(f.first),
        if f.restored { "restored" } else { "read" },
        speed(f.read_per_second),
        speed(f.prefill_per_second.map(|s| s.median)),
        speed(f.decode_per_second.map(|s| s.median)),
        f.rss.map_or_else(|| "?".into(), human),
        human(f.state),
    )
}

/// The question, and what the whole run took.
pub fn last(numbers: &Frontiers, json: bool) -> Outcome {
    let Frontiers { needle, planned, peak_rss, joules, no_joules, stored_bytes, .. } = numbers;
    if json {
        if let Some(needle) = needle {
            writeln!(out(), "{}", named("needle", serde_json::to_value(needle)?))?;
        }
        let line = json!({
            "peak_rss_bytes": peak_rss, "planned": planned, "stored_bytes": stored_bytes, "joules": joules, "no_joules": no_joules,
        });
        writeln!(out(), "{}", named("memory", line))?;
        return Ok(());
    }
    if let Some(needle) = needle {
        let verdict = if needle.right { "right".into() } else { format!("wrong: it should be {:?}", needle.expected) };
        let depth = needle.depth * 100.0;
        writeln!(out(), "hidden at {depth:.0} %; asked, it says: {}   ({verdict})", needle.answer)?;
    }
    let peak = peak_rss.map_or_else(|| "not told by this system".to_owned(), human);
    say!("memory: peak RSS {peak} of {} planned", human(planned.total));
    match (joules, no_joules) {
        (Some(joules), _) => say!("joules: {joules:.0}, of everything that ran"),
        (None, why) => say!("joules: {}", why.as_deref().unwrap_or("none were counted")),
    }
    Ok(())
}

/// A line for programs, which says what it is about.
fn named(test: &str, mut line: Value) -> Value {
    line["test"] = test.into();
    line
}
