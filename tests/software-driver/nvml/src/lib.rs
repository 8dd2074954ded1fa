//! `libnvidia-ml.so.1` for tests: what NVML tells of the software driver's GPUs and processes.
//!
//! | module | role |
//! | --- | --- |
//! | `system` | start, end, versions, error texts, and the shared table |
//! | `device` | which GPUs there are and what they are |
//! | `usage` | memory, per GPU and per process |
//!
//! As with the real library under a device cgroup, only GPUs whose node opens are seen; `CUDA_VISIBLE_DEVICES` is
//! none of its concern.
#![allow(non_snake_case, reason = "exported names are NVIDIA's")]
#![allow(clippy::missing_safety_doc, reason = "NVML's manual is the contract of every exported function")]

mod device;
mod system;
mod usage;
