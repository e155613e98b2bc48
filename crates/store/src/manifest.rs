//! The manifest of a snapshot: which objects it is made of, and which tokens it is the state after.

use crate::chain::Subject;
use crate::cursor::{Cursor, put_text};
use crate::name::{Chain, Id, Name};
use crate::tokens;

/// The most bytes of a manifest. One of sixteen million positions has less.
pub(crate) const MAX: u64 = 64 << 20;
/// Bytes of an encoded manifest beside its subject, name, pages, blocks, tail and tokens.
pub(crate) const FIXED: u64 = 8 + 8 + 8 + 1 + 1 + 2 + 1 + 16 + 16 + 32;
/// The longest name of a session, in bytes.
pub(crate) const MAX_NAME: usize = 1024;

/// A page of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    /// The key after it.
    pub(crate) chain: Chain,
    pub(crate) object: Object,
}

/// An object and its length in bytes before packing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: Name,
    pub(crate) length: u64,
}

/// What a snapshot is. Never changed once written; marks beside it say what has changed since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) subject: Subject,
    /// Tokens that the state follows.
    pub(crate) position: usize,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) expires: Option<u64>,
    pub(crate) pinned: bool,
    pub(crate) name: Option<String>,
    pub(crate) parent: Option<Id>,
    /// Random, so that two snapshots of the same state are two.
    pub(crate) salt: [u8; 16],
    /// The key of the snapshot.
    pub(crate) key: Chain,
    pub(crate) pages: Vec<Page>,
    /// Tokens of the full blocks.
    pub(crate) blocks: Vec<Object>,
    pub(crate) tail: Object,
    /// Tokens after the last full block, encoded.
    pub(crate) open: Vec<u8>,
}

impl Manifest {
    /// The key at the last page border, where `root` is that before the first.
    pub(crate) fn full(&self, root: Chain) -> Chain {
        self.pages.last().map_or(root, |page| page.chain)
    }

    /// All objects that it names.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.pages.iter().map(|page| &page.object).chain(&self.blocks).chain([&self.tail])
    }

    /// Tokens that are in the manifest itself: their first position, and they.
    pub(crate) fn open_tokens(&self) -> Result<(usize, Vec<u32>), String> {
        let start = self.blocks.len() * tokens::block_len(self.subject.page);
        Ok((start, tokens::decode(&self.open, self.position - start)?))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + 72 * self.pages.len() + 40 * self.blocks.len() + self.open.len());
        self.subject.encode(&mut out);
        out.extend((self.position as u64).to_le_bytes());
        out.extend(self.created.to_le_bytes());
        out.extend(self.expires.unwrap_or(0).to_le_bytes());
        out.push(self.pinned.into());
        out.push(self.name.is_some().into());
        put_text(&mut out, self.name.as_deref().unwrap_or(""));
        out.push(self.parent.is_some().into());
        out.extend(self.parent.map_or([0; 16], |id| id.0));
        out.extend(self.salt);
        out.extend(self.key.0);
        for page in &self.pages {
            out.extend(page.chain.0);
            put_object(&mut out, &page.object);
        }
        for block in &self.blocks {
            put_object(&mut out, block);
        }
        put_object(&mut out, &self.tail);
        out.extend(&self.open);
        out
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, String> {
        let mut cursor = Cursor(bytes);
        let subject = Subject::decode(&mut cursor)?;
        let position = cursor.u64("the position")?;
        let created = cursor.u64("the time")?;
        let expires = Some(cursor.u64("the time limit")?).filter(|&at| at > 0);
        let pinned = cursor.flag("pinned")?;
        let named = cursor.flag("named")?;
        let name = cursor.text("the name")?;
        if name.len() > MAX_NAME || (!named && !name.is_empty()) {
            return Err("the name is malformed".into());
        }
        let has_parent = cursor.flag("parent")?;
        let parent = cursor.array("the parent")?;
        let salt = cursor.array("the salt")?;
        let key = Chain(cursor.array("the key")?);
        // A page takes 72 bytes: what cannot be there is not allocated.
        let left = cursor.0.len() as u64;
        let pages = position / subject.page as u64;
        if position == 0 || pages > left / 72 {
            return Err(format!("position {position} does not fit {left} bytes"));
        }
        let pages = (0..pages)
            .map(|_| Ok(Page { chain: Chain(cursor.array("a page")?), object: object(&mut cursor)? }))
            .collect::<Result<Vec<_>, String>>()?;
        let blocks = position / tokens::block_len(subject.page) as u64;
        let blocks = (0..blocks).map(|_| object(&mut cursor)).collect::<Result<Vec<_>, String>>()?;
        let tail = object(&mut cursor)?;
        let position = usize::try_from(position).map_err(|_| "the position is too large".to_owned())?;
        let name = named.then_some(name);
        let parent = has_parent.then_some(Id(parent));
        let open = cursor.0.to_vec();
        let manifest = Manifest {
            subject,
            position,
            created,
            expires,
            pinned,
            name,
            parent,
            salt,
            key,
            pages,
            blocks,
            tail,
            open,
        };
        manifest.open_tokens()?;
        Ok(manifest)
    }
}

fn put_object(out: &mut Vec<u8>, object: &Object) {
    out.extend(object.name.0);
    out.extend(object.length.to_le_bytes());
}

fn object(cursor: &mut Cursor<'_>) -> Result<Object, String> {
    Ok(Object { name: Name(cursor.array("an object's name")?), length: cursor.u64("an object's length")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(position: usize, page: usize) -> Manifest {
        let object = |i: usize| Object { name: Name([i as u8; 32]), length: i as u64 };
        let blocks = position / tokens::block_len(page);
        let open: Vec<u32> = (0..(position - blocks * tokens::block_len(page)) as u32).collect();
        Manifest {
            subject: Subject { model: [1; 32], profile: "native-2".into(), page },
            position,
            created: 1_800_000_000,
            expires: (position.is_multiple_of(2)).then_some(1_900_000_000),
            pinned: position.is_multiple_of(3),
            name: (position.is_multiple_of(5)).then(|| "a session".to_owned()),
            parent: (position.is_multiple_of(7)).then_some(Id([9; 16])),
            salt: [4; 16],
            key: Chain([5; 32]),
            pages: (0..position / page).map(|i| Page { chain: Chain([i as u8; 32]), object: object(i) }).collect(),
            blocks: (0..blocks).map(object).collect(),
            tail: object(77),
            open: tokens::encode(&open),
        }
    }

    #[test]
    fn there_and_back() {
        for (position, page) in [(1, 1), (1, 128), (127, 128), (128, 128), (700, 128), (50_000, 1024), (50_000, 20_000)]
        {
            let manifest = example(position, page);
            assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
            assert_eq!(manifest.objects().count(), position / page + manifest.blocks.len() + 1);
        }
    }

    #[test]
    fn claims_are_checked_before_memory_is_taken() {
        let mut bytes = example(700, 128).encode();
        let at = 32 + 4 + 2 + "native-2".len();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Manifest::decode(&bytes).unwrap_err().contains("does not fit"));
        bytes[at..at + 8].copy_from_slice(&0u64.to_le_bytes());
        assert!(Manifest::decode(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Manifest::decode(&bytes);
        }

        #[test]
        fn mutated_bytes(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
            position in 1usize..300,
        ) {
            let mut bytes = example(position, 16).encode();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(manifest) = Manifest::decode(&bytes) {
                // What is accepted means what it says.
                prop_assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
            }
            let _ = Manifest::decode(&bytes[..cut.index(bytes.len())]);
        }
    }
}
