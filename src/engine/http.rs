//! One request over one connection, with a deadline: for the engine's control endpoints and its probe.
//!
//! Connections are not kept: a Unix or loopback connect costs some tens of microseconds, and a connection that lived
//! through a swap would be one more thing to be wrong afterwards. Requests of users go through the router's own pool.

use crate::router::gate::Upstream;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// Answers longer than this are refused: no control endpoint comes near.
const LONGEST_ANSWER: usize = 32 << 20;

/// What is asked.
pub(super) struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub headers: &'a [(&'a str, String)],
    pub body: Vec<u8>,
    pub key: Option<&'a str>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON; `Null` where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The beginning of the body, for an error message.
    pub fn excerpt(&self) -> String {
        const LONGEST: usize = 400;
        let text = String::from_utf8_lossy(&self.body);
        let text = text.trim();
        match text.char_indices().nth(LONGEST) {
            Some((cut, _)) => format!("{}…", &text[..cut]),
            None => text.to_owned(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The engine was not launched, or was stopped.
    #[error("the engine is not running")]
    NotRunning,
    /// Nobody accepts connections there.
    #[error("cannot connect to {at}: {source}")]
    Connect {
        /// The address.
        at: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("{method} {path}: {source}")]
    Broken {
        /// The request's method.
        method: Method,
        /// Its path.
        path: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No whole answer in time.
    #[error("{method} {path}: no answer within {} ms", after.as_millis())]
    Timeout {
        /// The request's method.
        method: Method,
        /// Its path.
        path: String,
        /// The time it had.
        after: Duration,
    },
}

/// Sends one request and reads the whole answer, all of it within `limit`.
pub(super) async fn send(to: &Upstream, call: Call<'_>, limit: Duration) -> Result<Reply, ControlError> {
    let (method, path) = (call.method.clone(), call.path.to_owned());
    match timeout(limit, connect_and_send(to, call)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ControlError::Timeout { method, path, after: limit }),
    }
}

async fn connect_and_send(to: &Upstream, call: Call<'_>) -> Result<Reply, ControlError> {
    match to {
        Upstream::Unix(path) => {
            let failed = |source| ControlError::Connect { at: path.display().to_string(), source };
            exchange(UnixStream::connect(path).await.map_err(failed)?, call).await
        }
        Upstream::Tcp(at) => {
            let failed = |source| ControlError::Connect { at: at.to_string(), source };
            let stream = TcpStream::connect(at).await.map_err(failed)?;
            let _ = stream.set_nodelay(true);
            exchange(stream, call).await
        }
    }
}

async fn exchange<S>(stream: S, call: Call<'_>) -> Result<Reply, ControlError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (method, path) = (call.method.clone(), call.path.to_owned());
    let broken =
        |source: Box<dyn std::error::Error + Send + Sync>| ControlError::Broken { method, path, source };
    let outcome = async {
        let request = request(call)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
            Ok(Reply { status: head.status, body })
        };
        // The connection is driven here and not spawned, so that a dropped call closes it at once. When it ends, the
        // answer is complete or has an error of its own.
        let drive = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = answer => answer,
            () = drive => unreachable!("it never comes back"),
        }
    };
    outcome.await.map_err(broken)
}

fn request(call: Call<'_>) -> Result<Request<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = Request::builder().method(call.method).uri(call.path).header(header::HOST, "localhost");
    if !call.body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    for (name, value) in call.headers {
        request = request.header(*name, value);
    }
    if let Some(key) = call.key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}"))?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    Ok(request.body(Full::new(Bytes::from(call.body)))?)
}
