//! The part of the page about what was found in long texts: a heat map for each target and kind.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::super::{Cell, Grid};
use super::page::figure;
use super::scale::tokens;
use super::svg::{escape, heat};

/// Heat maps.
pub fn section(grid: &Grid) -> String {
    let mut html = String::from(
        "<h2>What was found</h2>\n<p>A cell is the share of questions of that length and depth whose answer had all the \
         numbers that were asked for. The depth is that of the needle, or of the first of several.</p>\n<div class=\"charts\">\n",
    );
    for (target, kind) in groups(grid) {
        let cells: Vec<&Cell> = grid.cells.iter().filter(|c| (&c.target, &c.kind) == (&target, &kind)).collect();
        let (lengths, depths) = axes(&cells);
        let share = shares(&cells, &lengths, &depths);
        let right = cells.iter().filter(|c| c.right).count();
        let across: Vec<String> = lengths.iter().map(|&n| tokens(n as f64)).collect();
        let down: Vec<String> = depths.iter().map(|d| format!("{d} %")).collect();
        let title = format!("{target}: {kind}");
        // What writes into a string does not fail.
        let svg = heat(&title, ("tokens of the text", &across), ("depth", &down), &share);
        let mut what = String::new();
        let _ = write!(what, "{} {right} of {} right.", about(&kind), cells.len());
        html += &figure(&title, &what, &svg);
        if let Some(wrong) = cells.iter().find(|c| !c.right) {
            let (expected, answer) = (escape(&wrong.expected.join(", ")), escape(&wrong.answer));
            let answer: String = answer.chars().take(160).collect();
            html.truncate(html.len() - "</figure>\n".len());
            let _ = writeln!(
                html,
                "<p class=\"soft\">For example, {expected} was wanted, and it said: {answer}</p></figure>"
            );
        }
    }
    html + "</div>\n"
}

/// What a kind of question is.
fn about(kind: &str) -> &'static str {
    match kind {
        "single" => "One code; the question names whose.",
        "multi" => "Four codes at four depths, from the named one on; all are asked for.",
        "chain" => "Somebody's code is that of another, whose code stands elsewhere.",
        "aggregate" => "Four numbers at four depths; the sum is asked for.",
        _ => "",
    }
}

/// The targets and kinds there are, in the order of their first cells.
pub fn groups(grid: &Grid) -> Vec<(String, String)> {
    let mut groups: Vec<(String, String)> = Vec::new();
    for cell in &grid.cells {
        let group = (cell.target.clone(), cell.kind.clone());
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// Lengths and depths of cells, ascending.
pub fn axes(cells: &[&Cell]) -> (Vec<usize>, Vec<u32>) {
    let lengths: BTreeSet<usize> = cells.iter().map(|c| c.length).collect();
    let depths: BTreeSet<u32> = cells.iter().map(|c| c.depth).collect();
    (lengths.into_iter().collect(), depths.into_iter().collect())
}

/// For each depth and length, the share that was right.
pub fn shares(cells: &[&Cell], lengths: &[usize], depths: &[u32]) -> Vec<Vec<Option<f64>>> {
    let share = |depth: u32, length: usize| {
        let these: Vec<bool> =
            cells.iter().filter(|c| c.depth == depth && c.length == length).map(|c| c.right).collect();
        let right = these.iter().filter(|&&right| right).count();
        (!these.is_empty()).then(|| right as f64 / these.len() as f64)
    };
    depths.iter().map(|&depth| lengths.iter().map(|&length| share(depth, length)).collect()).collect()
}
