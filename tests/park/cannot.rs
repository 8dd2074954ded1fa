//! Engines that cannot be parked: each is seen, and the reason is named.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};
use serde_json::json;
use swapserve::gpu::park::call::PoolState;
use swapserve::gpu::park::why::why_not;
use swapserve::gpu::protocol::ProcessMemory;

use crate::garage::{Garage, LONG};
use crate::gpu_bench::{Bench, TestEngine};
use crate::script::{MIB, number, step};

/// Why that engine cannot be parked, once NVML sees it.
async fn reason(garage: &Garage, engine: &TestEngine) -> Option<String> {
    let held = garage.server.process_memory().await.expect("NVML answers");
    why_not(&[engine.pid()], &garage.pool().await, &held)
}

#[tokio::test]
async fn one_that_can_be_parked_has_no_reason() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "64MiB"]).await;
    assert_eq!(reason(&garage, &engine).await, None);
    garage.out(&engine).await;
    assert_eq!(reason(&garage, &engine).await, None);
}

#[tokio::test]
async fn one_without_the_preload_library() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.bench.engine(&["--weights", "64MiB"]);
    let reason = reason(&garage, &engine).await.unwrap();
    assert!(reason.contains("(gpu-engine)") && reason.contains("dropped LD_PRELOAD"), "{reason}");
    let moved = garage.server.park_out(vec![engine.pid()], None, LONG, LONG).await.unwrap();
    assert_eq!(moved.processes, 0);
}

#[tokio::test]
async fn a_driver_without_virtual_memory_management() {
    let Some(mut machine) = Bench::software_machine(1) else { return };
    machine.lacks = vec![102];
    let garage = Garage::new(Bench::on(machine), 256);
    let refused = garage.server.parking().await.unwrap_err().to_string();
    assert!(refused.contains("GPU 0") && refused.contains("no virtual memory management"), "{refused}");
    // The engine itself runs, on the driver's own memory.
    garage.bench.engine_with(&["--weights", "64MiB"], &garage.environment()).check();
}

#[tokio::test]
async fn one_that_opens_the_driver_past_the_library() {
    let garage = Garage::new(Bench::any(), 256);
    let arguments = ["--weights", "64MiB", "--reach", "deepbind"];
    let engine = garage.bench.engine_with(&arguments, &garage.environment());
    let reason = reason(&garage, &engine).await.unwrap();
    assert!(reason.contains("RTLD_DEEPBIND"), "{reason}");
    engine.check();
}

#[tokio::test]
async fn one_whose_library_is_of_another_version() {
    let garage = Garage::new(Bench::any(), 256);
    garage.pool().await;
    // This process says hello in its place: kind 1, and version 99 at the eighth byte.
    let mut hello = [0u8; 64];
    (hello[0], hello[8]) = (1, 99);
    let (_, name) = garage.environment().pop().expect("the door is named");
    let name = name.into_string().expect("it is text");
    let door = SocketAddrUnix::new_abstract_name(name.trim_start_matches('@').as_bytes()).unwrap();
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::connect(&socket, &door).unwrap();
    rustix::net::send(&socket, &hello, SendFlags::empty()).unwrap();
    let own = std::process::id().cast_signed();
    let deadline = std::time::Instant::now() + LONG;
    let reason = loop {
        if let Some(reason) = why_not(&[own], &garage.pool().await, &[])
            && reason.contains("another version")
        {
            break reason;
        }
        assert!(std::time::Instant::now() < deadline, "nothing is said of its version");
        tokio::task::yield_now().await;
    };
    assert!(reason.contains("install both from one build"), "{reason}");
}

#[tokio::test]
async fn one_that_exports_all_its_memory() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.bench.engine_with(&["--weights", "0MiB"], &garage.environment());
    let handle = number(&engine, json!({"do": "create", "bytes": 4 * MIB, "types": 1}), "handle");
    step(&engine, json!({"do": "export", "handle": handle}));
    garage.known(engine.pid()).await;
    let reason = reason(&garage, &engine).await.unwrap();
    assert!(reason.contains("shares all its device memory (4.0 MiB)"), "{reason}");
    let out = garage.out(&engine).await;
    assert_eq!((out.bytes, out.stayed), (0, 4 * MIB));
    engine.check();
}

#[tokio::test]
async fn one_whose_memory_is_managed() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "64MiB", "--managed"]).await;
    let reason = reason(&garage, &engine).await.unwrap();
    assert!(reason.contains("1 managed allocation"), "{reason}");
    garage.out(&engine).await;
    engine.check();
}

#[tokio::test]
async fn one_whose_memory_is_of_a_pool_that_can_be_exported() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.bench.engine_with(&["--weights", "0MiB"], &garage.environment());
    let pool = number(&engine, json!({"do": "pool", "exportable": true}), "pool");
    step(&engine, json!({"do": "set-pool", "pool": pool}));
    step(&engine, json!({"do": "alloc", "kind": "async", "bytes": 64 * MIB}));
    step(&engine, json!({"do": "alloc", "kind": "pool", "pool": pool, "bytes": 64 * MIB}));
    garage.known(engine.pid()).await;
    let reason = reason(&garage, &engine).await.unwrap();
    assert!(reason.contains("2 allocations from pools that can be exported"), "{reason}");
    garage.out(&engine).await;
    engine.check();
}

/// A program that only waits, ended with this value.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a program that NVML sees cannot be parked.
fn reason_of(program: &Waiting) -> String {
    let pid = program.0.id().cast_signed();
    let held = [ProcessMemory { gpu: 0, pid, bytes: Some(64 * MIB) }];
    why_not(&[pid], &PoolState::default(), &held).expect("it has not connected")
}

#[test]
fn a_program_that_is_linked_statically() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("wait.s"), folder.path().join("wait"));
    // pause(), again and again.
    std::fs::write(&source, ".globl _start\n_start: mov $34, %eax\nsyscall\njmp _start\n").unwrap();
    let built = Command::new("cc").args(["-nostdlib", "-static", "-o"]).arg(&program).arg(&source).status();
    assert!(built.expect("the compiler that links Rust programs").success());
    let waiting = Waiting(
        Command::new(&program).env("LD_PRELOAD", Bench::preload_library()).spawn().expect("it starts"),
    );
    let reason = reason_of(&waiting);
    assert!(reason.contains("(wait) holds 64.0 MiB") && reason.contains("linked statically"), "{reason}");
}

#[test]
fn a_program_that_takes_rights_from_its_file() {
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("left out: only root can give a file to somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("sleep-as-another");
    std::fs::copy("/bin/sleep", &program).unwrap();
    // The user nobody's.
    std::os::unix::fs::chown(&program, Some(65_534), None).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let waiting = Waiting(
        Command::new(&program)
            .arg("1000")
            .env("LD_PRELOAD", Bench::preload_library())
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts"),
    );
    let reason = reason_of(&waiting);
    assert!(reason.contains("setuid"), "{reason}");
}
