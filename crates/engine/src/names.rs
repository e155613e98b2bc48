//! Names of sessions, and of their states in a store.

use std::hash::{BuildHasher, RandomState};

use crate::{Error, Session};

/// The longest name.
const MAX: usize = 64;
/// What the name of a state on the way through a prompt ends with in a store: no session's name has it.
const ON_THE_WAY: char = '~';

impl Session {
    /// Checks that a name is one that a session can have: it stands in addresses and file names.
    ///
    /// # Errors
    /// [`Error::SessionName`].
    pub fn check_name(name: &str) -> Result<(), Error> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        match (1..=MAX).contains(&name.len()) && name.chars().all(fits) && name.chars().any(|c| c != '.') {
            true => Ok(()),
            false => Err(Error::SessionName { name: name.chars().take(2 * MAX).collect() }),
        }
    }

    /// The session that a stored snapshot is of, by the snapshot's name, and whether it was that session's end: states on the way
    /// through a long prompt are stored under the name with a `~`.
    pub fn of_stored(name: &str) -> (&str, bool) {
        name.strip_suffix(ON_THE_WAY).map_or((name, true), |session| (session, false))
    }
}

/// The name under which a session's state is stored.
pub(crate) fn stored(session: &str, end: bool) -> String {
    if end { session.to_owned() } else { format!("{session}{ON_THE_WAY}") }
}

/// A name for a session that was given none.
pub(crate) fn random() -> String {
    // Each RandomState has keys of its own, from the system's randomness at first.
    format!("{:012x}", RandomState::new().hash_one(()) >> 16)
}
