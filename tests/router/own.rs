//! What the router answers itself, and its admin verbs in three dialects.

use crate::{
    bed::{Setup, run, run_with},
    engine::json,
};
use serde_json::Value;
use swapserve::{
    router::gate::{Denied, Verb},
    scheduler::Rejection,
};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn models_are_listed_and_shown() {
    let setup = Setup {
        entry: |entry| {
            entry.name = "org/chat";
            entry.alias = "gpt-4o";
        },
        ..Setup::default()
    };
    run_with(setup, vec![vec![]], async |bed| {
        let mut client = bed.client().await;
        let list = parsed(&client.get("/v1/models").await.body);
        assert_eq!((&list["object"], &list["data"][0]["id"]), (&"list".into(), &"org/chat".into()));
        assert_eq!(list["data"][0]["object"], "model");
        for id in ["org/chat", "org%2Fchat", "gpt-4o"] {
            assert_eq!(parsed(&client.get(&format!("/v1/models/{id}")).await.body)["id"], "org/chat");
        }
        let answer = client.get("/v1/models/none").await;
        assert_eq!((answer.status, &*answer.code()), (404, "model_not_found"));
        assert_eq!(client.post("/v1/models", "{}").await.code(), "method_not_allowed");

        let llama = parsed(&client.get("/models").await.body);
        assert_eq!(llama["data"][0]["status"]["value"], "loaded");
        bed.gate.resident.set(false);
        let llama = parsed(&client.get("/models").await.body);
        assert_eq!(llama["data"][0]["status"]["value"], "unloaded");
    });
}

#[test]
fn health_turns_when_admission_ends() {
    run(vec![vec![]], async |bed| {
        let mut client = bed.client().await;
        assert_eq!(client.get("/health").await.status, 200);
        bed.gate.accepting.set(false);
        assert_eq!(client.get("/health").await.status, 503);
    });
}

#[test]
fn verbs_are_carried_out_in_three_dialects() {
    run(vec![vec![]], async |bed| {
        let mut client = bed.client().await;
        for (path, verb) in [
            ("/swapserve/v1/swap/in", Verb::In),
            ("/swapserve/v1/swap/out", Verb::Out),
            ("/swapserve/v1/swap/pin", Verb::Pin),
            ("/swapserve/v1/swap/unpin", Verb::Unpin),
            ("/models/load", Verb::In),
            ("/models/unload", Verb::Out),
            ("/api/swapin", Verb::In),
            ("/api/swapout", Verb::Out),
        ] {
            let answer = client.post(path, r#"{"model":"chat"}"#).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            assert_eq!(bed.gate.asked.borrow_mut().pop(), Some(("chat".to_owned(), verb)));
            assert_eq!(client.post(path, r#"{"model":"none"}"#).await.code(), "model_not_found");
            assert_eq!(client.post(path, "{}").await.status, 400);
        }
        assert_eq!(client.post("/models/load", r#"{"model":"chat"}"#).await.body, r#"{"success":true}"#);
    });
}

#[test]
fn a_refused_verb_is_a_409_that_says_why() {
    let setup = Setup {
        entry: |entry| entry.denied = Some(Denied::Rejected(Rejection::Draining)),
        ..Setup::default()
    };
    run_with(setup, vec![vec![]], async |bed| {
        let answer = bed.client().await.post("/swapserve/v1/swap/out", r#"{"model":"chat"}"#).await;
        assert_eq!((answer.status, &*answer.code()), (409, "refused"));
        assert!(answer.body.contains("it is pinned"));
    });
}

#[test]
fn status_explain_and_stop() {
    run(vec![vec![]], async |bed| {
        let mut client = bed.client().await;
        assert_eq!(parsed(&client.get("/swapserve/v1/status").await.body)["models"][0], "chat");
        assert_eq!(parsed(&client.get("/swapserve/v1/explain/chat").await.body)["model"], "chat");
        assert_eq!(client.get("/swapserve/v1/explain/none").await.status, 404);
        assert_eq!(client.post("/swapserve/v1/stop", "").await.status, 202);
        assert!(bed.gate.stopped.get());
    });
}

#[test]
fn metrics_count_what_happened() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        let mut client = bed.client().await;
        client.post("/v1/chat/completions", r#"{"model":"chat"}"#).await;
        client.post("/v1/chat/completions", r#"{"model":"none"}"#).await;
        let text = client.get("/metrics").await.body;
        for line in [
            r#"swapserve_requests_total{model="chat",code="200"} 1"#,
            r#"swapserve_requests_total{model="",code="404"} 1"#,
            r#"swapserve_response_bytes_total{model="chat"} 2"#,
            r#"swapserve_open_streams{model="chat"} 0"#,
            "swapserve_open_connections 1",
            "swapserve_test 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    });
}
