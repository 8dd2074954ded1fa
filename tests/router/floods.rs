//! Clients that are many, slow, old or half gone.

use crate::{
    bed::{Setup, run, run_with},
    client::{Client, post},
    engine::{Step, chunk, events, json},
};
use std::time::Duration;

const CHAT: &str = r#"{"model":"chat"}"#;

#[test]
fn slow_heads_are_given_up_and_others_served_meanwhile() {
    let mut setup = Setup::default();
    setup.config.header_timeout = Duration::from_millis(300);
    run_with(setup, vec![vec![json(200, "{}")]], async |bed| {
        let mut slow = Vec::new();
        for _ in 0..200 {
            let mut client = bed.client().await;
            client.send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a: ").await;
            slow.push(client);
        }
        assert_eq!(bed.client().await.post("/v1/chat/completions", CHAT).await.status, 200);
        // A byte now and then does not help: the bound is on the whole head.
        for client in &mut slow {
            client.send("b").await;
        }
        for mut client in slow {
            assert_eq!(client.rest().await, "");
        }
        assert_eq!(bed.client().await.get("/health").await.status, 200);
    });
}

#[test]
fn idle_connections_take_no_place_from_requests() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        let mut idle = Vec::new();
        for _ in 0..500 {
            idle.push(bed.client().await);
        }
        for _ in 0..20 {
            assert_eq!(bed.client().await.post("/v1/chat/completions", CHAT).await.status, 200);
        }
        // They are still good for a request each.
        for client in idle.iter_mut().step_by(50) {
            assert_eq!(client.get("/health").await.status, 200);
        }
    });
}

#[test]
fn a_client_that_closes_its_half_is_gone() {
    run(vec![vec![events(), chunk("data: 1\n\n"), Step::Wait]], async |mut bed| {
        let mut client = bed.client().await;
        client.send(post("/v1/chat/completions", CHAT)).await;
        client.until("data: 1\n\n").await;
        client.half_close().await;
        bed.engine.gone().await;
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn a_client_that_reads_nothing_holds_up_nobody() {
    let much = "x".repeat(64 << 10);
    let script = std::iter::once(events()).chain((0..400).map(|_| chunk(&much))).chain([chunk("")]).collect();
    run(vec![script, vec![json(200, "{}")]], async |bed| {
        let mut deaf = bed.client().await;
        deaf.send(post("/v1/chat/completions", CHAT)).await;
        deaf.seen("\r\n\r\n").await;
        for _ in 0..20 {
            assert_eq!(bed.client().await.post("/v1/chat/completions", CHAT).await.status, 200);
        }
        drop(deaf);
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn http_1_0_has_no_second_request_unless_it_asks_for_one() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        let head = "authorization: Bearer test-key\r\ncontent-length: 16\r\n";
        let request = |more: &str| format!("POST /v1/chat/completions HTTP/1.0\r\n{head}{more}\r\n{CHAT}");
        let mut client = bed.client().await;
        client.send(request("").repeat(2)).await;
        let all = client.rest().await;
        assert_eq!(all.matches("HTTP/1.0 200").count(), 1, "{all}");
        let mut client = bed.client().await;
        client.send(request("connection: keep-alive\r\n")).await;
        assert_eq!(client.answer().await.header("connection"), Some("keep-alive"));
        client.send(request("")).await;
        assert_eq!(client.answer().await.status, 200);
        // Chunks are not of that time: the body would have two ends (RFC 9112, 6.1).
        let mut client = bed.client().await;
        client
            .send(format!(
                "POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer test-key\r\ntransfer-encoding: chunked\r\n\r\n\
                 10\r\n{CHAT}\r\n0\r\n\r\n"
            ))
            .await;
        let answer = client.rest().await;
        assert!(answer.is_empty() || answer.contains(" 400 Bad Request\r\n"), "{answer}");
    });
}

#[test]
fn a_pipeline_is_answered_in_order_also_past_a_refusal() {
    run(vec![vec![json(200, "1")], vec![json(200, "2")]], async |bed| {
        let mut client: Client = bed.client().await;
        let all = [
            post("/v1/chat/completions", CHAT),
            post("/sleep", CHAT),
            post("/v1/chat/completions", r#"{"model":"none"}"#),
            post("/v1/chat/completions", CHAT),
        ];
        client.send(all.concat()).await;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let answer = client.answer().await;
            seen.push((answer.status, answer.body));
        }
        assert_eq!(seen.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 404, 404, 200]);
        assert_eq!((&*seen[0].1, &*seen[3].1), ("1", "2"));
    });
}

#[test]
fn a_body_that_is_announced_is_asked_for_once_it_is_wanted() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        let head = |path: &str, key: &str, length: u64| {
            format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
            )
        };
        let mut client = bed.client().await;
        client.send(head("/v1/chat/completions", "test-key", 16)).await;
        client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.send(CHAT).await;
        assert_eq!(client.answer().await.status, 200);
        // Refused without a byte of the body having been asked for.
        for (path, key, status) in [("/sleep", "test-key", "404"), ("/v1/chat/completions", "wrong", "401")] {
            let mut client = bed.client().await;
            client.send(head(path, key, 1 << 20)).await;
            let answer = client.until("\r\n\r\n").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        }
    });
}

#[test]
fn a_client_that_reads_nothing_is_cut_off_in_the_end() {
    let much = "x".repeat(64 << 10);
    let script =
        std::iter::once(events()).chain((0..400).map(|_| chunk(&much))).chain([Step::Wait]).collect();
    let mut setup = Setup::default();
    setup.config.client_timeout = Some(Duration::from_millis(100));
    run_with(setup, vec![script], async |bed| {
        let mut deaf = bed.client().await;
        deaf.send(post("/v1/chat/completions", CHAT)).await;
        bed.until(|gate| gate.leases.get() == 1).await;
        bed.until(|gate| gate.leases.get() == 0).await;
        assert!(!deaf.rest().await.ends_with("\r\n0\r\n\r\n"));
    });
}

#[test]
fn who_has_no_key_takes_no_place_from_who_has_it() {
    let mut setup = Setup::default();
    setup.config.max_connections = 8;
    let script = vec![events(), chunk("data: 1\n\n"), Step::Wait, chunk("data: 2\n\n"), chunk("")];
    run_with(setup, vec![script, vec![json(200, "{}")]], async |bed| {
        let mut known = bed.client().await;
        known.send(post("/v1/chat/completions", CHAT)).await;
        known.until("data: 1\n\n").await;
        // More than there are places, and they stay as long as they are let.
        let mut strangers = Vec::new();
        for _ in 0..20 {
            strangers.push(bed.client().await);
        }
        assert_eq!(bed.client().await.post("/v1/chat/completions", CHAT).await.status, 200);
        assert_eq!(strangers.remove(0).rest().await, "");
        assert_eq!(strangers.pop().unwrap().get("/health").await.status, 200);
        bed.engine.go();
        known.until("data: 2\n\n").await;
    });
}
