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
            // Encodings: once, twice, overlong UTF-8, UTF-16's way, a byte that ends strings in C.
            "/v1/%2e%2e/sleep",
            "/v1/%252e%252e/sleep",
            "/v1/chat/completions/%2e%2e%2f%2e%2e%2fsleep",
            "/v1/chat%252fcompletions",
            "/v1/chat%c0%afcompletions/%c0%ae%c0%ae/sleep",
            "/v1/chat%e0%80%afcompletions",
            "/v1/chat%u002fcompletions",
            "/%00/sleep",
            "/v1/chat/completions%20",
            "/v1/chat/completions%0d%0a",
            "/v1/chat/completions%3f/sleep",
            "/v1/chat/completions%23",
            // Other separators and parameters.
            "/v1/chat/completions;/../../sleep",
            "/v1/chat;a=b/completions",
            "/v1\\chat\\completions",
            "/v1/chat/completions\\..\\..\\sleep",
            "/..;/sleep",
            "/v1/chat/completions/.",
            "/v1/chat/completions/..",
            "/v1/../v1/chat/completions",
            "//v1/chat/completions",
            "/v1/chat/completions//",
            "/.",
            "/../sleep",
            // Case, here and there.
            "/v1/Chat/completions",
            "/SLEEP",
            // What stands behind an allowed path is still another path.
            "/v1/chat/completions/sleep",
            "/v1/chat/completionssleep",
            "/v1/models/../../sleep/x",
            "/swapserve/v1/explain/../../../sleep",
            "/get_model_info",
            "/flush_cache",
            "/start_profile",
            "/v1/load_lora_adapter",
            "/api/generate",
            "/api/pull",
            "/props",
            "/release_memory",
        ] {
            let answer = bed.client().await.post(path, CHAT).await;
            let known = path.starts_with("/v1/models/") || path.starts_with("/swapserve/v1/explain/");
            let expected = if known { (405, "method_not_allowed") } else { (404, "unknown_url") };
            assert_eq!((answer.status, &*answer.code()), expected, "{path}");
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
            "x: y\r\n\ttransfer-encoding: chunked\r\n",
            "content-length: 16\r\ncontent-length: 16, 16\r\nx\r\n",
            "content-length: -16\r\n",
            "content-length: 16 16\r\n",
            "content-length: 18446744073709551632\r\n",
            "content-length:\r\n",
            "content-length\r\n",
            "content-length : 16\r\n",
            " content-length: 16\r\n",
            "content-length: 16\r\n\0: x\r\n",
            "content-length: 16\r\nx: a\rtransfer-encoding: chunked\r\n",
            "transfer-encoding: xchunked\r\n",
            "transfer-encoding: identity\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n",
            "transfer-encoding:\x0bchunked\r\n",
            "transfer-encoding: chunked;q=1\r\n",
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
fn chunks_have_one_reading() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        for chunks in [
            "-1\r\n{}\r\n0\r\n\r\n",
            "0x10\r\n{\"model\":\"chat\"}\r\n0\r\n\r\n",
            "+10\r\n{\"model\":\"chat\"}\r\n0\r\n\r\n",
            "10\n{\"model\":\"chat\"}\r\n0\r\n\r\n",
            "10\r\n{\"model\":\"chat\"}0\r\n\r\n",
            "10\r\n{\"model\":\"chat\"}\n\r0\r\n\r\n",
            "10000000000000000\r\n{\"model\":\"chat\"}\r\n0\r\n\r\n",
            "\r\n10\r\n{\"model\":\"chat\"}\r\n0\r\n\r\n",
            "10;\n\r\n{\"model\":\"chat\"}\r\n0\r\n\r\n",
        ] {
            let mut client = bed.client().await;
            client.send(format!("{head}{chunks}")).await;
            let answer = client.rest().await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{chunks:?}: {answer}");
        }
        assert!(untouched(&mut bed));
        // Extensions and trailers are read and end here.
        let mut client = bed.client().await;
        client
            .send(format!("{head}10;a=b;c=\"d\"\r\n{CHAT}\r\n0\r\nauthorization: x\r\nhost: y\r\n\r\n"))
            .await;
        assert_eq!(client.answer().await.status, 200);
        let seen = bed.engine.request().await;
        assert_eq!(
            (&*seen.body, seen.header("content-length"), seen.header("trailer")),
            (CHAT, Some("16"), None)
        );
        assert_eq!((seen.header("host"), seen.header("authorization")), (Some("localhost"), None));
    });
}

#[test]
fn a_request_is_what_its_line_says() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let mut client = bed.client().await;
        let length = CHAT.len();
        client
            .send(format!(
                "POST /v1/chat/completions?a=/../sleep HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\
                 content-length: {length}\r\ncontent-type: application/json\r\nconnection: close, x-one\r\nconnection: x-two\r\n\
                 x-one: 1\r\nx-two: 2\r\nx-http-method-override: GET\r\nx-http-method: GET\r\nx-method-override: GET\r\n\
                 x-original-url: /sleep\r\nx-rewrite-url: /sleep\r\nproxy-authorization: a\r\nproxy-connection: keep-alive\r\n\
                 keep-alive: timeout=1\r\nte: trailers\r\nexpect: 100-continue\r\nx-api-key: other\r\nx-kept: yes\r\n\r\n{CHAT}"
            ))
            .await;
        client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 200);
        let seen = bed.engine.request().await;
        // Byte for byte: what the client said of the message, and what the router says.
        assert_eq!(seen.first_line(), "POST /v1/chat/completions?a=/../sleep HTTP/1.1");
        let mut lines: Vec<_> = seen.head.split("\r\n").skip(1).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["content-length: 16", "content-type: application/json", "host: localhost", "x-kept: yes"]
        );
    });
}

#[test]
fn no_upgrade_but_the_one() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let key = "authorization: Bearer test-key\r\n";
        let websocket = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eHg=\r\n";
        for path in
            ["/sleep", "/v1/chat/completions", "/v1/realtime/../sleep", "/v1/Realtime", "/collective_rpc"]
        {
            let mut client = bed.client().await;
            client.send(format!("GET {path}?model=chat HTTP/1.1\r\nhost: x\r\n{key}{websocket}\r\n")).await;
            assert!([404, 405].contains(&client.answer().await.status), "{path}");
        }
        for other in ["h2c", "TLS/1.0", "websocket, h2c", ""] {
            let mut client = bed.client().await;
            client
                .send(format!(
                    "GET /v1/realtime?model=chat HTTP/1.1\r\nhost: x\r\n{key}connection: upgrade, http2-settings\r\n\
                     upgrade: {other}\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
                ))
                .await;
            assert_eq!(client.answer().await.status, 400, "{other}");
        }
        assert!(untouched(&mut bed));
        // Asked for on a path that is forwarded, it is not passed on, and the answer is an ordinary one.
        let mut client = bed.client().await;
        client
            .send(format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{key}connection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
                 http2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\ncontent-length: 16\r\n\r\n{CHAT}"
            ))
            .await;
        assert_eq!(client.answer().await.status, 200);
        let seen = bed.engine.request().await;
        assert_eq!(
            (seen.header("upgrade"), seen.header("http2-settings"), seen.header("connection")),
            (None, None, None)
        );
    });
}

#[test]
fn an_upgrade_that_nobody_asked_for_does_not_reach_a_client() {
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nraw";
    run(vec![vec![crate::engine::send(switching)]], async |bed| {
        let answer = bed.client().await.post("/v1/chat/completions", CHAT).await;
        assert_eq!((answer.status, &*answer.code()), (502, "engine_failed"));
    });
}

#[test]
fn an_answer_has_one_length() {
    let both =
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let none = "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n";
    run(vec![vec![crate::engine::send(both)], vec![crate::engine::send(none)]], async |bed| {
        let mut client = bed.client().await;
        let answer = client.post("/v1/chat/completions", CHAT).await;
        assert_eq!((&*answer.body, answer.header("content-length")), ("{}", None));
        client.send(post("/v1/chat/completions", CHAT)).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 304") && !head.contains("content-length: 5"), "{head}");
    });
}

#[test]
fn a_key_is_taken_from_two_headers_and_no_other_place() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let ask = async |headers: &str, path: &str| {
            let mut client = bed.client().await;
            client.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n")).await;
            client.answer().await.status
        };
        for headers in ["authorization: Bearer test-key\r\n", "x-api-key: test-key\r\n"] {
            assert_eq!(ask(headers, "/v1/models").await, 200, "{headers}");
        }
        for headers in [
            "",
            "authorization: Bearer\r\n",
            "authorization: test-key\r\n",
            "authorization: Basic test-key\r\n",
            "authorization: Bearer test-key, Bearer x\r\n",
            "authorization: Bearer x\r\nauthorization: Bearer test-key\r\n",
            "authorization: Bearer x\r\nx-api-key: test-key\r\n",
            "x-api-key: x\r\nx-api-key: test-key\r\n",
            "x-api-key: Bearer test-key\r\n",
            "api-key: test-key\r\n",
            "proxy-authorization: Bearer test-key\r\n",
            "cookie: authorization=test-key\r\n",
            "authorization: Bearer TEST-KEY\r\n",
            "authorization: Bearer test-ke\r\n",
            "authorization: Bearer test-keys\r\n",
        ] {
            assert_eq!(ask(headers, "/v1/models").await, 401, "{headers}");
        }
        for path in [
            "/v1/models?key=test-key",
            "/v1/models?api_key=test-key",
            "/metrics?authorization=Bearer%20test-key",
        ] {
            assert_eq!(ask("", path).await, 401, "{path}");
        }
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
