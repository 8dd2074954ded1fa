//! The scheduler without engines: journals of real runs replayed, and runs that never were, faster than time.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `journal` | what the daemon wrote down, read back and compared with what the scheduler decides now |
//! | `trace` | who asks for what, when, and for how long: seeded, or read from a file |
//! | `cost` | how long a move takes, by mechanism and size |
//! | `world` | a discrete-event world around a [`Strategy`]: the scheduler, or one of the plain ones |
//! | `plain` | least recently used, and first come first served, to compare with |
//!
//! Nothing here is random but by its seed: the same arguments give the same numbers on every machine.

mod cost;
pub mod journal;
mod plain;
mod trace;
mod world;

pub use cost::Costs;
pub use journal::{Divergence, JournalError, Replayed, replay};
pub use plain::{Plain, Victim};
pub use trace::{Call, Shape, TraceError, generate, read};
pub use world::{Outcome, Strategy, simulate};
