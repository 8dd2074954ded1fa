//! Clients that go away: in the queue, before headers, in mid-stream; and what the engine sees of it.

use crate::{
    bed::{Bed, Setup, run, run_with},
    client::{Client, post},
    engine::{Happened, Step, chunk, events, json},
};
use swapserve::config::DisconnectPolicy;

const CHAT: &str = r#"{"model":"chat"}"#;

fn draining() -> Setup {
    Setup { entry: |entry| entry.on_disconnect = DisconnectPolicy::Drain, ..Setup::default() }
}

async fn asking(bed: &Bed) -> Client {
    let mut client = bed.client().await;
    client.send(post("/v1/chat/completions", CHAT)).await;
    client
}

#[test]
fn in_the_queue_the_place_is_given_up() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        bed.gate.hold(true);
        let client = asking(&bed).await;
        bed.until(|gate| gate.waiting.get() == 1).await;
        drop(client);
        bed.until(|gate| gate.waiting.get() == 0).await;
        assert_eq!(bed.gate.leases.get(), 0);
    });
}

#[test]
fn in_the_queue_on_the_unix_socket_too() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        bed.gate.hold(true);
        let mut client = Client::unix(&bed.socket).await;
        client.send(post("/v1/chat/completions", CHAT)).await;
        bed.until(|gate| gate.waiting.get() == 1).await;
        drop(client);
        bed.until(|gate| gate.waiting.get() == 0).await;
    });
}

#[test]
fn a_half_closed_client_has_gone_away() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        bed.gate.hold(true);
        let mut client = asking(&bed).await;
        bed.until(|gate| gate.waiting.get() == 1).await;
        client.half_close().await;
        bed.until(|gate| gate.waiting.get() == 0).await;
    });
}

#[test]
fn before_headers_the_engines_connection_is_closed() {
    run(vec![vec![Step::Wait]], async |mut bed| {
        let client = asking(&bed).await;
        bed.engine.request().await;
        assert_eq!(bed.gate.leases.get(), 1);
        drop(client);
        bed.engine.gone().await;
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn in_mid_stream_the_engines_connection_is_closed() {
    run(vec![vec![events(), chunk("data: 1\n\n"), Step::Wait]], async |mut bed| {
        let mut client = asking(&bed).await;
        client.until("data: 1\n\n").await;
        drop(client);
        bed.engine.gone().await;
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn an_engine_that_bears_no_cancel_is_read_to_its_end_before_headers() {
    let script = vec![Step::Wait, events(), chunk("data: 1\n\n"), chunk("")];
    run_with(draining(), vec![script], async |mut bed| {
        let client = asking(&bed).await;
        bed.engine.request().await;
        drop(client);
        // A second client's request goes through while the first one's is still being read out.
        let mut other = bed.client().await;
        other.get("/health").await;
        assert_eq!(bed.gate.leases.get(), 1);
        bed.engine.go();
        assert!(matches!(bed.engine.happened.recv().await, Some(Happened::Played)));
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn an_engine_that_bears_no_cancel_is_read_to_its_end_in_mid_stream() {
    let script = vec![events(), chunk("data: 1\n\n"), Step::Wait, chunk("data: 2\n\n"), chunk("")];
    run_with(draining(), vec![script], async |mut bed| {
        let mut client = asking(&bed).await;
        client.until("data: 1\n\n").await;
        drop(client);
        bed.engine.request().await;
        bed.engine.go();
        assert!(matches!(bed.engine.happened.recv().await, Some(Happened::Played)));
        bed.until(|gate| gate.leases.get() == 0).await;
        // The connection that was read out is used again.
        bed.engine.play(vec![vec![json(200, "{}")]]);
        let mut client = bed.client().await;
        assert_eq!(client.post("/v1/chat/completions", CHAT).await.status, 200);
        assert_eq!(bed.engine.request().await.connection, 0);
    });
}

#[test]
fn a_lost_engine_is_not_read_out_forever() {
    let script = vec![events(), chunk("data: 1\n\n"), Step::Wait];
    run_with(draining(), vec![script], async |bed| {
        let mut client = asking(&bed).await;
        client.until("data: 1\n\n").await;
        drop(client);
        bed.gate.lose_engines();
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}

#[test]
fn an_engine_that_bears_no_cancel_and_closes_without_an_answer_is_not_read_out() {
    for script in [vec![Step::Close], vec![crate::engine::send("no HTTP\r\n\r\n")]] {
        run_with(draining(), vec![script, vec![json(200, "{}")]], async |bed| {
            assert_eq!(bed.client().await.post("/v1/chat/completions", CHAT).await.status, 502);
            bed.until(|gate| gate.leases.get() == 0).await;
            assert_eq!(bed.client().await.post("/v1/chat/completions", CHAT).await.status, 200);
        });
    }
}

#[test]
fn an_engine_that_bears_no_cancel_and_goes_silent_is_not_read_out_forever() {
    let mut setup = draining();
    setup.config.idle_stream_timeout = Some(std::time::Duration::from_millis(20));
    run_with(setup, vec![vec![events(), chunk("data: 1\n\n"), Step::Wait]], async |bed| {
        let mut client = asking(&bed).await;
        assert!(client.until("\r\n0\r\n\r\n").await.contains("idle_stream_timeout"));
        bed.until(|gate| gate.leases.get() == 0).await;
    });
}
