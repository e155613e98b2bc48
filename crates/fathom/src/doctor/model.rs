//! A checkpoint: whether its files are what they should be, and its tokenizer and prompts come back as they went.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fathom_kernels::human;

use super::Finding;
use crate::chat::{Effort, Message, Prompter, Role};
use crate::pull::{Hash, Manifest};

/// What a tokenizer must give back as it was: scripts, code, spaces, signs of several characters, the spelling of marks.
const TEXTS: [&str; 8] = [
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n\treturn {k: v for k, v in x.items() if v >= 0x1F}  # über\n",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "Съешь же ещё этих мягких французских булок",
    "👩‍👩‍👧‍👦 e\u{301} \u{fb01} ½ ∑ 𝔘 \u{200b}",
    "   leading, trailing and    inner spaces   \r\n\n\n",
    "1234567890 3.14159 -0.5e-10 1,000,000",
    "<|im_start|> <s> </s> [INST] are text",
];

/// Reads all files of tensors and compares those whose hashes are known. `progress` is told bytes read.
pub fn hashes(folder: &Path, shards: &[PathBuf], progress: &mut dyn FnMut(u64)) -> Vec<Finding> {
    let manifest = Manifest::read(folder);
    let known = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let found = manifest.as_ref()?.files.get(name)?;
        Some((found.size, found.hash.clone()?))
    };
    let mut findings = Vec::new();
    let (mut compared, mut bytes) = (0, 0);
    for path in shards {
        let result = match known(path) {
            Some((size, hash)) => {
                compared += 1;
                same(path, size, &hash, progress)
            }
            None => read(path, progress).map(|()| None),
        };
        bytes += fs::metadata(path).map_or(0, |found| found.len());
        let problem = match result {
            Ok(None) => continue,
            Ok(Some(problem)) => problem,
            Err(e) => e.to_string(),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let repo = manifest.as_ref().map_or("OWNER/NAME", |manifest| &manifest.repo);
        let mend = format!("rm {}; fathom pull {repo} {}", path.display(), folder.display());
        findings.push(Finding::wrong(
            "files",
            format!("{name}: {problem}"),
            "answers are wrong, or there are none",
            mend,
        ));
    }
    if findings.is_empty() {
        let of = format!("{} files, {}, all readable", shards.len(), human(bytes));
        findings.push(match compared {
            0 => Finding::good("files", format!("{of}; no hashes are known, which fathom pull would note")),
            n => Finding::good("files", format!("{of}; {n} as their hashes say")),
        });
    }
    findings
}

/// What is wrong with a file, if something is.
fn same(path: &Path, size: u64, hash: &Hash, progress: &mut dyn FnMut(u64)) -> io::Result<Option<String>> {
    let found = fs::metadata(path)?.len();
    if found != size {
        return Ok(Some(format!("has {found} bytes, but should have {size}")));
    }
    let right = hash.of(File::open(path)?, size, progress)? == *hash;
    Ok((!right).then(|| format!("its content is not what its hash says ({hash})")))
}

fn read(path: &Path, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => progress(n as u64),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The files of tensors in a folder.
///
/// # Errors
/// The folder cannot be read.
pub fn shard_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // A pipe of that name would never end.
        if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// Texts to tokens and back, and a conversation to a prompt and back.
pub fn prompts(prompter: &Prompter) -> Vec<Finding> {
    vec![tokenizer(prompter), conversation(prompter)]
}

const MEND: &str = "take tokenizer.json and tokenizer_config.json from the release that the weights are of";

fn tokenizer(prompter: &Prompter) -> Finding {
    let tokenizer = prompter.tokenizer();
    let lost = TEXTS.iter().find_map(|text| match tokenizer.encode(text) {
        Ok(ids) if tokenizer.decode(&ids) == *text => None,
        Ok(ids) => Some(format!("{text:?} comes back as {:?}", tokenizer.decode(&ids))),
        Err(e) => Some(e.to_string()),
    });
    match lost {
        None => {
            let (texts, vocab) = (TEXTS.len(), tokenizer.vocab_size());
            Finding::good(
                "tokenizer",
                format!("{vocab} tokens; {texts} texts in several scripts come back as they were"),
            )
        }
        Some(problem) => Finding::wrong("tokenizer", problem, "the model reads and writes another text", MEND),
    }
}

fn conversation(prompter: &Prompter) -> Finding {
    let say = |role, text: &str| Message { role, text: text.to_owned() };
    let messages = [
        say(Role::User, "How deep is a fathom?"),
        say(Role::Assistant, "Six feet."),
        say(Role::User, "And in metres?"),
    ];
    let cost = "the model sees a conversation that is not the one that was had";
    let round = prompter.chat(&messages, Effort::None).and_then(|(ids, _)| {
        let mut found = prompter.messages(&ids)?;
        // The prompt ends where the answer begins, of which there is nothing yet.
        found.pop_if(|last| last.role == Role::Assistant && last.text.is_empty());
        Ok((ids.len(), found))
    });
    match round {
        Ok((n, found)) if found == messages => {
            Finding::good("prompts", format!("a conversation of three turns, {n} tokens, comes back as it was"))
        }
        Ok((_, found)) => {
            let texts: Vec<&str> = found.iter().map(|message| message.text.as_str()).collect();
            Finding::wrong("prompts", format!("a conversation comes back as {texts:?}"), cost, MEND)
        }
        Err(e) => Finding::wrong("prompts", e.to_string(), cost, MEND),
    }
}
