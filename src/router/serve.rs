//! Accepts clients, checks each request, and hands it to what answers it.

use super::{
    Router, RouterConfig,
    body::Body,
    errors::{ApiError, Dialect},
    exchange,
    exchange::Exchanges,
    forward,
    gate::Gate,
    headers,
    listen::Listeners,
    own, routes,
    routes::{NoRoute, Target},
    socket::Socket,
    upgrade,
};
use crate::observe::metrics::Arrival;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::Future, pin::pin, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_local,
    time::{MissedTickBehavior, interval, timeout},
};

/// Largest head of a request, bytes.
const LARGEST_HEAD: usize = 32 << 10;
/// Largest read at once, bytes; bounds the memory of one connection.
const READ_BUFFER: usize = 64 << 10;
/// How often connections that engines have closed are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// Serves until `shutdown` resolves and the last connection has ended.
///
/// From then on nothing is accepted, and answers that are still on their way end with an error; to let them finish
/// first, let the gate refuse new requests and resolve `shutdown` later. Runs inside a `LocalSet`.
pub async fn serve(
    listeners: Listeners,
    gate: Rc<dyn Gate>,
    config: RouterConfig,
    shutdown: impl Future<Output = ()>,
) {
    let (end, ending) = watch::channel(false);
    let (exchanges, abandoned) = Exchanges::new();
    let close_grace = config.close_grace;
    let router = Rc::new(Router::new(gate, config, exchanges, ending.clone()));
    let drainer = spawn_local(exchange::drain(abandoned));
    // Every connection holds a permit; when all can be had, none is open.
    let permits = router.config.max_connections;
    let free = Arc::new(Semaphore::new(permits as usize));
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            (socket, permit) = next(&listeners, &free) => {
                spawn_local(connection(router.clone(), socket, permit, ending.clone()));
            }
            _ = sweep.tick() => router.exchanges.pool.sweep(),
        }
    }
    drop(listeners);
    end.send_replace(true);
    // Err is a client that doesn't read: its connection ends with the runtime.
    let _ = timeout(close_grace, free.acquire_many(permits)).await;
    drainer.abort();
}

/// The next client, as soon as there is room for one.
async fn next(listeners: &Listeners, free: &Arc<Semaphore>) -> (Socket, OwnedSemaphorePermit) {
    let permit = free.clone().acquire_owned().await.expect("the semaphore is never closed");
    (listeners.accept().await, permit)
}

async fn connection(
    router: Rc<Router>,
    socket: Socket,
    _permit: OwnedSemaphorePermit,
    mut ending: watch::Receiver<bool>,
) {
    let _counted = router.metrics.connection();
    let service = {
        let router = router.clone();
        service_fn(move |request| answer(router.clone(), request))
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(router.config.header_timeout)
        .max_header_size(LARGEST_HEAD)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = ending.wait_for(|ending| *ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a client's connection ended");
    }
}

async fn answer(router: Rc<Router>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let mut arrival = Arrival::now();
    let dialect = Dialect::of(request.uri().path());
    let answer = route(&router, request, &mut arrival).await;
    let response = answer.unwrap_or_else(|error| error.told_in(dialect).into_response());
    arrival.answered(&router.metrics, response.status());
    Ok(response)
}

async fn route(
    router: &Rc<Router>,
    request: Request<Incoming>,
    arrival: &mut Arrival,
) -> Result<Response<Body>, ApiError> {
    let (head, body) = request.into_parts();
    let target = headers::target(&head)?.clone();
    let path = target.path();
    let found = routes::find(&head.method, path).map_err(|missing| match missing {
        NoRoute::Path => ApiError::unknown_path(&head.method, path),
        NoRoute::Method => ApiError::method_not_allowed(&head.method, path),
    })?;
    if let (Some(key), true) = (&router.config.key, found != Target::Health) {
        key.check(&head.headers)?;
    }
    match found {
        Target::Forward(payload) => {
            forward::forward(router, head, target.clone(), body, payload, arrival).await
        }
        Target::Realtime => upgrade::realtime(router, head, target.clone(), arrival).await,
        own => own::answer(router, own, body).await,
    }
}
