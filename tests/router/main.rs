//! The endpoint against an engine that misbehaves on purpose, byte for byte.

mod bed;
mod client;
mod engine;
mod gate;

mod pass_through;
