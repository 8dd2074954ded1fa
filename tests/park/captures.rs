//! Captures are followed from their beginning, however they begin, to their end, however they end.

use std::time::Duration;

use serde_json::{Value, json};

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::{Bench, TestEngine};
use crate::script::{Block, MIB, number, step};

/// A capture that has begun, and its stream.
fn capture(engine: &TestEngine, block: &Block, how: Value) -> u64 {
    let mut asked = json!({"do": "capture", "address": block.address, "words": block.bytes.len() / 4});
    asked.as_object_mut().expect("a step").extend(how.as_object().expect("its ways").clone());
    number(engine, asked, "stream")
}

async fn is_not_cut_in_two(garage: &Garage, engine: &TestEngine) {
    let refused = garage.server.park_out(vec![engine.pid()], None, REST / 20, LONG).await.unwrap_err();
    assert!(refused.to_string().contains("did not come to rest"), "{refused}");
}

#[tokio::test]
async fn whichever_way_it_begins() {
    let garage = Garage::new(Bench::any(), 256);
    let known = garage.server.describe().await.expect("the gpu server answers").cuda_version;
    let ways = [
        (10010, json!({})),
        (10000, json!({"version": 10000})),
        (10010, json!({"version": 10010})),
        (12030, json!({"into": true})),
    ];
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let mut block = Block::plain(&engine, 4 * MIB, 1);
    for (_, how) in ways.into_iter().filter(|(since, _)| *since <= known) {
        let stream = capture(&engine, &block, how);
        is_not_cut_in_two(&garage, &engine).await;
        let graph = number(&engine, json!({"do": "end-capture", "stream": stream}), "graph");
        garage.out(&engine).await;
        garage.back(&engine).await;
        step(&engine, json!({"do": "launch", "graph": graph}));
        block.note_added();
        block.check(&engine);
    }
}

#[tokio::test]
async fn a_stream_that_is_destroyed_takes_its_capture_along() {
    // What a real driver does to such a capture is its own affair.
    let Some(bench) = Bench::software(1) else { return };
    let garage = Garage::new(bench, 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let block = Block::plain(&engine, 4 * MIB, 1);
    let freed = Block::plain(&engine, 8 * MIB, 2);
    let resident = garage.free().await;
    let [first, second] = [(); 2].map(|()| capture(&engine, &block, json!({})));
    freed.free(&engine);
    // A stream in which nothing is captured ends none, and the first one's end is not the second's.
    let other = number(&engine, json!({"do": "stream"}), "stream");
    for stream in [other, first] {
        step(&engine, json!({"do": "destroy-stream", "stream": stream}));
        assert_eq!(garage.free().await, resident);
        is_not_cut_in_two(&garage, &engine).await;
    }
    step(&engine, json!({"do": "destroy-stream", "stream": second}));
    assert_eq!(garage.free().await, resident + 8 * MIB, "freed during the captures, and gone after them");
    garage.out(&engine).await;
    garage.back(&engine).await;
    block.check(&engine);
    engine.check();
}

#[tokio::test]
async fn no_graph_is_made_ready_while_the_engine_is_out() {
    // Graphs that are ready take device memory.
    let garage = Garage::new(Bench::any(), 256);
    let known = garage.server.describe().await.expect("the gpu server answers").cuda_version;
    let mut engine = garage.engine(&["--weights", "2MiB"]).await;
    let mut block = Block::plain(&engine, 4 * MIB, 1);
    for version in [10000, 11040, 12000].into_iter().filter(|version| *version <= known) {
        let stream = capture(&engine, &block, json!({}));
        let ended = json!({"do": "end-capture", "stream": stream, "instantiate": false});
        let graph = number(&engine, ended, "graph");
        garage.out(&engine).await;
        let pid = engine.pid();
        let asking = std::thread::spawn(move || {
            let ready =
                number(&engine, json!({"do": "instantiate", "graph": graph, "version": version}), "graph");
            (engine, ready)
        });
        // Long enough for one that does not wait.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!asking.is_finished(), "{version}");
        garage.server.park_in(vec![pid], true, LONG).await.expect("it comes back");
        let ready;
        (engine, ready) = asking.join().expect("it is ready");
        step(&engine, json!({"do": "launch", "graph": ready}));
        block.note_added();
        block.check(&engine);
    }
}
