//! Engines that break, in each stage of an answer, and what the client is told.

use crate::{
    bed::{Bed, Setup, run, run_with},
    client::{Answer, post},
    engine::{Step, chunk, events, json, send},
};
use std::time::Duration;
use swapserve::{config::DisconnectPolicy, router::gate::Denied, scheduler::Rejection};

const CHAT: &str = r#"{"model":"chat"}"#;

#[test]
fn an_engine_that_closes_before_its_answer_is_a_502() {
    run(vec![vec![Step::Close]], async |bed| {
        let mut client = bed.client().await;
        let answer = client.post("/v1/chat/completions", CHAT).await;
        assert_eq!((answer.status, &*answer.code()), (502, "engine_failed"));
        assert_eq!(client.get("/health").await.status, 200, "the client's connection lives on");
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn an_engine_that_cannot_be_reached_is_a_502() {
    let setup = Setup {
        entry: |entry| {
            entry.upstream = swapserve::router::gate::Upstream::Unix("/nowhere/engine.sock".into())
        },
        ..Setup::default()
    };
    run_with(setup, vec![vec![]], async |bed| {
        let answer = bed.client().await.post("/v1/chat/completions", CHAT).await;
        assert_eq!((answer.status, &*answer.code()), (502, "engine_failed"));
    });
}

#[test]
fn an_answer_that_is_no_http_is_a_502() {
    run(vec![vec![send("garbage\r\n\r\n")]], async |bed| {
        let answer = bed.client().await.post("/v1/chat/completions", CHAT).await;
        assert_eq!(answer.status, 502);
    });
}

#[test]
fn a_connection_that_went_stale_in_the_pool_is_replaced_once() {
    // The engine closes its connection after each answer, just as the next request arrives on it.
    run(vec![vec![json(200, "{}")], vec![Step::Close], vec![json(200, "{}")]], async |mut bed| {
        let mut client = bed.client().await;
        assert_eq!(client.post("/v1/chat/completions", CHAT).await.status, 200);
        assert_eq!(client.post("/v1/chat/completions", CHAT).await.status, 200);
        let connections = [
            bed.engine.request().await.connection,
            bed.engine.request().await.connection,
            bed.engine.request().await.connection,
        ];
        assert_eq!(connections, [0, 0, 1]);

        bed.engine.play(vec![vec![Step::Close]]);
        assert_eq!(client.post("/v1/chat/completions", CHAT).await.status, 502, "but only once");
    });
}

#[test]
fn a_stream_that_breaks_ends_with_an_error_event_and_no_done() {
    run(vec![vec![events(), chunk("data: {\"a\":1}\n\n"), Step::Close]], async |bed| {
        let answer = bed.client().await.post("/v1/chat/completions", CHAT).await;
        let (good, error) = answer.body.split_once("data: {\"error\":").unwrap();
        assert_eq!((answer.status, good, answer.complete), (200, "data: {\"a\":1}\n\n", true));
        assert!(error.contains("\"code\":\"engine_failed\"") && error.ends_with("}}\n\n"), "{error}");
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

/// An answer whose first part the client has got before the engine breaks.
async fn broken_off(bed: &Bed, first_part: &str) -> Answer {
    let mut client = bed.client().await;
    client.send(post("/v1/chat/completions", CHAT)).await;
    client.seen(first_part).await;
    bed.engine.go();
    client.answer().await
}

#[test]
fn an_answer_with_a_length_that_breaks_is_cut_off() {
    let part = send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{\"a\"");
    run(vec![vec![part, Step::Wait, Step::Close]], async |bed| {
        let answer = broken_off(&bed, "{\"a\"").await;
        assert_eq!((answer.status, &*answer.body, answer.complete), (200, "{\"a\"", false));
    });
}

#[test]
fn a_chunked_answer_that_breaks_is_cut_off() {
    let head =
        send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
    run(vec![vec![head, chunk("{\"a\""), Step::Wait, Step::Close]], async |bed| {
        let answer = broken_off(&bed, "{\"a\"").await;
        assert_eq!((answer.status, answer.complete), (200, false));
    });
}

#[test]
fn a_lost_engine_fails_what_waits_for_its_answer() {
    run(vec![vec![Step::Wait]], async |mut bed| {
        let mut client = bed.client().await;
        client.send(post("/v1/chat/completions", CHAT)).await;
        bed.engine.request().await;
        bed.gate.lose_engines();
        let answer = client.answer().await;
        assert_eq!((answer.status, &*answer.code()), (502, "engine_failed"));
        bed.engine.gone().await;
    });
}

#[test]
fn a_lost_engine_fails_its_streams_though_its_connection_stays_open() {
    run(vec![vec![events(), chunk("data: 1\n\n"), Step::Wait]], async |bed| {
        let mut client = bed.client().await;
        client.send(post("/v1/chat/completions", CHAT)).await;
        client.until("data: 1\n\n").await;
        bed.gate.lose_engines();
        let rest = client.until("\r\n0\r\n\r\n").await;
        assert!(rest.contains("data: {\"error\":") && !rest.contains("[DONE]"), "{rest}");
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn the_shutdown_ends_streams_with_an_error_and_requests_with_a_503() {
    let streams = vec![events(), chunk("data: 1\n\n"), Step::Wait];
    run(vec![streams, vec![Step::Wait]], async |mut bed| {
        let mut streaming = bed.client().await;
        streaming.send(post("/v1/chat/completions", CHAT)).await;
        streaming.until("data: 1\n\n").await;
        let mut waiting = bed.client().await;
        waiting.send(post("/v1/chat/completions", CHAT)).await;
        bed.engine.request().await;
        bed.engine.request().await;
        let mut idle = bed.client().await;
        idle.get("/health").await;

        bed.end();
        assert!(streaming.rest().await.contains("\"code\":\"draining\""));
        let answer = waiting.answer().await;
        assert_eq!((answer.status, answer.header("x-should-retry")), (503, Some("false")));
        assert_eq!(idle.rest().await, "");
        bed.ended().await;
        assert_eq!(bed.gate.leases.get(), 0);
        assert!(!bed.socket.exists());
    });
}

#[test]
fn silence_counts_only_while_the_engine_is_resident() {
    let mut setup = Setup::default();
    setup.config.idle_stream_timeout = Some(Duration::from_millis(20));
    run_with(setup, vec![vec![events(), chunk("data: 1\n\n"), Step::Wait]], async |bed| {
        bed.gate.resident.set(false);
        let mut client = bed.client().await;
        client.send(post("/v1/chat/completions", CHAT)).await;
        client.until("data: 1\n\n").await;
        // Four times in a row would be too long.
        bed.until(|gate| gate.asked_resident.get() > 8).await;
        assert_eq!(bed.gate.leases.get(), 1);
        bed.gate.resident.set(true);
        assert!(client.until("\r\n0\r\n\r\n").await.contains("idle_stream_timeout"));
    });
}

#[test]
fn an_engine_that_does_not_begin_to_answer_is_given_up_but_not_while_it_is_out() {
    let mut setup = Setup::default();
    setup.config.first_byte_timeout = Some(Duration::from_millis(20));
    setup.entry = |entry| entry.on_disconnect = DisconnectPolicy::Drain;
    run_with(setup, vec![vec![Step::Wait]], async |bed| {
        bed.gate.resident.set(false);
        let mut client = bed.client().await;
        client.send(post("/v1/chat/completions", CHAT)).await;
        // Four times in a row would be too long.
        bed.until(|gate| gate.asked_resident.get() > 8).await;
        assert_eq!(bed.gate.leases.get(), 1);
        bed.gate.resident.set(true);
        let answer = client.answer().await;
        assert_eq!((answer.status, &*answer.code()), (504, "engine_timeout"));
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn clients_of_messages_are_told_in_their_own_words() {
    let broken = vec![events(), chunk("event: ping\ndata: {}\n\n"), Step::Close];
    run_with(Setup::default(), vec![broken], async |bed| {
        let unknown = bed.client().await.post("/v1/messages", r#"{"model":"gpt-9"}"#).await;
        let body: serde_json::Value = serde_json::from_str(&unknown.body).unwrap();
        assert_eq!((unknown.status, &body["type"]), (404, &"error".into()));
        assert_eq!(body["error"]["type"], "not_found_error");
        let mut client = bed.client().await;
        client.send(post("/v1/messages", CHAT)).await;
        let rest = client.until("\r\n0\r\n\r\n").await;
        assert!(
            rest.contains("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
            "{rest}"
        );
    });
}

#[test]
fn each_refusal_of_the_scheduler_has_its_status() {
    fn refused(entry: fn(&mut crate::gate::Entry), check: fn(crate::client::Answer)) {
        run_with(Setup { entry, ..Setup::default() }, vec![vec![]], async |bed| {
            check(bed.client().await.post("/v1/chat/completions", CHAT).await);
        });
    }
    refused(
        |e| {
            let retry_after = Duration::from_secs(500);
            e.denied = Some(Denied::Rejected(Rejection::QueueFull { limit: 4, retry_after }));
        },
        |answer| {
            assert_eq!((answer.status, &*answer.code()), (429, "queue_full"));
            assert_eq!(answer.header("retry-after"), Some("120"));
        },
    );
    refused(
        |e| {
            let bound = Duration::from_secs(60);
            e.denied = Some(Denied::Rejected(Rejection::WaitedTooLong { bound }));
        },
        |answer| assert_eq!((answer.status, &*answer.code()), (504, "wait_timeout")),
    );
    refused(
        |e| e.denied = Some(Denied::Rejected(Rejection::Draining)),
        |answer| {
            assert_eq!((answer.status, &*answer.code()), (503, "draining"));
            assert_eq!(answer.header("x-should-retry"), Some("false"));
        },
    );
}
