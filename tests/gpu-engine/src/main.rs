//! An engine for tests: it holds GPU memory through whatever `libcuda.so.1` the loader finds, and every answer is
//! computed from what lies in that memory, so that a swap that loses a byte shows.
//!
//! ```text
//! gpu-engine --port 8000 --model alpha --weights 4GiB [--cache 1GiB] [--workers 2] [--managed] [--imported] [--ipc]
//! ```
//!
//! | option | effect |
//! | --- | --- |
//! | `--weights`, `--cache` | device memory; the cache is what `/sleep` gives up and `/wake_up` takes again |
//! | `--utilization F` | like vLLM it ends at once unless that share of what `cuMemGetInfo` calls the whole is free |
//! | `--workers N` | N child processes that hold as much each, as tensor-parallel ranks do |
//! | `--managed` | the weights are managed memory (UVM) |
//! | `--imported` | a worker imports 64 MiB that this process exports as a file descriptor |
//! | `--ipc` | a worker maps 64 MiB that this process shares by a legacy IPC handle |
//! | `--hold FILE` | `/health` says 503 while the file is there |
//! | `--reach WAY` | how the driver's functions are found: `dlsym`, `address`, `address-v2`, `linked`, `deepbind` |
//! | `--workers-first` | workers hold their memory before this process touches the driver |
//! | `--import-until FILE` | waits for the file before anything touches the driver, as a long import would |
//! | `--load-until FILE` | holds its memory and waits for the file before it listens, as a long load would |
//! | `--lazy` | listens, says that all is well, and touches the driver when the first other request comes |
//! | `--bus` | serves nothing: prints the speed of pinned copies as JSON and ends |
//! | `--print-maps` | each process prints its NVIDIA descriptors and mappings when it is ready |
//!
//! Routes: `/health`, `/v1/models`, `/v1/completions`, `/v1/chat/completions` (also streamed), `/check` (every byte),
//! `/sleep`, `/wake_up`, `/is_sleeping`, and `/do` ([`script`]: one driver call after the other, as a test asks).

#![allow(
    clippy::macro_metavars_in_unsafe,
    reason = "cuda_call! is the unsafe block of a crate that is all driver calls"
)]

mod bus;
mod captures;
mod cuda;
mod functions;
mod hammer;
mod http;
mod memory;
mod options;
mod pools;
mod script;
mod shared;
mod versions;
mod workers;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn main() {
    if let Err(error) = run() {
        eprintln!("gpu-engine: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let options = options::Options::from_arguments(std::env::args().skip(1))?;
    wait_for(options.import_until.as_deref());
    let mut early = if options.lazy { Some(http::Door::open(options.port)?) } else { None };
    early.iter_mut().for_each(http::Door::wait_for_request);
    let first = if options.workers_first {
        Some(workers::Workers::start(&options, &shared::Shared::default())?)
    } else {
        None
    };
    let cuda = cuda::Cuda::load(options.reach)?;
    cuda.use_device(0)?;
    if options.bus {
        return bus::measure(&cuda);
    }
    if let Some(share) = options.utilization {
        memory::look_for(&cuda, share)?;
    }
    let held = memory::Held::allocate(&cuda, &options)?;
    let shared =
        if options.worker { shared::join(&cuda, &options)? } else { shared::offer(&cuda, &options)? };
    let workers = match first {
        Some(workers) => workers,
        None => workers::Workers::start(&options, &shared)?,
    };
    if options.print_maps {
        shared::print_maps();
    }
    eprintln!("gpu-engine {}: {} bytes held, {} workers", std::process::id(), held.bytes(), workers.count());
    if options.worker {
        return workers::wait_for_parent(&cuda, &held);
    }
    wait_for(options.load_until.as_deref());
    let door = match early {
        Some(door) => door,
        None => http::Door::open(options.port)?,
    };
    let script = script::Script::default();
    let engine = http::Engine { options, cuda, held: Mutex::new(held), workers: Mutex::new(workers), script };
    http::serve(&Arc::new(engine), door)
}

/// Waits until that file is there.
fn wait_for(file: Option<&Path>) {
    while file.is_some_and(|file| !file.exists()) {
        std::thread::sleep(Duration::from_millis(5));
    }
}
