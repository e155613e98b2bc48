//! Sessions into a store and back.
//!
//! A snapshot's tail is the number of logits (u32, little-endian), that many f32, and the model's tail: with the logits that
//! follow its last token a session goes on at once, without reading that token again.

use fathom_kernels::Device;
use fathom_model::{Config, Model, PAGE, State, page_bytes, tail_bytes};
use fathom_store::{ImportLimits, Miss, Namespace, NewSnapshot, Saved, Subject};

/// Errors of saving and resuming.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] fathom_store::Error),
    /// The model's state could not be read or made.
    #[error(transparent)]
    Model(#[from] fathom_model::Error),
}

/// What the states of a model are stored under. `fingerprint` is its checkpoint's.
pub fn subject<D: Device>(model: &Model<D>, fingerprint: [u8; 32]) -> Subject {
    Subject { model: fingerprint, profile: model.device().profile(), page: Model::<D>::PAGE }
}

/// Saves a session: `state` has seen `snapshot.tokens`, and `logits` follow them. Only pages that the store does not have are
/// read and written.
///
/// # Errors
/// Those of the store and the device. Nothing is listed after an error.
pub fn save<D: Device>(
    model: &Model<D>,
    state: &State<D>,
    logits: &[f32],
    namespace: &Namespace,
    subject: &Subject,
    snapshot: &NewSnapshot<'_>,
) -> Result<Saved, SnapshotError> {
    assert_eq!(snapshot.tokens.len(), state.position(), "the tokens of the session");
    let mut tail = (logits.len() as u32).to_le_bytes().to_vec();
    tail.extend(logits.iter().flat_map(|v| v.to_le_bytes()));
    tail.extend(model.tail(state)?);
    Ok(namespace.save(subject, snapshot, &mut |page| Ok(model.page(state, page)?), &tail)?)
}

/// What a file may hold to be a session of a model's, with so many tokens at most.
pub(crate) fn import_limits<D: Device>(model: &Model<D>, tokens: usize) -> ImportLimits {
    let page = model.state_bytes(1) - model.state_bytes(0);
    // Beside its full pages a session has less than what one of a page has.
    let tail = 4 + 4 * model.config().vocab_size as u64 + model.state_bytes(1);
    ImportLimits { tokens, tail, page }
}

/// A session that goes on from a snapshot.
#[derive(Debug)]
pub struct Resumed<D: Device> {
    /// It has seen the first `state.position()` of the tokens asked for.
    pub state: State<D>,
    /// What follows the last of them; empty if the snapshot did not keep it.
    pub logits: Vec<f32>,
}

/// What a store had for some tokens.
#[derive(Debug)]
pub struct Resume<D: Device> {
    /// The longest there was, if any that is long enough.
    pub resumed: Option<Resumed<D>>,
    /// Why it is not longer; none if it has all.
    pub miss: Option<Miss>,
    /// Snapshots that would have been taken but could not be read, and what was wrong with them.
    pub lost: Vec<fathom_store::Error>,
}

/// The longest snapshot whose tokens are the first of `tokens`, as a session, if it has more than `have` of them. A damaged one is
/// passed over for the next best.
///
/// # Errors
/// The store could not be asked, or the ledger has no room. A caller that can compute goes on without.
pub fn resume<D: Device>(
    model: &Model<D>,
    namespace: &Namespace,
    subject: &Subject,
    tokens: &[u32],
    have: usize,
) -> Result<Resume<D>, SnapshotError> {
    let mut lost = Vec::new();
    loop {
        let found = namespace.find(subject, tokens)?;
        // One that the store does not forget would be found for ever.
        let longer = found.best.filter(|best| best.position > have && lost.len() < MOST_LOST);
        let Some(best) = longer else { return Ok(Resume { resumed: None, miss: found.miss, lost }) };
        match load(model, namespace, best.id, best.position) {
            Ok(resumed) => return Ok(Resume { resumed: Some(resumed), miss: found.miss, lost }),
            // The store has forgotten it, and finds another or none.
            Err(SnapshotError::Store(e)) if e.is_lost() => lost.push(e),
            Err(e) => return Err(e),
        }
    }
}

/// Snapshots that are tried at most.
const MOST_LOST: usize = 100;

fn load<D: Device>(
    model: &Model<D>,
    namespace: &Namespace,
    id: fathom_store::Id,
    position: usize,
) -> Result<Resumed<D>, SnapshotError> {
    let foreign = || SnapshotError::Model(fathom_model::Error::Snapshot { position });
    let mut loaded = namespace.load(&id)?;
    let (count, rest) = loaded.tail.split_first_chunk::<4>().ok_or_else(foreign)?;
    let count = u32::from_le_bytes(*count) as usize;
    if count != 0 && count != model.config().vocab_size || rest.len() < 4 * count {
        return Err(foreign());
    }
    let (logits, tail) = rest.split_at(4 * count);
    let logits: Vec<f32> = logits.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if !logits.iter().all(|logit| logit.is_finite()) {
        return Err(foreign());
    }
    let state = model.restore(position, tail, |_| match loaded.pages.next() {
        Some(page) => page.map_err(SnapshotError::from),
        None => Err(foreign()),
    })?;
    Ok(Resumed { state, logits })
}

/// What a snapshot takes of a store without compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotBytes {
    /// Full pages and blocks of tokens, which are written once and shared by all snapshots that begin with them.
    pub shared: u64,
    /// What every snapshot has of its own: logits, tail and manifest.
    pub own: u64,
}

impl SnapshotBytes {
    /// Of a session of so many tokens, by the model's configuration.
    pub fn of(config: &Config, profile: &str, tokens: usize) -> SnapshotBytes {
        let tail = 4 + 4 * config.vocab_size as u64 + tail_bytes(config, tokens);
        let subject = Subject { model: [0; 32], profile: profile.to_owned(), page: PAGE };
        let files = subject.file_bytes(tokens, page_bytes(config), tail, config.vocab_size);
        SnapshotBytes { shared: files.0, own: files.1 }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.shared + self.own
    }
}
