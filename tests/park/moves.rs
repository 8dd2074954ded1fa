//! Out and in: what moves, what is left, and that nothing changes.

use serde_json::json;
use swapserve::gpu::digest::{BLOCK, digest};
use swapserve::gpu::park::nodes::GpuNodes;

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::{self, Bench};
use crate::script::{Block, MIB, step};

#[tokio::test]
async fn all_of_it_goes_out_and_comes_back_unchanged() {
    let garage = Garage::new(Bench::any(), 512);
    let engine = garage.engine(&["--weights", "300MiB", "--cache", "64MiB"]).await;
    let resident = garage.free().await;
    let out = garage.out(&engine).await;
    assert_eq!((out.bytes, out.copied, out.stayed), (364 * MIB, 364 * MIB, 0));
    assert_eq!(garage.free().await, resident + 364 * MIB);
    let back = garage.back(&engine).await;
    assert_eq!((back.bytes, back.copied), (364 * MIB, 364 * MIB));
    assert_eq!(garage.free().await, resident);
    engine.check();
}

#[tokio::test]
async fn at_the_end_the_pool_is_given_back_before_the_gpu_server_is_gone() {
    given_back(false).await;
}

#[tokio::test]
async fn at_the_end_a_gpu_server_that_is_stopped_gives_it_back_too() {
    given_back(true).await;
}

async fn given_back(stopped: bool) {
    let garage = Garage::new(Bench::any(), 768);
    let engine = garage.engine(&["--weights", "300MiB"]).await;
    garage.out(&engine).await;
    let deadline = std::time::Instant::now() + LONG;
    while garage.pool().await.pinned < 768 * MIB {
        assert!(std::time::Instant::now() < deadline, "it is not pinned");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!((garage.setup.bytes(), garage.setup.taken()), (768 * MIB, 768 * MIB));
    drop(engine);
    let Garage { bench, server, setup } = garage;
    if stopped {
        bench.signal_server(rustix::process::Signal::STOP);
    }
    server.end(LONG).await;
    // This process still has the file open: nothing but giving back makes it empty.
    assert_eq!(setup.taken(), 0);
}

#[tokio::test]
async fn what_has_not_changed_is_not_copied_again() {
    let garage = Garage::new(Bench::any(), 512);
    let engine = garage.engine(&["--weights", "128MiB"]).await;
    garage.out(&engine).await;
    for _ in 0..3 {
        garage.back(&engine).await;
        engine.check();
        let out = garage.out(&engine).await;
        assert_eq!((out.bytes, out.copied), (128 * MIB, 0));
    }
    garage.back(&engine).await;
    engine.check();
}

#[tokio::test]
async fn the_kernel_computes_what_the_reference_does() {
    let bench = Bench::any();
    let engine = bench.engine(&["--weights", "2MiB"]);
    let mut block = Block::plain(&engine, 8 * MIB, 1);
    block.zero(&engine, 2 * MIB, 2 * MIB);
    for key in [[0, 0], [1, u64::MAX], [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]] {
        let [low, high] = key;
        let asked = json!({"do": "digest", "address": block.address, "blocks": 4, "low": low, "high": high});
        let expected: Vec<_> = block.bytes.chunks(BLOCK).map(|block| digest(block, key)).collect();
        assert_eq!(step(&engine, asked)["digests"], json!(expected));
    }
}

#[tokio::test]
async fn an_engine_that_is_out_waits_and_then_answers() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "64MiB"]).await;
    garage.out(&engine).await;
    let (asked, begun) = std::sync::mpsc::channel();
    let asking = std::thread::spawn(move || {
        asked.send(()).expect("the test waits for this");
        engine.check();
        engine
    });
    begun.recv().expect("the thread runs");
    let pid = garage.pool().await.processes[0].pid;
    assert!(!asking.is_finished());
    garage.server.park_in(vec![pid], true, LONG).await.unwrap();
    asking.join().expect("the answer is right").check();
}

#[tokio::test]
async fn only_as_much_as_is_wanted_goes_out() {
    let garage = Garage::new(Bench::any(), 1024);
    let engine = garage.engine(&["--weights", "512MiB", "--cache", "64MiB"]).await;
    let resident = garage.free().await;
    let out = garage.server.park_out(vec![engine.pid()], Some(100 * MIB), REST, LONG).await.unwrap();
    assert!(out.bytes >= 100 * MIB && out.bytes < 576 * MIB, "{out:?}");
    assert_eq!(out.bytes + out.stayed, 576 * MIB);
    // A real driver counts its page tables too.
    let free = garage.free().await;
    assert!(free.abs_diff(resident + out.bytes) <= if gpu_bench::real() { 16 * MIB } else { 0 }, "{free}");
    assert_eq!(garage.back(&engine).await.bytes, out.bytes);
    engine.check();
}

#[tokio::test]
async fn a_pool_that_is_too_small_refuses_and_harms_nobody() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "300MiB"]).await;
    let resident = garage.free().await;
    let refused = garage.server.park_out(vec![engine.pid()], None, REST, LONG).await.unwrap_err();
    assert!(refused.to_string().contains("give it more"), "{refused}");
    assert_eq!(garage.free().await, resident);
    engine.check();
}

#[tokio::test]
async fn the_pool_is_free_again_when_an_engine_ends() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "128MiB"]).await;
    garage.out(&engine).await;
    assert_eq!(garage.pool().await.used, 128 * MIB);
    drop(engine);
    let deadline = std::time::Instant::now() + LONG;
    while garage.pool().await.used > 0 {
        assert!(std::time::Instant::now() < deadline, "the pool is still in use");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pool_on_two_nodes_is_one_pool() {
    let Some(bench) = Bench::software(2) else { return };
    // A kernel that has no second node refuses it, and the pool is as good.
    let nodes = GpuNodes::read("0000:01:00.0=0 0000:02:00.0=1");
    let garage = Garage::on_nodes(bench, 512, nodes);
    // More than the part of its GPU's node.
    let engine = garage.engine(&["--weights", "300MiB"]).await;
    let other_gpu = json!({"do": "alloc", "bytes": 64 * MIB, "on": 1});
    let block = Block::of(&engine, other_gpu, 64 * MIB, 5);
    assert_eq!(garage.out(&engine).await.copied, 364 * MIB);
    assert_eq!(garage.pool().await.used, 364 * MIB);
    // The next gpu server divides it in the same way, and finds everything.
    garage.bench.kill_server(&garage.server).await;
    garage.known(engine.pid()).await;
    assert_eq!(garage.back(&engine).await.copied, 364 * MIB);
    engine.check();
    block.check(&engine);
    // Room for all of another one, of which most lies in what the first can do without.
    let other = garage.engine(&["--weights", "500MiB"]).await;
    garage.out(&other).await;
    garage.back(&other).await;
    other.check();
    engine.check();
}
