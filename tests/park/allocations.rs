//! Every kind of allocation, reached in every way: what can be parked is, and what cannot stays and is told.

use serde_json::json;

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::{Bench, TestEngine};
use crate::script::{Block, MIB, number, step, try_step};

/// Out and in; every block is as it was.
async fn round_trip(garage: &Garage, engine: &TestEngine, blocks: &[&Block]) {
    garage.out(engine).await;
    garage.back(engine).await;
    blocks.iter().for_each(|block| block.check(engine));
}

#[tokio::test]
async fn every_kind_by_every_way_to_the_driver() {
    let garage = Garage::new(Bench::any(), 256);
    for way in ["dlsym", "address", "address-v2", "linked"] {
        // The 2 MiB are what has it connect.
        let engine = garage.engine(&["--weights", "2MiB", "--reach", way]).await;
        let pool = number(&engine, json!({"do": "pool"}), "pool");
        let common = number(&engine, json!({"do": "default-pool"}), "pool");
        let shared = number(&engine, json!({"do": "pool", "exportable": true}), "pool");
        let (kib, mib) = (1 << 10, MIB);
        let block = |allocation, bytes, seed| Block::of(&engine, allocation, bytes, seed);
        let blocks = [
            block(json!({"do": "alloc", "bytes": 512 * kib}), 512 * kib, 1),
            block(json!({"do": "alloc", "bytes": 3 * mib + 5}), 3 * mib + 5, 2),
            block(json!({"do": "alloc", "kind": "pitch", "width": 1000, "height": 3000}), 1024 * 3000, 3),
            block(json!({"do": "alloc", "kind": "async", "bytes": 2 * mib}), 2 * mib, 4),
            block(json!({"do": "alloc", "kind": "pool", "pool": pool, "bytes": 4 * mib}), 4 * mib, 5),
            block(json!({"do": "alloc", "kind": "pool", "pool": common, "bytes": mib}), mib, 6),
            block(json!({"do": "alloc", "kind": "pool", "pool": shared, "bytes": 4 * mib}), 4 * mib, 7),
            block(json!({"do": "alloc", "kind": "managed", "bytes": 2 * mib}), 2 * mib, 8),
        ];
        let known = garage.known(engine.pid()).await;
        // In whole granules of 2 MiB: the weights, and blocks 2 to 6.
        assert_eq!((known.here, known.managed), ((2 + 4 + 4 + 2 + 4 + 2) * MIB, 1), "{way}");
        round_trip(&garage, &engine, &blocks.iter().collect::<Vec<_>>()).await;
        for (at, block) in blocks.into_iter().enumerate() {
            let how = if (3..7).contains(&at) { "free-async" } else { "free" };
            step(&engine, json!({"do": how, "address": block.address}));
        }
        engine.check();
    }
}

#[tokio::test]
async fn small_allocations_wait_too_while_the_engine_is_out() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    garage.out(&engine).await;
    let asking = std::thread::spawn(move || {
        step(&engine, json!({"do": "alloc", "bytes": 4096}));
        engine
    });
    let pid = garage.pool().await.processes[0].pid;
    assert!(!asking.is_finished());
    garage.server.park_in(vec![pid], true, LONG).await.unwrap();
    asking.join().expect("it is allocated").check();
}

#[tokio::test]
async fn the_engines_own_segments_keep_handles_and_addresses() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let create = |bytes: u64| number(&engine, json!({"do": "create", "bytes": bytes}), "handle");
    let base = number(&engine, json!({"do": "reserve", "bytes": 64 * MIB}), "address");
    let map = |at: u64, bytes: u64, handle: u64| {
        step(&engine, json!({"do": "map", "address": base + at, "bytes": bytes, "handle": handle}));
        step(&engine, json!({"do": "access", "address": base + at, "bytes": bytes}));
    };
    let unmap = |at: u64, bytes: u64| {
        step(&engine, json!({"do": "unmap", "address": base + at, "bytes": bytes}));
    };
    let (first, second, third) = (create(2 * MIB), create(4 * MIB), create(2 * MIB));
    map(0, 2 * MIB, first);
    map(2 * MIB, 4 * MIB, second);
    map(6 * MIB, 2 * MIB, third);
    let whole = Block::at(&engine, base, 8 * MIB, 1);
    // A mapping keeps memory whose handle is given back.
    step(&engine, json!({"do": "release", "handle": second}));
    round_trip(&garage, &engine, &[&whole]).await;

    // Handles are what they were: the first's memory moves to another address with what it holds …
    unmap(0, 2 * MIB);
    map(16 * MIB, 2 * MIB, first);
    let mut moved = Block { address: base + 16 * MIB, bytes: whole.bytes[..2 * MIB as usize].to_vec() };
    moved.check(&engine);
    // … and to two at once.
    map(32 * MIB, 2 * MIB, first);
    round_trip(&garage, &engine, &[&moved]).await;
    moved.write(&engine, 4096, 64, 2);
    Block { address: base + 32 * MIB, ..moved.clone() }.check(&engine);

    // The handle behind an address is one more of the same.
    let again = number(&engine, json!({"do": "retain", "address": base + 3 * MIB}), "handle");
    assert_eq!(number(&engine, json!({"do": "types", "handle": again}), "types"), 0);
    unmap(2 * MIB, 4 * MIB);
    round_trip(&garage, &engine, &[&moved]).await;
    map(48 * MIB, 4 * MIB, again);
    Block { address: base + 48 * MIB, bytes: whole.bytes[2 * MIB as usize..6 * MIB as usize].to_vec() }
        .check(&engine);

    // All of it can be given back.
    unmap(6 * MIB, 2 * MIB);
    unmap(16 * MIB, 2 * MIB);
    unmap(32 * MIB, 2 * MIB);
    unmap(48 * MIB, 4 * MIB);
    for handle in [first, third, again] {
        step(&engine, json!({"do": "release", "handle": handle}));
    }
    step(&engine, json!({"do": "unreserve", "address": base, "bytes": 64 * MIB}));
    assert_eq!(garage.known(engine.pid()).await.here, 2 * MIB);
    try_step(&engine, &json!({"do": "release", "handle": first})).expect_err("it is gone");
}

#[tokio::test]
async fn exported_memory_stays_and_is_told() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let resident = garage.free().await;
    let handle = number(&engine, json!({"do": "create", "bytes": 4 * MIB, "types": 1}), "handle");
    let base = number(&engine, json!({"do": "reserve", "bytes": 4 * MIB}), "address");
    step(&engine, json!({"do": "map", "address": base, "bytes": 4 * MIB, "handle": handle}));
    step(&engine, json!({"do": "access", "address": base, "bytes": 4 * MIB}));
    let block = Block::at(&engine, base, 4 * MIB, 1);
    // Could be exported: still parkable.
    assert_eq!(number(&engine, json!({"do": "types", "handle": handle}), "types"), 1);
    assert_eq!(garage.known(engine.pid()).await.shared, 0);
    step(&engine, json!({"do": "export", "handle": handle}));
    assert_eq!(garage.known(engine.pid()).await.shared, 4 * MIB);
    let out = garage.out(&engine).await;
    assert_eq!((out.bytes, out.stayed), (2 * MIB, 4 * MIB));
    assert_eq!(garage.free().await, resident - 4 * MIB + 2 * MIB);
    garage.back(&engine).await;
    block.check(&engine);
}

#[tokio::test]
async fn memory_that_other_devices_reach_stays() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let block = Block::plain(&engine, 6 * MIB, 1);
    let part = json!({"do": "dma-buf", "address": block.address + 2 * MIB, "bytes": 2 * MIB});
    if let Err(refused) = try_step(&engine, &part) {
        eprintln!("left out: no such descriptors here: {refused}");
        return;
    }
    assert_eq!(garage.known(engine.pid()).await.shared, 6 * MIB);
    let out = garage.out(&engine).await;
    assert_eq!((out.bytes, out.stayed), (2 * MIB, 6 * MIB));
    garage.back(&engine).await;
    block.check(&engine);
}

#[tokio::test]
async fn gpus_reach_each_others_memory_after_a_swap_as_before() {
    // On a real machine this wants three GPUs.
    let Some(bench) = Bench::software(3) else { return };
    let garage = Garage::new(bench, 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let before = number(&engine, json!({"do": "alloc", "bytes": 2 * MIB}), "address");
    let reach = |address: u64, gpu: i32| {
        number(&engine, json!({"do": "reach", "address": address, "gpu": gpu}), "flags")
    };
    assert_eq!((reach(before, 0), reach(before, 1)), (3, 0));
    // By a pool's access …
    let pool = number(&engine, json!({"do": "default-pool"}), "pool");
    step(&engine, json!({"do": "pool-access", "pool": pool, "gpu": 2}));
    assert_eq!((reach(before, 1), reach(before, 2)), (0, 3));
    // … or all of a GPU's.
    step(&engine, json!({"do": "peer"}));
    let after = number(&engine, json!({"do": "alloc", "bytes": 2 * MIB}), "address");
    for _ in 0..2 {
        for address in [before, after] {
            assert_eq!([0, 1, 2].map(|gpu| reach(address, gpu)), [3, 3, 3]);
        }
        round_trip(&garage, &engine, &[]).await;
    }
}

#[tokio::test]
async fn legacy_ipc_is_refused_for_what_can_be_parked_and_told() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let large = number(&engine, json!({"do": "alloc", "bytes": 4 * MIB}), "address");
    try_step(&engine, &json!({"do": "ipc", "address": large})).expect_err("it has no such handle");
    assert_eq!(garage.known(engine.pid()).await.ipc_refused, 1);
    // The driver's own allocations have one, and stay.
    let small = Block::plain(&engine, 64 << 10, 1);
    step(&engine, json!({"do": "ipc", "address": small.address}));
    round_trip(&garage, &engine, &[&small]).await;
}

#[tokio::test]
async fn free_memory_is_what_is_left_of_the_budget() {
    let garage = Garage::new(Bench::any(), 256);
    let mut environment = garage.environment();
    environment.push(("SWAPSERVE_GPU_BUDGET".into(), (100 * MIB).to_string().into()));
    let engine = garage.bench.engine_with(&["--weights", "2MiB"], &environment);
    let free = || number(&engine, json!({"do": "info"}), "free");
    assert_eq!(free(), 98 * MIB);
    assert_eq!(number(&engine, json!({"do": "info"}), "total"), 100 * MIB, "the budget is all there is");
    let plain = number(&engine, json!({"do": "alloc", "bytes": 30 * MIB}), "address");
    assert_eq!(free(), 68 * MIB);
    step(&engine, json!({"do": "free", "address": plain}));
    assert_eq!(free(), 98 * MIB);
    // Freed in a stream and kept for the next: still the engine's to take.
    let ordered = number(&engine, json!({"do": "alloc", "kind": "async", "bytes": 30 * MIB}), "address");
    assert_eq!(free(), 68 * MIB);
    step(&engine, json!({"do": "free-async", "address": ordered}));
    assert_eq!(free(), 98 * MIB);
}

#[tokio::test]
async fn trimming_a_pool_gives_kept_memory_back() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let pool = number(&engine, json!({"do": "pool"}), "pool");
    let resident = garage.free().await;
    let allocation = json!({"do": "alloc", "kind": "pool", "pool": pool, "bytes": 8 * MIB});
    let blocks = [(); 2].map(|()| number(&engine, allocation.clone(), "address"));
    for address in blocks {
        step(&engine, json!({"do": "free-async", "address": address}));
    }
    assert_eq!(garage.free().await, resident - 16 * MIB);
    // One of them is used again.
    let again = number(&engine, allocation, "address");
    assert!(blocks.contains(&again));
    step(&engine, json!({"do": "free-async", "address": again}));
    step(&engine, json!({"do": "trim", "pool": pool, "bytes": 8 * MIB}));
    assert_eq!(garage.free().await, resident - 8 * MIB);
    // What is kept does not go out: it is given back.
    assert_eq!(garage.out(&engine).await.bytes, 2 * MIB);
    garage.back(&engine).await;
    assert_eq!(garage.free().await, resident);
    engine.check();
}

#[tokio::test]
async fn of_what_is_freed_in_streams_little_is_kept_unless_the_engine_says_so() {
    let Some(bench) = Bench::software(1) else { return };
    let garage = Garage::new(bench, 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let resident = garage.free().await;
    let ordered =
        |mib: u64| number(&engine, json!({"do": "alloc", "kind": "async", "bytes": mib * MIB}), "address");
    let free = |address: u64| step(&engine, json!({"do": "free-async", "address": address}));
    // What is a little larger serves as well, and is then as large as was asked for.
    let first = ordered(10);
    free(first);
    assert_eq!(ordered(9), first);
    assert_eq!(number(&engine, json!({"do": "range", "address": first}), "bytes"), 9 * MIB);
    free(first);
    assert_ne!(ordered(4), first);
    // Each of another size.
    for at in 1..30 {
        free(ordered(2 * at));
    }
    assert!(garage.free().await >= resident - (256 + 4) * MIB);
    let pool = number(&engine, json!({"do": "default-pool"}), "pool");
    step(&engine, json!({"do": "threshold", "pool": pool, "bytes": 900 * MIB}));
    free(ordered(900));
    assert!(garage.free().await <= resident - 900 * MIB);
    // The driver's own allocations can have it too.
    step(&engine, json!({"do": "alloc", "kind": "managed", "bytes": 900 * MIB}));
}

#[tokio::test]
async fn what_is_freed_while_the_engine_is_out_is_gone() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let (kept, freed) = (Block::plain(&engine, 6 * MIB, 1), Block::plain(&engine, 8 * MIB, 2));
    garage.out(&engine).await;
    freed.free(&engine);
    assert_eq!(garage.back(&engine).await.bytes, 8 * MIB);
    kept.check(&engine);
    assert_eq!(garage.pool().await.used, 8 * MIB);
    engine.check();
}

#[tokio::test]
async fn a_capture_is_not_cut_in_two() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let mut block = Block::plain(&engine, 4 * MIB, 1);
    let capture = json!({"do": "capture", "address": block.address, "words": MIB});
    let stream = number(&engine, capture, "stream");
    let short = REST / 20;
    let refused = garage.server.park_out(vec![engine.pid()], None, short, LONG).await.unwrap_err();
    assert!(refused.to_string().contains("did not come to rest"), "{refused}");
    let graph = number(&engine, json!({"do": "end-capture", "stream": stream}), "graph");
    for _ in 0..2 {
        round_trip(&garage, &engine, &[&block]).await;
        step(&engine, json!({"do": "launch", "graph": graph}));
        block.note_added();
        block.check(&engine);
    }
}
