//! What a checkpoint through the gpu server costs beside the driver's own calls, for processes of several sizes.
//!
//! ```text
//! cargo bench --bench checkpoint -- [--sizes 0,1,8] [--cycles 5] [--rows FILE] [--commit ID]
//! ```
//!
//! Each size is a test engine that checks every byte after the last cycle. Direct cycles, in which this program
//! calls the driver itself, alternate with cycles through the gpu server as the mechanism makes them: find the CUDA
//! processes, lock, checkpoint, see the memory free; see enough free, restore, unlock. Without a GPU the software
//! driver stands in.

#[path = "../tests/gpu_bench/mod.rs"]
mod gpu_bench;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use gpu_bench::{Bench, TestEngine};
use serde_json::json;
use swapserve::gpu::GpuClient;
use swapserve::gpu::driver::Driver;
use swapserve::swap::checkpoint::group::Group;

const LOCK: Duration = Duration::from_secs(5);
const MOVE: Duration = Duration::from_secs(120);

fn main() {
    let options = Options::from_arguments();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(measure(&options));
}

struct Options {
    sizes: Vec<u64>,
    cycles: u32,
    rows: Option<String>,
    commit: String,
}

impl Options {
    fn from_arguments() -> Self {
        let mut options = Self { sizes: vec![0, 1], cycles: 5, rows: None, commit: String::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(key) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{key} needs a value"));
            match key.as_str() {
                "--sizes" => {
                    options.sizes = value().split(',').map(|gib| gib.parse().expect("GiB")).collect()
                }
                "--cycles" => options.cycles = value().parse().expect("a number"),
                "--rows" => options.rows = Some(value()),
                "--commit" => options.commit = value(),
                // Cargo passes its own.
                _ => {}
            }
        }
        options
    }
}

/// Seconds of each phase of one cycle, in order.
type Phases = Vec<(&'static str, f64)>;

async fn timed<T>(phases: &mut Phases, name: &'static str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let result = work.await;
    phases.push((name, begun.elapsed().as_secs_f64()));
    result
}

async fn measure(options: &Options) {
    let bench = Bench::any();
    let server = bench.server();
    let description = server.describe().await.expect("the gpu server describes the machine");
    let gpu = description.gpus.first().expect("a GPU");
    let bus = bus_speed(&bench);
    println!("{}, driver {:?}, bus {bus:.1} GiB/s", gpu.name, description.driver_version);
    // The software driver is not on this process's own library path: only a real one can be called directly.
    let direct = gpu_bench::real().then(|| Driver::load().expect("the driver loads"));
    for &gib in &options.sizes {
        let engine = bench.engine(&["--weights", &format!("{gib}GiB")]);
        let before = server.process_memory().await.expect("NVML lists processes");
        let held: u64 = before.iter().filter(|it| it.pid == engine.pid()).filter_map(|it| it.bytes).sum();
        for cycle in 0..options.cycles {
            let driver_alone = direct.as_ref().map(|driver| direct_cycle(driver, engine.pid()));
            if let Some((out, back)) = driver_alone {
                println!("{gib} GiB, cycle {cycle}, direct: out {out:.4} s, in {back:.4} s");
            }
            let phases = server_cycle(&server, &engine, held).await;
            let sum =
                |names: &[&str]| phases.iter().filter(|it| names.contains(&it.0)).map(|it| it.1).sum::<f64>();
            let (out, back) =
                (sum(&["find", "lock", "checkpoint", "released"]), sum(&["confirm", "restore", "unlock"]));
            println!("{gib} GiB, cycle {cycle}, server: out {out:.4} s, in {back:.4} s, {phases:.4?}");
            if let Some(path) = &options.rows {
                let row = json!({
                    "gpu": gpu.name, "driver": description.driver_version, "commit": options.commit,
                    "work": format!("test engine, {gib} GiB"), "mechanism": "checkpoint", "cycle": cycle,
                    "out_s": out, "in_s": back, "left_mib": 0, "bytes": held, "bus_gib_s": bus,
                    "direct_out_s": driver_alone.map(|it| it.0), "direct_in_s": driver_alone.map(|it| it.1),
                    "phases": phases.iter().copied().collect::<BTreeMap<_, _>>(),
                });
                let mut file =
                    std::fs::OpenOptions::new().append(true).create(true).open(path).expect("rows");
                writeln!(file, "{row}").expect("rows can be written");
            }
        }
        engine.check();
    }
}

/// Seconds out and in, by the driver's calls alone.
fn direct_cycle(driver: &Driver, pid: i32) -> (f64, f64) {
    let begun = Instant::now();
    driver.lock(pid, LOCK).expect("lock");
    driver.checkpoint(pid).expect("checkpoint");
    let out = begun.elapsed();
    let begun = Instant::now();
    driver.restore(pid).expect("restore");
    driver.unlock(pid).expect("unlock");
    (out.as_secs_f64(), begun.elapsed().as_secs_f64())
}

async fn server_cycle(server: &GpuClient, engine: &TestEngine, held: u64) -> Phases {
    let mut phases = Phases::new();
    let group = timed(&mut phases, "find", Group::find(server, [engine.pid()])).await.expect("find");
    timed(&mut phases, "lock", group.lock(LOCK)).await.expect("lock");
    timed(&mut phases, "checkpoint", group.checkpoint(MOVE)).await.expect("checkpoint");
    let left = timed(&mut phases, "released", server.wait_released(group.pids().to_vec(), LOCK)).await;
    assert_eq!(left.expect("NVML lists processes"), []);
    let free = timed(&mut phases, "confirm", server.wait_free(0, held, LOCK)).await.expect("memory");
    assert!(free.free >= held, "{} bytes free of {held}", free.free);
    timed(&mut phases, "restore", group.restore(MOVE)).await.expect("restore");
    timed(&mut phases, "unlock", group.unlock()).await.expect("unlock");
    phases
}

/// GiB a second from pinned host memory to the device.
fn bus_speed(bench: &Bench) -> f64 {
    let output = Command::new(Bench::engine_program()).arg("--bus").envs(bench.environment()).output();
    let output = output.expect("the test engine runs").stdout;
    let value: serde_json::Value = serde_json::from_slice(&output).unwrap_or_default();
    value["to_device_gib_s"].as_f64().unwrap_or(0.0)
}
