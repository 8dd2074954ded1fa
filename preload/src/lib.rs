//! The library that swapserve loads into engines (`LD_PRELOAD`), so that their device memory can be parked, and so that
//! they can be launched before it is their turn on the GPU.
//!
//! It stands between the engine and NVIDIA's driver, whichever way the engine reaches it:
//!
//! ```text
//!  engine ── direct link ─────────────▶ ┌───────┐
//!         ── dlsym ──────▶ dlsym (ours) │ hooks │ ──▶ libcuda.so.1
//!         ── cuGetProcAddress (hooked) ▶ └───┬───┘
//!                                           │ registry: regions, chunks, mappings      memory server
//!                                           └──── control thread ◀── SWAPSERVE_PARK_SOCKET ──▶ (gpu server)
//! ```
//!
//! - Device allocations of 1 MiB and more are backed by physical memory that can be taken away and given back under
//!   the same addresses ([`registry`]); smaller ones stay with the driver.
//! - Calls that submit GPU work pass a [`gate`]; while the engine is parked they wait.
//! - A control thread, started with the first such allocation, does what the memory server asks ([`control`]): close
//!   the gate, hand out the physical memory as file descriptors, release it, make it anew, open the gate.
//!
//! - With `SWAPSERVE_HOLD` a process's first `cuInit` waits until the daemon says that the engine's turn has come
//!   ([`hold`]).
//!
//! In a process that never touches CUDA, or without these variables, nothing is started, locked or allocated; with
//! `SWAPSERVE_HOLD` alone only `cuInit` and what leads to it are hooked. A child forked from a process that uses CUDA goes
//! straight to the driver.
//!
//! | module | role |
//! | --- | --- |
//! | [`front`] | `dlsym`: the one function that every program calls |
//! | [`hook`] | a hooked function: its name, its replacement, the driver's own |
//! | [`lookup`] | `cuGetProcAddress` |
//! | [`driver`] | the driver's functions that are called but not hooked |
//! | [`hold`] | `cuInit`, of an engine that is launched ahead of its turn |
//! | [`capture`] | stream captures that are under way |
//! | [`submit`] | functions that only pass the gate |
//! | [`memory`], [`pool`] | plain and stream-ordered allocations |
//! | [`pools`] | the pools of the latter |
//! | [`virtual_memory`] | the engine's own use of the driver's virtual memory management |
//! | [`address`] | where the daemon's side listens |
//! | [`wire`] | messages to and from the memory server; that side includes the same file |
// The test harness must keep the C library's own dlsym, so there is no entry into the rest.
#![cfg_attr(test, allow(dead_code))]
#![allow(non_snake_case, reason = "exported names are NVIDIA's")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the driver's manual is the contract of every exported function"
)]
#![allow(clippy::too_many_arguments, reason = "the driver's functions have that many")]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod address;
mod capture;
mod control;
mod driver;
mod front;
mod gate;
mod hold;
mod hook;
mod lookup;
mod memory;
mod pool;
mod pools;
mod process;
mod registry;
mod submit;
mod virtual_memory;
mod wire;
