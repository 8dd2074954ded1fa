//! What can be seen of a run from outside.

mod finding;
pub mod logging;
pub mod metrics;

pub use finding::{Finding, Verdict};
