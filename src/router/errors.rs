//! What a client is told when there is no answer: the OpenAI error object, with the status and headers its clients act on.
//! Clients of `/v1/messages` are told in Anthropic's words: `{"type":"error","error":{"type","message"}}`.

use super::{
    body::Body,
    gate::{Denied, VerbError},
};
use crate::scheduler::Rejection;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// openai-python ignores a `Retry-After` above this many seconds, and then does not wait at all.
const LONGEST_RETRY_AFTER: u64 = 120;

/// `type` of errors that are the client's to mend.
const INVALID: &str = "invalid_request_error";
/// `type` of errors that are not.
const SERVER: &str = "server_error";

/// Whose error objects a client reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's.
    #[default]
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

impl Dialect {
    /// That of the clients that ask on this path.
    pub fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") { Self::Anthropic } else { Self::OpenAi }
    }
}

/// A refusal or a failure, before any byte of an answer was sent or after.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<&'static str>,
    message: String,
    retry_after: Option<u64>,
    /// Sends `x-should-retry: false`: asking again can't help.
    final_answer: bool,
    dialect: Dialect,
}

/// Anthropic's error object ("Errors" in its API reference).
#[derive(Serialize)]
struct AnthropicEnvelope<'a> {
    r#type: &'a str,
    error: AnthropicObject<'a>,
}

#[derive(Serialize)]
struct AnthropicObject<'a> {
    r#type: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Object<'a>,
}

#[derive(Serialize)]
struct Object<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code,
            param: None,
            message: message.into(),
            retry_after: None,
            final_answer: false,
            dialect: Dialect::default(),
        }
    }

    /// The same, as clients of this kind read it.
    pub fn told_in(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }

    /// 400: the request can't be read or lacks what routing needs.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_request", message)
    }

    /// 400 about the field `model`.
    pub fn bad_model(message: impl Into<String>) -> Self {
        Self { param: Some("model"), ..Self::bad_request(message) }
    }

    /// 401: no key, or not this run's.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key", message)
    }

    /// 404: a path that is not on the allow-list.
    pub fn unknown_path(method: &http::Method, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID,
            "unknown_url",
            format!("Unknown request URL: {method} {path}"),
        )
    }

    /// 404 `model_not_found`.
    pub fn unknown_model(model: &str, known: &[String]) -> Self {
        let message = format!("The model `{model}` does not exist; this run serves: {}", known.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message);
        Self { param: Some("model"), ..error }
    }

    /// 405: a known path, another method.
    pub fn method_not_allowed(method: &http::Method, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", message)
    }

    /// 408: the body came too slowly.
    pub fn body_timeout() -> Self {
        let message = "the request's body came too slowly and was given up";
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout", message)
    }

    /// 409: an admin verb that was refused.
    pub fn refused(reason: String) -> Self {
        Self { final_answer: true, ..Self::new(StatusCode::CONFLICT, INVALID, "refused", reason) }
    }

    /// 413.
    pub fn body_too_large(limit: u64) -> Self {
        let message = format!("the request's body is larger than {limit} bytes (`max_body` in [router])");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large", message)
    }

    /// 502: the engine broke, or can't be reached.
    pub fn engine_failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, SERVER, "engine_failed", message)
    }

    /// 504: the engine has the request and does not begin to answer.
    pub fn engine_silent(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, "engine_timeout", message)
    }

    /// 503, and asking again can't help: the run is ending.
    pub fn ending() -> Self {
        let message = "the run is ending; no request is admitted any more";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "draining", message);
        Self { final_answer: true, ..error }
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The error object as JSON.
    pub fn json(&self) -> String {
        let Self { message, kind, param, code, .. } = self;
        let text = match self.dialect {
            Dialect::OpenAi => {
                let error = Object { message, r#type: kind, param: *param, code };
                serde_json::to_string(&Envelope { error })
            }
            Dialect::Anthropic => {
                let error = AnthropicObject { r#type: self.anthropic_type(), message };
                serde_json::to_string(&AnthropicEnvelope { r#type: "error", error })
            }
        };
        text.expect("strings serialise")
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The error as the last event of a stream whose headers are gone already.
    pub fn event(&self) -> Bytes {
        let name = match self.dialect {
            Dialect::OpenAi => "",
            Dialect::Anthropic => "event: error\n",
        };
        Bytes::from(format!("{name}data: {}\n\n", self.json()))
    }

    /// The error as a whole answer.
    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.final_answer {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// Why there is no lease, as the client is told.
    pub fn denied(model: &str, denied: Denied) -> Self {
        match denied {
            Denied::UnknownModel { known } => Self::unknown_model(model, &known),
            Denied::Rejected(reason) => Self::rejected(model, reason),
        }
    }

    fn rejected(model: &str, reason: Rejection) -> Self {
        let unavailable = |code, message| Self {
            final_answer: true,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message)
        };
        match reason {
            Rejection::QueueFull { limit, retry_after } => {
                let message = format!("{limit} requests are waiting for the model `{model}` already");
                let error =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", message);
                let seconds = (retry_after.as_secs_f64().ceil() as u64).clamp(1, LONGEST_RETRY_AFTER);
                Self { retry_after: Some(seconds), ..error }
            }
            Rejection::WaitedTooLong { bound } => {
                let bound = humantime::format_duration(bound);
                let message = format!("the model `{model}` could not be swapped in within {bound}");
                Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, "wait_timeout", message)
            }
            Rejection::EngineFailed { detail } => {
                Self::engine_failed(format!("the engine of the model `{model}` failed: {detail}"))
            }
            Rejection::NeverFits { detail } => {
                unavailable("never_fits", format!("the model `{model}` does not fit this job: {detail}"))
            }
            Rejection::Draining => Self::ending(),
            Rejection::JobEnding { remaining } => unavailable(
                "job_ending",
                format!("the job ends in {} s, before an answer could be had", remaining.as_secs()),
            ),
        }
    }

    /// Why an admin verb failed, as the caller is told.
    pub fn verb(model: &str, error: VerbError) -> Self {
        match error {
            VerbError::UnknownModel { known } => Self::unknown_model(model, &known),
            VerbError::Refused(reason) => Self::refused(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn answer(reason: Rejection) -> Response<Body> {
        ApiError::denied("chat", Denied::Rejected(reason)).into_response()
    }

    #[test]
    fn a_full_queue_says_when_to_come_back_and_never_beyond_what_clients_obey() {
        let retry = |after| {
            let response = answer(Rejection::QueueFull { limit: 8, retry_after: after });
            assert_eq!(response.status(), 429);
            response.headers()["retry-after"].to_str().unwrap().to_owned()
        };
        assert_eq!(retry(Duration::from_millis(10)), "1");
        assert_eq!(retry(Duration::from_millis(2500)), "3");
        assert_eq!(retry(Duration::from_secs(4000)), "120");
    }

    #[test]
    fn only_what_cannot_get_better_forbids_a_retry() {
        let forbidden = |reason| answer(reason).headers().contains_key("x-should-retry");
        assert!(forbidden(Rejection::Draining));
        assert!(forbidden(Rejection::JobEnding { remaining: Duration::from_secs(9) }));
        assert!(forbidden(Rejection::NeverFits { detail: String::new() }));
        assert!(!forbidden(Rejection::WaitedTooLong { bound: Duration::from_secs(60) }));
        assert!(!forbidden(Rejection::EngineFailed { detail: String::new() }));
    }

    #[test]
    fn the_object_has_the_four_fields_clients_read() {
        let error = ApiError::unknown_model("gpt-9", &["chat".into(), "coder".into()]);
        assert_eq!(
            error.json(),
            r#"{"error":{"message":"The model `gpt-9` does not exist; this run serves: chat, coder","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#
        );
    }

    #[test]
    fn clients_of_messages_read_anthropics_object() {
        assert_eq!(Dialect::of("/v1/messages/count_tokens"), Dialect::Anthropic);
        assert_eq!(Dialect::of("/v1/chat/completions"), Dialect::OpenAi);
        let told = |error: ApiError| error.told_in(Dialect::Anthropic);
        assert_eq!(
            told(ApiError::unknown_model("gpt-9", &["chat".into()])).json(),
            r#"{"type":"error","error":{"type":"not_found_error","message":"The model `gpt-9` does not exist; this run serves: chat"}}"#
        );
        assert_eq!(
            told(ApiError::engine_failed("gone")).event(),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"gone\"}}\n\n"
        );
    }
}
