//! A client's bytes, whatever they are: an engine sees whole requests of one reading for allowed paths, with its own key,
//! or nothing.

use super::router::{ENGINE_KEY, KEY, Rig};
use std::cell::Cell;

thread_local! {
    /// Never dropped: a runtime cannot be while its thread ends.
    static RIG: Cell<Option<&'static Rig>> = const { Cell::new(None) };
}

/// In the bytes, `{K}` stands for the client's key, so that changes do not have to find it.
const KEY_MARK: &[u8] = b"{K}";

/// What the engine may be asked for.
const ALLOWED: [&str; 24] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/classify",
    "/pooling",
    "/tokenize",
    "/detokenize",
    "/infill",
    "/completion",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/realtime",
];

pub fn run(data: &[u8]) {
    let (answer, seen) = Rig::of_thread(&RIG).exchange(&with_key(data), None);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "the client reads something else");
    seen.iter().for_each(|bytes| check(bytes));
}

fn with_key(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.len() + KEY.len());
    let mut rest = data;
    while let Some(at) = rest.windows(KEY_MARK.len()).position(|w| w == KEY_MARK) {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(KEY.as_bytes());
        rest = &rest[at + KEY_MARK.len()..];
    }
    bytes.extend_from_slice(rest);
    bytes
}

/// Whole requests in what an engine has read so far.
pub fn count(mut bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(rest) = after_one(bytes) {
        (whole, bytes) = (whole + 1, rest);
    }
    whole
}

fn after_one(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    bytes.get(end + length.unwrap_or(0)..)
}

/// The strictest reading there is: anything that two readers could read in two ways is a finding.
fn check(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let Some(rest) = after_one(bytes) else { return }; // broken off by the client
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole request has an end");
        let head = &bytes[..end];
        assert!(!head.contains(&0), "a zero byte");
        let mut lines = head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = std::str::from_utf8(lines.next().expect("a first line")).expect("text");
        let [method, target, "HTTP/1.1"] = first.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{first:?}")
        };
        let path = target.split('?').next().unwrap_or_default();
        assert!(ALLOWED.contains(&path), "{path:?} reached an engine");
        assert_eq!(method, if path == "/v1/realtime" { "GET" } else { "POST" });
        let (mut hosts, mut lengths, mut keys) = (0, 0, 0);
        for line in lines {
            assert!(!line.contains(&b'\r'), "a bare CR");
            let colon = line.iter().position(|b| *b == b':').expect("a header has a colon");
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            assert!(!name.is_empty() && name.iter().all(|b| is_token(*b)), "{name:?}");
            match &*name.to_ascii_lowercase() {
                b"host" => hosts += 1,
                b"content-length" => {
                    lengths += 1;
                    assert!(value.iter().all(u8::is_ascii_digit));
                }
                b"authorization" => {
                    keys += 1;
                    assert_eq!(value, format!("Bearer {ENGINE_KEY}").as_bytes());
                }
                b"connection" | b"upgrade" => assert_eq!(path, "/v1/realtime"),
                b"transfer-encoding"
                | b"te"
                | b"trailer"
                | b"expect"
                | b"x-api-key"
                | b"proxy-authorization"
                | b"proxy-connection"
                | b"keep-alive"
                | b"x-http-method-override"
                | b"x-http-method"
                | b"x-method-override"
                | b"x-original-url"
                | b"x-rewrite-url"
                | b"http2-settings" => {
                    panic!("{} reached an engine", String::from_utf8_lossy(name))
                }
                _ => {}
            }
        }
        assert_eq!((hosts, keys), (1, 1));
        assert!(lengths == 1 || (lengths == 0 && path == "/v1/realtime"));
        bytes = rest;
    }
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}
