//! Swaps under threads that allocate, free, copy and launch all the time.

use serde_json::json;

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::Bench;
use crate::script::{MIB, number, step};

#[tokio::test]
async fn swaps_under_allocation_free_and_launch_lose_nothing() {
    let garage = Garage::new(Bench::any(), 512);
    let engine = garage.engine(&["--weights", "32MiB"]).await;
    step(&engine, json!({"do": "hammer", "threads": 4}));
    let rounds = || number(&engine, json!({"do": "hammer-rounds"}), "rounds");
    for cycle in 0..15u64 {
        let wanted = [None, Some(4 * MIB), Some(20 * MIB)][(cycle % 3) as usize];
        garage.server.park_out(vec![engine.pid()], wanted, REST, LONG).await.expect("it goes out");
        if cycle % 4 == 0 {
            // The rest of it too.
            garage.out(&engine).await;
        }
        // Children that are forked meanwhile change nothing.
        assert_eq!(step(&engine, json!({"do": "fork"})), json!({"status": 0, "signal": 0}));
        garage.back(&engine).await;
        let before = rounds();
        let deadline = std::time::Instant::now() + LONG;
        while rounds() < before + 20 {
            assert!(std::time::Instant::now() < deadline, "the threads stand still");
        }
    }
    assert!(number(&engine, json!({"do": "hammer-stop"}), "rounds") > 500);
    engine.check();
    // Nothing was left behind.
    garage.out(&engine).await;
    assert_eq!(garage.known(engine.pid()).await.away, 32 * MIB);
}
