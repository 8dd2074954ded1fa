//! The endpoint against an engine that misbehaves on purpose, byte for byte.

mod bed;
mod client;
mod engine;
mod gate;

mod attacks;
mod departures;
mod failures;
mod floods;
mod own;
mod pass_through;
mod payloads;
mod realtime;
