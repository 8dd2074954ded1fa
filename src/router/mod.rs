//! The OpenAI-compatible endpoint: listen, peek at the model, forward, stream, account.
//!
//! The router knows nothing of swapping. It asks its [`gate::Gate`] for a lease on an engine that answers, forwards the
//! request's bytes unchanged, and gives the lease back after the last byte.

pub mod gate;
