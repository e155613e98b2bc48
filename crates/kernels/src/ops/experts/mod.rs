//! The routed experts.
