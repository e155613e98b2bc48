//! The part of the page about a model at growing depths.

use std::fmt::Write as _;

use fathom_kernels::human;

use super::super::{Frontier, Frontiers, Point, Spread};
use super::page::figure;
use super::scale::{Axis, mebibytes, plain, tokens};
use super::svg::{Series, escape, lines};
use crate::ui::{commas, duration};

/// A model at growing depths.
pub fn section(f: &Frontiers) -> String {
    let mut html = String::new();
    // What writes into a string does not fail.
    let _ = writeln!(html, "<p>{}</p>", escape(&f.model));
    if let Some(needle) = &f.needle {
        let verdict = if needle.right { "right" } else { "wrong" };
        let _ = writeln!(
            html,
            "<p>A code was hidden at {:.0} % of {} tokens. Asked for it at the end, the model said: <b>{}</b> ({verdict}).</p>",
            needle.depth * 100.0,
            commas(needle.tokens),
            escape(&needle.answer)
        );
    }
    let peak = f.peak_rss.map_or_else(|| "not told by this system".to_owned(), human);
    let _ = writeln!(
        html,
        "<p>Peak memory {peak} of {} planned: weights {}, state {}, scratch {}, the rest the program's own.{}</p>",
        human(f.planned.total),
        human(f.planned.weights),
        human(f.planned.state),
        human(f.planned.scratch),
        cache(&f.memory)
    );
    let joules = match (f.joules, &f.no_joules) {
        (Some(joules), _) => format!("{} J, of everything that ran", plain(joules)),
        (None, why) => why.clone().unwrap_or_else(|| "not told".into()),
    };
    let _ = writeln!(html, "<p class=\"soft\">Joules: {}.</p>", escape(&joules));
    html += "<h2>Depth by depth</h2>\n";
    html += &table(f);
    html += "<div class=\"charts\">\n";
    html += &charts(f);
    html + "</div>\n"
}

fn cache(points: &[Point]) -> String {
    let values = || points.iter().filter_map(|point| point.page_cache);
    match (values().min(), values().max()) {
        (Some(min), Some(max)) => {
            format!(" The machine's page cache had {} to {} meanwhile.", human(min), human(max))
        }
        _ => String::new(),
    }
}

fn table(f: &Frontiers) -> String {
    let mut html = String::from(
        "<div class=\"wide\"><table>\n<thead><tr><th>Tokens</th><th>Time to first token</th><th>State</th>\
         <th>Read from the depth before, tokens/s</th><th>Prefill from here, tokens/s</th><th>Decode from here, tokens/s</th>\
         <th>Resident memory</th><th>Session state</th><th>Written to the store in</th></tr></thead>\n",
    );
    let spread = |s: Option<Spread>| s.map_or_else(|| "–".to_owned(), |s| plain(s.median));
    for row in &f.frontiers {
        let state = if row.restored { "from the store" } else { "read" };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{state}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            commas(row.tokens),
            duration(row.first),
            row.read_per_second.map_or_else(|| "–".into(), plain),
            spread(row.prefill_per_second),
            spread(row.decode_per_second),
            row.rss.map_or_else(|| "not told".into(), human),
            human(row.state),
            row.saved_seconds.map_or_else(|| "–".into(), duration),
        );
    }
    html + "</table></div>\n"
}

fn charts(f: &Frontiers) -> String {
    let depth = || Axis { label: "tokens of the session", log: true, format: tokens, binary: true };
    let series = |name: &str, style, of: &dyn Fn(&Frontier) -> Option<f64>| Series {
        name: name.to_owned(),
        points: f.frontiers.iter().filter_map(|row| Some((row.tokens as f64, of(row)?))).collect(),
        style,
        joined: true,
    };
    let speed = || Axis { label: "tokens/s", log: false, format: plain, binary: false };
    let title = "Time to first token";
    let read = series("read", 0, &|row| (!row.restored).then_some(row.first));
    let restored = series("from the store", 1, &|row| row.restored.then_some(row.first));
    let y = Axis { label: "seconds", log: true, format: plain, binary: false };
    let mut html = figure(title, "Of a prompt of that length.", &lines(title, &depth(), &y, &[read, restored], None));
    let title = "Reading a prompt";
    let probe = series("from here", 0, &|row| row.prefill_per_second.map(|s| s.median));
    let way = series("on the way", 1, &|row| row.read_per_second);
    let what =
        format!("{} tokens from each depth, median of {}; and all tokens since the depth before.", f.probes[0], f.runs);
    html += &figure(title, &what, &lines(title, &depth(), &speed(), &[probe, way], None));
    let title = "Writing an answer";
    let decode = series("decode", 0, &|row| row.decode_per_second.map(|s| s.median));
    let what = format!("{} tokens one by one from each depth, median of {}.", f.probes[1], f.runs);
    html += &figure(title, &what, &lines(title, &depth(), &speed(), &[decode], None));
    let title = "Memory over time";
    let over_time = |name: &str, style, of: &dyn Fn(&Point) -> Option<u64>| Series {
        name: name.to_owned(),
        points: f.memory.iter().filter_map(|p| Some((p.seconds, of(p)? as f64))).collect(),
        style,
        joined: true,
    };
    let part = |i: usize| move |p: &Point| p.ledger.map(|ledger| ledger[i]).filter(|&held| held > 0);
    let parts = [
        over_time("resident", 0, &|p| p.rss),
        over_time("mapped weights", 1, &|p| p.mapped),
        over_time("state", 2, &part(2)),
        over_time("scratch", 3, &part(3)),
        over_time("experts", 4, &part(1)),
    ];
    let x = Axis { label: "seconds", log: false, format: plain, binary: false };
    let y = Axis { label: "MiB", log: false, format: mebibytes, binary: true };
    let what = "What the process held, and of that the mapped weights, and what the ledger gave out.";
    html + &figure(title, what, &lines(title, &x, &y, &parts, Some(("planned", f.planned.total as f64))))
}
