//! The page: one file, with its style and its charts in it, for light and dark screens.

use std::fmt::Write as _;

use fathom_kernels::human;

use super::super::Report;
use super::svg::escape;
use super::{frontiers, needle, servers};

const STYLE: &str = include_str!("style.css");

/// A page.
pub fn page(report: &Report) -> String {
    let mut body = String::new();
    let (title, about) = (escape(&report.title), &report.about);
    let machine = &about.machine;
    // What writes into a string does not fail.
    let _ = writeln!(body, "<h1>{title}</h1>\n<p class=\"soft\">{}, fathom {}</p>", about.date, about.fathom);
    if let Some(why) = &report.partial {
        let _ = writeln!(body, "<p class=\"partial\">Not whole: {}. What is here was measured.</p>", escape(why));
    }
    body += &report.servers.as_ref().map_or_else(String::new, servers::section);
    body += &report.frontiers.as_ref().map_or_else(String::new, frontiers::section);
    body += &report.needle.as_ref().map_or_else(String::new, needle::section);
    body += "<h2>How it was measured</h2>\n";
    for sentence in &report.method {
        let _ = writeln!(body, "<p>{}</p>", escape(sentence));
    }
    body += "<h2>Where</h2>\n<div class=\"wide\"><table class=\"facts\">\n";
    let load = machine.load.map_or_else(|| "not told".to_owned(), |load| format!("{load:.2} when it began"));
    for (name, value) in [
        ("Processor", machine.processor.clone().unwrap_or_else(|| "not told".into())),
        ("Cores", machine.cores.to_string()),
        ("Memory", machine.memory.map_or_else(|| "not told".into(), human)),
        ("System", machine.system.clone()),
        ("Load", load),
        ("Command", about.command.clone()),
    ] {
        let value = escape(&value);
        let value = if name == "Command" { format!("<code>{value}</code>") } else { value };
        let _ = writeln!(body, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    body += "</table></div>\n";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n{body}<footer>The numbers are in report.json and the tables beside this page. Charts tell series apart by \
         dash and mark too.</footer>\n</body>\n</html>\n"
    )
}

/// A chart with its caption and what to read in it; nothing where there is no chart.
pub fn figure(caption: &str, what: &str, svg: &str) -> String {
    if svg.is_empty() {
        return String::new();
    }
    let (caption, what) = (escape(caption), escape(what));
    format!("<figure><figcaption>{caption}</figcaption><p>{what}</p>\n{svg}</figure>\n")
}
