//! `park` from end to end: preload library, memory server and gpu server, on the software driver or, with
//! `SWAPSERVE_TEST_GPU=real`, on the machine's own.

#[path = "../gpu_bench/mod.rs"]
mod gpu_bench;

mod allocations;
mod cannot;
mod captures;
mod concurrent;
mod faults;
mod forks;
mod frees;
mod garage;
mod moves;
mod pools;
mod script;
mod sequences;
mod switch;
mod versions;
