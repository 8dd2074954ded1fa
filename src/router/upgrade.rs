//! `/v1/realtime`: a WebSocket to the engine of the model that the query names, bytes piped both ways.

use super::{
    Router,
    body::Body,
    errors::{ApiError, Dialect},
    forward::{Outgoing, send, stopped},
    gate::{Lease, LocalFuture},
    headers::{self, Stamp},
    percent,
    pool::Link,
    serve::Seat,
    socket::Socket,
    stream::{Awaited, Stop},
};
use crate::observe::metrics::{Arrival, OpenStream};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header, request, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use std::{rc::Rc, sync::Arc};
use tokio::{
    io::{AsyncWriteExt, copy},
    time::sleep,
};

/// After a client has closed its half, time for the engine to close its own.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Answers a WebSocket handshake with the engine's own answer to it.
///
/// # Errors
/// Whatever keeps the handshake from reaching an engine. An engine's refusal is passed on as it is.
pub async fn realtime(
    router: &Rc<Router>,
    mut head: request::Parts,
    target: PathAndQuery,
    seat: Arc<Seat>,
    arrival: &mut Arrival,
) -> Result<Response<Body>, ApiError> {
    let upgrade = requested(&head.headers)?;
    let client = head.extensions.remove::<OnUpgrade>();
    let client = client.ok_or_else(|| ApiError::bad_request("the connection can't be upgraded"))?;
    let name = model(target.query().unwrap_or(""))?;
    let known = router.known(&name);
    arrival.model(known.map(|k| k.metrics.clone()));

    let lease = router.gate.clone().lease(&name).await.map_err(|denied| ApiError::denied(&name, denied))?;
    arrival.dispatched(lease.waited, lease.swapping);
    let stamp = Stamp::new(&lease, known.map(|k| k.header.clone()), headers::request_id(&head.headers));
    let uri = if *lease.served_name == *name { target.into() } else { renamed(&target, &lease.served_name)? };
    headers::for_engine(&mut head.headers, &lease)?;
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(header::UPGRADE, upgrade.clone());

    let mut stop = stopped(lease.lost.clone(), router.ending.clone());
    let request = Outgoing { method: head.method, uri, headers: head.headers, body: Bytes::new() };
    let mut first = router.silence(known, router.config.first_byte_timeout, Awaited::Head);
    let (mut answer, exchange) = send(router, lease, request, &mut stop, &mut first).await?;
    stamp.for_client(&mut answer.headers);
    if answer.status != StatusCode::SWITCHING_PROTOCOLS {
        let account = arrival.first_byte();
        let stream =
            super::stream::EngineStream::new(exchange, &answer.headers, stop, None, account, Dialect::OpenAi);
        return Ok(Response::from_parts(answer, Body::Stream(Box::new(stream))));
    }
    answer.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers.insert(header::UPGRADE, upgrade);
    let Some((link, lease)) = exchange.into_upgrade() else {
        return Err(ApiError::engine_failed("the engine closed the connection in the handshake"));
    };
    tokio::task::spawn_local(pipe(client, link, (lease, seat), stop, arrival.first_byte()));
    Ok(Response::from_parts(answer, Body::empty()))
}

/// The `Upgrade` header of a WebSocket handshake (RFC 6455, 4.1).
fn requested(headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    match headers.get(header::UPGRADE) {
        Some(to) if to.as_bytes().eq_ignore_ascii_case(b"websocket") => Ok(to.clone()),
        _ => Err(ApiError::bad_request("/v1/realtime is a WebSocket: the request must ask for that upgrade")),
    }
}

/// The query's one `model`.
fn model(query: &str) -> Result<String, ApiError> {
    let mut values = query.split('&').filter_map(|pair| pair.strip_prefix("model="));
    let value = values.next().ok_or_else(|| ApiError::bad_model("you must provide a model in the query"))?;
    if values.next().is_some() {
        return Err(ApiError::bad_model("the query names `model` more than once"));
    }
    percent::decode(value).ok_or_else(|| ApiError::bad_model("the model's name in the query is not text"))
}

/// The target with another model in its query.
fn renamed(target: &PathAndQuery, served_name: &Arc<str>) -> Result<Uri, ApiError> {
    let pair = |pair: &str| match pair.strip_prefix("model=") {
        Some(_) => format!("model={}", percent::encode(served_name)),
        None => pair.to_owned(),
    };
    let query = target.query().unwrap_or("").split('&').map(pair).collect::<Vec<_>>().join("&");
    let renamed = format!("{}?{query}", target.path());
    renamed.parse().map_err(|e| ApiError::bad_request(format!("the query can't be passed on: {e}")))
}

/// Copies both ways until one side ends, the engine is lost, or the run ends.
async fn pipe(
    client: OnUpgrade,
    link: Link,
    held: (Lease, Arc<Seat>),
    mut stop: LocalFuture<Stop>,
    account: OpenStream,
) {
    let work = async {
        let (mut engine, early) = link.into_upgraded().await.map_err(std::io::Error::other)?;
        let mut client = TokioIo::new(client.await.map_err(std::io::Error::other)?);
        client.write_all(&early).await?;
        pipe_bytes(&mut client, &mut engine, &account, early.len()).await
    };
    tokio::select! {
        done = work => if let Err(e) = done {
            tracing::debug!(error = %e, "a realtime session broke off");
        },
        _ = &mut stop => account.failed(),
    }
    drop(held);
}

async fn pipe_bytes(
    client: &mut TokioIo<hyper::upgrade::Upgraded>,
    engine: &mut Socket,
    account: &OpenStream,
    early: usize,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_engine, mut to_engine) = tokio::io::split(engine);
    let upwards = async {
        copy(&mut from_client, &mut to_engine).await?;
        to_engine.shutdown().await?;
        // Whoever closes his half has gone away; the engine's last words may be on their way.
        sleep(LAST_WORDS).await;
        Ok(0)
    };
    let downwards = async {
        let sent = copy(&mut from_engine, &mut to_client).await?;
        to_client.shutdown().await?;
        Ok::<u64, std::io::Error>(sent)
    };
    let sent = tokio::select! {
        ended = upwards => ended,
        ended = downwards => ended,
    }?;
    account.sent(sent as usize + early);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_names_one_model() {
        assert_eq!(model("model=org%2Fvoice&x=1").unwrap(), "org/voice");
        assert!(model("").is_err());
        assert!(model("xmodel=a").is_err());
        assert!(model("model=a&model=b").is_err());
        assert!(model("model=%zz").is_err());
    }

    #[test]
    fn another_name_leaves_the_rest_of_the_query_alone() {
        let target = PathAndQuery::from_static("/v1/realtime?a=%20&model=alias&b");
        let uri = renamed(&target, &Arc::from("org/voice")).unwrap();
        assert_eq!(uri.to_string(), "/v1/realtime?a=%20&model=org%2Fvoice&b");
    }
}
