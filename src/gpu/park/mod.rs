//! The memory server: device memory of engines, out to a pinned pool of the host's at the speed of the bus and back,
//! moving only what changed.
//!
//! It lives in the gpu server. The preload library in each engine (`preload/`) hands it the engine's physical memory as
//! descriptors; it digests and copies, and then neither side holds anything on the GPU.
//!
//! ```text
//!  daemon ── ParkCall ──▶ server ──▶ out, back ──▶ link ⇄ preload library of each process
//!    │                      │            │
//!    └─ setup: pool, door ──┘            ├──▶ device: chunks on a workbench, digests, copies
//!                                        └──▶ ledger: what the pool holds; pool, slots: where
//! ```
//!
//! Loss is impossible by order: a block is copied and seen to be, then the engine gives its memory up; memory is made,
//! filled, and seen to be, then the engine goes on. The pool is the truth while an engine is out, and keeps its copies
//! after, so that what has not changed by the next time is not copied again.
//!
//! | module | role |
//! | --- | --- |
//! | [`setup`] | the daemon's side: the pool's memory and the door, which outlive a gpu server |
//! | [`call`] | what the daemon asks, and the answers |
//! | [`library`] | where the preload library lies, and the environment of an engine that has it |
//! | [`server`] | the processes that have connected |
//! | `out`, `back` | the two moves |
//! | `switch` | one engine's memory taken by another while it goes out |
//! | [`why`] | why an engine cannot be parked, in words |
//! | `engine`, `link`, `wire` | one process: what is known of it, its connection, its messages |
//! | `device`, `cuda` | a GPU: workbenches on which chunks are mapped, digested and copied |
//! | `ledger`, `slots`, `pool` | what is held, where, and the memory itself |
//! | [`unpin`] | the pool's end |
//! | [`nodes`] | how the pool is divided among NUMA nodes |
//! | `book` | the same, for the next server if this one is killed |

mod back;
mod book;

pub mod call;
mod client;
mod cuda;
mod device;
mod engine;
mod ledger;
pub mod library;
mod link;
pub mod nodes;
mod out;
mod pool;
pub mod server;
pub mod setup;
mod slots;
mod switch;
pub mod unpin;
pub mod why;
#[allow(dead_code, reason = "the preload library uses the other half")]
#[path = "../../../preload/src/wire.rs"]
mod wire;
