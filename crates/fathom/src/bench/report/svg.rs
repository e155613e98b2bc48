//! Charts, as SVG that stands in a page: lines, bars, and a heat map.
//!
//! Series differ in colour, dash and mark and are named where they end, so that they are told apart in grey and by eyes that see
//! few colours. Colours are the page's, light or dark.

use std::fmt::Write as _;

use super::scale::{Axis, Scale, plain, ticks};

/// Series that a chart tells apart; more begin again.
pub const STYLES: usize = 6;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 46.0;
const LETTER: f64 = 6.6;

/// A line.
pub struct Series {
    /// What it is.
    pub name: String,
    /// Its points, in the order of x.
    pub points: Vec<(f64, f64)>,
    /// Its colour, dash and mark.
    pub style: usize,
    /// Whether points are joined by a line.
    pub joined: bool,
}

/// Text that stands in XML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A chart of lines over two axes. `limit` is a line across, with its name: what was planned.
pub fn lines(title: &str, x: &Axis, y: &Axis, series: &[Series], limit: Option<(&str, f64)>) -> String {
    let points = || series.iter().flat_map(|s| s.points.iter().copied());
    if points().count() == 0 {
        return String::new();
    }
    let range = |of: fn((f64, f64)) -> f64| {
        let values = points().map(of);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let ((x_low, x_high), (mut y_low, mut y_high)) = (range(|p| p.0), range(|p| p.1));
    if let Some((_, value)) = limit {
        y_high = y_high.max(value);
    }
    // Equal factors are for what differs by large ones.
    let y = &Axis { log: y.log && y_high > 5.0 * y_low, ..*y };
    if !y.log {
        y_low = y_low.min(0.0);
    }
    let (x_ticks, y_ticks) = (ticks(x_low, x_high, x), ticks(y_low, y_high, y));
    let ends = |ticks: &[f64], low: f64, high: f64| {
        (ticks.first().copied().unwrap_or(low).min(low), ticks.last().copied().unwrap_or(high).max(high))
    };
    let (x_ends, y_ends) = (ends(&x_ticks, x_low, x_high), ends(&y_ticks, y_low, y_high));
    let across = Scale { low: x_ends.0, high: x_ends.1, log: x.log, from: LEFT, to: WIDTH - RIGHT };
    let up = Scale { low: y_ends.0, high: y_ends.1, log: y.log, from: HEIGHT - BOTTOM, to: TOP };
    let mut svg = open(title, HEIGHT);
    for &tick in &y_ticks {
        let at = up.at(tick);
        line(&mut svg, "grid", LEFT, at, WIDTH - RIGHT, at);
        text(&mut svg, "tick end", LEFT - 6.0, at + 4.0, &(y.format)(tick));
    }
    for &tick in &x_ticks {
        let at = across.at(tick);
        line(&mut svg, "axis", at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 4.0);
        text(&mut svg, "tick middle", at, HEIGHT - BOTTOM + 17.0, &(x.format)(tick));
    }
    line(&mut svg, "axis", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM);
    text(&mut svg, "label middle", (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0, x.label);
    let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    // What writes into a string does not fail.
    let _ = writeln!(
        svg,
        "<text class=\"label middle\" transform=\"translate(13 {middle:.1}) rotate(-90)\">{}</text>",
        escape(y.label)
    );
    let mut names = Vec::new();
    if let Some((name, value)) = limit {
        let at = up.at(value);
        line(&mut svg, "limit", LEFT, at, WIDTH - RIGHT, at);
        names.push((at, name.to_owned(), None));
    }
    for series in series.iter().filter(|series| !series.points.is_empty()) {
        let places: Vec<(f64, f64)> = series.points.iter().map(|&(a, b)| (across.at(a), up.at(b))).collect();
        draw(&mut svg, &places, series.style % STYLES, series.joined);
        names.push((places[places.len() - 1].1, series.name.clone(), Some(series.style % STYLES)));
    }
    name_ends(&mut svg, names);
    svg + "</svg>\n"
}

fn draw(svg: &mut String, places: &[(f64, f64)], style: usize, joined: bool) {
    if joined {
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(svg, "<polyline class=\"line s{style}\" points=\"{}\"/>", path.join(" "));
    }
    // So many marks are a line themselves.
    let few = places.len() <= 40 || !joined;
    for (i, &(x, y)) in places.iter().enumerate() {
        if few || i % (places.len() / 12) == 0 {
            mark(svg, x, y, style);
        }
    }
}

fn mark(svg: &mut String, x: f64, y: f64, style: usize) {
    let r = 3.5;
    let shape = match style {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\"/>"),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{}\" height=\"{}\"/>", x - r, y - r, 2.0 * r, 2.0 * r),
        2 => polygon(&[(x, y - r - 1.0), (x + r + 0.5, y + r), (x - r - 0.5, y + r)]),
        3 => polygon(&[(x, y - r - 1.0), (x + r + 1.0, y), (x, y + r + 1.0), (x - r - 1.0, y)]),
        4 => polygon(&[(x - r - 0.5, y - r), (x + r + 0.5, y - r), (x, y + r + 1.0)]),
        _ => format!(
            "<path class=\"cross\" d=\"M{:.1} {:.1}L{:.1} {:.1}M{:.1} {:.1}L{:.1} {:.1}\"/>",
            x - r,
            y - r,
            x + r,
            y + r,
            x - r,
            y + r,
            x + r,
            y - r
        ),
    };
    let _ = writeln!(svg, "<g class=\"mark m{style}\">{shape}</g>");
}

fn polygon(points: &[(f64, f64)]) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("<polygon points=\"{}\"/>", points.join(" "))
}

/// Names where lines end, none over another, each with its mark.
fn name_ends(svg: &mut String, mut names: Vec<(f64, String, Option<usize>)>) {
    const APART: f64 = 15.0;
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let lowest = HEIGHT - BOTTOM;
    let mut places: Vec<f64> = Vec::new();
    for (wanted, ..) in &names {
        let free = places.last().map_or(TOP, |last| last + APART);
        places.push(wanted.max(free));
    }
    // What went too far down pushes those above it up.
    let mut most = lowest;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - APART;
    }
    for (at, (_, name, style)) in places.into_iter().zip(names) {
        if let Some(style) = style {
            mark(svg, WIDTH - RIGHT + 12.0, at, style);
        }
        let room = ((RIGHT - 24.0) / LETTER) as usize;
        text(svg, "name", WIDTH - RIGHT + 20.0, at + 4.0, &cut(&name, room));
    }
}

fn cut(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

/// Bars that lie: groups of one bar for each name, with its value. None is a bar that is not there.
pub fn bars(title: &str, unit: &str, names: &[String], groups: &[(&str, Vec<Option<f64>>)]) -> String {
    const BAR: f64 = 16.0;
    const GAP: f64 = 12.0;
    const HEAD: f64 = 18.0;
    let most = groups.iter().flat_map(|(_, values)| values.iter().flatten().copied()).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let room = names.iter().map(|name| name.chars().count().min(22)).max().unwrap_or(0) as f64 * LETTER + 12.0;
    let heads = if groups.len() > 1 { HEAD } else { 0.0 };
    let height = groups.len() as f64 * (heads + names.len() as f64 * (BAR + 4.0) + GAP) + 30.0;
    let mut svg = open(title, height);
    let (from, to) = (room, WIDTH - 80.0);
    let mut y = 6.0;
    for (group, values) in groups {
        if groups.len() > 1 {
            text(&mut svg, "group", 0.0, y + 12.0, group);
            y += HEAD;
        }
        for (i, (name, value)) in names.iter().zip(values).enumerate() {
            text(&mut svg, "tick end", from - 6.0, y + 12.0, &cut(name, 22));
            if let Some(value) = value {
                let width = ((to - from) * value / most).max(1.0);
                let _ = writeln!(
                    svg,
                    "<rect class=\"bar b{}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\"/>",
                    i % STYLES
                );
                text(&mut svg, "value", from + width + 5.0, y + 12.5, &plain(*value));
            } else {
                text(&mut svg, "value", from + 5.0, y + 12.5, "not told");
            }
            y += BAR + 4.0;
        }
        y += GAP;
    }
    text(&mut svg, "label middle", (from + to) / 2.0, height - 8.0, unit);
    svg + "</svg>\n"
}

/// A heat map of shares from 0 to 1: rows over columns, with the share in each cell. None is a cell that was not asked.
pub fn heat(title: &str, across: (&str, &[String]), down: (&str, &[String]), share: &[Vec<Option<f64>>]) -> String {
    const CELL: f64 = 30.0;
    let (columns, rows) = (across.1, down.1);
    if columns.is_empty() || rows.is_empty() {
        return String::new();
    }
    let left = 60.0;
    let wide = ((WIDTH - left) / columns.len() as f64).min(84.0);
    let height = rows.len() as f64 * CELL + 52.0;
    let mut svg = open(title, height);
    for (r, row) in rows.iter().enumerate() {
        let y = 6.0 + r as f64 * CELL;
        text(&mut svg, "tick end", left - 6.0, y + CELL / 2.0 + 4.0, row);
        for (c, value) in share[r].iter().enumerate() {
            let x = left + c as f64 * wide;
            let (class, opacity, said) = match value {
                Some(v) => (if *v > 0.55 { "cell full" } else { "cell" }, *v, format!("{:.0} %", v * 100.0)),
                None => ("cell none", 0.0, "–".to_owned()),
            };
            let _ = writeln!(
                svg,
                "<g class=\"{class}\"><rect class=\"frame\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                 <rect class=\"heat\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{opacity:.2}\"/>\
                 <text class=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{said}</text></g>",
                wide - 2.0,
                CELL - 2.0,
                wide - 2.0,
                CELL - 2.0,
                x + wide / 2.0 - 1.0,
                y + CELL / 2.0 + 3.0,
            );
        }
    }
    let below = 6.0 + rows.len() as f64 * CELL;
    for (c, column) in columns.iter().enumerate() {
        text(&mut svg, "tick middle", left + (c as f64 + 0.5) * wide, below + 14.0, column);
    }
    let middle = left + columns.len() as f64 * wide / 2.0;
    text(&mut svg, "label middle", middle, height - 8.0, across.0);
    let _ = writeln!(
        svg,
        "<text class=\"label middle\" transform=\"translate(11 {:.1}) rotate(-90)\">{}</text>",
        6.0 + rows.len() as f64 * CELL / 2.0,
        escape(down.0)
    );
    svg + "</svg>\n"
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        escape(title)
    )
}

fn line(svg: &mut String, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
    let _ = writeln!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(words));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(log: bool, binary: bool) -> Axis {
        Axis { label: "x", log, format: plain, binary }
    }

    #[test]
    fn names_do_not_overlap_and_nothing_breaks_the_page() {
        let series: Vec<Series> = (0..8)
            .map(|i| Series { name: format!("<b>&{i}"), points: vec![(1.0, 5.0), (2.0, 5.0)], style: i, joined: true })
            .collect();
        let svg = lines("t \"q\"", &axis(false, false), &axis(false, false), &series, Some(("plan", 6.0)));
        assert!(!svg.contains("<b>") && svg.contains("&lt;b&gt;&amp;7") && svg.contains("t &quot;q&quot;"));
        let places = svg.lines().filter(|line| line.contains("class=\"name\""));
        let mut ys: Vec<f64> =
            places.map(|line| line.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()).collect();
        ys.sort_by(f64::total_cmp);
        assert_eq!(ys.len(), 9);
        assert!(ys.windows(2).all(|w| w[1] - w[0] >= 14.0) && ys[8] <= HEIGHT, "{ys:?}");
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(lines("t", &axis(false, false), &axis(true, true), &[], None), "");
        assert_eq!(bars("t", "s", &["a".into()], &[("g", vec![None])]), "");
        assert_eq!(heat("t", ("a", &[]), ("b", &[]), &[]), "");
    }
}
