//! A place to park in: a gpu server with a pool, and engines with the preload library.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use swapserve::gpu::GpuClient;
use swapserve::gpu::park::call::{Moved, ParkedProcess, PoolState};
use swapserve::gpu::park::nodes::GpuNodes;
use swapserve::gpu::park::setup::ParkSetup;
use swapserve::process::Spawner;

use crate::gpu_bench::{Bench, TestEngine};

/// For whatever has to happen in the end.
pub const LONG: Duration = Duration::from_secs(30);
/// What an engine gets to come to rest.
pub const REST: Duration = Duration::from_secs(5);

/// A gpu server with a pool.
pub struct Garage {
    pub bench: Bench,
    pub server: GpuClient,
    pub setup: ParkSetup,
}

impl Garage {
    /// On that bench, with a pool of so many MiB.
    pub fn new(bench: Bench, pool_mib: u64) -> Self {
        Self::on_nodes(bench, pool_mib, GpuNodes::default())
    }

    /// The same, with the pool near these GPUs.
    pub fn on_nodes(bench: Bench, pool_mib: u64, nodes: GpuNodes) -> Self {
        let setup = ParkSetup::new(pool_mib << 20, nodes).expect("a pool can be set up");
        let mut command = bench.server_command();
        command.park = Some(setup.clone());
        let spawner = Spawner::start().expect("a thread can be started");
        let server = GpuClient::start(spawner, command);
        Self { bench, server, setup }
    }

    /// What an engine needs to be parkable.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let preload = ("LD_PRELOAD".into(), Bench::preload_library().into_os_string());
        vec![preload, self.setup.engine_environment()]
    }

    /// An engine, once the memory server knows it.
    pub async fn engine(&self, arguments: &[&str]) -> TestEngine {
        let engine = self.bench.engine_with(arguments, &self.environment());
        self.known(engine.pid()).await;
        engine
    }

    /// Waits until the memory server knows a process.
    pub async fn known(&self, pid: i32) -> ParkedProcess {
        let deadline = Instant::now() + LONG;
        loop {
            let pool = self.pool().await;
            if let Some(process) = pool.processes.into_iter().find(|process| process.pid == pid) {
                return process;
            }
            assert!(Instant::now() < deadline, "process {pid} does not connect");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the memory server says.
    pub async fn pool(&self) -> PoolState {
        self.server.parking().await.expect("the memory server answers")
    }

    /// All of an engine out.
    pub async fn out(&self, engine: &TestEngine) -> Moved {
        self.server.park_out(vec![engine.pid()], None, REST, LONG).await.expect("it goes out")
    }

    /// And in, checked.
    pub async fn back(&self, engine: &TestEngine) -> Moved {
        self.server.park_in(vec![engine.pid()], true, LONG).await.expect("it comes back")
    }

    /// Bytes free on the GPU.
    pub async fn free(&self) -> u64 {
        self.server.memory(0).await.expect("NVML answers").free
    }
}
