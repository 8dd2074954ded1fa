//! Random sequences of allocations, writes, swaps and frees: what is read back is what was written.

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use swapserve::gpu::park::call::Moved;

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::{Bench, TestEngine};
use crate::script::{Block, MIB};

/// Blocks held at a time, at most.
const MOST: usize = 5;

/// One step. Blocks and places are chosen modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Allocate {
        granules: u64,
        odd: u64,
        seed: u64,
    },
    Free {
        block: usize,
    },
    Write {
        block: usize,
        at: u64,
        bytes: u64,
        seed: u64,
    },
    Zero {
        block: usize,
        at: u64,
        bytes: u64,
    },
    ZeroAll {
        block: usize,
    },
    Flip {
        block: usize,
        at: u64,
        bit: u8,
    },
    Add {
        block: usize,
    },
    /// Out (as many MiB as wanted, or all, then perhaps the rest), a block freed meanwhile, and in.
    Swap {
        wanted: Option<u64>,
        rest: bool,
        free: Option<usize>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0u64..1 << 40;
    prop_oneof![
        3 => (0u64..3, 0u64..3, any::<u64>())
            .prop_map(|(granules, odd, seed)| Step::Allocate { granules, odd, seed }),
        1 => any::<usize>().prop_map(|block| Step::Free { block }),
        3 => (any::<usize>(), place.clone(), 1u64..100_000, any::<u64>())
            .prop_map(|(block, at, bytes, seed)| Step::Write { block, at, bytes, seed }),
        2 => (any::<usize>(), place.clone(), 1u64..5 << 20)
            .prop_map(|(block, at, bytes)| Step::Zero { block, at, bytes }),
        1 => any::<usize>().prop_map(|block| Step::ZeroAll { block }),
        3 => (any::<usize>(), place, 0u8..8).prop_map(|(block, at, bit)| Step::Flip { block, at, bit }),
        1 => any::<usize>().prop_map(|block| Step::Add { block }),
        4 => (prop::option::of(1u64..12), any::<bool>(), prop::option::weighted(0.2, any::<usize>()))
            .prop_map(|(wanted, rest, free)| Step::Swap { wanted, rest, free }),
    ]
}

/// A garage and an engine for all cases.
struct Scene {
    runtime: tokio::runtime::Runtime,
    garage: Garage,
    engine: TestEngine,
}

impl Scene {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
        let (garage, engine) = runtime.block_on(async {
            let garage = Garage::new(Bench::any(), 256);
            let engine = garage.engine(&["--weights", "2MiB"]).await;
            (garage, engine)
        });
        Self { runtime, garage, engine }
    }

    fn take_out(&self, wanted: Option<u64>) -> Moved {
        let out = self.garage.server.park_out(vec![self.engine.pid()], wanted, REST, LONG);
        self.runtime.block_on(out).expect("it goes out")
    }

    fn run(&self, steps: &[Step]) {
        let engine = &self.engine;
        let mut blocks: Vec<Block> = Vec::new();
        for step in steps {
            let count = blocks.len();
            let some = |at: usize| at.checked_rem(count);
            match *step {
                Step::Allocate { granules, odd, seed } if count < MOST => {
                    // Below a MiB, whole granules, and more than whole ones.
                    let bytes = (granules * 2 * MIB + odd * 4099).max(4096);
                    blocks.push(Block::plain(engine, bytes, seed));
                }
                Step::Allocate { .. } => {}
                Step::Free { block } => {
                    if let Some(at) = some(block) {
                        blocks.swap_remove(at).free(engine);
                    }
                }
                Step::Write { block, at, bytes, seed } => {
                    change(&mut blocks, block, at, bytes, |block, at, bytes| {
                        block.write(engine, at, bytes, seed);
                    })
                }
                Step::Zero { block, at, bytes } => {
                    change(&mut blocks, block, at, bytes, |block, at, bytes| {
                        block.zero(engine, at, bytes);
                    })
                }
                Step::ZeroAll { block } => change(&mut blocks, block, 0, u64::MAX, |block, at, bytes| {
                    block.zero(engine, at, bytes);
                }),
                Step::Flip { block, at, bit } => change(&mut blocks, block, at, 1, |block, at, _| {
                    block.flip(engine, at, 1 << bit);
                }),
                Step::Add { block } => {
                    if let Some(at) = some(block) {
                        blocks[at].add(engine);
                    }
                }
                Step::Swap { wanted, rest, free } => {
                    self.take_out(wanted.map(|mib| mib * MIB));
                    if rest {
                        self.take_out(None);
                    }
                    if let Some(at) = free.and_then(some) {
                        blocks.swap_remove(at).free(engine);
                    }
                    self.runtime.block_on(self.garage.back(engine));
                    blocks.iter().for_each(|block| block.check(engine));
                }
            }
        }
        blocks.iter().for_each(|block| block.check(engine));
        engine.check();
        blocks.into_iter().for_each(|block| block.free(engine));
    }
}

/// Changes a part of a block: the place is cut to what the block has.
fn change(
    blocks: &mut [Block],
    block: usize,
    at: u64,
    bytes: u64,
    change: impl FnOnce(&mut Block, u64, u64),
) {
    let Some(which) = block.checked_rem(blocks.len()) else { return };
    let block = &mut blocks[which];
    let length = block.bytes.len() as u64;
    let at = at % length;
    change(block, at, bytes.min(length - at));
}

/// As many cases as `PROPTEST_CASES` says, or a few; what failed once is kept beside this file and tried first.
#[test]
fn what_is_read_back_is_what_was_written() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let config = Config {
        cases,
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..Config::default()
    };
    let scene = Scene::new();
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..30), |steps| {
            let run = std::panic::AssertUnwindSafe(|| scene.run(&steps));
            std::panic::catch_unwind(run).map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                TestCaseError::fail(text.unwrap_or_else(|| "a step failed".to_owned()))
            })
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// A change of a single bit anywhere, zero that becomes something, something that becomes zero, and blocks that change
/// places: each goes out again, and nothing else does.
#[test]
fn a_change_is_never_taken_for_none() {
    let scene = Scene::new();
    let engine = &scene.engine;
    let mut block = Block::plain(engine, 8 * MIB, 1);
    block.zero(engine, 6 * MIB, 2 * MIB);
    let granule = 2 * MIB;
    let swap = |block: &Block, copied: u64| {
        assert_eq!(scene.take_out(None).copied, copied);
        scene.runtime.block_on(scene.garage.back(engine));
        block.check(engine);
    };
    swap(&block, 4 * granule);
    swap(&block, 0);
    // First and last bytes, both halves of a word, and lanes' borders, a bit each.
    for at in [0, 1, 7, 8, 15, 16, 4095, 4096, granule / 2, granule - 1, granule, 2 * granule - 1] {
        block.flip(engine, at, 1 << (at % 8));
        swap(&block, granule);
    }
    // Back to what it was two moves ago is a change too.
    block.flip(engine, 2 * granule - 1, 1 << 7);
    swap(&block, granule);
    // Zero to something, and again.
    block.flip(engine, 7 * MIB + 5, 0x10);
    swap(&block, granule);
    block.flip(engine, 7 * MIB + 5, 0x10);
    swap(&block, 0);
    // Two blocks change places.
    let (first, second) = (block.bytes[..granule as usize].to_vec(), block.address);
    engine_copy(engine, second + granule, second, granule);
    block.bytes.copy_within(granule as usize..2 * granule as usize, 0);
    swap(&block, granule);
    engine_copy(engine, second, second + granule, granule);
    swap(&block, 0);
    block.bytes[granule as usize..2 * granule as usize].copy_from_slice(&first);
    block.write(engine, granule, granule, 1);
    swap(&block, granule);
}

fn engine_copy(engine: &TestEngine, from: u64, to: u64, bytes: u64) {
    crate::script::step(engine, serde_json::json!({"do": "copy", "address": from, "to": to, "bytes": bytes}));
}
