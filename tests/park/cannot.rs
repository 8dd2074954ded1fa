//! Engines that cannot be parked: each is seen, and the reason is named.

use swapserve::gpu::park::why::why_not;

use crate::garage::{Garage, LONG};
use crate::gpu_bench::{Bench, TestEngine};

/// Why that engine cannot be parked, once NVML sees it.
async fn reason(garage: &Garage, engine: &TestEngine) -> Option<String> {
    let held = garage.server.process_memory().await.expect("NVML answers");
    why_not(&[engine.pid()], &garage.pool().await, &held)
}

#[tokio::test]
async fn one_that_can_be_parked_has_no_reason() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "64MiB"]).await;
    assert_eq!(reason(&garage, &engine).await, None);
    garage.out(&engine).await;
    assert_eq!(reason(&garage, &engine).await, None);
}

#[tokio::test]
async fn one_without_the_preload_library() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.bench.engine(&["--weights", "64MiB"]);
    let reason = reason(&garage, &engine).await.unwrap();
    assert!(reason.contains("(gpu-engine)") && reason.contains("dropped LD_PRELOAD"), "{reason}");
    let moved = garage.server.park_out(vec![engine.pid()], None, LONG, LONG).await.unwrap();
    assert_eq!(moved.processes, 0);
}

#[tokio::test]
async fn a_driver_without_virtual_memory_management() {
    let Some(mut machine) = Bench::software_machine(1) else { return };
    machine.lacks = vec![102];
    let garage = Garage::new(Bench::on(machine), 256);
    let refused = garage.server.parking().await.unwrap_err().to_string();
    assert!(refused.contains("GPU 0") && refused.contains("no virtual memory management"), "{refused}");
    // The engine itself runs, on the driver's own memory.
    garage.bench.engine_with(&["--weights", "64MiB"], &garage.environment()).check();
}
