//! Holding: the preload library and the daemon's side of it, on processes of the test engine.

#[path = "gpu_bench/mod.rs"]
mod gpu_bench;

use gpu_bench::Bench;
use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};
use swapserve::engine::Hold;

/// Longest wait for anything; only a test that fails waits so long.
const LONGEST: Duration = Duration::from_secs(60);

/// A test engine that is held; it ends with this value.
struct Held {
    hold: Option<Hold>,
    child: Child,
    output: Option<BufReader<ChildStdout>>,
}

impl Held {
    fn start(bench: &Bench, arguments: &[&str]) -> Self {
        let hold = Hold::open().expect("it can listen");
        let mut child = Command::new(Bench::engine_program())
            .args(["--port", "0", "--weights", "16MiB"])
            .args(arguments)
            .envs(bench.environment())
            .env("LD_PRELOAD", Bench::preload_library())
            .envs(hold.environment(false))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the test engine starts");
        let output = child.stdout.take().map(BufReader::new);
        Held { hold: Some(hold), child, output }
    }

    async fn asks(&self) {
        let asked = self.hold.as_ref().expect("it is held").asked();
        tokio::time::timeout(LONGEST, asked).await.expect("it comes to its first use of the driver");
    }

    /// The line with its port: it holds its memory and listens.
    async fn listens(&mut self) -> String {
        let mut output = self.output.take().expect("it is waited for once");
        let line = move || {
            let mut line = String::new();
            output.read_line(&mut line).map(|_| line)
        };
        let line = tokio::task::spawn_blocking(line).await.expect("no panic");
        line.expect("its output can be read")
    }

    /// Its exit code and what it said.
    async fn ends(&mut self) -> (Option<i32>, String) {
        let mut status = None;
        let begun = std::time::Instant::now();
        while status.is_none() && begun.elapsed() < LONGEST {
            tokio::time::sleep(Duration::from_millis(5)).await;
            status = self.child.try_wait().expect("it is our child");
        }
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("its errors are piped");
        stderr.read_to_string(&mut said).expect("text");
        (status.expect("it ends").code(), said)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nothing_is_held(bench: &Bench) -> bool {
    bench.lab().is_some_and(|lab| lab.table().processes().count() == 0 && lab.table().used(0) == 0)
}

#[tokio::test]
async fn whichever_way_it_reaches_the_driver_its_first_use_waits() {
    let Some(bench) = Bench::software(1) else { return };
    for way in ["dlsym", "address", "address-v2", "linked"] {
        let mut engine = Held::start(&bench, &["--reach", way]);
        engine.asks().await;
        assert!(nothing_is_held(&bench), "{way}");
        engine.hold.as_ref().expect("it is held").release();
        assert!(engine.listens().await.contains(':'), "{way}");
        assert!(!nothing_is_held(&bench), "{way}");
    }
}

#[tokio::test]
async fn a_child_that_comes_first_waits_and_all_go_on_at_the_word() {
    let Some(bench) = Bench::software(1) else { return };
    let mut engine = Held::start(&bench, &["--workers-first", "--workers", "2"]);
    engine.asks().await;
    assert!(nothing_is_held(&bench));
    engine.hold.as_ref().expect("it is held").release();
    assert!(engine.listens().await.contains(':'));
    let used = bench.lab().expect("the software driver").table().used(0);
    assert!(used >= 3 * (16 << 20), "{used}");
}

#[tokio::test]
async fn without_a_daemon_it_ends_and_says_why() {
    let Some(bench) = Bench::software(1) else { return };
    let mut waiting = Held::start(&bench, &[]);
    waiting.asks().await;
    waiting.hold = None;
    let (code, said) = waiting.ends().await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("held before its first use of the GPU"), "{said}");

    let import = tempfile::tempdir().expect("a directory");
    let file = import.path().join("imported");
    let mut late = Held::start(&bench, &["--import-until", file.to_str().expect("a plain path")]);
    late.hold = None;
    std::fs::write(&file, "").expect("it can be written");
    let (code, said) = late.ends().await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("was the daemon killed?"), "{said}");
    assert!(nothing_is_held(&bench));
}

#[tokio::test]
async fn what_opens_the_driver_past_the_library_is_not_held() {
    let Some(bench) = Bench::software(1) else { return };
    let mut engine = Held::start(&bench, &["--reach", "deepbind"]);
    assert!(engine.listens().await.contains(':'), "this is why not every engine is launched ahead");
    assert!(!engine.hold.as_ref().is_some_and(Hold::was_asked));
}
