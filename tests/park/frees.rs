//! Memory is not gone before the work on it is done, whichever GPU is current and whatever is being captured.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::{Bench, TestEngine};
use crate::script::{MIB, number, step, try_step};

/// An engine on so many GPUs; nothing where tests run on a real one, which has no kernel that waits to be told.
async fn scene(gpus: usize) -> Option<(Garage, TestEngine)> {
    let garage = Garage::new(Bench::software(gpus)?, 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    Some((garage, engine))
}

/// Does a step while a kernel runs, and lets the kernel go on once the step is over or waits inside the driver.
fn while_a_kernel_runs(garage: &Garage, engine: &TestEngine, what: Value) {
    let inside = || {
        let lab = garage.bench.lab().expect("a software machine");
        let mut records = lab.table().processes();
        let record = records.find(|it| it.pid() == Some(engine.pid())).expect("it uses the driver");
        record.in_flight.load(Ordering::SeqCst) > 0
    };
    std::thread::scope(|scope| {
        let doing = scope.spawn(|| step(engine, what));
        while !doing.is_finished() && !inside() {
            std::thread::yield_now();
        }
        step(engine, json!({"do": "tell"}));
        doing.join().expect("it is done");
    });
}

fn kernel(engine: &TestEngine, address: u64, gpu: u64, stream: u64) {
    let words = MIB;
    step(
        engine,
        json!({"do": "add-when-told", "address": address, "words": words, "on": gpu, "stream": stream}),
    );
}

/// The kernel has ended, and so has not met memory that was gone.
fn kernel_is_well(engine: &TestEngine, gpu: u64, stream: u64) {
    step(engine, json!({"do": "synchronize", "on": gpu, "stream": stream}));
    engine.check();
}

#[tokio::test]
async fn memory_of_another_gpu_than_the_current_one() {
    let Some((garage, engine)) = scene(2).await else { return };
    let address = number(&engine, json!({"do": "alloc", "bytes": 4 * MIB, "on": 1}), "address");
    kernel(&engine, address, 1, 0);
    while_a_kernel_runs(&garage, &engine, json!({"do": "free", "address": address}));
    kernel_is_well(&engine, 1, 0);
    // In a stream of another GPU than the current one too.
    let stream = number(&engine, json!({"do": "stream", "on": 1}), "stream");
    let ordered = json!({"do": "alloc", "kind": "async", "bytes": 4 * MIB, "on": 1});
    let address = number(&engine, ordered, "address");
    kernel(&engine, address, 1, stream);
    step(&engine, json!({"do": "free-async", "address": address, "stream": stream}));
    let pool = number(&engine, json!({"do": "default-pool", "gpu": 1}), "pool");
    while_a_kernel_runs(&garage, &engine, json!({"do": "trim", "pool": pool, "bytes": 0}));
    kernel_is_well(&engine, 1, stream);
}

#[tokio::test]
async fn memory_freed_during_a_capture_goes_when_it_has_ended() {
    let Some((garage, engine)) = scene(1).await else { return };
    let address = number(&engine, json!({"do": "alloc", "bytes": 4 * MIB}), "address");
    let captured = number(&engine, json!({"do": "alloc", "bytes": 2 * MIB}), "address");
    let resident = garage.free().await;
    let capture = json!({"do": "capture", "address": captured, "words": MIB / 4});
    let stream = number(&engine, capture, "stream");
    kernel(&engine, address, 0, 0);
    step(&engine, json!({"do": "free", "address": address}));
    try_step(&engine, &json!({"do": "free", "address": address})).expect_err("it has been freed");
    // Kept for the next in its stream, and given back while the capture is under way.
    step(&engine, json!({"do": "tell"}));
    kernel_is_well(&engine, 0, 0);
    let address = number(&engine, json!({"do": "alloc", "kind": "async", "bytes": 8 * MIB}), "address");
    kernel(&engine, address, 0, 0);
    step(&engine, json!({"do": "free-async", "address": address}));
    let pool = number(&engine, json!({"do": "default-pool"}), "pool");
    while_a_kernel_runs(&garage, &engine, json!({"do": "trim", "pool": pool, "bytes": 0}));
    kernel_is_well(&engine, 0, 0);
    assert_eq!(garage.free().await, resident);
    let graph = number(&engine, json!({"do": "end-capture", "stream": stream}), "graph");
    assert_eq!(garage.free().await, resident + 4 * MIB);
    step(&engine, json!({"do": "launch", "graph": graph}));
}

#[tokio::test]
async fn an_end_of_a_capture_that_there_is_not_ends_no_other() {
    let Some((garage, engine)) = scene(1).await else { return };
    let address = number(&engine, json!({"do": "alloc", "bytes": 2 * MIB}), "address");
    let capture = json!({"do": "capture", "address": address, "words": MIB / 4});
    let stream = number(&engine, capture, "stream");
    let other = number(&engine, json!({"do": "stream"}), "stream");
    try_step(&engine, &json!({"do": "end-capture", "stream": other})).expect_err("it is not captured");
    let refused = garage.server.park_out(vec![engine.pid()], None, REST / 20, LONG).await.unwrap_err();
    assert!(refused.to_string().contains("did not come to rest"), "{refused}");
    step(&engine, json!({"do": "end-capture", "stream": stream}));
    garage.out(&engine).await;
    garage.back(&engine).await;
}
