//! Connections to engines, kept open between requests.
//!
//! A [`Link`] is driven by whoever uses it, in that one's own task: nothing is spawned, so a request that is dropped
//! closes its connection on the spot, and a byte takes no detour through another task.

use super::{gate::Upstream, socket::Socket};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

/// Longest time to connect. Engines are local: only a listen queue that stays full can take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a Unix socket whose listen queue is full is tried again; the kernel refuses instead of waiting.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);
/// Idle connections kept for each engine.
const IDLE_PER_ENGINE: usize = 256;
/// An idle connection is closed after this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest read from an engine at once, bytes; bounds the memory of one stream.
const READ_BUFFER: usize = 64 << 10;

/// A request as it is sent to an engine.
pub type EngineRequest = http::Request<Full<Bytes>>;
type Connection = http1::Connection<TokioIo<Socket>, Full<Bytes>>;

/// One connection to an engine.
pub struct Link {
    /// Takes requests.
    pub sender: http1::SendRequest<Full<Bytes>>,
    connection: Pin<Box<Connection>>,
    closed: bool,
    idle_since: Instant,
    /// Whether it has carried a request before, and so may have been closed by the engine meanwhile.
    pub used_before: bool,
}

impl Link {
    /// Connects to an engine.
    ///
    /// # Errors
    /// What `connect` says, or `TimedOut`.
    pub async fn connect(upstream: &Upstream) -> io::Result<Self> {
        let socket = timeout(CONNECT_TIMEOUT, connect(upstream))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_BUFFER)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(io::Error::other)?;
        let connection = Box::pin(connection);
        Ok(Self { sender, connection, closed: false, idle_since: Instant::now(), used_before: false })
    }

    /// Moves bytes both ways as far as they go. The task is woken when more can be done.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.closed = self.closed || self.connection.as_mut().poll(cx).is_ready();
    }

    /// Whether another request can be sent on it.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.closed && self.sender.is_ready()
    }

    /// The bare socket and what was read beyond the answer's head, after an upgrade.
    ///
    /// # Errors
    /// The connection broke before it was done.
    pub async fn into_upgraded(self) -> hyper::Result<(Socket, Bytes)> {
        let parts = Pin::into_inner(self.connection).without_shutdown().await?;
        Ok((parts.io.into_inner(), parts.read_buf))
    }
}

async fn connect(upstream: &Upstream) -> io::Result<Socket> {
    match upstream {
        Upstream::Tcp(address) => TcpStream::connect(address).await.map(Socket::tcp),
        Upstream::Unix(path) => loop {
            match UnixStream::connect(path).await {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(CONNECT_PAUSE).await,
                other => return other.map(Socket::Unix),
            }
        },
    }
}

/// The idle connections to every engine.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<Upstream, Vec<Link>>>,
}

impl Pool {
    /// The idle connection that was used last, if there is one that is still open.
    pub fn take(&self, upstream: &Upstream, cx: &mut Context<'_>) -> Option<Link> {
        let mut idle = self.idle.borrow_mut();
        let links = idle.get_mut(upstream)?;
        while let Some(mut link) = links.pop() {
            if link.is_ready(cx) {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    pub fn put(&self, upstream: &Upstream, mut link: Link, cx: &mut Context<'_>) {
        link.drive(cx); // lets the connection see that the exchange is over
        if link.closed {
            return;
        }
        link.idle_since = Instant::now();
        link.used_before = true;
        let mut idle = self.idle.borrow_mut();
        match idle.get_mut(upstream) {
            Some(links) if links.len() >= IDLE_PER_ENGINE => {}
            Some(links) => links.push(link),
            None => {
                idle.insert(upstream.clone(), vec![link]);
            }
        }
    }

    /// Closes what engines have closed and what was idle for too long.
    pub fn sweep(&self) {
        let mut cx = Context::from_waker(Waker::noop());
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, links| {
            links.retain_mut(|link| now - link.idle_since < IDLE_TIMEOUT && link.is_ready(&mut cx));
            !links.is_empty()
        });
    }
}
