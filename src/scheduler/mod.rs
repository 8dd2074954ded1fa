//! PURE: who is resident, who goes, who waits. No I/O, no clock.
//!
//! One call, [`Scheduler::step`], takes a moment and an [`Event`] and appends [`Effect`]s; the daemon carries those
//! out and feeds back what happened. Everything decided follows from the state and the event, so a schedule can be
//! replayed from its journal, simulated faster than time, and searched for broken invariants.
//!
//! ```text
//!            Start            Started            SwapOut          SwappedOut
//!   Cold ───────────► Starting ───────► Resident ───────► SwappingOut ───────► Out
//!     ▲                  │                 ▲  ▲                │                 │ SwapIn
//!     │ backoff          │ StartFailed     │  └── refused ─────┘                 ▼
//!     └──────────────────┴──► Failed       └──────────── SwappedIn ──────── SwappingIn
//! ```

pub mod event;

pub use event::{Effect, EngineFault, Event, Rejection, SwapMeasure};
