//! HTTP: the dialects of OpenAI and Anthropic, and sessions, over one model.

mod body;
mod chat;
mod completions;
mod dialect;
mod error;
mod events;
mod experts;
mod generate;
mod keys;
mod log;
mod messages;
mod metrics;
mod page;
mod prefills;
mod rates;
mod reply;
mod request;
mod responses;
mod serve;
mod sessions;
mod status;
#[cfg(test)]
mod tests;
mod tokens;
mod transfer;

pub use chat::parse_chat;
pub use error::ApiError;
pub use generate::Generate;
pub use keys::Keys;
pub use log::Log;
pub use messages::parse_messages;
pub use rates::KeyLimits;
pub use request::{ChatRequest, Served};
pub use responses::parse_responses;
pub use serve::{Limits, Service, router, serve, serve_until};
