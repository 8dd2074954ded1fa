//! Real engines: swapped by requests, frozen in mid-stream, each token once.

use super::service::{Service, counter, eventually, real_engines};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
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
fn pieces(answer: reqwest::blocking::Response) -> impl Iterator<Item = String> {
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
