//! The greedy request that proves an engine ready and, repeated, that a swap changed nothing.

use super::{ControlError, Engine, Reply};
use crate::config::plan::Probe;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

/// What is asked: short, and with a long answer that does not depend on knowledge.
const PROMPT: &str = "Count from one to one hundred in words:";
/// Largest relative difference of two vectors of one text. A matrix product may be summed in another order after a
/// swap; memory that was lost shows as far more.
const TOLERANCE: f64 = 1e-3;

/// What an engine said.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Words of a generating model.
    Text(String),
    /// An embedder's vector.
    Vector(Vec<f64>),
    /// Its kind is only asked for its health.
    Healthy,
}

impl Answer {
    /// Whether the two can be answers of one unchanged engine to one greedy request.
    pub fn same(&self, other: &Answer) -> bool {
        match (self, other) {
            (Answer::Vector(a), Answer::Vector(b)) => {
                let length = a.iter().map(|x| x * x).sum::<f64>().sqrt();
                let apart = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
                a.len() == b.len() && apart <= TOLERANCE * length.max(f64::MIN_POSITIVE)
            }
            _ => self == other,
        }
    }

    /// Its beginning, for people.
    pub fn excerpt(&self) -> String {
        match self {
            Answer::Text(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
            Answer::Vector(vector) => {
                format!("{} numbers, {:?}…", vector.len(), &vector[..vector.len().min(3)])
            }
            Answer::Healthy => "healthy".to_owned(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The request did not get through.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The engine refused it.
    #[error("{path} answered {status}: {body}; {remedy}")]
    Refused {
        /// The route.
        path: String,
        /// The status.
        status: StatusCode,
        /// The beginning of its body.
        body: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It answered something else than its API says.
    #[error("{path} answered {status} without {missing}: {body}; is this an OpenAI-compatible engine?")]
    Strange {
        /// The route.
        path: String,
        /// The status.
        status: StatusCode,
        /// What was looked for.
        missing: &'static str,
        /// The beginning of its body.
        body: String,
    },
}

impl ProbeError {
    /// Whether the same request may well succeed a moment later: the engine is loading or busy.
    pub(super) fn passes(&self) -> bool {
        match self {
            ProbeError::Control(error) => !matches!(error, ControlError::NotRunning),
            ProbeError::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            ProbeError::Strange { .. } => false,
        }
    }
}

/// Sends the request that the plan's `probe` names.
pub(super) async fn ask(engine: &Engine, tokens: u32, timeout: Duration) -> Result<Answer, ProbeError> {
    let model = engine.plan.served_as.as_str();
    // Greedy: temperature 0, and a seed for engines that would break ties by chance.
    let (path, body) = match engine.plan.probe {
        Probe::Chat => (
            "/v1/chat/completions",
            json!({"model": model, "messages": [{"role": "user", "content": PROMPT}],
                   "max_tokens": tokens, "temperature": 0, "seed": 7, "stream": false}),
        ),
        Probe::Completion => (
            "/v1/completions",
            json!({"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "seed": 7}),
        ),
        Probe::Embedding => ("/v1/embeddings", json!({"model": model, "input": PROMPT})),
        Probe::Health => {
            let path = engine.plan.health_path.as_str();
            let reply = engine.control(Method::GET, path, None, timeout).await?;
            return accepted(path, &reply).map(|()| Answer::Healthy);
        }
    };
    let reply = engine.control(Method::POST, path, Some(&body), timeout).await?;
    accepted(path, &reply)?;
    read(engine.plan.probe, &reply.json()).ok_or_else(|| ProbeError::Strange {
        path: path.to_owned(),
        status: reply.status,
        missing: match engine.plan.probe {
            Probe::Embedding => "data[0].embedding",
            _ => "choices[0]",
        },
        body: reply.excerpt(),
    })
}

fn accepted(path: &str, reply: &Reply) -> Result<(), ProbeError> {
    if reply.status.is_success() {
        return Ok(());
    }
    let remedy = match reply.status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            "if the engine has no such route or model, set probe (\"chat\", \"completion\", \"embedding\", \"health\")"
        }
        StatusCode::BAD_REQUEST => {
            "a base model without a chat template needs probe = \"completion\", an embedder probe = \"embedding\""
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "give the engine its key by {{ api_key }} in args or env, or none"
        }
        _ => "its log says more",
    };
    Err(ProbeError::Refused { path: path.to_owned(), status: reply.status, body: reply.excerpt(), remedy })
}

/// The answer without what differs from request to request (ids, times, usage).
fn read(probe: Probe, body: &Value) -> Option<Answer> {
    if probe == Probe::Embedding {
        let vector = body.pointer("/data/0/embedding")?.as_array()?;
        return vector.iter().map(Value::as_f64).collect::<Option<_>>().map(Answer::Vector);
    }
    let choice = body.pointer("/choices/0")?;
    // A reasoning model's first tokens come under another name than `content`.
    let parts = ["/text", "/message/reasoning_content", "/message/reasoning", "/message/content"];
    let text: String = parts.iter().filter_map(|at| choice.pointer(at)?.as_str()).collect();
    Some(Answer::Text(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_words_whatever_name_they_come_under() {
        let chat = json!({"id": 1, "choices": [{"message": {"role": "assistant", "content": " one two"}}]});
        assert_eq!(read(Probe::Chat, &chat), Some(Answer::Text(" one two".into())));
        let thinking = json!({"choices": [{"message": {"reasoning_content": "hm", "content": null}}]});
        assert_eq!(read(Probe::Chat, &thinking), Some(Answer::Text("hm".into())));
        let completion = json!({"choices": [{"text": " one"}]});
        assert_eq!(read(Probe::Completion, &completion), Some(Answer::Text(" one".into())));
        assert_eq!(read(Probe::Chat, &json!({"object": "error"})), None);
    }

    #[test]
    fn vectors_are_the_same_up_to_the_order_of_sums() {
        let a = read(Probe::Embedding, &json!({"data": [{"embedding": [0.6, 0.8]}]})).expect("a vector");
        assert!(a.same(&Answer::Vector(vec![0.600_01, 0.799_99])));
        assert!(!a.same(&Answer::Vector(vec![0.8, 0.6])));
        assert!(!a.same(&Answer::Vector(vec![0.6, 0.8, 0.0])));
        assert!(!a.same(&Answer::Text(String::new())));
    }
}
