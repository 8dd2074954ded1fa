//! The gpu server behind its client, on the software driver: protocol, states, faults, restart.

mod gpu_bench;

use std::time::{Duration, Instant};

use gpu_bench::Bench;
use software_gpu::config::{Gpu, Machine};
use swapserve::gpu::{GpuError, ProcessState};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn describes_the_machine_as_the_driver_orders_it() {
    let Some(bench) = Bench::software(2) else { return };
    let server = bench.server_with(&[("CUDA_VISIBLE_DEVICES", "1,0")]);
    let description = server.describe().await.unwrap();
    assert_eq!(description.can_checkpoint(), Ok(()));
    let seen: Vec<_> = description.gpus.iter().map(|gpu| (gpu.ordinal, gpu.nvml_index)).collect();
    assert_eq!(seen, [(0, Some(1)), (1, Some(0))]);
    assert_eq!(description.gpus[0].pci_bus_id, "0000:02:00.0");
}

#[tokio::test]
async fn a_machine_without_a_driver_is_described_not_fatal() {
    let Some(bench) = Bench::software(1) else { return };
    let server = bench.server_with(&[("LD_LIBRARY_PATH", "/nonexistent")]);
    let description = server.describe().await.unwrap();
    assert!(description.gpus.is_empty());
    assert!(description.can_checkpoint().is_err());
    assert!(
        description.capabilities.iter().any(|it| it.name == "cuda" && !it.available && !it.remedy.is_empty())
    );
    assert!(matches!(server.state(1, SECOND).await, Err(GpuError::Refused(_))));
    assert_eq!(server.generation(), 1);
}

#[tokio::test]
async fn what_a_machine_cannot_do_has_a_reason_and_a_remedy() {
    if gpu_bench::real() {
        return;
    }
    let gpus = vec![Gpu { bytes: 1 << 30, node: None }];
    let old = Machine { gpus: gpus.clone(), driver: 12040, ..Machine::default() };
    let cut = Machine { gpus, mig: true, ..Machine::default() };
    for (machine, name, word) in [(old, "checkpoint", "12.8"), (cut, "mig", "MIG")] {
        let bench = Bench::on(machine);
        let description = bench.server().describe().await.unwrap();
        assert!(description.can_checkpoint().unwrap_err().contains(word));
        let missing = description.capabilities.iter().find(|it| it.name == name && !it.available);
        assert!(missing.is_some_and(|it| !it.remedy.is_empty()), "{description:?}");
    }
}

#[tokio::test]
async fn memory_that_nvml_shows_late_is_waited_for() {
    if gpu_bench::real() {
        return;
    }
    let gpus = vec![Gpu { bytes: 1 << 30, node: None }];
    let bench = Bench::on(Machine { gpus, nvml_lag_ms: 200, ..Machine::default() });
    let server = bench.server();
    let engine = bench.engine(&["--weights", "64MiB"]);
    let pid = engine.pid();
    server.lock(pid, SECOND).await.unwrap();
    server.checkpoint(pid, LIMIT).await.unwrap();
    let still = server.process_memory().await.unwrap();
    assert!(still.iter().any(|it| it.pid == pid && it.bytes > Some(0)), "{still:?}");
    assert_eq!(server.wait_released(vec![pid], LIMIT).await.unwrap(), []);
    assert_eq!(server.wait_free(0, 1 << 30, LIMIT).await.unwrap().free, 1 << 30);
}

#[tokio::test]
async fn one_process_goes_through_every_state_and_keeps_its_memory() {
    let bench = Bench::any();
    let server = bench.server();
    let engine = bench.engine(&["--weights", "64MiB"]);
    let pid = engine.pid();
    let before = server.memory(0).await.unwrap().free;
    assert_eq!(server.state(pid, SECOND).await.unwrap(), ProcessState::Running);
    assert!(server.restore_thread(pid).await.unwrap() > 0);
    server.lock(pid, SECOND).await.unwrap();
    assert_eq!(server.state(pid, SECOND).await.unwrap(), ProcessState::Locked);
    server.checkpoint(pid, LIMIT).await.unwrap();
    assert_eq!(server.state(pid, SECOND).await.unwrap(), ProcessState::Checkpointed);
    let free = server.wait_free(0, before + (64 << 20), SECOND * 3).await.unwrap().free;
    assert!(free >= before + (64 << 20), "{free} bytes free, {before} before the checkpoint");
    assert!(server.process_memory().await.unwrap().iter().all(|it| it.pid != pid || it.bytes == Some(0)));
    server.restore(pid, LIMIT).await.unwrap();
    server.unlock(pid).await.unwrap();
    assert_eq!(server.state(pid, SECOND).await.unwrap(), ProcessState::Running);
    engine.check();
}

#[tokio::test]
async fn a_call_past_its_deadline_costs_the_gpu_server_and_no_other() {
    let Some(bench) = Bench::software(1) else { return };
    let server = bench.server();
    let engine = bench.engine(&[]);
    server.ping().await.unwrap();
    bench.set_faults("cuCheckpointProcessLock hang times=1");
    let short = Duration::from_millis(50);
    let (lock, _) = tokio::join!(server.lock(engine.pid(), short), server.ping());
    assert!(matches!(lock, Err(GpuError::Lost { call: "lock", .. })), "{lock:?}");
    assert_eq!(server.state(engine.pid(), SECOND).await.unwrap(), ProcessState::Running);
    assert_eq!(server.generation(), 2);
    engine.check();
}

#[tokio::test]
async fn a_signal_that_the_job_is_to_end_is_for_the_daemon_to_act_on() {
    let bench = Bench::any();
    let server = bench.server();
    server.describe().await.unwrap();
    let before = server.generation();
    bench.signal_server(rustix::process::Signal::TERM);
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.ping().await.unwrap();
    assert_eq!(server.generation(), before);
}

#[tokio::test]
async fn its_end_waits_neither_for_other_handles_nor_for_calls_under_way() {
    let Some(bench) = Bench::software(1) else { return };
    let server = bench.server();
    let engine = bench.engine(&[]);
    let other = server.clone();
    bench.set_faults("cuCheckpointProcessLock hang times=1");
    let hangs = tokio::spawn({
        let (server, pid) = (server.clone(), engine.pid());
        async move { server.lock(pid, LIMIT).await }
    });
    gpu_bench::until("the call is under way", || bench.faults_left().contains("times=0")).await;
    server.end(Duration::from_secs(1)).await;
    let hung = hangs.await.unwrap();
    assert!(matches!(hung, Err(GpuError::Unavailable { .. })), "{hung:?}");
    assert!(matches!(other.describe().await, Err(GpuError::Unavailable { .. })));
}

#[tokio::test]
async fn a_gpu_server_that_dies_in_a_call_is_started_anew() {
    let Some(bench) = Bench::software(1) else { return };
    let server = bench.server();
    let engine = bench.engine(&[]);
    server.lock(engine.pid(), SECOND).await.unwrap();
    bench.set_faults("cuCheckpointProcessCheckpoint crash times=1");
    let checkpoint = server.checkpoint(engine.pid(), LIMIT).await;
    assert!(matches!(checkpoint, Err(GpuError::Lost { .. })), "{checkpoint:?}");
    assert_eq!(server.state(engine.pid(), SECOND).await.unwrap(), ProcessState::Locked);
    server.unlock(engine.pid()).await.unwrap();
    engine.check();
}

/// Killed between calls, in each state that an engine can be in: the next gpu server finds it where it was, and goes on.
#[tokio::test]
async fn a_gpu_server_killed_in_each_state_finds_the_engine_as_it_was() {
    let bench = Bench::any();
    let server = bench.server();
    let engine = bench.engine(&["--weights", "64MiB"]);
    let pid = engine.pid();
    let still = async |state| {
        bench.kill_server(&server).await;
        assert_eq!(server.state(pid, SECOND * 10).await.unwrap(), state);
    };
    server.ping().await.unwrap();
    still(ProcessState::Running).await;
    server.lock(pid, SECOND).await.unwrap();
    still(ProcessState::Locked).await;
    server.checkpoint(pid, LIMIT).await.unwrap();
    still(ProcessState::Checkpointed).await;
    server.restore(pid, LIMIT).await.unwrap();
    still(ProcessState::Locked).await;
    server.unlock(pid).await.unwrap();
    still(ProcessState::Running).await;
    assert_eq!(server.generation(), 6);
    engine.check();
}

#[tokio::test]
async fn a_program_that_is_no_gpu_server_is_reported_and_harms_nobody() {
    let Some(bench) = Bench::software(1) else { return };
    let server = bench.server_program("/bin/false");
    let ping = server.ping().await;
    assert!(matches!(ping, Err(GpuError::Lost { .. } | GpuError::Unavailable { .. })), "{ping:?}");
}

#[tokio::test]
async fn a_round_trip_is_far_below_a_millisecond() {
    let bench = Bench::any();
    let server = bench.server();
    server.ping().await.unwrap();
    let begun = Instant::now();
    for _ in 0..1000 {
        server.ping().await.unwrap();
    }
    println!("round trip to the gpu server: {:?}", begun.elapsed() / 1000);
}
