//! `libcuda.so.1` for tests: the driver's API on host memory and real processes.
//!
//! | module | role |
//! | --- | --- |
//! | `api` | the macro that declares exported functions, and the gate each call passes |
//! | `session` | what this process knows: its record, its visible GPUs, its restore thread |
//! | `error` | result codes, their names |
//! | `init`, `device`, `context`, `memory` | the plain driver API |
//! | `vmm` | physical memory, address ranges, mappings, shareable handles |
//! | `multicast` | multicast objects, as far as memory is bound to them |
//! | `pool` | stream-ordered allocations and their pools |
//! | `stream`, `module`, `graph` | streams, events, kernels, captured graphs |
//! | `work` | kernels that run on when their launch returns |
//! | `checkpoint` | `cuCheckpointProcess*` |
//! | `lookup` | `cuGetProcAddress` over every module's `SYMBOLS` |
//!
//! A new group of functions is a file that declares them with [`api::driver_api`] and one line in
//! `lookup::TABLES`.
#![allow(non_snake_case, reason = "exported names are NVIDIA's")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the driver's manual is the contract of every exported function"
)]

mod api;
mod checkpoint;
mod context;
mod device;
mod error;
mod graph;
mod init;
mod lookup;
mod memory;
mod module;
mod multicast;
mod pool;
mod session;
mod stream;
mod vmm;
mod work;
