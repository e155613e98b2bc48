//! The tokenizer: text to token ids and back, by `fastokens`.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use deepseek_recipe::stream::StreamTokenizer;
use deepseek_recipe_core::special_tokens::SpecialToken;
use deepseek_recipe_encoding::TokenizerEncoder;
use fastokens::decoders::Decoder as Kind;
use serde_json::Value;

use crate::Error;

/// The largest tokenizer file read, in bytes; the released ones have 8 MB.
const LARGEST_FILE: u64 = 256 << 20;
/// Token ids must be below this; the released vocabularies end at 129,280. What fastokens allocates grows with the
/// largest id, so ids are checked before it sees them.
const LARGEST_ID: u64 = 1 << 22;

/// How many tokens a model may have that its tokenizer does not know: vocabularies are padded to round numbers.
const PADDING: usize = 255;

/// An id that no vocabulary has and no text stands for. To DeepSeek's parser it is a special token: at one, the parser
/// gives what it held back.
pub(super) const NO_TOKEN: u32 = u32::MAX;
/// With this bit, an id is to DeepSeek's parser a plain token of the same text, whatever it is by itself.
pub(super) const AS_TEXT: u32 = 1 << 30;

/// The special tokens without which no prompt can be written.
const REQUIRED: [SpecialToken; 6] = [
    SpecialToken::Bos,
    SpecialToken::Eos,
    SpecialToken::User,
    SpecialToken::Assistant,
    SpecialToken::ThinkingStart,
    SpecialToken::ThinkingEnd,
];

/// A byte-level BPE tokenizer read from a `tokenizer.json`.
///
/// Special tokens are written only where the caller says so: their spelling inside plain text stays plain text.
pub struct Tokenizer {
    path: PathBuf,
    bpe: fastokens::Tokenizer,
    /// Added tokens by their spelling.
    added: HashMap<String, u32>,
    /// For each id, whether it is an added token.
    is_added: Vec<bool>,
    /// The bytes of all tokens, one after the other; `ends[id]` is where token `id` ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

/// A tokenizer being read on a thread of its own.
#[derive(Debug)]
pub struct Loading {
    path: PathBuf,
    thread: JoinHandle<Result<Tokenizer, Error>>,
}

impl Loading {
    /// Waits for the tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn wait(self) -> Result<Tokenizer, Error> {
        // The library that reads the file can panic on a file nobody meant it to read: that is the file's fault.
        self.thread.join().unwrap_or_else(|_| {
            Err(Error::TokenizerBroken { path: self.path, cause: "its parts do not fit together".to_owned() })
        })
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` where it is there, in `folder`.
    ///
    /// # Errors
    /// Names the file when it is missing, unreadable, not JSON or not a byte-level BPE tokenizer.
    pub fn open(folder: &Path) -> Result<Tokenizer, Error> {
        Tokenizer::load_in_background(folder)?.wait()
    }

    /// Starts reading the tokenizer in `folder` and returns at once. A released one takes a second or so, a tenth of it
    /// for the JSON and the rest for building the merge tables: time enough to open the weights.
    ///
    /// # Errors
    /// [`Error::TokenizerMissing`] right away; everything else when waiting.
    pub fn load_in_background(folder: &Path) -> Result<Loading, Error> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            let cause = "it is no regular file".to_owned();
            return Err(if path.exists() {
                Error::TokenizerBroken { path, cause }
            } else {
                Error::TokenizerMissing(path)
            });
        }
        let config = folder.join("tokenizer_config.json");
        spawn(path.clone(), move || {
            let json = read(&path)?;
            let config = if config.is_file() { Some((read(&config)?, config)) } else { None };
            build(&path, &json, config.as_ref().map(|(bytes, path)| (path.as_path(), bytes.as_slice())))
        })
    }

    /// Starts reading a tokenizer that is in memory, as [`Tokenizer::from_bytes`] does, and returns at once.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn bytes_in_background(name: &str, tokenizer_json: &'static [u8]) -> Result<Loading, Error> {
        let path = PathBuf::from(name);
        spawn(path.clone(), move || build(&path, tokenizer_json, None))
    }

    /// Reads a tokenizer that is in memory, such as the embedded model's; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn from_bytes(name: &str, tokenizer_json: &[u8]) -> Result<Tokenizer, Error> {
        build(Path::new(name), tokenizer_json, None)
    }

    /// Checks that this is the tokenizer of a model with `vocab_size` tokens, `bos` and `eos`, and that a conversation
    /// can be written with it.
    ///
    /// # Errors
    /// [`Error::TokenizerForeign`] names the first difference. A vocabulary a little smaller than the model's is none:
    /// models pad theirs.
    pub fn check(&self, vocab_size: usize, bos: u32, eos: u32) -> Result<(), Error> {
        let foreign = |cause| Err(Error::TokenizerForeign { path: self.path.clone(), cause });
        if self.ends.len() > vocab_size {
            let largest = self.ends.len() - 1;
            return foreign(format!("its largest token id is {largest}, the model's vocab_size is {vocab_size}"));
        }
        let missing = vocab_size - self.ends.len();
        if missing > PADDING.min(vocab_size / 8) {
            let here = self.ends.len();
            return foreign(format!("it has {here} tokens, the model's vocab_size is {vocab_size}"));
        }
        for token in REQUIRED {
            if !self.added.contains_key(token.default_str()) {
                return foreign(format!("it has no token '{}'", token.default_str()));
            }
        }
        for (name, token, id) in [("bos_token_id", SpecialToken::Bos, bos), ("eos_token_id", SpecialToken::Eos, eos)] {
            let spelling = token.default_str();
            if self.special(spelling) != Some(id) {
                let here = self.added[spelling];
                return foreign(format!("'{spelling}' is token {here} here and {name} {id} in the model's config"));
            }
        }
        Ok(())
    }

    /// The tokens of plain text; the spelling of a special token in it is text like any other.
    ///
    /// # Errors
    /// [`Error::Encode`] for text that the vocabulary cannot express.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.bpe.encode_ordinary(text).map_err(|error| Error::Encode(error.to_string()))
    }

    /// The text of `ids`, special tokens spelled out; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// The bytes a token stands for: a special token's are its spelling, an unknown id has none.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// The id of a special token by its spelling.
    pub fn special(&self, spelling: &str) -> Option<u32> {
        self.added.get(spelling).copied()
    }

    /// Whether `id` is a special token, or another added one: a token of its own, never made from text.
    pub fn is_special(&self, id: u32) -> bool {
        self.is_added.get(id as usize).copied().unwrap_or(false)
    }

    /// The token in the tags of tool calls.
    pub fn dsml(&self) -> Option<u32> {
        self.special(SpecialToken::Dsml.default_str())
    }

    /// Whether the vocabulary has what tool calls are written with.
    pub fn can_call_tools(&self) -> bool {
        self.dsml().is_some()
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("tokens", &self.ends.len()).finish_non_exhaustive()
    }
}

impl TokenizerEncoder for Tokenizer {
    fn encode_ids(&self, text: &str, special_ranges: &[Range<usize>]) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        let mut start = 0;
        for range in special_ranges {
            self.extend_plain(&mut ids, &text[start..range.start])?;
            let spelling = &text[range.clone()];
            match self.special(spelling) {
                Some(id) => ids.push(id),
                // A vocabulary may lack what this prompt can do without.
                None => self.extend_plain(&mut ids, spelling)?,
            }
            start = range.end;
        }
        self.extend_plain(&mut ids, &text[start..])?;
        Ok(ids)
    }
}

impl Tokenizer {
    fn extend_plain(&self, ids: &mut Vec<u32>, text: &str) -> Result<(), String> {
        if !text.is_empty() {
            ids.extend(self.bpe.encode_ordinary(text).map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}

impl StreamTokenizer for Tokenizer {
    fn decode_ids(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, String> {
        if skip_special_tokens {
            let plain: Vec<u32> = ids.iter().filter(|&&id| !self.is_special(id)).map(|&id| itself(id)).collect();
            return Ok(self.decode(&plain));
        }
        Ok(self.decode(&ids.iter().map(|&id| itself(id)).collect::<Vec<u32>>()))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.bpe.id_to_token(itself(id)).map(str::to_owned)
    }

    fn count_tokens(&self, text: &str) -> Option<usize> {
        self.encode(text).ok().map(|ids| ids.len())
    }

    fn is_special_token(&self, id: u32) -> bool {
        self.is_special(id) || id == NO_TOKEN
    }
}

/// An id without the bit that makes it plain text.
fn itself(id: u32) -> u32 {
    if id == NO_TOKEN { id } else { id & !AS_TEXT }
}

/// Runs `load` on a thread.
fn spawn(path: PathBuf, load: impl FnOnce() -> Result<Tokenizer, Error> + Send + 'static) -> Result<Loading, Error> {
    let thread = thread::Builder::new()
        .name("tokenizer".to_owned())
        .spawn(load)
        .map_err(|cause| Error::TokenizerRead { path: path.clone(), cause })?;
    Ok(Loading { path, thread })
}

/// The bytes of a file, unless it is absurdly large.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |cause| Error::TokenizerRead { path: path.to_owned(), cause };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > LARGEST_FILE {
        let cause = format!("{size} bytes; at most {LARGEST_FILE} are read");
        return Err(Error::TokenizerBroken { path: path.to_owned(), cause });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    File::open(path).map_err(failed)?.take(LARGEST_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn build(path: &Path, json: &[u8], config: Option<(&Path, &[u8])>) -> Result<Tokenizer, Error> {
    let broken = |cause: String| Error::TokenizerBroken { path: path.to_owned(), cause };
    let mut json: Value = serde_json::from_slice(json).map_err(|error| broken(error.to_string()))?;
    if let Some((config_path, config)) = config {
        let config: Value = serde_json::from_slice(config)
            .map_err(|error| Error::TokenizerBroken { path: config_path.to_owned(), cause: error.to_string() })?;
        merge_added(&mut json, &config);
    }
    let count = count_ids(&json).map_err(broken)?;
    let mut bpe = fastokens::Tokenizer::from_json(json).map_err(|error| match error.to_string() {
        // What it says of a BPE model that it could not read as one.
        cause if cause.ends_with("Other") => broken("its model.vocab or model.merges is damaged".to_owned()),
        cause => broken(cause),
    })?;
    if !matches!(bpe.decoder(), Some(Kind::ByteLevel(_))) {
        return Err(broken("its decoder is not ByteLevel, as V4's is".to_owned()));
    }
    // A prompt is encoded whole or not at all.
    bpe.set_truncation(None);
    bpe.set_padding(None);

    let added: HashMap<String, u32> =
        bpe.added_token_configs().iter().map(|token| (token.content.clone(), token.id)).collect();
    let mut is_added = vec![false; count];
    added.values().for_each(|&id| is_added[id as usize] = true);
    let byte_of = byte_level();
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(count);
    for (id, &is_added) in is_added.iter().enumerate() {
        if let Some(token) = bpe.id_to_token(id as u32) {
            let start = bytes.len();
            let mapped = !is_added && token.chars().all(|c| byte_of.get(&c).map(|&b| bytes.push(b)).is_some());
            if !mapped {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
            }
        }
        ends.push(u32::try_from(bytes.len()).map_err(|_| broken("its tokens take more than 4 GiB".to_owned()))?);
    }
    Ok(Tokenizer { path: path.to_owned(), bpe, added, is_added, bytes, ends })
}

/// Adds the tokens that only `tokenizer_config.json` lists to those of `tokenizer.json`.
fn merge_added(json: &mut Value, config: &Value) {
    let Some(Value::Object(more)) = config.get("added_tokens_decoder") else { return };
    let Some(object) = json.as_object_mut() else { return };
    let Value::Array(list) = object.entry("added_tokens").or_insert_with(|| Value::Array(Vec::new())) else { return };
    let known: Vec<Option<u64>> = list.iter().map(|token| token.get("id").and_then(Value::as_u64)).collect();
    for (id, token) in more {
        let (Ok(id), Some(token)) = (id.parse::<u64>(), token.as_object()) else { continue };
        if !known.contains(&Some(id)) {
            let mut token = token.clone();
            token.insert("id".to_owned(), id.into());
            list.push(Value::Object(token));
        }
    }
}

/// One more than the largest token id; refuses ids that would make the tables absurdly large.
fn count_ids(json: &Value) -> Result<usize, String> {
    match json.pointer("/model/type") {
        None => {}
        Some(kind) if kind == "BPE" => {}
        Some(kind) => return Err(format!("its model.type is {kind}; V4's is \"BPE\"")),
    }
    if !json.pointer("/model/merges").is_some_and(Value::is_array) {
        return Err("it has no list model.merges".to_owned());
    }
    let vocab = json.pointer("/model/vocab").and_then(Value::as_object).ok_or("it has no model.vocab")?;
    let added = json.get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ids = vocab.iter().map(|(token, id)| (token.as_str(), id));
    let added = added.iter().map(|token| {
        (token.get("content").and_then(Value::as_str).unwrap_or_default(), token.get("id").unwrap_or(&Value::Null))
    });
    let mut count = 0;
    for (token, id) in ids.chain(added) {
        match id.as_u64() {
            Some(id) if id < LARGEST_ID => count = count.max(id as usize + 1),
            _ => return Err(format!("token {token:?} has the id {id}; ids are from 0 to {}", LARGEST_ID - 1)),
        }
    }
    Ok(count)
}

/// The characters that byte-level vocabularies write bytes with: printable Latin-1 as itself, the rest from U+0100 on.
fn byte_level() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            let own = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let character = if own {
                char::from(byte)
            } else {
                next += 1;
                char::from_u32(next - 1).unwrap_or_default()
            };
            (character, byte)
        })
        .collect()
}
