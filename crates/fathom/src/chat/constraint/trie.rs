//! The vocabulary as the library of grammars reads it, and the masks of free text.

use std::sync::Arc;

use deepseek_recipe_core::special_tokens::SpecialToken;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{ParserFactory, earley::SlicedBiasComputer, toktrie::InferenceCapabilities};

use super::super::Tokenizer;
use super::exponent::Exponents;
use super::limited;

/// The longest token that the library's tree takes, in bytes; longer ones are not said under a constraint.
const LONGEST: usize = 1000;

/// What constraints of one tokenizer share.
pub(super) struct Ready {
    pub tokenizer: Arc<Tokenizer>,
    pub factory: ParserFactory,
    /// Masks of free text: bit t of them is token t.
    pub free: Free,
    pub dsml: Option<u32>,
    pub thought: u32,
    /// Tokens that have an exponent in them that is too long.
    pub long: Vec<u32>,
}

/// What may come next in free text: any token that is not special, and some that are.
pub(super) struct Free {
    /// Thinking that must come to its end.
    pub thinking: Vec<u32>,
    /// Thinking after which an answer may end too.
    pub idle: Vec<u32>,
    /// An answer.
    pub text: Vec<u32>,
    /// An answer whose last character may begin a call.
    pub opening: Vec<u32>,
}

impl Ready {
    /// Reads a vocabulary.
    pub(super) fn new(tokenizer: &Arc<Tokenizer>) -> Result<Ready, String> {
        let special = |token: SpecialToken| {
            let spelling = token.default_str();
            tokenizer.special(spelling).ok_or_else(|| format!("its vocabulary has no token '{spelling}'"))
        };
        let (eos, thought) = (special(SpecialToken::Eos)?, special(SpecialToken::ThinkingEnd)?);
        let dsml = special(SpecialToken::Dsml).ok();
        let vocab = tokenizer.vocab_size() as u32;
        let words: Vec<Vec<u8>> = (0..vocab).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab, eos), &words);
        let env: TokEnv = Arc::new(Env { tokenizer: Arc::clone(tokenizer), trie });
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(|e| e.to_string())?;
        let mut plain = vec![0; (vocab as usize).div_ceil(32)];
        let texts = (0..vocab).filter(|&id| !tokenizer.is_special(id) && !tokenizer.token_bytes(id).is_empty());
        texts.for_each(|id| set(&mut plain, id));
        let with = |ids: &[u32]| {
            let mut mask = plain.clone();
            ids.iter().for_each(|&id| set(&mut mask, id));
            mask
        };
        let opening = dsml.map_or_else(|| with(&[eos]), |dsml| with(&[eos, dsml]));
        let free = Free { thinking: with(&[thought]), idle: with(&[thought, eos]), text: with(&[eos]), opening };
        let json = Exponents::in_json();
        let long = (0..vocab).filter(|&id| json.lengthen(tokenizer.token_bytes(id))).collect();
        Ok(Ready { tokenizer: Arc::clone(tokenizer), factory: limited(factory), free, dsml, thought, long })
    }
}

fn set(mask: &mut [u32], id: u32) {
    mask[id as usize / 32] |= 1 << (id % 32);
}

/// A token's bytes in the library's tree, where special tokens begin with the byte that no text has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if bytes.len() > LONGEST {
        return Vec::new();
    }
    match (tokenizer.is_special(id), bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER)) {
        (true, _) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        (false, true) => Vec::new(),
        (false, false) => bytes.to_vec(),
    }
}

/// The tokenizer, for text that a grammar leaves no choice in: it comes in the tokens that the model would be given it in.
struct Env {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.tokenizer.encode(text).unwrap_or_default())
    }
}
