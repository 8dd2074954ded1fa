//! The scheduler without engines: journals of real runs replayed, and runs that never were, faster than time.

pub mod journal;

pub use journal::{Divergence, JournalError, replay};
