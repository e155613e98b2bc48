//! HTTP: the OpenAI chat API and sessions over a model, on one machine, for one queue.

mod answer;
mod completions;
mod error;
mod generate;
mod keys;
mod metrics;
mod request;
mod serve;
mod sessions;
#[cfg(test)]
mod tests;
mod transfer;

pub use error::ApiError;
pub use generate::Generate;
pub use keys::Keys;
pub use request::{ChatRequest, Served, parse_chat};
pub use serve::{Limits, Service, router, serve};
