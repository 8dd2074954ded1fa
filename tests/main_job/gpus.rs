//! The program on the software driver's GPUs.

use super::{
    gpu_bench::Bench,
    service::{Service, eventually},
};

const MIB: u64 = 1 << 20;

fn model(name: &str, mib: u64) -> String {
    let engine = Bench::engine_program();
    let command =
        format!("{} --port {{{{ port }}}} --model {{{{ name }}}} --weights {}", engine.display(), mib * MIB);
    format!(
        "[models.{name}]\nengine = \"custom\"\ncommand = {command:?}\ngpus = 1\nswap = \"checkpoint\"\ngpu_memory = \"{}MiB\"\n",
        mib + 32
    )
}

#[test]
fn two_engines_that_do_not_fit_together_take_turns() {
    let Some(bench) = Bench::software(1) else { return };
    let service = Service::start_in(&(model("left", 500) + &model("right", 500)), &bench.environment());
    let first = (service.answer("left"), service.answer("right"));
    for _ in 0..3 {
        assert_eq!((service.answer("left"), service.answer("right")), first, "{}", service.log());
    }
    assert!(service.model("left")["swaps_in"].as_u64().unwrap() >= 3);
    assert_eq!(service.model("left")["mechanism"], "checkpoint");
}

#[test]
fn the_ledger_follows_a_strangers_memory() {
    let Some(bench) = Bench::software(1) else { return };
    let service = Service::start_in(&model("ours", 100), &bench.environment());
    let capacity = || service.status()["capacity"]["gpu"][0].as_u64().unwrap();
    let before = capacity();
    let stranger = bench.engine(&["--port", "0", "--weights", &(300 * MIB).to_string()]);
    eventually("the stranger's memory is left out", || capacity() + 250 * MIB < before);
    drop(stranger);
    eventually("it is counted in again", || capacity() == before);
}
