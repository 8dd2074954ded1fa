//! What goes in comes out: requests and answers pass unchanged, and what the router adds is right.

use crate::{
    bed::{Setup, run, run_with},
    client::Client,
    engine::{Step, chunk, events, json, send},
};

const CHAT: &str = r#"{"model": "chat", "messages": [{"role":"user","content":"hi"}], "n": 1.50}"#;

#[test]
fn a_chat_request_passes_unchanged_and_the_answer_comes_back() {
    run(vec![vec![json(200, r#"{"id":"x"}"#)]], async |mut bed| {
        let mut client = bed.client().await;
        let answer = client.post("/v1/chat/completions?a=b", CHAT).await;
        assert_eq!((answer.status, &*answer.body), (200, r#"{"id":"x"}"#));
        assert_eq!(answer.header("x-swapserve-model"), Some("chat"));
        assert_eq!(answer.header("x-swapserve-job-ends-in"), None);
        assert_eq!(answer.header("x-swapserve-queue-ms"), Some("0"));
        assert_eq!(answer.header("x-swapserve-swap-ms"), Some("0"));
        assert!(answer.header("x-request-id").unwrap().starts_with("swapserve-"));

        let seen = bed.engine.request().await;
        assert_eq!(seen.first_line(), "POST /v1/chat/completions?a=b HTTP/1.1");
        assert_eq!(seen.body, CHAT);
        assert_eq!(seen.header("authorization"), None, "the run's key stays here");
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn connections_are_kept_on_both_sides() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let mut client = bed.client().await;
        for _ in 0..5 {
            assert_eq!(client.post("/v1/embeddings", CHAT).await.status, 200);
            assert_eq!(bed.engine.request().await.connection, 0);
        }
        let mut unix = Client::unix(&bed.socket).await;
        assert_eq!(unix.post("/v1/embeddings", CHAT).await.status, 200);
        assert_eq!(bed.engine.request().await.connection, 0);
    });
}

#[test]
fn each_piece_of_a_stream_is_sent_on_at_once() {
    let script = vec![
        events(),
        chunk("data: 1\n\n"),
        Step::Wait,
        chunk("data: 2\n\nda"),
        Step::Wait,
        chunk("ta: 3\n\n"),
        chunk(""),
    ];
    run(vec![script], async |bed| {
        let mut client = bed.client().await;
        client.send(crate::client::post("/v1/chat/completions", CHAT)).await;
        client.until("9\r\ndata: 1\n\n\r\n").await;
        bed.engine.go();
        client.until("B\r\ndata: 2\n\nda\r\n").await;
        assert_eq!(bed.gate.leases.get(), 1);
        bed.engine.go();
        client.until("7\r\nta: 3\n\n\r\n0\r\n\r\n").await;
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn an_alias_is_replaced_by_the_served_name_and_nothing_else() {
    let setup = Setup {
        entry: |entry| {
            entry.alias = "gpt-4o";
            entry.served_name = "/models/ä";
            entry.engine_key = Some("engine-key");
        },
        ..Setup::default()
    };
    run_with(setup, vec![vec![json(200, "{}")]], async |mut bed| {
        let mut client = bed.client().await;
        let answer =
            client.post("/v1/chat/completions", r#"{"a":[ ],"model" : "gpt-4o","b":"gpt-4o"}"#).await;
        assert_eq!(answer.header("x-swapserve-model"), Some("chat"));
        let seen = bed.engine.request().await;
        assert_eq!(seen.body, r#"{"a":[ ],"model" : "/models/ä","b":"gpt-4o"}"#);
        assert_eq!(seen.header("authorization"), Some("Bearer engine-key"));
    });
}

#[test]
fn an_engines_own_errors_are_passed_on_as_they_are() {
    let body = r#"{"error":{"message":"bad temperature","code":400}}"#;
    run(vec![vec![json(400, body)], vec![json(500, "oops")]], async |bed| {
        let mut client = bed.client().await;
        let answer = client.post("/v1/chat/completions", CHAT).await;
        assert_eq!((answer.status, &*answer.body), (400, body));
        assert_eq!(client.post("/v1/chat/completions", CHAT).await.status, 500);
    });
}

#[test]
fn headers_of_one_connection_stay_on_it() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-hop\r\nkeep-alive: timeout=5\r\nx-hop: 1\r\n\
                  x-kept: 1\r\nx-request-id: engine-7\r\ncontent-length: 2\r\n\r\n{}";
    run(vec![vec![send(answer)]], async |mut bed| {
        let mut client = bed.client().await;
        let length = CHAT.len();
        client
            .send(format!(
                "POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: test-key\r\nConnection: X-Mine\r\n\
                 X-Mine: 1\r\nX-Stays: 1\r\nTE: trailers\r\nContent-Length: {length}\r\n\r\n{CHAT}"
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.header("x-kept"), Some("1"));
        assert_eq!(answer.header("x-request-id"), Some("engine-7"));
        assert!(answer.header("x-hop").is_none() && answer.header("keep-alive").is_none());
        let seen = bed.engine.request().await;
        assert_eq!(seen.header("x-stays"), Some("1"));
        for gone in ["x-api-key", "x-mine", "te", "connection"] {
            assert_eq!(seen.header(gone), None, "{gone}");
        }
    });
}

#[test]
fn the_time_in_the_queue_is_told() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        bed.gate.hold(true);
        let mut client = bed.client().await;
        client.send(crate::client::post("/v1/chat/completions", CHAT)).await;
        bed.until(|gate| gate.waiting.get() == 1).await;
        bed.gate.hold(false);
        let answer = client.answer().await;
        assert_eq!(answer.header("x-swapserve-job-ends-in"), Some("90"));
        assert_eq!(answer.header("x-swapserve-queue-ms"), Some("300"));
        assert_eq!(answer.header("x-swapserve-swap-ms"), Some("200"));
    });
}
