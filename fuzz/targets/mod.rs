//! What reads bytes that others wrote: a function for each, with what must hold whatever the bytes are.
//!
//! A panic is a finding. `fuzz/` runs them under libFuzzer; `tests/untrusted.rs` runs the same functions in `cargo test`,
//! over the committed corpus and small changes to it.

mod config;
mod frames;
mod multipart;
mod peek;
mod proc;
mod request;
mod router;
mod slurm;
mod stream;

/// A target: its name, which is that of its corpus, and what it does with some bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 8] = [
    ("peek", peek::run),
    ("multipart", multipart::run),
    ("request", request::run),
    ("stream", stream::run),
    ("config", config::run),
    ("slurm", slurm::run),
    ("proc", proc::run),
    ("frames", frames::run),
];
