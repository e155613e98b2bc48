//! What fuzz targets call: the readers of bytes that somebody else may have written. See `fuzz/`.

use bytes::Bytes;

use crate::Key;
use crate::manifest::Manifest;
use crate::sealed::{HEADER, Kind, Sealer};

/// The most plaintext that is asked for.
const MOST: u64 = 1 << 20;

/// Bytes as a file of a store, as they are and with the checksums put right, plain and encrypted.
pub fn sealed(bytes: &[u8]) {
    let mut forged = bytes.to_vec();
    if forged.len() >= HEADER {
        forged[..8].copy_from_slice(b"fathomst");
        let hash = blake3::hash(&forged[HEADER..]);
        forged[48..80].copy_from_slice(hash.as_bytes());
        let check = blake3::hash(&forged[..80]);
        forged[80..88].copy_from_slice(&check.as_bytes()[..8]);
    }
    let key = Key::new([5; 32]);
    for file in [Bytes::copy_from_slice(bytes), forged.into()] {
        for sealer in [Sealer::new(None, None), Sealer::new(None, Some(&key))] {
            for kind in [Kind::Object, Kind::Manifest, Kind::Mark, Kind::Secret, Kind::Count] {
                if let Ok(opened) = sealer.open(kind, &file, MOST) {
                    assert!(opened.plain.len() as u64 <= MOST);
                }
            }
        }
    }
}

/// Bytes as a manifest's plaintext: what is accepted means what it says.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let again = Manifest::decode(&manifest.encode()).expect("what was written");
        assert_eq!(again, manifest);
        assert!(manifest.objects().count() > manifest.position / manifest.subject.page);
    }
}
