//! Real engines: swapped by requests, frozen in mid-stream, each token once.

use super::service::{Service, counter, eventually, real_engines};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    time::Duration,
};

/// `alpha0000 alpha0001 …`, as a model that counts says it.
fn counted(name: &str, tokens: usize) -> String {
    (0..tokens).map(|n| format!(" {name}{n:04}")).collect()
}

fn two_counters() -> Option<String> {
    let engines = real_engines()?;
    let bounds = "[scheduler]\nrunning_slots = 1\npatience = \"50ms\"\nmin_resident = \"50ms\"\ndrain_limit = \"50ms\"\n";
    Some(format!("{bounds}{}{}", counter(&engines, "alpha", "freeze"), counter(&engines, "beta", "freeze")))
}

/// The text of an event stream, piece by piece.
pub fn pieces(answer: reqwest::blocking::Response) -> impl Iterator<Item = String> {
    let lines = BufReader::new(answer).lines().map(|line| line.unwrap());
    let data = lines
        .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
        .take_while(|data| data != "[DONE]");
    data.filter_map(|data| {
        let value: Value = serde_json::from_str(&data).unwrap();
        assert!(value["error"].is_null(), "{value}");
        value["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    })
}

#[test]
fn requests_swap_engines_in_and_out() {
    let Some(text) = two_counters() else { return };
    let service = Service::start(&text, &[]);
    for _ in 0..3 {
        assert_eq!(service.answer("alpha"), counted("alpha", 8));
        assert_eq!(service.answer("beta"), counted("beta", 8));
    }
    assert!(service.model("alpha")["swaps_in"].as_u64().unwrap() >= 2, "{}", service.status());
}

#[test]
fn an_engine_frozen_in_mid_stream_says_the_same_text() {
    let Some(text) = two_counters() else { return };
    let service = Service::start(&text, &[]);
    const TOKENS: usize = 3000;
    let request = service.chat("alpha", json!({ "stream": true, "max_tokens": TOKENS }));
    let mut stream = pieces(request.send().unwrap());
    let mut said: String = stream.by_ref().take(5).collect();
    // Alpha is in mid-stream; beta's request makes it go out and, later, come back.
    assert_eq!(service.answer("beta"), counted("beta", 8));
    said.extend(stream);
    assert_eq!(said, counted("alpha", TOKENS));
    assert!(service.model("alpha")["swaps_out"].as_u64().unwrap() >= 1);
}

/// The whole text of two streams that were asked for at the same time.
pub fn two_at_once(service: &Service, names: [&str; 2], tokens: usize) -> [String; 2] {
    let stream = |name: &str| {
        let request = service.chat(name, json!({ "stream": true, "max_tokens": tokens }));
        pieces(request.send().unwrap()).collect::<String>()
    };
    std::thread::scope(|scope| {
        let both = names.map(|name| scope.spawn(move || stream(name)));
        both.map(|one| one.join().unwrap())
    })
}

/// Both of two models were swapped out in mid-stream, and none before it had been there for `least`.
pub fn assert_turns(journal: &Path, least: Duration) {
    let text = std::fs::read_to_string(journal).unwrap();
    let (mut came_in, mut paused) = ([0; 2], [0; 2]);
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let at = line["at"].as_u64().unwrap();
        let (event, effect) = (&line["event"], &line["effect"]);
        if event["event"] == "swapped_in" || event["event"] == "started" {
            came_in[event["model"].as_u64().unwrap() as usize] = at;
        } else if effect["effect"] == "swap_out" && effect["in_flight"].as_u64().unwrap() > 0 {
            let model = effect["model"].as_u64().unwrap() as usize;
            paused[model] += 1;
            assert!(u128::from(at - came_in[model]) >= least.as_micros(), "{model} left too soon: {line}");
        }
    }
    assert!(paused.iter().all(|times| *times > 0), "streams paused: {paused:?}");
}

#[test]
fn two_long_streams_take_turns_and_both_say_all_of_it_once() {
    let Some(engines) = real_engines() else { return };
    let bounds = "[scheduler]\nrunning_slots = 1\npatience = \"100ms\"\nmin_resident = \"200ms\"\ndrain_limit = \"50ms\"\n";
    let models = ["alpha", "beta"].map(|name| counter(&engines, name, "freeze"));
    let journal = tempfile::NamedTempFile::new().unwrap();
    let options = ["--journal", journal.path().to_str().unwrap()];
    let service = Service::start(&format!("{bounds}{}", models.concat()), &options);
    const TOKENS: usize = 3500;
    let said = two_at_once(&service, ["alpha", "beta"], TOKENS);
    assert_eq!(said, ["alpha", "beta"].map(|name| counted(name, TOKENS)));
    assert_turns(journal.path(), Duration::from_millis(200));
}

#[test]
fn many_clients_of_two_models_all_get_their_own_answers() {
    let Some(text) = two_counters() else { return };
    let service = Service::start(&text, &[]);
    std::thread::scope(|scope| {
        for name in ["alpha", "beta", "alpha", "beta", "alpha", "beta"] {
            let service = &service;
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(service.answer(name), counted(name, 8));
                }
            });
        }
    });
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let Some(text) = two_counters() else { return };
    let service = Service::start(&text, &[]);
    // In mid-stream: the engine's request ends long before its last token.
    let request = service.chat("alpha", json!({ "stream": true, "max_tokens": 8000 }));
    assert_eq!(pieces(request.send().unwrap()).take(3).count(), 3);
    eventually("the lease is given back", || service.model("alpha")["running"] == 0);
    // In the queue: alpha is pinned, so beta cannot come in, and nobody waits for ever.
    assert!(service.verb(&["swap", "pin", "alpha"]).status.success());
    let gone = service.chat("beta", json!({})).timeout(Duration::from_millis(300)).send();
    assert!(gone.unwrap_err().is_timeout());
    eventually("nobody waits", || service.model("beta")["waiting"] == 0);
    assert!(service.verb(&["swap", "unpin", "alpha"]).status.success());
    assert_eq!(service.answer("beta"), counted("beta", 8));
}
