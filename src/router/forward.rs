//! A request's way through: read, name, wait for the lease, send, stream back.
//!
//! All of it is one future in the task of the client's connection. When the client goes away hyper drops it, wherever
//! it stands: a place in the queue is given up, an exchange is cancelled or drained.

use super::{
    Router,
    body::Body,
    errors::{ApiError, Dialect},
    exchange::Exchange,
    gate::{Lease, LocalFuture},
    headers::{self, Stamp},
    intake, multipart, peek,
    pool::{EngineRequest, Link},
    rewrite,
    routes::Payload,
    stream::{Awaited, EngineStream, Silence, Stop},
};
use crate::observe::metrics::Arrival;
use bytes::Bytes;
use http::{Method, Request, Response, Uri, Version, request, uri::PathAndQuery};
use http_body_util::Full;
use hyper::body::Incoming;
use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::sync::watch;

/// Answers a request that names its model in its body.
///
/// # Errors
/// Whatever keeps an answer from beginning.
pub async fn forward(
    router: &Rc<Router>,
    mut head: request::Parts,
    target: PathAndQuery,
    mut body: Incoming,
    payload: Payload,
    arrival: &mut Arrival,
) -> Result<Response<Body>, ApiError> {
    let dialect = Dialect::of(target.path());
    let whole = intake::read(&mut body, router.bounds()).await?;
    let named = match multipart::boundary(&head.headers) {
        Some(boundary) if payload == Payload::Form => multipart::find(&whole, boundary)?,
        _ => peek::json(&whole)?,
    };
    let is_json = matches!(whole.get(named.place.start), Some(b'"'));
    let known = router.known(&named.model);
    arrival.model(known.map(|k| k.metrics.clone()));

    let lease = router.gate.clone().lease(&named.model).await;
    let lease = lease.map_err(|denied| ApiError::denied(&named.model, denied))?;
    arrival.dispatched(lease.waited, lease.swapping);

    let body = if *lease.served_name == *named.model {
        whole.clone()
    } else if is_json {
        rewrite::splice(&whole, named.place, &rewrite::json_string(&lease.served_name))
    } else {
        rewrite::splice(&whole, named.place, lease.served_name.as_bytes())
    };
    let stamp = Stamp::new(&lease, known.map(|k| k.header.clone()), headers::request_id(&head.headers));
    headers::for_engine(&mut head.headers, &lease)?;
    let request = Outgoing { method: head.method, uri: target.into(), headers: head.headers, body };

    let mut stop = stopped(lease.lost.clone(), router.ending.clone());
    let mut first = router.silence(known, router.config.first_byte_timeout, Awaited::Head);
    let (mut answer, exchange) = send(router, lease, request, &mut stop, &mut first).await?;
    drop(first);
    let silence = router.silence(known, router.config.idle_stream_timeout, Awaited::More);

    if answer.status.is_informational() {
        let status = answer.status;
        return Err(ApiError::engine_failed(format!("the engine answered {status}, which nobody asked for")));
    }
    stamp.for_client(&mut answer.headers);
    answer.version = Version::HTTP_11;
    let account = arrival.first_byte();
    let stream = EngineStream::new(exchange, &answer.headers, stop, silence, account, dialect);
    Ok(Response::from_parts(answer, Body::Stream(Box::new(stream))))
}

/// A request that can be sent again.
pub struct Outgoing {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// Headers, made an engine's.
    pub headers: http::HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Outgoing {
    fn build(self) -> EngineRequest {
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }

    fn copy(&self) -> Self {
        let Self { method, uri, headers, body } = self;
        Self { method: method.clone(), uri: uri.clone(), headers: headers.clone(), body: body.clone() }
    }
}

/// Resolves when the engine is lost or the run ends.
pub fn stopped(mut lost: watch::Receiver<bool>, mut ending: watch::Receiver<bool>) -> LocalFuture<Stop> {
    Box::pin(async move {
        tokio::select! {
            biased;
            Ok(_) = lost.wait_for(|lost| *lost) => Stop::EngineLost,
            Ok(_) = ending.wait_for(|ending| *ending) => Stop::RunEnding,
            else => std::future::pending().await,
        }
    })
}

/// Sends a request under a lease until an answer begins.
///
/// A connection that was idle may have been closed by the engine just now: what fails on one before an answer began is
/// sent once more on a new one.
pub async fn send(
    router: &Router,
    lease: Lease,
    request: Outgoing,
    stop: &mut LocalFuture<Stop>,
    first: &mut Option<Silence>,
) -> Result<(http::response::Parts, Exchange), ApiError> {
    let pooled = poll_fn(|cx| Poll::Ready(router.exchanges.pool.take(&lease.upstream, cx))).await;
    let (lease, request) = match pooled {
        None => (lease, request),
        Some(link) => {
            let again = request.copy();
            let mut exchange = Exchange::begin(router.exchanges.clone(), link, lease, request.build());
            match head(&mut exchange, stop, first).await? {
                Ok(answer) => return Ok((answer, exchange)),
                Err(e) if e.is_parse() => return Err(no_answer(&e)),
                Err(e) => match exchange.give_up() {
                    Some(lease) => (lease, again),
                    None => return Err(no_answer(&e)),
                },
            }
        }
    };
    let link = tokio::select! {
        link = Link::connect(&lease.upstream) => link.map_err(|e| {
            ApiError::engine_failed(format!("the engine can't be reached: {e}"))
        })?,
        stop = &mut *stop => return Err(stop.error()),
        error = poll_fn(|cx| too_long(first, cx)) => return Err(error),
    };
    let mut exchange = Exchange::begin(router.exchanges.clone(), link, lease, request.build());
    match head(&mut exchange, stop, first).await? {
        Ok(answer) => Ok((answer, exchange)),
        Err(e) => Err(no_answer(&e)),
    }
}

async fn head(
    exchange: &mut Exchange,
    stop: &mut LocalFuture<Stop>,
    first: &mut Option<Silence>,
) -> Result<hyper::Result<http::response::Parts>, ApiError> {
    poll_fn(|cx| {
        if let Poll::Ready(answer) = exchange.poll_head(cx) {
            return Poll::Ready(Ok(answer));
        }
        if let Poll::Ready(stop) = stop.as_mut().poll(cx) {
            return Poll::Ready(Err(stop.error()));
        }
        let error = ready!(too_long(first, cx));
        // An engine that hangs is not read to its end, whatever it bears: the lease would be held for ever.
        exchange.abandon();
        Poll::Ready(Err(error))
    })
    .await
}

/// Ready when the engine should have begun to answer.
fn too_long(first: &mut Option<Silence>, cx: &mut Context<'_>) -> Poll<ApiError> {
    first.as_mut().map_or(Poll::Pending, |silence| silence.poll_too_long(cx))
}

fn no_answer(e: &hyper::Error) -> ApiError {
    ApiError::engine_failed(format!("the engine closed the connection before it answered: {e}"))
}
