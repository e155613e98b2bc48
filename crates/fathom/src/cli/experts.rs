//! What streaming experts came to, for people and for machines.

use fathom_weights::experts::Phase;
use serde_json::{Value, json};

use super::model::Loaded;
use crate::ui::process_io;

impl Loaded {
    /// What was streamed so far, for machines; null where all experts are in memory.
    pub fn experts_json(&self) -> Value {
        let Some(cache) = self.model.streaming() else { return Value::Null };
        let stats = cache.stats();
        let (read, written) = process_io();
        json!({
            "reader": cache.describe(),
            "room": stats.room,
            "held": stats.held,
            "start_read_bytes": self.started.read_bytes,
            "read_bytes": stats.read_bytes,
            "reads": stats.reads,
            "failed_reads": stats.failed,
            "reading_seconds": stats.reading.as_secs_f64(),
            "bandwidth_bytes_per_second": stats.bandwidth(),
            "process_read_bytes": read,
            "process_written_bytes": written,
            "prefill": phase(&stats.prefill),
            "decode": phase(&stats.decode),
        })
    }

    /// The same in a line, for people; none where all experts are in memory.
    pub fn experts_line(&self) -> Option<String> {
        Some(format!("experts: {}", self.model.streaming()?.stats()))
    }
}

fn phase(phase: &Phase) -> Value {
    let tokens = phase.tokens.max(1) as f64;
    json!({
        "passes": phase.passes,
        "tokens": phase.tokens,
        "seconds": phase.time.as_secs_f64(),
        "demanded": phase.demanded,
        "hit_rate": phase.hit_rate(),
        "hits": phase.hits,
        "prefetched_in_time": phase.in_time,
        "prefetched_late": phase.late,
        "missed_bytes": phase.missed_bytes,
        "missed_known_layers_bytes": phase.missed_known_bytes,
        "missed_bytes_per_token": phase.missed_bytes as f64 / tokens,
        "wasted_prefetches": phase.wasted,
        "wasted_bytes": phase.wasted_bytes,
        "guessed": phase.guessed,
        "guess_accuracy": phase.guess_accuracy(),
        "read_twice": phase.reread,
        "stall_seconds": phase.stalled.as_secs_f64(),
        "stall_known_layers_seconds": phase.stalled_known.as_secs_f64(),
    })
}
