//! The allow-list: which paths exist, which method each takes, and what answers it.
//!
//! A path matches exactly, byte for byte, or not at all: no decoding, no dot segments, no other case, no doubled or
//! trailing slash. What is not in these tables is 404, so an engine's own control endpoints can't be reached by any
//! spelling.

use super::gate::Verb;
use http::Method;

/// How a forwarded request carries its `model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A JSON object.
    Json,
    /// A multipart form, or a JSON object.
    Form,
}

/// What answers a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'p> {
    /// The engine of the model that the body names.
    Forward(Payload),
    /// The engine of the model that the query names, by WebSocket.
    Realtime,
    /// `GET /v1/models`.
    Models,
    /// `GET /v1/models/{id}`, the id still percent-encoded.
    Model(&'p str),
    /// `GET /health`.
    Health,
    /// `GET /metrics`.
    Metrics,
    /// `GET /swapserve/v1/status`.
    Status,
    /// `GET /swapserve/v1/explain/{model}`, the name still percent-encoded.
    Explain(&'p str),
    /// `POST /swapserve/v1/swap/*`.
    Swap(Verb),
    /// `POST /swapserve/v1/stop`.
    Stop,
    /// `GET /models` of llama-server's router.
    LlamaModels,
    /// `POST /models/load|unload` of llama-server's router.
    LlamaSwap(Verb),
    /// `POST /api/swapin|swapout` of SwapServeLLM.
    SwapServeSwap(Verb),
}

/// Paths that pass through to engines; all are POST. The busiest first.
const FORWARDED: &[(&str, Payload)] = &[
    ("/v1/chat/completions", Payload::Json),
    ("/v1/completions", Payload::Json),
    ("/v1/embeddings", Payload::Json),
    ("/v1/responses", Payload::Json),
    ("/v1/messages", Payload::Json),
    ("/v1/messages/count_tokens", Payload::Json),
    ("/v1/rerank", Payload::Json),
    ("/v2/rerank", Payload::Json),
    ("/rerank", Payload::Json),
    ("/v1/score", Payload::Json),
    ("/score", Payload::Json),
    ("/classify", Payload::Json),
    ("/pooling", Payload::Json),
    ("/tokenize", Payload::Json),
    ("/detokenize", Payload::Json),
    ("/infill", Payload::Json),
    ("/completion", Payload::Json),
    ("/v1/images/generations", Payload::Json),
    ("/v1/images/edits", Payload::Form),
    ("/v1/images/variations", Payload::Form),
    ("/v1/audio/speech", Payload::Json),
    ("/v1/audio/transcriptions", Payload::Form),
    ("/v1/audio/translations", Payload::Form),
];

/// Paths that the router answers itself.
const OWN: &[(Method, &str, Target<'static>)] = &[
    (Method::GET, "/v1/realtime", Target::Realtime),
    (Method::GET, "/v1/models", Target::Models),
    (Method::GET, "/health", Target::Health),
    (Method::GET, "/metrics", Target::Metrics),
    (Method::GET, "/swapserve/v1/status", Target::Status),
    (Method::POST, "/swapserve/v1/swap/in", Target::Swap(Verb::In)),
    (Method::POST, "/swapserve/v1/swap/out", Target::Swap(Verb::Out)),
    (Method::POST, "/swapserve/v1/swap/pin", Target::Swap(Verb::Pin)),
    (Method::POST, "/swapserve/v1/swap/unpin", Target::Swap(Verb::Unpin)),
    (Method::POST, "/swapserve/v1/stop", Target::Stop),
    (Method::GET, "/models", Target::LlamaModels),
    (Method::POST, "/models/load", Target::LlamaSwap(Verb::In)),
    (Method::POST, "/models/unload", Target::LlamaSwap(Verb::Out)),
    (Method::POST, "/api/swapin", Target::SwapServeSwap(Verb::In)),
    (Method::POST, "/api/swapout", Target::SwapServeSwap(Verb::Out)),
];

/// Why nothing answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// The path is not on the list.
    Path,
    /// The path is, with another method.
    Method,
}

/// What answers `method` on `path` (without its query).
pub fn find<'p>(method: &Method, path: &'p str) -> Result<Target<'p>, NoRoute> {
    if let Some((_, payload)) = FORWARDED.iter().find(|(known, _)| *known == path) {
        return if method == Method::POST { Ok(Target::Forward(*payload)) } else { Err(NoRoute::Method) };
    }
    if let Some((known, _, target)) = OWN.iter().find(|(_, known, _)| *known == path) {
        return if takes(known, method) { Ok(target.clone()) } else { Err(NoRoute::Method) };
    }
    let target = if let Some(id) = path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()) {
        Target::Model(id)
    } else if let Some(name) = path.strip_prefix("/swapserve/v1/explain/").filter(|n| !n.is_empty()) {
        Target::Explain(name)
    } else {
        return Err(NoRoute::Path);
    };
    if takes(&Method::GET, method) { Ok(target) } else { Err(NoRoute::Method) }
}

/// Whether a path for `known` answers `method`: HEAD is a GET without its body.
fn takes(known: &Method, method: &Method) -> bool {
    known == method || (known == Method::GET && method == Method::HEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_contract_names_is_routed() {
        assert_eq!(find(&Method::POST, "/v1/chat/completions"), Ok(Target::Forward(Payload::Json)));
        assert_eq!(find(&Method::POST, "/v1/audio/transcriptions"), Ok(Target::Forward(Payload::Form)));
        assert_eq!(find(&Method::GET, "/v1/models/org%2Fname"), Ok(Target::Model("org%2Fname")));
        assert_eq!(find(&Method::POST, "/swapserve/v1/swap/pin"), Ok(Target::Swap(Verb::Pin)));
        assert_eq!(find(&Method::HEAD, "/health"), Ok(Target::Health));
    }

    #[test]
    fn another_method_is_told_apart_from_another_path() {
        assert_eq!(find(&Method::GET, "/v1/chat/completions"), Err(NoRoute::Method));
        assert_eq!(find(&Method::DELETE, "/v1/models/chat"), Err(NoRoute::Method));
        assert_eq!(find(&Method::GET, "/v1/models/"), Err(NoRoute::Path));
    }

    #[test]
    fn control_endpoints_have_no_spelling_that_matches() {
        for path in [
            "/sleep",
            "/wake_up",
            "/collective_rpc",
            "/release_memory_occupation",
            "/update_weights_from_disk",
            "/v1/chat/completions/../../sleep",
            "/v1/%2e%2e/sleep",
            "/%73leep",
            "//sleep",
            "/v1//chat/completions",
            "/v1/chat/completions/",
            "/V1/chat/completions",
            "/v1/chat/completions;x=1",
            "/v1/chat/completions\0",
            "/v1/load_lora_adapter",
            "/slots",
            "/",
            "",
            "*",
        ] {
            assert_eq!(find(&Method::POST, path), Err(NoRoute::Path), "{path}");
        }
    }
}
