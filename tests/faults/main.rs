//! What becomes of a run when something in it breaks: each fault in each state of a model, the outcome that `docs/faults.md`
//! promises, and a second model that is asked all the while and must not lose one request.
//!
//! Prints a line a case; with `SWAPSERVE_FAULT_ROWS` set to a file, appends a JSON line a case to it (`scripts/faults`).

#[path = "../gpu_bench/mod.rs"]
mod gpu_bench;
#[path = "../main_job/service.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod service;

mod case;
mod engines;
mod gpus;
mod surroundings;
