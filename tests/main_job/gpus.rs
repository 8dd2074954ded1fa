//! The program on the software driver's GPUs.

use super::{
    gpu_bench::Bench,
    service::{Service, eventually},
};

const MIB: u64 = 1 << 20;

fn model(name: &str, mib: u64) -> String {
    swapped(name, mib, "checkpoint")
}

fn swapped(name: &str, mib: u64, swap: &str) -> String {
    let engine = Bench::engine_program();
    let command =
        format!("{} --port {{{{ port }}}} --model {{{{ name }}}} --weights {}", engine.display(), mib * MIB);
    format!(
        "[models.{name}]\nengine = \"custom\"\ncommand = {command:?}\ngpus = 1\nswap = \"{swap}\"\ngpu_memory = \"{}MiB\"\n",
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
fn parked_engines_take_turns_and_what_did_not_change_is_not_copied_again() {
    let Some(bench) = Bench::software(1) else { return };
    Bench::preload_library();
    let text = swapped("left", 500, "park") + &swapped("right", 500, "auto") + "[memory]\npool = \"1GiB\"\n";
    let service = Service::start_in(&text, &bench.environment());
    assert_eq!(service.model("left")["mechanism"], "park", "{}", service.log());
    let first = (service.answer("left"), service.answer("right"));
    for _ in 0..3 {
        assert_eq!((service.answer("left"), service.answer("right")), first, "{}", service.log());
    }
    let chosen = service.model("right")["mechanism"].clone();
    assert!(chosen == "park" || chosen == "park+checkpoint", "{chosen}");
    let status = service.status();
    let out = status["swaps"].as_array().unwrap().iter().rev().find(|it| it["direction"] == "out").unwrap();
    assert_eq!(out["moved"].as_u64(), Some(0), "weights that did not change stay in the pool: {out}");
    assert!(service.model("left")["out"]["pool"].as_u64().unwrap() >= 500 * MIB, "{}", service.model("left"));
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
