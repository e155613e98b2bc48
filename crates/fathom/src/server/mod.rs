//! HTTP: the OpenAI chat API over a model, on one machine, for one queue.

mod answer;
mod completions;
mod error;
mod generate;
mod request;
mod serve;
#[cfg(test)]
mod tests;

pub use error::ApiError;
pub use generate::Generate;
pub use request::{ChatRequest, Served, parse_chat};
pub use serve::{Limits, Service, router, serve};
