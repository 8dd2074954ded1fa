//! Requests made to slip past: other spellings of control endpoints, smuggling, floods, and plain rubbish.

use crate::{
    bed::{Setup, run, run_with},
    client::{Client, post},
    engine::{Happened, json},
};
use std::time::Duration;

const CHAT: &str = r#"{"model":"chat"}"#;

/// Whether the engine has seen a request.
fn untouched(bed: &mut crate::bed::Bed) -> bool {
    !matches!(bed.engine.happened.try_recv(), Ok(Happened::Request(_)))
}

#[test]
fn control_endpoints_are_404_in_every_spelling() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        for path in [
            "/sleep",
            "/wake_up",
            "/collective_rpc",
            "/release_memory_occupation",
            "/update_weights_from_disk",
            "/v1/chat/completions/../../sleep",
            "/v1/chat/completions/%2e%2e/%2e%2e/sleep",
            "/v1%2fchat/completions",
            "/%73leep",
            "//sleep",
            "/v1/./chat/completions",
            "/v1/chat/completions/",
            "/V1/CHAT/COMPLETIONS",
            "/v1/chat/completions;a",
            "/v1/chat/completions%00",
            "/slots?action=erase",
        ] {
            let answer = bed.client().await.post(path, CHAT).await;
            assert_eq!((answer.status, &*answer.code()), (404, "unknown_url"), "{path}");
        }
        assert!(untouched(&mut bed));
    });
}

#[test]
fn the_target_has_one_reading() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let length = CHAT.len();
        let rest = |headers: &str| {
            format!("authorization: Bearer test-key\r\ncontent-length: {length}\r\n{headers}\r\n{CHAT}")
        };
        let absolute = |target: &str| format!("POST http://{target} HTTP/1.1\r\nhost: x\r\n{}", rest(""));
        let status = async |request: String| {
            let mut client = bed.client().await;
            client.send(request).await;
            client.answer().await.status
        };
        assert_eq!(status(absolute("other/v1/chat/completions")).await, 400);
        assert_eq!(status(absolute("x/sleep")).await, 404);
        assert_eq!(status(absolute("x/v1/chat/completions")).await, 200);
        let two_hosts = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{}", rest("host: y\r\n"));
        assert_eq!(status(two_hosts).await, 400);
        let authority = "CONNECT x:443 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\r\n";
        assert_eq!(status(authority.to_owned()).await, 400);
        let seen = bed.engine.request().await;
        assert_eq!(seen.first_line(), "POST /v1/chat/completions HTTP/1.1");
        assert!(untouched(&mut bed));
    });
}

#[test]
fn a_body_has_one_length() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n";
        for framing in [
            "content-length: 16\r\ncontent-length: 17\r\n",
            "content-length: +16\r\n",
            "content-length: 16, 17\r\n",
            "content-length: 0x10\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: chunked, identity\r\n",
            "transfer-encoding : chunked\r\n",
            "x: y\r\n folded: z\r\n",
        ] {
            let mut client = bed.client().await;
            client.send(format!("{head}{framing}\r\n{CHAT}")).await;
            let answer = client.rest().await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{framing}: {answer}");
        }
        assert!(untouched(&mut bed));
    });
}

#[test]
fn what_is_smuggled_behind_a_body_is_not_even_read() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        // Both lengths at once: the chunks count, the connection ends after the answer (RFC 9112, 6.3), and the
        // engine gets one length of our own making.
        let mut client = bed.client().await;
        let size = CHAT.len();
        client
            .send(format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\
                 content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{CHAT}\r\n0\r\n\r\n\
                 POST /sleep HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\ncontent-length: 0\r\n\r\n"
            ))
            .await;
        assert_eq!(client.answer().await.status, 200);
        assert_eq!(client.rest().await, "");
        let seen = bed.engine.request().await;
        assert_eq!((seen.header("content-length"), &*seen.body), (Some(&*size.to_string()), CHAT));
        assert_eq!(seen.header("transfer-encoding"), None);
        assert!(matches!(bed.engine.happened.recv().await, Some(Happened::Played)));
        assert!(untouched(&mut bed));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(vec![vec![json(200, "1")], vec![json(200, "2")], vec![json(200, "3")]], async |bed| {
        let mut client = bed.client().await;
        client.send(post("/v1/chat/completions", CHAT).repeat(3)).await;
        for body in ["1", "2", "3"] {
            assert_eq!(client.answer().await.body, body);
        }
    });
}

#[test]
fn http_1_0_is_served() {
    run(
        vec![vec![crate::engine::events(), crate::engine::chunk("data: 1\n\n"), crate::engine::chunk("")]],
        async |bed| {
            let mut client = bed.client().await;
            let length = CHAT.len();
            client
            .send(format!(
                "POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer test-key\r\ncontent-length: {length}\r\n\r\n{CHAT}"
            ))
            .await;
            let answer = client.rest().await;
            assert!(
                answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\ndata: 1\n\n"),
                "{answer}"
            );
        },
    );
}

#[test]
fn without_the_key_only_health_answers() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        for (request, status) in [
            ("GET /health HTTP/1.1\r\nhost: x\r\n\r\n", 200),
            ("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", 401),
            ("GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 401),
            ("GET /swapserve/v1/status HTTP/1.1\r\nhost: x\r\n\r\n", 401),
            ("POST /swapserve/v1/stop HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", 401),
            (
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-kez\r\ncontent-length: 0\r\n\r\n",
                401,
            ),
        ] {
            let mut client = bed.client().await;
            client.send(request).await;
            let answer = client.answer().await;
            assert_eq!(answer.status, status, "{request}");
            if status == 401 {
                assert_eq!(answer.code(), "invalid_api_key");
            }
        }
        assert!(untouched(&mut bed) && !bed.gate.stopped.get());
    });
}

#[test]
fn a_body_beyond_the_limit_is_a_413_announced_or_not() {
    let mut setup = Setup::default();
    setup.config.max_body = 1000;
    run_with(setup, vec![vec![json(200, "{}")]], async |mut bed| {
        let large = format!(r#"{{"model":"chat","x":"{}"}}"#, "a".repeat(2000));
        let answer = bed.client().await.post("/v1/chat/completions", &large).await;
        assert_eq!((answer.status, &*answer.code()), (413, "request_too_large"));

        let mut client = bed.client().await;
        let size = large.len();
        client
            .send(format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\
                 transfer-encoding: chunked\r\n\r\n{size:x}\r\n{large}\r\n0\r\n\r\n"
            ))
            .await;
        assert_eq!(client.answer().await.status, 413);
        assert!(untouched(&mut bed));
    });
}

#[test]
fn a_client_that_dawdles_is_given_up() {
    let mut setup = Setup::default();
    setup.config.header_timeout = Duration::from_millis(100);
    run_with(setup, vec![vec![json(200, "{}")]], async |bed| {
        let mut silent = bed.client().await;
        let mut dribbling = bed.client().await;
        dribbling.send("POST /v1/chat/comp").await;
        let mut bodiless = bed.client().await;
        bodiless
            .send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\ncontent-length: 9\r\n\r\n{")
            .await;
        assert_eq!(silent.rest().await, "");
        assert_eq!(dribbling.rest().await, "");
        assert_eq!(bodiless.answer().await.status, 408);
    });
}

#[test]
fn a_head_beyond_the_limits_is_refused() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        let head = "GET /health HTTP/1.1\r\nhost: x\r\n";
        let many = "a: b\r\n".repeat(200);
        let long = format!("a: {}\r\n", "b".repeat(100 << 10));
        for headers in [many, long] {
            let mut client = bed.client().await;
            client.send(format!("{head}{headers}\r\n")).await;
            assert_eq!(client.answer().await.status, 431);
        }
        assert_eq!(bed.client().await.get("/health").await.status, 200);
    });
}

#[test]
fn rubbish_never_reaches_an_engine() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        for bytes in
            [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\0\r\n\r\n"]
        {
            let mut client: Client = bed.client().await;
            client.send(bytes).await;
            client.half_close().await;
            let answer = client.rest().await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
        assert!(untouched(&mut bed));
    });
}

#[test]
fn clients_beyond_the_limit_wait_for_a_place() {
    let mut setup = Setup::default();
    setup.config.max_connections = 2;
    run_with(setup, vec![vec![json(200, "{}")]], async |bed| {
        let mut first = bed.client().await;
        let mut second = bed.client().await;
        assert_eq!(first.get("/health").await.status, 200);
        assert_eq!(second.get("/health").await.status, 200);
        let mut third = bed.client().await;
        let text = second.get("/metrics").await.body;
        assert!(text.contains("swapserve_open_connections 2"), "{text}");
        drop(first);
        assert_eq!(third.get("/health").await.status, 200);
    });
}
