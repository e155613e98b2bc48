//! The part of the page that sets servers side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use fathom_kernels::human;

use super::super::numbers::median;
use super::super::{Request, Servers, Spread, Tested};
use super::page::figure;
use super::scale::{Axis, mebibytes, plain, tokens};
use super::svg::{Series, bars, escape, lines};
use crate::ui::commas;

/// What is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    Less,
    More,
    Neither,
}

/// Servers under the same work.
pub fn section(servers: &Servers) -> String {
    let mut html = String::new();
    // What writes into a string does not fail.
    let _ = writeln!(
        html,
        "<p>The work is <b>{}</b>: {}. {} requests a round, prompts of up to about {} tokens, {} rounds.</p>",
        escape(&servers.workload),
        escape(&servers.what),
        commas(servers.requests),
        commas(servers.longest),
        servers.rounds
    );
    for tested in &servers.tested {
        if let Some(why) = &tested.failed {
            let _ = writeln!(html, "<p class=\"partial\">{} {}</p>", escape(&tested.name), escape(why));
        }
    }
    html += "<h2>Side by side</h2>\n";
    html += &table(servers);
    html += "<div class=\"charts\">\n";
    html += &charts(servers);
    html += "</div>\n<h2>Servers</h2>\n<div class=\"wide\"><table class=\"facts\">\n<thead><tr><th>Name</th><th>Address</th>\
             <th>Model</th><th>Says it is</th><th>Interface</th></tr></thead>\n";
    for tested in &servers.tested {
        let api = match tested.api {
            super::super::Api::Chat => "chat completions",
            super::super::Api::Completions => "completions (no chat)",
        };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{api}</td></tr>",
            escape(&tested.name),
            escape(&tested.url),
            escape(&tested.model),
            escape(tested.software.as_deref().unwrap_or("not told")),
        );
    }
    html + "</table></div>\n"
}

fn table(servers: &Servers) -> String {
    let mut html = String::from("<div class=\"wide\"><table>\n<thead><tr><th></th>");
    for tested in &servers.tested {
        let _ = write!(html, "<th>{}</th>", escape(&tested.name));
    }
    html += "</tr></thead>\n";
    let mut row = |name: &str, better: Better, of: &dyn Fn(&Tested) -> (Option<f64>, String)| {
        let cells: Vec<(Option<f64>, String)> = servers.tested.iter().map(of).collect();
        let values = cells.iter().filter_map(|(value, _)| *value);
        let best = match better {
            Better::Less => values.reduce(f64::min),
            Better::More => values.reduce(f64::max),
            Better::Neither => None,
        };
        let _ = write!(html, "<tr><td>{name}</td>");
        for (value, text) in &cells {
            let class = if best.is_some() && *value == best && cells.len() > 1 { " class=\"best\"" } else { "" };
            let _ = write!(html, "<td{class}>{}</td>", escape(text));
        }
        html += "</tr>\n";
    };
    let told = |value: Option<f64>, unit: &str| {
        (value, value.map_or_else(|| "not told".to_owned(), |v| format!("{}{unit}", plain(v))))
    };
    let spread = |spread: Option<Spread>, unit: &str| match spread {
        None => (None, "not told".to_owned()),
        Some(s) => (Some(s.median), format!("{}{unit} ({} to {})", plain(s.median), plain(s.min), plain(s.max))),
    };
    row("Requests, failed", Better::Neither, &|t| {
        (None, format!("{}, {}", commas(t.summary.requests), t.summary.errors))
    });
    row("Time to first token, median", Better::Less, &|t| told(t.summary.first.p50, " s"));
    row("… p95", Better::Less, &|t| told(t.summary.first.p95, " s"));
    row("… p99", Better::Less, &|t| told(t.summary.first.p99, " s"));
    row("… longest", Better::Less, &|t| told(t.summary.first.max, " s"));
    row("Time between tokens, median", Better::Less, &|t| told(t.summary.gap_ms.p50, " ms"));
    row("… p95", Better::Less, &|t| told(t.summary.gap_ms.p95, " ms"));
    row("… p99", Better::Less, &|t| told(t.summary.gap_ms.p99, " ms"));
    row("… longest", Better::Less, &|t| told(t.summary.gap_ms.max, " ms"));
    row("Tokens/s of one answer, median", Better::More, &|t| told(t.summary.decode_per_second, ""));
    row("Tokens/s of all answers, rounds", Better::More, &|t| spread(t.summary.output_per_second, ""));
    row("Prompt tokens/s that were read, median", Better::More, &|t| told(t.summary.read_per_second, ""));
    row("A round", Better::Less, &|t| spread(t.summary.seconds, " s"));
    row("Prompt tokens, of them reused", Better::Neither, &|t| {
        let all = t.summary.prompt_tokens;
        let share = t.summary.cached_tokens.filter(|_| all > 0).map(|cached| 100.0 * cached as f64 / all as f64);
        let share = share.map_or_else(|| "not told".to_owned(), |share| format!("{share:.0} %"));
        (None, format!("{}, {share}", commas(all as usize)))
    });
    row("Peak memory (RSS)", Better::Less, &|t| {
        (t.summary.peak_rss.map(|b| b as f64), t.summary.peak_rss.map_or_else(|| "not told".into(), human))
    });
    if servers.no_joules.is_none() {
        row("Joules for a token, whole machine", Better::Less, &|t| told(t.summary.joules_per_token, " J"));
    }
    html += "</table></div>\n";
    if let Some(why) = &servers.no_joules {
        let _ = writeln!(html, "<p class=\"soft\">Joules: {}.</p>", escape(why));
    }
    html
}

fn charts(servers: &Servers) -> String {
    let names: Vec<String> = servers.tested.iter().map(|t| t.name.clone()).collect();
    let each = |of: &dyn Fn(&Tested) -> Option<f64>| servers.tested.iter().map(of).collect::<Vec<_>>();
    let mut html = first_tokens(servers);
    let gap = |of: fn(&Tested) -> Option<f64>| each(&of);
    let groups = [
        ("median", gap(|t| t.summary.gap_ms.p50)),
        ("p95", gap(|t| t.summary.gap_ms.p95)),
        ("p99", gap(|t| t.summary.gap_ms.p99)),
        ("longest", gap(|t| t.summary.gap_ms.max)),
    ];
    let title = "Time between tokens";
    html += &figure(title, "Within an answer; less is better.", &bars(title, "milliseconds", &names, &groups));
    let groups = [
        ("one answer", each(&|t| t.summary.decode_per_second)),
        ("all answers of a round", each(&|t| t.summary.output_per_second.map(|s| s.median))),
    ];
    let title = "Tokens of answers";
    let what = "One answer: after its first token. All: whole rounds, prompts included. More is better.";
    html += &figure(title, what, &bars(title, "tokens/s, median", &names, &groups));
    let memory: Vec<Series> = servers
        .tested
        .iter()
        .enumerate()
        .map(|(style, t)| Series {
            name: t.name.clone(),
            points: t.memory.iter().filter_map(|p| Some((p.seconds, p.rss? as f64))).collect(),
            style,
            joined: true,
        })
        .collect();
    let title = "Memory of the server's process";
    let x = Axis { label: "seconds of being measured", log: false, format: plain, binary: false };
    let y = Axis { label: "resident, MiB", log: false, format: mebibytes, binary: true };
    let what = "Mapped files count too. Servers that run elsewhere are not in it.";
    html + &figure(title, what, &lines(title, &x, &y, &memory, None))
}

/// Time to the first token: by place in the work where one request follows another, else by the prompt's length.
fn first_tokens(servers: &Servers) -> String {
    let in_order = servers.tested.iter().flat_map(|t| &t.requests).all(|r| r.lane == 0);
    let title = "Time to first token";
    let y = Axis { label: "seconds", log: true, format: plain, binary: false };
    let series = |of: &dyn Fn(&Tested) -> Vec<(f64, f64)>| -> Vec<Series> {
        let all = servers.tested.iter().enumerate();
        all.map(|(style, t)| Series { name: t.name.clone(), points: of(t), style, joined: in_order }).collect()
    };
    if in_order {
        let x = Axis { label: "request of the round", log: false, format: plain, binary: false };
        let points = |t: &Tested| {
            let mut by_place: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
            for r in t.requests.iter().filter(|r| r.error.is_none()) {
                by_place.entry(r.index).or_default().extend(r.first);
            }
            by_place.iter().filter_map(|(&place, firsts)| Some((place as f64 + 1.0, median(firsts)?))).collect()
        };
        let what = "Request by request, in their order; medians of the rounds. Less is better.";
        return figure(title, what, &lines(title, &x, &y, &series(&points), None));
    }
    let x = Axis { label: "tokens of the prompt", log: true, format: tokens, binary: true };
    let mark = |r: &Request| Some((r.prompt_tokens? as f64, r.first.filter(|_| r.error.is_none())?));
    let points = |t: &Tested| t.requests.iter().filter_map(mark).collect();
    let what = "A mark for each request, waiting for others included. Less is better.";
    figure(title, what, &lines(title, &x, &y, &series(&points), None))
}
