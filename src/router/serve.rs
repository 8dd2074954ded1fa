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
    newcomers::Newcomer,
    own,
    patient::Patient,
    routes,
    routes::{NoRoute, Target},
    socket::Socket,
    upgrade,
};
use crate::observe::metrics::{Arrival, OpenConnection};
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
    permit: OwnedSemaphorePermit,
    mut ending: watch::Receiver<bool>,
) {
    let client = Rc::new(Client {
        seat: Arc::new(Seat { _permit: permit, _counted: router.metrics.connection() }),
        // Nobody else reaches the Unix socket.
        newcomer: matches!(socket, Socket::Tcp(_)).then(|| router.newcomers.enter()),
    });
    let service = {
        let (router, client) = (router.clone(), client.clone());
        service_fn(move |request| answer(router.clone(), client.clone(), request))
    };
    let patience = router.config.client_timeout;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(router.config.header_timeout)
        .max_header_size(LARGEST_HEAD)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(Patient::new(socket, patience)), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let has_to_leave = async {
        match &client.newcomer {
            Some(newcomer) => newcomer.has_to_leave().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = has_to_leave => return,
        _ = ending.wait_for(|ending| *ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a client's connection ended");
    }
}

/// A client's connection, as its requests know it.
struct Client {
    seat: Arc<Seat>,
    /// Until it has shown the key.
    newcomer: Option<Newcomer>,
}

/// A place among the connections; who upgrades takes it along.
pub struct Seat {
    _permit: OwnedSemaphorePermit,
    _counted: OpenConnection,
}

async fn answer(
    router: Rc<Router>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut arrival = Arrival::now();
    let dialect = Dialect::of(request.uri().path());
    let answer = route(&router, &client, request, &mut arrival).await;
    let response = answer.unwrap_or_else(|error| error.told_in(dialect).into_response());
    arrival.answered(&router.metrics, response.status());
    Ok(response)
}

async fn route(
    router: &Rc<Router>,
    client: &Client,
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
        if let Some(newcomer) = &client.newcomer {
            newcomer.is_known();
        }
    }
    match found {
        Target::Forward(payload) => {
            forward::forward(router, head, target.clone(), body, payload, arrival).await
        }
        Target::Realtime => {
            upgrade::realtime(router, head, target.clone(), client.seat.clone(), arrival).await
        }
        own => own::answer(router, own, body).await,
    }
}
