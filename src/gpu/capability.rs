//! What a machine can do, each with the reason and the remedy where it cannot.

use serde::{Deserialize, Serialize};

/// One thing that the GPU side of swapserve needs or can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// What it is: `libcuda.so.1`, `checkpoint`, `nvml`, …
    pub name: String,
    /// Whether it is there.
    pub available: bool,
    /// What was found, or why it is not there.
    pub reason: String,
    /// What to do about it; empty if it is there or nothing can be done.
    pub remedy: String,
}

impl Capability {
    /// It is there; `found` says what was found.
    pub fn found(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), available: true, reason: found.into(), remedy: String::new() }
    }

    /// It is not there.
    pub fn missing(name: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), available: false, reason: reason.into(), remedy: remedy.into() }
    }
}
