//! A fault at each of the driver's calls that the preload library and the memory server make: nothing is lost, the engine
//! goes on or is out, and the refusal names what failed.

use std::time::{Duration, Instant};

use swapserve::gpu::GpuError;

use crate::garage::{Garage, LONG, REST};
use crate::gpu_bench::{Bench, TestEngine, until};
use crate::script::{Block, MIB};

/// Who makes the call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Engine,
    Server,
}
use Who::{Engine, Server};

/// Calls on the way out, in their order.
const OUT: &[(Who, &str)] = &[
    (Engine, "cuCtxSynchronize"),
    (Engine, "cuMemExportToShareableHandle"),
    (Server, "cuMemImportFromShareableHandle"),
    (Server, "cuMemMap"),
    (Server, "cuMemSetAccess"),
    (Server, "cuLaunchKernel"),
    (Server, "cuStreamSynchronize"),
    (Server, "cuMemcpyDtoHAsync_v2"),
    (Server, "cuEventCreate"),
    (Server, "cuEventRecord"),
    (Server, "cuEventSynchronize"),
    (Server, "cuMemUnmap"),
    (Server, "cuMemRelease"),
    (Engine, "cuMemUnmap"),
    (Engine, "cuMemRelease"),
];

/// Calls on the way in, with a comparison.
const BACK: &[(Who, &str)] = &[
    (Engine, "cuMemCreate"),
    (Engine, "cuMemMap"),
    (Engine, "cuMemSetAccess"),
    (Engine, "cuMemExportToShareableHandle"),
    (Server, "cuMemImportFromShareableHandle"),
    (Server, "cuMemMap"),
    (Server, "cuMemSetAccess"),
    (Server, "cuMemcpyHtoDAsync_v2"),
    (Server, "cuMemsetD8Async"),
    (Server, "cuStreamSynchronize"),
    (Server, "cuLaunchKernel"),
    (Server, "cuMemcpyDtoHAsync_v2"),
];

/// Calls after it: the engine runs by then.
const AFTER: &[&str] = &["cuMemUnmap", "cuMemRelease"];

/// A garage, an engine of three chunks or more, and memory that it has written to.
struct Scene {
    garage: Garage,
    engine: TestEngine,
    blocks: Vec<Block>,
}

impl Scene {
    /// Nothing where tests run on a real GPU, which has no faults to inject.
    async fn new() -> Option<Self> {
        let garage = Garage::new(Bench::software(1)?, 256);
        let engine = garage.engine(&["--weights", "4MiB"]).await;
        let mut blocks = vec![Block::plain(&engine, 6 * MIB, 1), Block::plain(&engine, 2 * MIB, 2)];
        // Half of it zero, for the calls that only such memory needs.
        blocks[0].zero(&engine, 2 * MIB, 4 * MIB);
        Some(Self { garage, engine, blocks })
    }

    fn pid(&self, who: Who) -> i32 {
        match who {
            Engine => self.engine.pid(),
            Server => self.server_pid(),
        }
    }

    fn server_pid(&self) -> i32 {
        self.server_pid_but(&[self.engine.pid()])
    }

    /// The gpu server where these engines run.
    fn server_pid_but(&self, engines: &[i32]) -> i32 {
        let lab = self.garage.bench.lab().expect("a software machine");
        let mut pids = lab.table().processes().filter_map(|record| record.pid());
        pids.find(|pid| !engines.contains(pid)).expect("the gpu server uses the driver")
    }

    fn fault(&self, line: &str) {
        self.garage.bench.set_faults(line);
    }

    /// Waits until the fault has struck.
    async fn struck(&self) {
        let faults = self.garage.bench.lab().expect("a software machine").directory().join("faults");
        let deadline = Instant::now() + LONG;
        while !std::fs::read_to_string(&faults).expect("the faults").contains("times=0") {
            assert!(Instant::now() < deadline, "the call is not made");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.fault("");
    }

    async fn take_out(&self) -> Result<(), GpuError> {
        let pids = vec![self.engine.pid()];
        self.garage.server.park_out(pids, None, REST, LONG).await.map(|_| ())
    }

    async fn bring_back(&self) -> Result<(), GpuError> {
        let wait = Duration::from_millis(50);
        self.garage.server.park_in(vec![self.engine.pid()], true, wait).await.map(|_| ())
    }

    /// Every byte is right.
    fn check(&self) {
        self.blocks.iter().for_each(|block| block.check(&self.engine));
        self.engine.check();
    }

    /// Out and in, as if nothing had been; nothing more is left behind.
    async fn goes_on(&self) {
        let mut free = Vec::new();
        for _ in 0..2 {
            self.check();
            self.garage.out(&self.engine).await;
            self.garage.back(&self.engine).await;
            free.push(self.garage.free().await);
        }
        self.check();
        assert_eq!(free[0], free[1]);
    }
}

fn assert_names(refused: &GpuError, call: &str) {
    let call = call.trim_end_matches("_v2");
    assert!(refused.to_string().contains(call), "{call}: {refused}");
}

#[tokio::test]
async fn out_is_refused_and_the_engine_goes_on() {
    let Some(mut scene) = Scene::new().await else { return };
    let resident = scene.garage.free().await;
    for &(who, call) in OUT {
        // Once at the first call, once at a later one.
        for after in [0, 1] {
            let line = format!("{call} error=1 times=1 after={after} pid={}\n", scene.pid(who));
            // Something to be copied each time.
            scene.blocks[1].write(&scene.engine, 8 * after, 8, u64::from(after as u32) + 7);
            scene.fault(&line);
            let refused = scene.take_out().await;
            scene.fault("");
            match refused {
                Err(refused) => {
                    assert_names(&refused, call);
                    assert_eq!(scene.garage.known(scene.engine.pid()).await.away, 0, "{line}{refused}");
                }
                // So many calls are not made.
                Ok(()) => {
                    assert!(after > 0, "{line}");
                    scene.garage.back(&scene.engine).await;
                }
            }
            scene.check();
        }
    }
    // What a refusal of cuMemRelease leaves behind in the server or the engine is lost to the GPU; nothing else is.
    let lost = resident.saturating_sub(scene.garage.free().await);
    assert!(lost <= 16 * MIB, "{lost}");
    scene.goes_on().await;
}

#[tokio::test]
async fn in_is_refused_and_works_the_next_time() {
    let Some(mut scene) = Scene::new().await else { return };
    for &(who, call) in BACK {
        for after in [0, 1] {
            let line = format!("{call} error=1 times=1 after={after} pid={}\n", scene.pid(who));
            scene.garage.out(&scene.engine).await;
            scene.fault(&line);
            let refused = scene.bring_back().await;
            scene.fault("");
            if let Err(refused) = refused {
                assert_names(&refused, call);
                scene.bring_back().await.expect("it works the next time");
            } else {
                assert!(after > 0, "{line}");
            }
            scene.check();
            scene.blocks[1].flip(&scene.engine, 4095, 1);
        }
    }
    scene.goes_on().await;
}

#[tokio::test]
async fn a_fault_that_lasts_keeps_the_engine_in_or_out() {
    let Some(scene) = Scene::new().await else { return };
    for &(who, call) in OUT {
        scene.fault(&format!("{call} error=1 pid={}\n", scene.pid(who)));
        assert_names(&scene.take_out().await.expect_err("it lasts"), call);
        scene.fault("");
        // Where what was given up could not be made anew it is still in the pool.
        scene.bring_back().await.expect("the fault is over");
        scene.check();
    }
    for &(who, call) in BACK {
        scene.garage.out(&scene.engine).await;
        scene.fault(&format!("{call} error=1 pid={}\n", scene.pid(who)));
        assert_names(&scene.bring_back().await.expect_err("it lasts"), call);
        scene.fault("");
        scene.bring_back().await.expect("the fault is over");
        scene.check();
    }
}

#[tokio::test]
async fn what_the_server_cannot_clear_away_harms_nobody() {
    let Some(scene) = Scene::new().await else { return };
    for call in AFTER {
        scene.garage.out(&scene.engine).await;
        scene.fault(&format!("{call} error=1 times=1 pid={}\n", scene.server_pid()));
        scene.garage.back(&scene.engine).await;
        scene.check();
        scene.struck().await;
        scene.goes_on().await;
    }
}

#[tokio::test]
async fn a_release_that_can_be_neither_done_nor_undone_comes_back_from_the_pool() {
    let Some(scene) = Scene::new().await else { return };
    let pid = scene.engine.pid();
    scene.fault(&format!(
        "cuMemRelease error=1 times=1 after=1 pid={pid}\ncuMemMap error=1 times=1 pid={pid}\n"
    ));
    assert_names(&scene.take_out().await.expect_err("one is refused"), "cuMemRelease");
    scene.fault("");
    scene.bring_back().await.expect("the fault is over");
    scene.check();
}

#[tokio::test]
async fn memory_that_is_taken_meanwhile_is_waited_for() {
    let Some(scene) = Scene::new().await else { return };
    scene.garage.out(&scene.engine).await;
    // Another engine has the memory.
    let all = format!("{}MiB", scene.garage.free().await / MIB - 24);
    let other = scene.garage.bench.engine(&["--weights", &all]);
    let refused = scene.bring_back().await.unwrap_err();
    assert!(refused.is_code(2), "{refused}");
    assert_names(&refused, "cuMemCreate");
    // Nor is a part of it back for which there was room.
    let pid = scene.engine.pid();
    let known = scene.garage.known(pid).await;
    assert_eq!((known.here, known.away, scene.garage.free().await), (0, 12 * MIB, 8 * MIB));
    let server = scene.garage.server.clone();
    let waiting = tokio::spawn(async move { server.park_in(vec![pid], true, LONG).await });
    tokio::task::yield_now().await;
    drop(other);
    waiting.await.expect("the task runs").expect("there is room now");
    scene.check();
}

#[tokio::test]
async fn the_pool_can_be_looked_at_while_an_engine_waits_or_is_stopped() {
    let Some(scene) = Scene::new().await else { return };
    let before = scene.garage.known(scene.engine.pid()).await;
    let other = scene.garage.engine(&["--weights", "4MiB"]).await;
    scene.garage.out(&scene.engine).await;
    let away = scene.garage.known(scene.engine.pid()).await;
    assert_eq!(away.away, before.here);
    // One waits for memory that is not free …
    scene.fault(&format!("cuMemCreate error=2 pid={}\n", scene.engine.pid()));
    let (server, pid) = (scene.garage.server.clone(), scene.engine.pid());
    let waiting = tokio::spawn(async move { server.park_in(vec![pid], true, LONG).await });
    // … and another one is stopped: what was last known of both is told.
    scene.garage.known(other.pid()).await;
    // SAFETY: a process of this test's own.
    unsafe { libc::kill(other.pid(), libc::SIGSTOP) };
    until("the process is stopped", || software_gpu::record::stopped(other.pid())).await;
    for _ in 0..20 {
        let processes = scene.garage.pool().await.processes;
        assert_eq!(processes.len(), 2);
        let waits = processes.iter().find(|it| it.pid == scene.engine.pid()).expect("it is known");
        assert_eq!(waits.away + waits.here, before.here);
    }
    assert!(!waiting.is_finished());
    scene.fault("");
    waiting.await.expect("the task runs").expect("there is memory now");
    // SAFETY: as above.
    unsafe { libc::kill(other.pid(), libc::SIGCONT) };
    scene.check();
    other.check();
}

#[tokio::test]
async fn a_copy_that_has_changed_in_the_pool_is_found_out() {
    use std::os::unix::fs::{FileExt, MetadataExt};

    let Some(scene) = Scene::new().await else { return };
    scene.garage.out(&scene.engine).await;
    // The server's mapping and a descriptor of this process are the same file.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", scene.server_pid())).unwrap();
    let line = maps.lines().find(|line| line.contains("swapserve-pool")).expect("the pool is mapped");
    let inode: u64 = line.split_whitespace().nth(4).and_then(|text| text.parse().ok()).expect("an inode");
    let pool = std::fs::read_dir("/proc/self/fd")
        .expect("a process sees its descriptors")
        .flatten()
        .find(|fd| std::fs::metadata(fd.path()).is_ok_and(|it| it.ino() == inode))
        .expect("the pool is this process's");
    let pool = std::fs::File::options().read(true).write(true).open(pool.path()).unwrap();
    let mut byte = [0];
    pool.read_exact_at(&mut byte, 12_345).unwrap();
    pool.write_all_at(&[byte[0] ^ 4], 12_345).unwrap();
    let refused = scene.bring_back().await.expect_err("one bit is wrong");
    assert!(refused.to_string().contains("came back changed"), "{refused}");
    assert_eq!(scene.garage.known(scene.engine.pid()).await.here, 0);
    // The engine waits; with the right bit it goes on.
    pool.write_all_at(&byte, 12_345).unwrap();
    scene.bring_back().await.expect("all is as it was");
    scene.check();
}

/// Waits until the process has found the server that came after the one that was killed.
async fn reunited(scene: &Scene) {
    let deadline = Instant::now() + LONG;
    loop {
        // The first question may still fail with the server that died.
        let pool = scene.garage.server.parking().await;
        if pool.is_ok_and(|pool| pool.processes.iter().any(|it| it.pid == scene.engine.pid())) {
            return;
        }
        assert!(Instant::now() < deadline, "the engine does not find the next server");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_gpu_server_killed_on_the_way_out_loses_nothing() {
    let Some(mut scene) = Scene::new().await else { return };
    for (at, &(_, call)) in OUT.iter().filter(|(who, _)| *who == Server).enumerate() {
        // Also when some chunks have gone.
        for after in 0..=u32::from(call == "cuMemRelease") {
            scene.blocks[1].write(&scene.engine, 64, 64, at as u64);
            scene.fault(&format!("{call} crash after={after} pid={}\n", scene.server_pid()));
            let lost = scene.take_out().await;
            scene.fault("");
            assert!(after > 0 || lost.is_err(), "{call}");
            reunited(&scene).await;
            // In or out, as far as it had come: it comes back.
            scene.garage.back(&scene.engine).await;
            scene.check();
        }
    }
    scene.goes_on().await;
}

#[tokio::test]
async fn a_gpu_server_killed_while_engines_are_out_or_on_the_way_in_loses_nothing() {
    let Some(scene) = Scene::new().await else { return };
    scene.garage.out(&scene.engine).await;
    for &(_, call) in BACK.iter().filter(|(who, _)| *who == Server) {
        scene.fault(&format!("{call} crash pid={}\n", scene.server_pid()));
        scene.bring_back().await.expect_err("the server is killed");
        scene.fault("");
        reunited(&scene).await;
        assert_eq!(scene.garage.known(scene.engine.pid()).await.away, 12 * MIB, "{call}");
    }
    for call in AFTER {
        scene.fault(&format!("{call} crash pid={}\n", scene.server_pid()));
        let generation = scene.garage.server.generation();
        // The answer may be on its way when the server is killed; the engine runs.
        assert!(matches!(scene.bring_back().await, Ok(()) | Err(GpuError::Lost { .. })));
        let deadline = Instant::now() + LONG;
        while scene.garage.server.generation() == generation {
            assert!(Instant::now() < deadline, "{call}: the server is not killed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scene.fault("");
        scene.check();
        reunited(&scene).await;
        scene.garage.out(&scene.engine).await;
    }
    // The pool is in use although this server has moved nothing, and another engine does not get what lies in it.
    assert_eq!(scene.garage.pool().await.used, 8 * MIB);
    let other = scene.garage.engine(&["--weights", "64MiB"]).await;
    scene.garage.out(&other).await;
    scene.garage.back(&scene.engine).await;
    scene.check();
    scene.garage.back(&other).await;
    other.check();
    // Copies are known by the same key: nothing has changed, nothing is copied.
    assert_eq!(scene.garage.out(&scene.engine).await.copied, 0);
    scene.garage.back(&scene.engine).await;
    scene.check();
}

#[tokio::test]
async fn of_one_that_is_out_in_part_more_is_freed_after_a_gpu_server_is_killed() {
    let Some(scene) = Scene::new().await else { return };
    let pid = scene.engine.pid();
    let part = scene.garage.server.park_out(vec![pid], Some(MIB), REST, LONG).await.unwrap();
    assert!((1..12 * MIB).contains(&part.bytes), "{part:?}");
    scene.garage.bench.kill_server(&scene.garage.server).await;
    // Nobody has waited until the engine has found the next one.
    let deadline = Instant::now() + LONG;
    let rest = loop {
        match scene.garage.server.park_out(vec![pid], None, REST, LONG).await {
            Err(GpuError::Lost { .. }) => assert!(Instant::now() < deadline, "there is no other server"),
            rest => break rest.expect("it is waited for"),
        }
    };
    assert_eq!((rest.processes, part.bytes + rest.bytes), (1, 12 * MIB));
    scene.bring_back().await.expect("it comes back");
    scene.check();
}

#[tokio::test]
async fn what_is_freed_while_the_next_gpu_server_pins_is_free_once() {
    let Some(mut scene) = Scene::new().await else { return };
    // Behind what is freed there is more of this engine's in the pool.
    scene.blocks.push(Block::plain(&scene.engine, 2 * MIB, 3));
    scene.garage.out(&scene.engine).await;
    scene.garage.back(&scene.engine).await;
    let (server, generation) = (scene.server_pid(), scene.garage.server.generation());
    scene.fault("cuMemHostRegister_v2 hold\n");
    // SAFETY: the gpu server of this test's own machine.
    unsafe { libc::kill(server, libc::SIGKILL) };
    scene.blocks.remove(1).free(&scene.engine);
    reunited(&scene).await;
    scene.fault("");
    // All of the pool that is not this engine's, and what has been freed is among it.
    let other = scene.garage.engine(&["--weights", "248MiB"]).await;
    scene.garage.out(&scene.engine).await;
    scene.garage.out(&other).await;
    assert_eq!(scene.garage.pool().await.used, 256 * MIB);
    scene.garage.back(&scene.engine).await;
    scene.check();
    scene.garage.back(&other).await;
    other.check();
    assert_eq!(scene.garage.server.generation(), generation + 1, "the server broke");
}

#[tokio::test]
async fn a_gpu_server_that_still_pins_its_pool_says_so_and_is_not_killed_for_it() {
    let Some(scene) = Scene::new().await else { return };
    scene.garage.out(&scene.engine).await;
    let (server, generation) = (scene.server_pid(), scene.garage.server.generation());
    scene.fault("cuMemHostRegister_v2 hold\n");
    // SAFETY: the gpu server of this test's own machine.
    unsafe { libc::kill(server, libc::SIGKILL) };
    reunited(&scene).await;
    let refused = scene.bring_back().await.unwrap_err();
    assert!(refused.to_string().contains("still pins its pool: 0 MiB of 256"), "{refused}");
    scene.fault("");
    scene.garage.back(&scene.engine).await;
    scene.check();
    assert_eq!(scene.garage.server.generation(), generation + 1);
}

#[tokio::test]
async fn of_an_engines_processes_all_come_back_after_a_gpu_server_is_killed() {
    let Some(scene) = Scene::new().await else { return };
    let second = scene.garage.engine(&["--weights", "8MiB"]).await;
    let both = vec![scene.engine.pid(), second.pid()];
    scene.garage.server.park_out(both.clone(), None, REST, LONG).await.unwrap();
    // SAFETY: the gpu server of this test's own machine.
    unsafe { libc::kill(scene.server_pid_but(&both), libc::SIGKILL) };
    let deadline = Instant::now() + LONG;
    let back = loop {
        match scene.garage.server.park_in(both.clone(), true, LONG).await {
            // The call was on its way to the one that was killed.
            Err(GpuError::Lost { .. }) => assert!(Instant::now() < deadline, "there is no other server"),
            back => break back.expect("both are waited for"),
        }
    };
    assert_eq!((back.processes, back.bytes), (2, 20 * MIB));
    scene.check();
    second.check();
}

#[tokio::test]
async fn an_engine_killed_in_the_middle_leaves_its_pool_to_others() {
    for (fault, out) in [
        ("cuMemExportToShareableHandle crash", true),
        ("cuMemUnmap crash after=1", true),
        ("cuMemCreate crash after=1", false),
        ("cuMemExportToShareableHandle crash after=1", false),
    ] {
        let Some(scene) = Scene::new().await else { return };
        if !out {
            scene.garage.out(&scene.engine).await;
        }
        scene.fault(&format!("{fault} pid={}\n", scene.engine.pid()));
        let refused = if out { scene.take_out().await } else { scene.bring_back().await };
        let refused = refused.expect_err("the engine is killed").to_string();
        assert!(refused.contains(&format!("process {}", scene.engine.pid())), "{refused}");
        scene.fault("");
        let deadline = Instant::now() + LONG;
        while scene.garage.pool().await.used > 0 {
            assert!(Instant::now() < deadline, "{fault}: the pool is still in use");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let other = scene.garage.engine(&["--weights", "8MiB"]).await;
        scene.garage.out(&other).await;
        scene.garage.back(&other).await;
        other.check();
    }
}

#[tokio::test]
async fn of_an_engines_processes_all_go_out_or_none() {
    let Some(scene) = Scene::new().await else { return };
    let second = scene.garage.engine(&["--weights", "8MiB"]).await;
    scene.fault(&format!("cuMemUnmap error=1 pid={}\n", second.pid()));
    let both = vec![scene.engine.pid(), second.pid()];
    let refused = scene.garage.server.park_out(both.clone(), None, REST, LONG).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("process {}", second.pid())), "{refused}");
    assert_eq!(scene.garage.known(scene.engine.pid()).await.away, 0);
    scene.check();
    second.check();
    scene.fault("");
    assert_eq!(scene.garage.server.park_out(both, None, REST, LONG).await.unwrap().processes, 2);
}
