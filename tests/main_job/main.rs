//! The program as a whole, outside Slurm: `run` and `serve` with engines behind the endpoint, from the first request to
//! the last look at what is left. The engines misbehave on request (`tests/engines/fake.py`); where `scripts/engines` has
//! been run, real ones take part as well.

mod ahead;
mod ends;
#[path = "../gpu_bench/mod.rs"]
mod gpu_bench;
mod gpus;
mod refusals;
mod service;
mod streams;
mod verbs;
