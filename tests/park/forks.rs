//! Children of an engine that can be parked.

use serde_json::json;

use crate::garage::{Garage, LONG};
use crate::gpu_bench::Bench;
use crate::script::step;

#[tokio::test]
async fn children_neither_wait_nor_disturb() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "16MiB"]).await;
    for out in [false, true, false] {
        if out {
            garage.out(&engine).await;
        }
        // Forked: it cannot use CUDA and is told so at once, and has none of the library's descriptors.
        assert_eq!(step(&engine, json!({"do": "fork"})), json!({"status": 0, "signal": 0}));
        // Another program: it runs with the library and never meets the memory server.
        assert_eq!(step(&engine, json!({"do": "run", "program": "true"})), json!({"ok": true}));
        assert_eq!(garage.pool().await.processes.len(), 1);
        if out {
            garage.back(&engine).await;
        }
        engine.check();
    }
}

#[tokio::test]
async fn workers_that_use_the_gpu_are_parked_with_their_engine() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "16MiB", "--workers", "2"]).await;
    let deadline = std::time::Instant::now() + LONG;
    let pids = loop {
        let pids: Vec<i32> = garage.pool().await.processes.iter().map(|process| process.pid).collect();
        if pids.len() == 3 {
            break pids;
        }
        assert!(std::time::Instant::now() < deadline, "{pids:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    let out = garage.server.park_out(pids.clone(), None, LONG, LONG).await.unwrap();
    assert_eq!((out.processes, out.bytes), (3, 3 * (16 << 20)));
    garage.server.park_in(pids, true, LONG).await.unwrap();
    engine.check();
}
