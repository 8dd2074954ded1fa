//! swapserve: one Slurm allocation, many language models.
//!
//! The folder tree is the architecture; each room's `mod.rs` says what it is for:
//!
//! | room | what it is |
//! | --- | --- |
//! | [`cli`] | the command line: one file a verb, exit codes |
//! | [`units`] | the vocabulary every room shares: bytes, time, names, footprints |
//! | [`config`] | `models.toml` to a checked [`config::Plan`] |
//! | [`scheduler`] | PURE: who is resident, who goes, who waits |
//! | [`daemon`] | the only loop: events in, effects out; sessions and workers |
//! | [`router`] | the OpenAI-compatible endpoint |
//! | [`job`] | the allocation: GPUs, cores, memory, end time; run directory and endpoint file |
//! | [`process`] | how processes are started, known, frozen and ended |
//! | [`observe`] | metrics: what can be seen from outside |
//! | [`topology`] | cores, NUMA nodes, GPUs; who gets which |
//! | [`engine`] | what an engine is: launch, readiness, logs |
//! | [`gpu`] | the driver and NVML behind one child process |
//! | [`sim`] | the scheduler without engines: simulation, replay of journals |
//! | [`swap`] | the mechanisms behind one trait, the trial, the ladder |

pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod gpu;
pub mod job;
pub mod observe;
pub mod process;
pub mod router;
pub mod scheduler;
pub mod sim;
pub mod swap;
pub mod topology;
pub mod units;
