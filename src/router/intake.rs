//! Reads a request's body into memory: not more than the limit, not slower than a bound.

use super::errors::ApiError;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A client must send its body at least this fast, in bytes a second, after a first grace.
const SLOWEST: u64 = 16 << 10;
/// Reserved at first, whatever length a client announces.
const FIRST_BUFFER: usize = 256 << 10;
/// Of a body that is too large, this much more is read and dropped, so that the client gets to see the refusal: most
/// clients send everything before they look.
const DISCARDED: u64 = 16 << 20;

/// What a body may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Largest size, bytes.
    pub max_body: u64,
    /// Time for the first 16 KiB; each further 16 KiB gives another second.
    pub grace: Duration,
}

/// Reads the whole body.
///
/// # Errors
/// 413 past the limit, 408 where it comes too slowly, 400 where it breaks off.
pub async fn read(body: &mut Incoming, bounds: Bounds) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > bounds.max_body {
        return Err(too_large(body, bounds).await);
    }
    let begun = Instant::now();
    let Some(first) = next(body, begun + bounds.grace).await? else { return Ok(Bytes::new()) };
    if body.is_end_stream() && first.len() as u64 <= bounds.max_body {
        return Ok(first); // the common case: one buffer, not copied
    }
    let announced = body.size_hint().lower() as usize;
    let mut whole = BytesMut::with_capacity(first.len() + announced.min(FIRST_BUFFER));
    whole.extend_from_slice(&first);
    loop {
        if whole.len() as u64 > bounds.max_body {
            return Err(too_large(body, bounds).await);
        }
        let earned = Duration::from_secs(whole.len() as u64 / SLOWEST);
        match next(body, begun + bounds.grace + earned).await? {
            Some(more) => whole.extend_from_slice(&more),
            None => return Ok(whole.freeze()),
        }
    }
}

/// The next bytes; `None` at the end.
async fn next(body: &mut Incoming, deadline: Instant) -> Result<Option<Bytes>, ApiError> {
    loop {
        // The timer is only armed if the bytes are not there yet.
        match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
            Ok(Some(Err(e))) => {
                return Err(ApiError::bad_request(format!("the request's body broke off: {e}")));
            }
            Ok(None) => return Ok(None),
            Err(_elapsed) => return Err(ApiError::body_timeout()),
        }
    }
}

async fn too_large(body: &mut Incoming, bounds: Bounds) -> ApiError {
    let deadline = Instant::now() + bounds.grace;
    let mut dropped = 0;
    while dropped < DISCARDED {
        match next(body, deadline).await {
            Ok(Some(data)) => dropped += data.len() as u64,
            Ok(None) | Err(_) => break,
        }
    }
    ApiError::body_too_large(bounds.max_body)
}
