//! The WebSocket: the handshake passes, then bytes do, both ways.

use crate::{
    bed::{Bed, Setup, run, run_with},
    client::Client,
    engine::{Step, json, send},
};

fn switching() -> Step {
    send(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: s3\r\n\r\nearly",
    )
}

fn handshake(query: &str) -> String {
    format!(
        "GET /v1/realtime?{query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\nconnection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: k\r\n\r\n"
    )
}

async fn open(bed: &Bed, query: &str) -> Client {
    let mut client = bed.client().await;
    client.send(handshake(query)).await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("sec-websocket-accept: s3"), "{head}");
    assert!(head.contains("x-swapserve-model: chat"), "{head}");
    client
}

#[test]
fn bytes_pass_both_ways_until_the_client_goes_away() {
    let setup = Setup { entry: |entry| entry.alias = "gpt-realtime", ..Setup::default() };
    run_with(setup, vec![vec![switching(), Step::Echo]], async |mut bed| {
        let mut client = open(&bed, "model=gpt-realtime&x=1").await;
        client.until("early").await;
        for message in ["hello", "again"] {
            client.send(message).await;
            client.until(message).await;
        }
        assert_eq!(bed.gate.leases.get(), 1);
        let seen = bed.engine.request().await;
        assert_eq!(seen.first_line(), "GET /v1/realtime?model=chat&x=1 HTTP/1.1");
        assert_eq!(
            (seen.header("upgrade"), seen.header("sec-websocket-key")),
            (Some("websocket"), Some("k"))
        );
        drop(client);
        bed.engine.gone().await;
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn a_lost_engine_ends_the_session() {
    run(vec![vec![switching(), Step::Wait]], async |bed| {
        let mut client = open(&bed, "model=chat").await;
        client.until("early").await;
        bed.gate.lose_engines();
        assert_eq!(client.rest().await, "");
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn an_engines_refusal_is_passed_on() {
    run(vec![vec![json(403, "no")]], async |bed| {
        let mut client = bed.client().await;
        client.send(handshake("model=chat")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, &*answer.body), (403, "no"));
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn a_handshake_that_cannot_be_routed_is_refused() {
    run(vec![vec![]], async |bed| {
        for (request, status) in [
            (handshake("model=none"), 404),
            (handshake("x=1"), 400),
            (handshake("model=chat&model=chat"), 400),
            (
                "GET /v1/realtime?model=chat HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\r\n"
                    .to_owned(),
                400,
            ),
        ] {
            let mut client = bed.client().await;
            client.send(request).await;
            assert_eq!(client.answer().await.status, status);
        }
    });
}

#[test]
fn a_session_keeps_its_place_among_the_connections() {
    let mut setup = Setup::default();
    setup.config.max_connections = 1;
    run_with(setup, vec![vec![switching(), Step::Echo], vec![json(200, "{}")]], async |bed| {
        let mut client = open(&bed, "model=chat").await;
        let mut other = bed.client().await;
        other.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        // Bytes go to and fro, and nobody else is let in.
        client.until("early").await;
        for _ in 0..20 {
            client.send("hello").await;
            client.until("hello").await;
        }
        assert!(other.is_quiet());
        drop(client);
        assert_eq!(other.answer().await.status, 200);
    });
}

#[test]
fn an_engine_that_does_not_answer_the_handshake_is_given_up() {
    let mut setup = Setup::default();
    setup.config.first_byte_timeout = Some(std::time::Duration::from_millis(20));
    run_with(setup, vec![vec![Step::Wait]], async |bed| {
        let mut client = bed.client().await;
        client.send(handshake("model=chat")).await;
        assert_eq!(client.answer().await.status, 504);
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}
