//! The GPUs: NVIDIA's driver and NVML behind one child process.
//!
//! The **gpu server** is a long-lived child of the daemon (the same binary, a hidden verb). It alone loads
//! `libcuda.so.1` and `libnvidia-ml.so.1`; the daemon talks to it over an inherited socket. A driver call that
//! crashes or hangs takes the gpu server with it, never the router: the [`client`] starts it again.
//!
//! ```text
//!  daemon                                          gpu server (child)
//!  ┌────────────┐  Submit   ┌────────┐  frames   ┌────────┐  one thread a call   ┌──────────────┐
//!  │ mechanisms │ ────────▶ │ keeper │ ◀───────▶ │ server │ ───────────────────▶ │ driver, nvml │
//!  └────────────┘ ◀──────── └────────┘           └────────┘                      └──────────────┘
//!     GpuClient    Answer   deadlines, restart
//! ```
//!
//! | module | role |
//! | --- | --- |
//! | [`client`] | what the rest of the program uses: async calls, each with a deadline |
//! | `keeper` | the task that owns the child: pending calls, deadlines, restart with backoff |
//! | [`launch`] | starts the child with its end of the socket |
//! | [`protocol`] | the calls, the answers, and their frames |
//! | [`server`] | the child's main |
//! | [`driver`] | the driver's functions, looked up one by one |
//! | [`nvml`] | memory per GPU and process, and which NVML device is which CUDA ordinal |
//! | [`park`] | the memory server: engines' device memory out to a pinned pool and back |
//! | [`digest`] | the kernel by which it tells what has changed |
//! | [`capability`] | what this machine can do and, where it cannot, why and what would help |
//!
//! A stranger uses [`GpuClient`]; a new call is a variant of [`protocol::Call`], an arm in `server`, a method of
//! the client.

pub mod capability;
pub mod client;
pub mod digest;
pub mod driver;
mod keeper;
pub mod launch;
pub mod nvml;
pub mod park;
pub mod protocol;
pub mod server;

pub use client::{GpuClient, GpuError};
pub use protocol::{Description, GpuMemory, ProcessMemory, ProcessState};
