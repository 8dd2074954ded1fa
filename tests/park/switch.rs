//! A switch: one engine takes the memory that another one gives up while that is still going out.

use std::time::{Duration, Instant};

use swapserve::gpu::park::call::Beside;
use swapserve::gpu::{GpuError, park::call::Moved};
use tokio::task::JoinHandle;

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::{Bench, TestEngine};
use crate::script::{Block, MIB};

/// Two engines of 64 MiB on a GPU that has not room for both.
struct Pair {
    garage: Garage,
    /// Resident; a part of it has changed since it was last out, so it goes in two steps.
    first: TestEngine,
    block: Block,
    /// Out.
    second: TestEngine,
}

impl Pair {
    async fn new() -> Option<Self> {
        let mut machine = Bench::software_machine(1)?;
        machine.gpus[0].bytes = 160 * MIB;
        let garage = Garage::new(Bench::on(machine), 256);
        let second = garage.engine(&["--weights", "40MiB", "--cache", "24MiB", "--model", "second"]).await;
        garage.out(&second).await;
        let first = garage.engine(&["--weights", "40MiB", "--model", "first"]).await;
        let mut block = Block::plain(&first, 26 * MIB, 1);
        garage.out(&first).await;
        garage.back(&first).await;
        block.write(&first, 0, 64, 2);
        Some(Self { garage, first, block, second })
    }

    fn goes(&self, number: u64) -> JoinHandle<Result<Moved, GpuError>> {
        let (server, pid) = (self.garage.server.clone(), self.first.pid());
        tokio::spawn(async move { server.park_out_as(number, vec![pid], None, REST, LONG).await })
    }

    /// The second one comes, and takes nothing but what the first one has given up.
    fn comes(&self, outs: &[u64], wait: Duration) -> JoinHandle<Result<Moved, GpuError>> {
        let (server, pid) = (self.garage.server.clone(), self.second.pid());
        let beside = Beside { outs: outs.to_vec(), room: vec![0] };
        tokio::spawn(async move { server.park_in_beside(vec![pid], true, wait, beside).await })
    }

    /// Bytes that the second one holds on the GPU.
    async fn held(&self) -> u64 {
        let all = self.garage.server.process_memory().await.expect("NVML answers");
        let pid = self.second.pid();
        all.iter().filter(|it| it.pid == pid).filter_map(|it| it.bytes).sum()
    }

    async fn await_taken(&self, bytes: u64) {
        let deadline = Instant::now() + LONG;
        while self.held().await < bytes {
            assert!(Instant::now() < deadline, "the second engine takes nothing");
            tokio::task::yield_now().await;
        }
    }

    fn fault(&self, lines: &str) {
        let lab = self.garage.bench.lab().expect("a software machine");
        let engines = [self.first.pid(), self.second.pid()];
        let mut pids = lab.table().processes().filter_map(|record| record.pid());
        let server = pids.find(|pid| !engines.contains(pid)).expect("the gpu server uses the driver");
        self.garage.bench.set_faults(&lines.replace("SERVER", &server.to_string()));
    }

    /// Both are whole, each when it is in.
    async fn take_turns(&self) {
        for _ in 0..2 {
            self.first.check();
            self.block.check(&self.first);
            let (out, back) = tokio::join!(self.goes(0), async { self.garage.known(self.first.pid()).await });
            assert!(out.expect("the task runs").is_ok() && back.pid > 0);
            self.garage.back(&self.second).await;
            self.second.check();
            self.garage.out(&self.second).await;
            self.garage.back(&self.first).await;
        }
    }
}

#[tokio::test]
async fn one_comes_in_while_the_other_goes_out() {
    let Some(pair) = Pair::new().await else { return };
    // The call of the one who comes may be the first.
    let comes = pair.comes(&[1], LONG);
    let goes = pair.goes(1);
    let (came, went) = (comes.await.unwrap().unwrap(), goes.await.unwrap().unwrap());
    assert_eq!((came.bytes, went.bytes), (64 * MIB, 66 * MIB));
    pair.second.check();
    pair.garage.out(&pair.second).await;
    pair.garage.back(&pair.first).await;
    pair.take_turns().await;
}

#[tokio::test]
async fn a_part_is_taken_before_all_has_gone() {
    let Some(pair) = Pair::new().await else { return };
    // What has not changed goes at once; then the copy of the rest takes its time.
    pair.fault("cuEventSynchronize delay=3000 times=1 after=2 pid=SERVER\n");
    let (goes, comes) = (pair.goes(1), pair.comes(&[1], LONG));
    pair.await_taken(40 * MIB).await;
    assert!(!goes.is_finished() && !comes.is_finished());
    pair.garage.bench.set_faults("");
    goes.await.unwrap().expect("it goes");
    comes.await.unwrap().expect("it comes");
    pair.second.check();
}

#[tokio::test]
async fn who_took_of_one_that_did_not_go_gives_it_back() {
    let Some(pair) = Pair::new().await else { return };
    let before = (pair.garage.free().await, pair.held().await);
    let slow = "cuEventSynchronize delay=3000 times=1 after=2 pid=SERVER\n";
    pair.fault(&format!("{slow}cuEventSynchronize error=1 times=1 pid=SERVER\n"));
    let (goes, comes) = (pair.goes(1), pair.comes(&[1], LONG));
    pair.await_taken(40 * MIB).await;
    let refused = goes.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("cuEventSynchronize"), "{refused}");
    let refused = comes.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("was to make its room failed"), "{refused}");
    pair.garage.bench.set_faults("");
    // The one is in as before, the other is out as before, and nothing is held for either.
    assert_eq!(pair.garage.known(pair.first.pid()).await.away, 0);
    assert_eq!(pair.garage.known(pair.second.pid()).await.away, 64 * MIB);
    assert_eq!((pair.garage.free().await, pair.held().await), before);
    pair.take_turns().await;
}

#[tokio::test]
async fn one_that_dies_on_its_way_out_leaves_the_other_out() {
    let Some(pair) = Pair::new().await else { return };
    pair.fault("cuEventSynchronize delay=3000 times=1 after=2 pid=SERVER\n");
    let (goes, comes) = (pair.goes(1), pair.comes(&[1], LONG));
    pair.await_taken(40 * MIB).await;
    let Pair { garage, first, second, .. } = pair;
    drop(first);
    assert!(goes.await.unwrap().is_err());
    assert!(comes.await.unwrap().is_err(), "nobody can say that it is gone");
    assert_eq!(garage.known(second.pid()).await.away, 64 * MIB);
    garage.back(&second).await;
    second.check();
}

#[tokio::test]
async fn without_a_swap_out_nothing_is_taken_and_the_wait_has_an_end() {
    let Some(pair) = Pair::new().await else { return };
    let before = pair.held().await;
    let refused = pair.comes(&[1], Duration::from_millis(50)).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("takes too long"), "{refused}");
    assert_eq!(pair.held().await, before);
    pair.take_turns().await;
}

#[tokio::test]
async fn one_that_frees_too_little_leaves_the_other_out() {
    let Some(pair) = Pair::new().await else { return };
    let before = pair.held().await;
    let (server, pid) = (pair.garage.server.clone(), pair.first.pid());
    let part = server.park_out_as(1, vec![pid], Some(10 * MIB), REST, LONG);
    let (comes, part) = (pair.comes(&[1], LONG), part.await.expect("a part goes"));
    assert!(part.bytes < 64 * MIB, "{part:?}");
    let refused = comes.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("less was freed"), "{refused}");
    assert_eq!(pair.held().await, before);
    pair.garage.back(&pair.first).await;
    pair.take_turns().await;
}
