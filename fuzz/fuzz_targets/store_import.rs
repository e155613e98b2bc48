//! Any bytes as a file to import, also with the checksum at its end put right: imported whole or refused, and what was imported
//! can be exported as it came. Seed: `crates/store/tests/fixtures/v1.export`.
#![no_main]

use std::sync::OnceLock;

use fathom_store::{Namespace, Options, Store};
use libfuzzer_sys::fuzz_target;

/// A small store, in memory where that can be had.
fn namespace() -> &'static Namespace {
    static OPEN: OnceLock<(tempfile::TempDir, Namespace)> = OnceLock::new();
    let (_, namespace) = OPEN.get_or_init(|| {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let options = Options { quota: 4 << 20, ..Options::default() };
        let store = Store::open(folder.path().to_str().expect("a path"), options).expect("a store");
        (folder, store.namespace("fuzz").expect("a namespace"))
    });
    namespace
}

fuzz_target!(|bytes: &[u8]| {
    let namespace = namespace();
    let forged = bytes.split_last_chunk::<32>().map_or(Vec::new(), |(body, _)| {
        [body, blake3::hash(body).as_bytes()].concat()
    });
    for mut file in [bytes, &forged] {
        let Ok(saved) = namespace.import(&mut file) else { continue };
        let mut out = Vec::new();
        namespace.export(&saved.id, &mut out).expect("exported");
        let again = namespace.import(&mut &out[..]).expect("imported again");
        assert_eq!(again.position, saved.position);
        namespace.remove(&saved.id).expect("removed");
        for snapshot in namespace.list().expect("listed") {
            namespace.remove(&snapshot.id).expect("removed");
        }
    }
});
