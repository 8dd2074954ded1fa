//! libFuzzer over the targets; `SWAPSERVE_FUZZ_TARGET` names one. `scripts/fuzz` builds and runs it.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static RUN: OnceLock<fn(&[u8])> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let name = std::env::var("SWAPSERVE_FUZZ_TARGET").expect("SWAPSERVE_FUZZ_TARGET names a target");
        let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("there is no target {name}")).1
    });
    run(data);
});
