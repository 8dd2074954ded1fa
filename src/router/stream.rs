//! An engine's answer on its way to the client: bytes pass as they come, and a failure is told in the stream itself.
//!
//! Event streams end with one `data: {"error":…}` event and no `[DONE]`; anything else is cut off, so that no client
//! takes a part for the whole.

use super::{
    body::BrokenOff,
    errors::{ApiError, Dialect},
    exchange::Exchange,
    gate::{Gate, LocalFuture},
};
use crate::observe::metrics::OpenStream;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::SizeHint;
use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// Why an exchange is ended before its time, besides the engine's connection breaking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The daemon has lost the engine.
    EngineLost,
    /// The run ends.
    RunEnding,
}

impl Stop {
    /// As the client is told.
    pub fn error(self) -> ApiError {
        match self {
            Self::EngineLost => ApiError::engine_failed("the engine ended before the answer was complete"),
            Self::RunEnding => ApiError::ending(),
        }
    }
}

/// A streamed answer.
pub struct EngineStream {
    exchange: Exchange,
    stop: LocalFuture<Stop>,
    silence: Option<Silence>,
    account: OpenStream,
    /// The last two bytes sent, where the client can be told of a failure in the stream.
    events: Option<[u8; 2]>,
    dialect: Dialect,
    failed: bool,
}

impl EngineStream {
    /// Streams the body of `exchange`, whose head said `headers`, until `stop` resolves.
    pub fn new(
        exchange: Exchange,
        headers: &HeaderMap,
        stop: LocalFuture<Stop>,
        silence: Option<Silence>,
        account: OpenStream,
        dialect: Dialect,
    ) -> Self {
        let events =
            (is_plain_event_stream(headers) && exchange.size_hint().exact().is_none()).then_some(*b"\n\n");
        Self { exchange, stop, silence, account, events, dialect, failed: false }
    }

    /// The next bytes; an error cuts the connection.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        match self.exchange.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => {
                self.sent(&data);
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(Some(Err(e))) => {
                let cause = format!("the engine's answer broke off: {e}");
                Poll::Ready(Some(self.fail(ApiError::engine_failed(cause))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let error = ready!(self.poll_stopped(cx));
                Poll::Ready(Some(self.fail(error)))
            }
        }
    }

    /// Whether nothing more will come.
    pub fn is_end(&self) -> bool {
        self.failed || self.exchange.is_done()
    }

    /// What is known of the rest's length.
    pub fn size_hint(&self) -> SizeHint {
        if self.failed { SizeHint::with_exact(0) } else { self.exchange.size_hint() }
    }

    fn sent(&mut self, data: &[u8]) {
        self.account.sent(data.len());
        if let Some(silence) = &mut self.silence {
            silence.broken();
        }
        if let Some(tail) = &mut self.events {
            match data {
                [] => {}
                [one] => *tail = [tail[1], *one],
                [.., a, b] => *tail = [*a, *b],
            }
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<ApiError> {
        if let Poll::Ready(stop) = self.stop.as_mut().poll(cx) {
            return Poll::Ready(stop.error());
        }
        match &mut self.silence {
            Some(silence) => silence.poll_too_long(cx),
            None => Poll::Pending,
        }
    }

    fn fail(&mut self, error: ApiError) -> Result<Bytes, BrokenOff> {
        let error = error.told_in(self.dialect);
        self.failed = true;
        // Not read to its end, whatever the engine bears: of one that hangs the lease would be held for ever.
        self.exchange.abandon();
        self.account.failed();
        match self.events {
            Some(tail) => Ok(last_event(tail, &error)),
            None => Err(BrokenOff(error.json())),
        }
    }
}

/// An event stream that is sent as it is: an event can be added to it.
fn is_plain_event_stream(headers: &HeaderMap) -> bool {
    let plain = headers.get(header::CONTENT_ENCODING).is_none_or(|e| e == "identity");
    let events = headers.get(header::CONTENT_TYPE).is_some_and(|t| {
        t.as_bytes().get(..17).is_some_and(|t| t.eq_ignore_ascii_case(b"text/event-stream"))
    });
    plain && events
}

/// The error as an event of its own, whatever stood before it.
fn last_event(tail: [u8; 2], error: &ApiError) -> Bytes {
    let mut event = BytesMut::new();
    match tail {
        [b'\n', b'\n'] | [b'\r', b'\r'] => {}
        _ => event.extend_from_slice(b"\n\n"), // ends the event that was begun
    }
    event.extend_from_slice(&error.event());
    event.freeze()
}

/// What an engine that is silent has not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The begin of its answer.
    Head,
    /// More of it.
    More,
}

/// Watches an engine for silence. Time in which it is swapped out does not count.
pub struct Silence {
    awaited: Awaited,
    gate: Rc<dyn Gate>,
    model: Arc<str>,
    limit: Duration,
    tick: Pin<Box<Sleep>>,
    left: u32,
}

impl Silence {
    /// The limit is kept to within one part of this many.
    const PARTS: u32 = 4;

    /// Nothing may come from `model` for `limit` while it is resident.
    pub fn new(gate: Rc<dyn Gate>, model: Arc<str>, limit: Duration, awaited: Awaited) -> Self {
        let tick = Box::pin(tokio::time::sleep(limit / Self::PARTS));
        Self { awaited, gate, model, limit, tick, left: Self::PARTS }
    }

    fn broken(&mut self) {
        self.left = Self::PARTS;
    }

    /// Ready when it has lasted too long.
    pub fn poll_too_long(&mut self, cx: &mut Context<'_>) -> Poll<ApiError> {
        loop {
            ready!(self.tick.as_mut().poll(cx));
            self.left = if self.gate.is_resident(&self.model) { self.left - 1 } else { Self::PARTS };
            if self.left == 0 {
                let limit = humantime::format_duration(self.limit);
                return Poll::Ready(match self.awaited {
                    Awaited::Head => ApiError::engine_silent(format!(
                        "the engine of the model `{}` has the request and has not begun to answer for {limit} \
                         (`first_byte_timeout` in [router])",
                        self.model
                    )),
                    Awaited::More => ApiError::engine_failed(format!(
                        "the engine sent nothing for {limit} (`idle_stream_timeout` in [router])"
                    )),
                });
            }
            self.tick.as_mut().reset(Instant::now() + self.limit / Self::PARTS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_event_never_runs_into_an_event_that_was_begun() {
        let error = ApiError::engine_failed("gone");
        assert!(last_event(*b"\n\n", &error).starts_with(b"data: {"));
        assert!(last_event(*b"}]", &error).starts_with(b"\n\ndata: {"));
        assert!(last_event(*b"}\n", &error).ends_with(b"}\n\n"));
    }

    #[test]
    fn only_a_stream_sent_as_it_is_can_take_an_event() {
        let headers = |pairs: &[(http::HeaderName, &'static str)]| {
            pairs.iter().map(|(n, v)| (n.clone(), http::HeaderValue::from_static(v))).collect::<HeaderMap>()
        };
        let typed = (header::CONTENT_TYPE, "text/event-stream; charset=utf-8");
        assert!(is_plain_event_stream(&headers(std::slice::from_ref(&typed))));
        assert!(!is_plain_event_stream(&headers(&[typed, (header::CONTENT_ENCODING, "gzip")])));
        assert!(!is_plain_event_stream(&headers(&[(header::CONTENT_TYPE, "application/json")])));
        assert!(!is_plain_event_stream(&HeaderMap::new()));
    }
}
