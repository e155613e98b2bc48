//! Repositories from the Hugging Face hub or a mirror of it, to a folder.
//!
//! Files are fetched in ranges over several connections. How far each range has come is written beside the file as it comes, so
//! that a killed run goes on where it was; a file takes its name when its content is what the hub says, `config.json` last.
//! The endpoint, the token and the cache are where `huggingface_hub` has them.

mod download;
pub mod environment;
mod error;
mod fetch;
mod folder;
mod hash;
mod hub;
mod manifest;
mod partial;
mod patience;
mod wanted;
mod workers;

pub use download::{Options, Report, pull};
pub use error::Error;
pub use folder::Room;
pub use hash::Hash;
pub(crate) use hub::chain;
pub use hub::{Hub, Listing, Remote};
pub use manifest::{Manifest, Pulled};
pub use wanted::wanted;
