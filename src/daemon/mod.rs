//! The only loop: events in, effects out.
//!
//! ```text
//!  router ── lease() ──►┌────────── data path: one thread ──────────┐      ┌── work: a few threads ──┐
//!                       │ Core: Scheduler::step(now, event)         │ Order│ Worker, one a model:    │
//!  signals, timer ─────►│   Dispatch/Reject ─► the waiting request  │─────►│  owns Engine + Swapper  │
//!                       │   Start/Stop/SwapOut/SwapIn ──────────────│      │  launch, trial, moves   │
//!                       │ journal, history, status                  │◄─────│                         │
//!                       └───────────────────────────────────────────┘Report└─────────────────────────┘
//! ```
//!
//! One thread owns the state: a request for a resident model is admitted, dispatched and forwarded without leaving it,
//! and nothing locks. Slow work is bracketed by two quick events: an [`Order`] to a model's [`worker`] and the
//! [`Report`] that comes back. A worker owns its engine alone, so two moves of one engine can never overlap.
//!
//! | file | role |
//! | --- | --- |
//! | `core` | the step: event → scheduler → effects → where they go |
//! | `gate` | the router's [`crate::router::gate::Gate`] over the core |
//! | `ground` | what a run stands on: the job, its GPUs, a way to start processes |
//! | `session` | a run from its first moment to its last |
//! | `gpus` | the job's GPUs, and the gpu server |
//! | `parking` | which engines can be parked or held, and what they need for it |
//! | `wiring`, `specs`, `host_plan` | which engine goes where; what the scheduler is told; how host memory is shared out |
//! | `strangers` | other people's memory on a shared GPU |
//! | `timeline` | the phases of an engine's start |
//! | `worker` | one model's engine, start to stop |
//! | `hang` | an engine that hangs is found out |
//! | `stray` | so is one that comes to a GPU though it is held |
//! | `user_command` | the program that `run` serves |
//! | `ending` | how long each step of the end may take |
//! | `journal` | events and effects as JSON lines, replayable |
//! | `history` | the swaps that happened, for `status` |
//! | `status` | the run as JSON |

mod core;
mod ending;
mod gate;
mod gpus;
mod ground;
mod hang;
mod history;
pub(crate) mod host_plan;
mod journal;
mod parking;
mod pressure;
mod report;
mod session;
pub(crate) mod specs;
mod status;
mod strangers;
mod stray;
mod timeline;
pub mod user_command;
mod wiring;
mod worker;

pub use core::{Core, Grant};
pub use ending::EndPlan;
pub use gate::DaemonGate;
pub use ground::Ground;
pub use history::{History, SwapRow};
pub use journal::Journal;
pub use report::{EngineView, Order, Report, Stage};
pub use session::{EndReport, Options, Session, SessionError};
pub use status::{ModelRow, RunFacts, RunStatus};
pub use timeline::{StartPhase, Timeline};
pub use wiring::WiringError;
