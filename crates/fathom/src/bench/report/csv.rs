//! Tables for other programs.

use std::fmt::Write as _;

use super::super::{Point, Report};

/// A field: empty where it is not known.
fn field<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// A text that may hold commas, quotes and ends of lines.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// A table of lines of fields.
fn table(head: &str, lines: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = format!("{head}\n");
    for line in lines {
        // A string takes it.
        let _ = writeln!(text, "{}", line.join(","));
    }
    text
}

/// The tables of a report, each with its file's name.
pub fn tables(report: &Report) -> Vec<(&'static str, String)> {
    let mut tables = Vec::new();
    if let Some(servers) = &report.servers {
        let lines = servers.tested.iter().flat_map(|tested| {
            tested.requests.iter().map(|r| {
                vec![
                    quoted(&tested.name),
                    r.round.to_string(),
                    r.index.to_string(),
                    r.lane.to_string(),
                    r.started.to_string(),
                    field(r.first),
                    r.seconds.to_string(),
                    field(r.prompt_tokens),
                    field(r.cached_tokens),
                    r.output_tokens.to_string(),
                    field(r.output_per_second),
                    field(r.gap_ms),
                    field(r.longest_gap_ms),
                    quoted(r.error.as_deref().unwrap_or("")),
                ]
            })
        });
        let head = "server,round,request,lane,started_s,first_token_s,seconds,prompt_tokens,cached_tokens,output_tokens,\
                    output_tokens_per_s,gap_median_ms,gap_max_ms,error";
        tables.push(("requests.csv", table(head, lines)));
    }
    let named = report.servers.iter().flat_map(|s| s.tested.iter().map(|t| (t.name.as_str(), &t.memory)));
    let own = report.frontiers.iter().map(|f| ("fathom", &f.memory));
    let points = named.chain(own).flat_map(|(name, points)| points.iter().map(move |point| memory(name, point)));
    if report.servers.is_some() || report.frontiers.is_some() {
        let head = "server,seconds,rss_bytes,anonymous_bytes,mapped_bytes,page_cache_bytes,weights_bytes,experts_bytes,\
                    state_bytes,scratch_bytes";
        tables.push(("memory.csv", table(head, points)));
    }
    if let Some(frontiers) = &report.frontiers {
        let lines = frontiers.frontiers.iter().map(|f| {
            vec![
                f.tokens.to_string(),
                f.restored.to_string(),
                f.first.to_string(),
                field(f.read_per_second),
                field(f.prefill_per_second.map(|s| s.median)),
                field(f.decode_per_second.map(|s| s.median)),
                field(f.rss),
                f.state.to_string(),
                field(f.saved_seconds),
            ]
        });
        let head = "tokens,restored,first_token_s,read_tokens_per_s,prefill_tokens_per_s,decode_tokens_per_s,rss_bytes,\
                    state_bytes,saved_s";
        tables.push(("frontiers.csv", table(head, lines)));
    }
    if let Some(grid) = &report.needle {
        let lines = grid.cells.iter().map(|c| {
            vec![
                quoted(&c.target),
                quoted(&c.model),
                c.kind.clone(),
                c.length.to_string(),
                c.depth.to_string(),
                c.seed.to_string(),
                field(c.prompt_tokens),
                c.right.to_string(),
                c.found.to_string(),
                c.expected.len().to_string(),
                quoted(&c.expected.join(" ")),
                quoted(&c.answer),
                field(c.first),
                c.seconds.to_string(),
            ]
        });
        let head = "server,model,kind,length,depth_percent,seed,prompt_tokens,right,found,wanted,expected,answer,\
                    first_token_s,seconds";
        tables.push(("needle.csv", table(head, lines)));
    }
    tables
}

fn memory(name: &str, point: &Point) -> Vec<String> {
    let mut line = vec![quoted(name), format!("{:.2}", point.seconds)];
    line.extend([point.rss, point.anonymous, point.mapped, point.page_cache].map(field));
    line.extend((0..4).map(|i| field(point.ledger.map(|ledger| ledger[i]))));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_one_field() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\"\nc"), "\"a,\"\"b\"\"\nc\"");
        assert_eq!(field::<u64>(None), "");
    }
}
