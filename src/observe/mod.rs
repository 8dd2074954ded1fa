//! What can be seen of a run from outside.

pub mod logging;
pub mod metrics;
