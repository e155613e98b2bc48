//! Which files of a repository a checkpoint needs.

use std::collections::BTreeSet;

use super::{Error, Listing, Remote};

/// Which shard has which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The file without which a folder is no checkpoint: it comes last.
pub(super) const LAST: &str = "config.json";
/// Files that are no tensors are not longer, in bytes.
const LARGEST_OTHER: u64 = 256 << 20;

/// The files that a checkpoint needs, those without tensors first: at the repository's root, JSON, the tokenizer, licences
/// and the model card, and shards. What other formats and programs need is left out.
pub fn wanted(listing: &Listing) -> Vec<&Remote> {
    let mut all: Vec<&Remote> = listing.files.iter().filter(|file| is_wanted(file)).collect();
    all.sort_by_key(|file| (is_shard(&file.name), &file.name));
    all
}

fn is_wanted(file: &Remote) -> bool {
    is_wanted_name(&file.name) && (is_shard(&file.name) || file.size <= LARGEST_OTHER)
}

pub(super) fn is_wanted_name(name: &str) -> bool {
    // A name becomes a path here, and goes to a terminal: none that leads elsewhere or hides.
    if name.starts_with('.') || name.contains(['/', '\\']) || name.contains(char::is_control) {
        return false;
    }
    let text = [".json", ".jinja", ".model"].iter().any(|ending| name.ends_with(ending))
        || ["LICENSE", "NOTICE", "README", "USE_POLICY"].iter().any(|start| name.starts_with(start))
        || name == "merges.txt";
    is_shard(name) || text
}

pub(super) fn is_shard(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// The shards that an index names.
pub(super) fn shards(index: &[u8]) -> Result<BTreeSet<String>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    let wrong = |problem| Error::Hub { place: INDEX.to_owned(), problem };
    let index: Index = serde_json::from_slice(index).map_err(|e| wrong(format!("is no index of shards: {e}")))?;
    Ok(index.weight_map.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_a_checkpoint_needs() {
        let names = [
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "config.json",
            "tokenizer.json",
            "LICENSE",
            ".gitattributes",
            ".fathom-pull",
            "inference/model.py",
            "original/model.safetensors",
            "../../etc/passwd.json",
            "..\\x.json",
            "\u{1b}[31mx.json",
            "pytorch_model.bin",
            "figures.png",
        ];
        let file = |name: &&str| Remote { name: (*name).to_owned(), size: 1, hash: None };
        let mut listing = Listing { commit: String::new(), files: names.iter().map(file).collect() };
        listing.files.push(Remote { name: "huge.json".into(), size: 1 << 40, hash: None });
        let found: Vec<&str> = wanted(&listing).iter().map(|file| file.name.as_str()).collect();
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(found, [&["LICENSE", "config.json", "tokenizer.json"][..], &shards].concat());
    }
}
