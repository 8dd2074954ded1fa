//! An engine's answer, whatever its bytes: the client gets one answer with an end of its own, and the next request works.
//! A byte `0xFF` begins a new piece.

use super::router::{KEY, Rig};
use std::cell::Cell;

thread_local! {
    /// Never dropped: a runtime cannot be while its thread ends.
    static RIG: Cell<Option<&'static Rig>> = const { Cell::new(None) };
}

pub fn run(data: &[u8]) {
    let body = r#"{"model":"alias","stream":true}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let pieces = data.split(|b| *b == 0xff).map(<[u8]>::to_vec).collect();
    let rig = Rig::of_thread(&RIG);
    let (answer, _) = rig.exchange(request.as_bytes(), Some(pieces));
    check(&answer);
    let (after, _) = rig.exchange(request.as_bytes(), None);
    let shown = String::from_utf8_lossy(&after);
    assert!(after.starts_with(b"HTTP/1.1 200"), "the next request fails: {shown}");
}

/// One head of one reading, and a body that ends as the head says or is cut off.
fn check(answer: &[u8]) {
    if answer.is_empty() {
        return; // it broke off before the head was sent: the connection ends without a word
    }
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("the client gets a whole head");
    let head = String::from_utf8_lossy(&answer[..end]);
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status: u16 = first.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    assert!(first.starts_with("HTTP/1.1 ") && status >= 200, "{first:?}");
    let (mut lengths, mut chunked, mut events) = (Vec::new(), false, false);
    for line in lines {
        assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
        let (name, value) = line.split_once(':').expect("a header has a colon");
        match &*name.to_ascii_lowercase() {
            "content-length" => lengths.push(value.trim().parse::<usize>().expect("a length")),
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            "content-type" => events |= value.trim().starts_with("text/event-stream"),
            "upgrade" | "keep-alive" => panic!("{line} reached a client"),
            _ => {}
        }
    }
    assert!(lengths.len() + usize::from(chunked) <= 1, "two lengths");
    let body = &answer[end + 4..];
    if let [length] = lengths[..] {
        assert!(body.len() <= length, "more than was announced");
    }
    if chunked
        && let Some(text) = unchunked(body)
        && events
    {
        // What ends properly after a failure says so in an event of its own.
        if let Some(at) = find(&text, b"\"code\":\"engine_failed\"") {
            let event = text[..at].windows(7).rposition(|w| w == b"data: {").expect("it is an event");
            assert!(
                event == 0 || text[event - 1] == b'\n' || text[event - 1] == b'\r',
                "it runs into another event"
            );
        }
    }
}

/// The text of a chunked body that has its proper end.
fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        let line = find(body, b"\r\n")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&body[..line]).expect("a size"), 16).expect("a size");
        let data = body.get(line + 2..line + 2 + size)?;
        assert_eq!(body.get(line + 2 + size..line + 4 + size)?, b"\r\n");
        body = &body[line + 4 + size..];
        if size == 0 {
            return Some(text);
        }
        text.extend_from_slice(data);
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}
