//! A repository in the prompt, file by file. Before each question one file changes: what stands before it is as it was, what
//! stands behind it has moved.

use super::{Item, Size, Writer, item, message};

/// Questions by itself, each a request.
pub(super) const QUESTIONS: usize = 6;
const FILES: usize = 16;
/// Tokens of a file at least.
const SHORTEST: usize = 80;

pub(super) fn items(writer: &mut Writer, size: Size) -> Vec<Item> {
    let count = FILES.min(size.context / SHORTEST).max(2);
    let each = size.context.saturating_sub(60) / count;
    let mut files: Vec<(String, String)> =
        (0..count).map(|i| (format!("src/{}_{i}.rs", writer.noun()), body(writer, each))).collect();
    let mut items = Vec::new();
    for i in 0..size.count(QUESTIONS) {
        if i > 0 {
            let at = writer.random.below(count);
            files[at].1 = body(writer, each);
        }
        let all: Vec<String> = files.iter().map(|(name, body)| format!("{name}\n{body}")).collect();
        let about = &files[writer.random.below(count)].0;
        let messages = vec![
            message("system", all.join("\n\n")),
            message("user", format!("What does {about} do? Where is its bug?")),
        ];
        items.push(item(0, messages, 64));
    }
    items
}

/// Lines of comments and calls.
fn body(writer: &mut Writer, tokens: usize) -> String {
    let (mut lines, mut used) = (Vec::new(), 34);
    while used < tokens || lines.is_empty() {
        let (a, b, n) = (writer.noun(), writer.noun(), writer.random.below(100));
        let sentence = writer.words.sentence(&mut writer.random);
        let line = format!("// {sentence}\nfn {a}_{b}(x: u32) -> u32 {{ x + {n} }}");
        used += super::estimate(&line);
        lines.push(line);
    }
    lines.join("\n")
}
