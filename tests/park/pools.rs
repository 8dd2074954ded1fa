//! Stream-ordered allocations come from the pool that is their GPU's current one.

use serde_json::{Value, json};

use crate::garage::Garage;
use crate::gpu_bench::{Bench, TestEngine};
use crate::script::{Block, MIB, number, step, try_step};

fn pool(engine: &TestEngine, what: Value) -> u64 {
    number(engine, what, "pool")
}

fn ordered(engine: &TestEngine, bytes: u64, seed: u64) -> Block {
    Block::of(engine, json!({"do": "alloc", "kind": "async", "bytes": bytes}), bytes, seed)
}

#[tokio::test]
async fn what_can_be_parked_the_current_pool_says() {
    let garage = Garage::new(Bench::any(), 256);
    let known_of_locations =
        garage.server.describe().await.expect("the gpu server answers").cuda_version >= 13000;
    for location in [false, true].into_iter().filter(|location| !location || known_of_locations) {
        let engine = garage.engine(&["--weights", "2MiB"]).await;
        let current = json!({"do": "current-pool", "location": location});
        let set = |pool: u64| step(&engine, json!({"do": "set-pool", "pool": pool, "location": location}));
        let own = pool(&engine, json!({"do": "pool"}));
        let shared = pool(&engine, json!({"do": "pool", "exportable": true}));
        let limited = pool(&engine, json!({"do": "pool", "bytes": 64 * MIB}));
        let mut blocks = vec![ordered(&engine, 4 * MIB, 1)];
        for (at, (pool, here, pooled)) in
            [(own, 8, 0), (shared, 8, 1), (limited, 8, 2)].into_iter().enumerate()
        {
            set(pool);
            assert_eq!(self::pool(&engine, current.clone()), pool);
            blocks.push(ordered(&engine, 4 * MIB, 2 + at as u64));
            let known = garage.known(engine.pid()).await;
            assert_eq!((known.here, known.pooled), ((2 + here) * MIB, pooled), "{at}");
        }
        // A pool that is gone is nobody's current one: the default one is again.
        step(&engine, json!({"do": "destroy-pool", "pool": limited}));
        let common = pool(&engine, json!({"do": "default-pool"}));
        assert_eq!(pool(&engine, current), common);
        try_step(&engine, &json!({"do": "destroy-pool", "pool": common})).expect_err("it comes with the GPU");
        blocks.push(ordered(&engine, 4 * MIB, 6));
        let named = json!({"do": "alloc", "kind": "pool", "pool": common, "bytes": 4 * MIB});
        blocks.push(Block::of(&engine, named, 4 * MIB, 7));
        assert_eq!(garage.known(engine.pid()).await.here, (2 + 16) * MIB);
        let out = garage.out(&engine).await;
        assert_eq!((out.bytes, out.stayed), (18 * MIB, 0));
        garage.back(&engine).await;
        for block in blocks {
            block.check(&engine);
            step(&engine, json!({"do": "free-async", "address": block.address}));
        }
        engine.check();
    }
}

#[tokio::test]
async fn the_current_pools_threshold_and_access_count() {
    let Some(bench) = Bench::software(2) else { return };
    let garage = Garage::new(bench, 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let resident = garage.free().await;
    let ordered =
        |mib: u64| number(&engine, json!({"do": "alloc", "kind": "async", "bytes": mib * MIB}), "address");
    let own = pool(&engine, json!({"do": "pool"}));
    let threshold = |pool: u64| step(&engine, json!({"do": "threshold", "pool": pool, "bytes": 900 * MIB}));
    for current in [pool(&engine, json!({"do": "current-pool"})), own] {
        step(&engine, json!({"do": "set-pool", "pool": current}));
        let free = || step(&engine, json!({"do": "free-async", "address": ordered(900)}));
        free();
        assert!(garage.free().await >= resident - 256 * MIB, "kept without being asked to");
        threshold(current);
        free();
        assert!(garage.free().await <= resident - 900 * MIB, "given back all the same");
        step(&engine, json!({"do": "threshold", "pool": current, "bytes": 0}));
        step(&engine, json!({"do": "trim", "pool": current, "bytes": 0}));
        assert_eq!(garage.free().await, resident);
    }
    let address = ordered(2);
    let reach = |gpu: i32| number(&engine, json!({"do": "reach", "address": address, "gpu": gpu}), "flags");
    assert_eq!((reach(0), reach(1)), (3, 0));
    let current = pool(&engine, json!({"do": "current-pool"}));
    step(&engine, json!({"do": "pool-access", "pool": current, "gpu": 1}));
    assert_eq!((reach(0), reach(1)), (3, 3));
}

#[tokio::test]
async fn memory_is_of_the_streams_gpu() {
    let Some(bench) = Bench::software(2) else { return };
    let garage = Garage::new(bench, 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let stream = number(&engine, json!({"do": "stream", "on": 1}), "stream");
    let shared = pool(&engine, json!({"do": "pool", "exportable": true}));
    step(&engine, json!({"do": "set-pool", "pool": shared}));
    // The current GPU's pool does not matter: the stream is the other one's.
    let ordered = json!({"do": "alloc", "kind": "async", "bytes": 4 * MIB, "stream": stream});
    let block = Block::of(&engine, ordered, 4 * MIB, 1);
    let reach =
        |gpu: i32| number(&engine, json!({"do": "reach", "address": block.address, "gpu": gpu}), "flags");
    assert_eq!((reach(0), reach(1)), (0, 3));
    assert_eq!(garage.known(engine.pid()).await.here, 6 * MIB);
    garage.out(&engine).await;
    garage.back(&engine).await;
    block.check(&engine);
    step(&engine, json!({"do": "free-async", "address": block.address, "stream": stream}));
}
