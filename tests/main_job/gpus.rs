//! The program on the software driver's GPUs.

use super::{
    gpu_bench::Bench,
    service::{Service, eventually},
    streams::{assert_turns, two_at_once},
};
use std::time::Duration;

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

#[test]
fn a_model_that_a_stranger_keeps_out_from_the_start_waits_and_says_so() {
    let Some(bench) = Bench::software(1) else { return };
    let stranger = bench.engine(&["--port", "0", "--weights", &(700 * MIB).to_string()]);
    let service = Service::launch_in(&model("ours", 500), &[], &bench.environment());
    let explained = || String::from_utf8(service.verb(&["explain", "ours"]).stdout).unwrap();
    eventually("it says whom it waits for", || explained().contains("another process has it"));
    let warning = "other processes on the job's GPUs hold what it needs";
    assert!(service.log().contains(warning), "{}", service.log());
    assert_eq!(service.model("ours")["state"], "cold");
    let waiting = service.chat("ours", serde_json::json!({ "max_tokens": 4 }));
    let waiting = std::thread::spawn(move || waiting.send().unwrap().status().as_u16());
    drop(stranger);
    assert_eq!(waiting.join().unwrap(), 200, "{}", service.log());
}

#[test]
fn the_second_engines_weights_are_read_while_the_first_starts() {
    let Some(bench) = Bench::software(1) else { return };
    let files = tempfile::tempdir().unwrap();
    let with_weights = |name: &str| {
        let file = files.path().join(format!("{name}.bin"));
        std::fs::write(&file, vec![1; 5 * MIB as usize]).unwrap();
        format!("{}model = {file:?}\n", model(name, 500))
    };
    let text = with_weights("left") + &with_weights("right");
    let service = Service::start_in(&text, &bench.environment());
    for name in ["left", "right"] {
        let row = service.model(name);
        let phases: Vec<&str> =
            row["start"].as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
        let in_order = ["waiting", "warming", "launched", "listening", "trial"];
        let known: Vec<&str> = phases.iter().copied().filter(|phase| *phase != "loading").collect();
        assert_eq!(known, in_order, "{row}");
        assert_eq!(row["weights_read"], serde_json::json!([5 * MIB, 5 * MIB]));
    }
    let waited = |name: &str| service.model(name)["start"][0]["seconds"].as_f64().unwrap();
    assert!(waited("right") > waited("left"), "one waits for the other's trial");
    let shown = service.verb(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("right started: waiting") && shown.contains("5.0 MiB of 5.0 MiB read"), "{shown}");
}

#[test]
fn two_gpu_engines_with_endless_streams_take_turns_token_for_token() {
    let Some(bench) = Bench::software(1) else { return };
    let bounds = "[scheduler]\npatience = \"100ms\"\nmin_resident = \"300ms\"\ndrain_limit = \"100ms\"\n";
    let names = ["left", "right"];
    let models = names.map(|name| model(name, 500));
    let journal = tempfile::NamedTempFile::new().unwrap();
    let options = ["--journal", journal.path().to_str().unwrap()];
    let text = format!("{bounds}{}", models.concat());
    let service = Service::start_with(&text, &options, &bench.environment());
    const TOKENS: usize = 1000;
    let uncut = names.map(|name| two_at_once(&service, [name, name], TOKENS));
    let cut = two_at_once(&service, names, TOKENS);
    assert_eq!(
        cut,
        uncut.map(|[one, other]| {
            assert_eq!(one, other);
            one
        })
    );
    assert!(cut[0].contains(&format!("left{:04}-", TOKENS - 1)), "all of it");
    assert_turns(journal.path(), Duration::from_millis(300));
}
