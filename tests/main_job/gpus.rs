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
    assert!(service.log().contains("the pool of parked engines has 1.0 GiB"), "{}", service.log());
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

/// What the journal says of moves, in its order: asked for (`out 0`, `in 1`, `early 1`) and reported (`went 0`, `came 1`;
/// `kept 0`, `back 1` of those that failed).
fn moves(journal: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(journal).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let word = |line: &serde_json::Value| {
        let early = line["effect"]["early"].is_object();
        Some(match (line["event"]["event"].as_str(), line["effect"]["effect"].as_str()) {
            (Some("swapped_out"), _) => "went",
            (Some("swapped_in"), _) => "came",
            (Some("swap_out_failed"), _) => "kept",
            (Some("swap_in_failed"), _) => "back",
            (_, Some("swap_out")) => "out",
            (_, Some("swap_in")) if early => "early",
            (_, Some("swap_in")) => "in",
            _ => return None,
        })
    };
    let of = |line: &serde_json::Value| line["event"]["model"].as_u64().or(line["effect"]["model"].as_u64());
    lines.filter_map(|line| Some(format!("{} {}", word(&line)?, of(&line)?))).collect()
}

#[test]
fn of_parked_engines_one_comes_in_while_the_other_goes_out_and_goes_back_if_that_fails() {
    let Some(mut machine) = Bench::software_machine(1) else { return };
    machine.gpus[0].bytes = 224 * MIB;
    let bench = Bench::on(machine);
    Bench::preload_library();
    let journal = tempfile::NamedTempFile::new().unwrap();
    let options = ["--journal", journal.path().to_str().unwrap()];
    let memory = "[memory]\npool = \"512MiB\"\ngpu_headroom = \"8MiB\"\n";
    let text = swapped("left", 100, "park") + &swapped("right", 100, "park") + memory;
    let mut service = Service::start_with(&text, &options, &bench.environment());
    let first = (service.answer("left"), service.answer("right"));
    let is_out = |name: &str| eventually("the other one is out", || service.model(name)["state"] == "out");
    is_out("left");
    assert_eq!(service.answer("left"), first.0);
    is_out("right");
    bench.set_faults("cuEventSynchronize error=1 times=1\n");
    assert_eq!(service.answer("right"), first.1, "{}", service.log());
    let row = service.model("right");
    assert_eq!((&row["mechanism"], &row["crossed"]), (&"park".into(), &serde_json::json!([])), "{row}");
    is_out("left");
    assert_eq!(service.answer("left"), first.0);
    assert!(service.verb(&["stop"]).status.success());
    assert_eq!(service.ended(), 0);
    let all = moves(journal.path());
    let place = |word: &str, turn: usize| {
        let found = all.iter().enumerate().filter(|(_, it)| *it == word).nth(turn);
        found.map(|(at, _)| at).unwrap_or_else(|| panic!("no {word} in {all:?}"))
    };
    let failed = place("kept 0", 0);
    let (turn, rest) = (&all[failed.min(place("back 1", 0)) - 2..], 4);
    assert_eq!(turn[..2], ["out 0", "early 1"], "{all:?}");
    assert_eq!(
        turn[rest..rest + 4],
        ["out 0", "went 0", "in 1", "came 1"],
        "then it waits for room: {all:?}"
    );
    // When all goes well, which of the two reports is the first says nothing.
    let early = place("early 0", 0);
    assert_eq!(all[early - 1], "out 1", "{all:?}");
    assert!(place("went 1", 0) > early && place("came 0", 0) > early, "{all:?}");
}

#[test]
fn an_engine_that_wants_all_of_its_memory_free_starts_beside_a_parked_one() {
    // What is free must be what it was promised although parked ones leave their contexts, and it has one of its own by
    // then: the small one would fit beside it, but for that. Once it is told a share of the GPU, and once it finds no more than it may take.
    for share in ["{{ gpu_memory_fraction }}", "1"] {
        let Some(bench) = Bench::software(1) else { return };
        Bench::preload_library();
        let picky = swapped("picky", 100, "park")
            .replace("gpu_memory = \"132MiB\"", "gpu_memory = \"900MiB\"")
            .replace("--weights", &format!("--utilization {share} --weights"));
        let memory = "[memory]\npool = \"1536MiB\"\ngpu_headroom = \"0B\"\n";
        let text = swapped("first", 400, "park") + &swapped("small", 64, "park") + &picky + memory;
        let service = Service::start_in(&text, &bench.environment());
        let log = service.log();
        assert!(!log.contains("is less than desired"), "{log}");
        assert_eq!(service.model("first")["state"], "out", "{log}");
        let (first, picky) = (service.answer("first"), service.answer("picky"));
        assert_eq!((service.answer("first"), service.answer("picky")), (first, picky));
        assert_eq!(service.model("picky")["mechanism"], "park", "{}", service.log());
    }
}
