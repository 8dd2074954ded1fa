//! The two servers that this program runs as processes of their own: a trivial upstream, and the router.

use crate::gate::{Entry, FixedGate};
use std::{future::pending, time::Duration};
use swapserve::router::{Listeners, RouterConfig, auth::Key, gate::Upstream, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

/// What the upstream answers.
const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello! How can I assist you today?"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}"#;
/// One event of a stream that is then held open.
const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n";

fn run(server: impl AsyncFnOnce()) {
    crate::load::raise_descriptor_limit();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    LocalSet::new().block_on(&runtime, server());
}

/// Answers every request at once; one whose body has `"stream":true` with a first event, the rest when the client
/// sends another byte or goes away.
pub fn upstream() {
    run(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        println!("{}", listener.local_addr().expect("a bound address"));
        loop {
            let (stream, _) = listener.accept().await.expect("a client");
            spawn_local(answer(stream));
        }
    });
}

async fn answer(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("a TCP socket");
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    let size = EVENT.len();
    let held = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{EVENT}\r\n"
    );
    let mut buffer = Vec::with_capacity(8192);
    loop {
        let Some(end) = request_end(&buffer) else {
            match stream.read_buf(&mut buffer).await {
                Ok(n) if n > 0 => continue,
                _ => return,
            }
        };
        let streamed = memchr::memmem::find(&buffer[..end], b"\"stream\":true").is_some();
        buffer.drain(..end);
        if stream.write_all(if streamed { &held } else { &whole }.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Where the first request in `buffer` ends, if it is there as a whole.
fn request_end(buffer: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(buffer, b"\r\n\r\n")? + 4;
    let lower = buffer[..head].to_ascii_lowercase();
    let at = memchr::memmem::find(&lower, b"content-length: ")? + 16;
    let digits = lower[at..].split(|b| *b == b'\r').next()?;
    let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (buffer.len() >= head + length).then_some(head + length)
}

/// The router, with one model behind it and the key `bench-key`.
pub fn router(upstream: &str) {
    let upstream = Upstream::Tcp(upstream.parse().expect("an address"));
    run(async || {
        let mut listeners = Listeners::new();
        let any = "127.0.0.1:0".parse().expect("an address");
        println!("{}", listeners.tcp(any).await.expect("a port is free"));
        let config = RouterConfig {
            key: Some(Key::new("bench-key")),
            max_body: 64 << 20,
            header_timeout: Duration::from_secs(600),
            first_byte_timeout: Some(Duration::from_secs(600)),
            idle_stream_timeout: Some(Duration::from_secs(600)),
            client_timeout: None,
            max_connections: 20_000,
            close_grace: Duration::from_secs(1),
        };
        serve(listeners, FixedGate::new(vec![Entry::new("m", upstream)]), config, pending()).await;
    });
}
