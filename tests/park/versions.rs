//! Functions whose arguments have changed: a program gets those of the version of CUDA that it asks for.

use serde_json::json;

use crate::garage::Garage;
use crate::gpu_bench::Bench;
use crate::script::{Block, MIB, number, step};

#[tokio::test]
async fn a_program_gets_the_function_of_its_own_version() {
    let garage = Garage::new(Bench::any(), 256);
    let engine = garage.engine(&["--weights", "2MiB"]).await;
    let (library, driver) = ("libswapserve_preload.so", "libcuda.so");
    let described = garage.server.describe().await.expect("the gpu server answers");
    // A driver knows no version but its own and older ones.
    let known = described.cuda_version as u64;
    let functions = [
        ("cuMemAlloc", 11040, "cuMemAlloc_v2", library),
        ("cuGetProcAddress", 11030, "cuGetProcAddress", library),
        ("cuGetProcAddress", 12000, "cuGetProcAddress_v2", library),
        ("cuStreamBeginCapture", 10000, "cuStreamBeginCapture", library),
        ("cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2", library),
        ("cuGraphInstantiate", 10000, "cuGraphInstantiate", library),
        ("cuGraphInstantiate", 11040, "cuGraphInstantiate_v2", library),
        ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags", library),
        // Four arguments, and not hooked.
        ("cuGraphExecUpdate", 10020, "cuGraphExecUpdate", driver),
        ("cuGraphExecUpdate", 12000, "cuGraphExecUpdate_v2", library),
        ("cuMulticastBindMem", 12010, "cuMulticastBindMem", library),
        ("cuMulticastBindMem", 13010, "cuMulticastBindMem_v2", library),
        ("cuMulticastBindAddr", 12010, "cuMulticastBindAddr", library),
        ("cuMulticastBindAddr", 13010, "cuMulticastBindAddr_v2", library),
    ];
    for (name, version, symbol, of) in functions.into_iter().filter(|function| function.1 <= known) {
        let found = step(&engine, json!({"do": "look-up", "name": name, "version": version}));
        assert_eq!(found["symbol"], symbol, "{name} of {version}");
        assert!(found["library"].as_str().is_some_and(|it| it.contains(of)), "{name} of {version}: {found}");
    }
}

#[tokio::test]
async fn memory_bound_to_a_multicast_object_stays() {
    // A real machine needs GPUs beside each other for it.
    let Some(bench) = Bench::software(1) else { return };
    let garage = Garage::new(bench, 256);
    for version in [12010, 13010] {
        let engine = garage.engine(&["--weights", "2MiB"]).await;
        let handle = number(&engine, json!({"do": "create", "bytes": 4 * MIB}), "handle");
        step(&engine, json!({"do": "bind", "handle": handle, "bytes": 4 * MIB, "version": version}));
        assert_eq!(garage.known(engine.pid()).await.shared, 4 * MIB, "{version}");
        let block = Block::plain(&engine, 6 * MIB, 1);
        let bound = json!({"do": "bind", "address": block.address, "bytes": 6 * MIB, "version": version});
        step(&engine, bound);
        assert_eq!(garage.known(engine.pid()).await.shared, 10 * MIB, "{version}");
        let out = garage.out(&engine).await;
        assert_eq!((out.bytes, out.stayed), (2 * MIB, 10 * MIB), "{version}");
        garage.back(&engine).await;
        block.check(&engine);
    }
}
