//! Which headers pass, which stop here, and which are added.

use super::{errors::ApiError, gate::Lease};
use http::{HeaderMap, HeaderName, HeaderValue, header, request, uri::PathAndQuery};
use smallvec::SmallVec;

/// From arrival to dispatch, milliseconds.
const JOB_ENDS_IN: HeaderName = HeaderName::from_static("x-swapserve-job-ends-in");
const QUEUE_MS: HeaderName = HeaderName::from_static("x-swapserve-queue-ms");
/// The part of it in which the model was swapped in, milliseconds.
const SWAP_MS: HeaderName = HeaderName::from_static("x-swapserve-swap-ms");
/// The model's own name, where the request gave an alias.
const MODEL: HeaderName = HeaderName::from_static("x-swapserve-model");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers that belong to one connection, not to the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers of a request that end at the router: credentials, what the router decides anew, and by what some servers let
/// a client ask for another method or path than the request line's.
const ENDS_HERE: [HeaderName; 12] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    header::PROXY_AUTHORIZATION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

/// Refuses a request whose target could be read in two ways, and gives its path and query.
///
/// # Errors
/// 400 for several `Host` headers, or an absolute target (`GET http://other/…`) that names another host.
pub fn target(head: &request::Parts) -> Result<&PathAndQuery, ApiError> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(ApiError::bad_request("the request has more than one Host header"));
    }
    if let Some(authority) = head.uri.authority() {
        let same = host.is_some_and(|h| h.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
        if head.uri.scheme().is_none() || !same {
            return Err(ApiError::bad_request(
                "the request's target names another host than its Host header",
            ));
        }
    }
    head.uri.path_and_query().ok_or_else(|| ApiError::bad_request("the request's target has no path"))
}

/// Makes a client's headers an engine's: connection headers and the client's key go, the engine's key comes.
pub fn for_engine(headers: &mut HeaderMap, lease: &Lease) -> Result<(), ApiError> {
    remove_hop_by_hop(headers);
    for name in &ENDS_HERE {
        headers.remove(name);
    }
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    if let Some(key) = &lease.engine_key {
        let mut value = HeaderValue::try_from(format!("Bearer {key}"))
            .map_err(|_| ApiError::engine_failed("the engine's own key can't be sent in a header"))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(())
}

/// What the router adds to an answer, known when the lease is granted.
pub struct Stamp {
    job_ends_in: Option<HeaderValue>,
    queue_ms: HeaderValue,
    swap_ms: HeaderValue,
    model: Option<HeaderValue>,
    request_id: HeaderValue,
}

impl Stamp {
    /// For an answer under `lease` to a request that carried `client_id` as its `x-request-id`.
    pub fn new(lease: &Lease, model: Option<HeaderValue>, client_id: Option<HeaderValue>) -> Self {
        let number = |n| HeaderValue::from(u64::try_from(n).unwrap_or(u64::MAX));
        let own_id = || {
            HeaderValue::try_from(format!("swapserve-{}", lease.request.0))
                .expect("letters, a dash and digits")
        };
        Self {
            job_ends_in: lease.job_ends.map(|left| number(left.as_secs().into())),
            queue_ms: number(lease.waited.as_millis()),
            swap_ms: number(lease.swapping.as_millis()),
            model,
            request_id: client_id.unwrap_or_else(own_id),
        }
    }

    /// Makes an engine's headers a client's.
    pub fn for_client(self, headers: &mut HeaderMap) {
        remove_hop_by_hop(headers);
        // The server sets it anew, to what the body really is: an engine may announce a length beside chunks, or for an
        // answer that has no body.
        headers.remove(header::CONTENT_LENGTH);
        self.add(headers);
    }

    /// Adds what the router knows; an engine's own request id stays.
    pub fn add(self, headers: &mut HeaderMap) {
        if let Some(seconds) = self.job_ends_in {
            headers.insert(JOB_ENDS_IN, seconds);
        }
        headers.insert(QUEUE_MS, self.queue_ms);
        headers.insert(SWAP_MS, self.swap_ms);
        if let Some(model) = self.model {
            headers.insert(MODEL, model);
        }
        headers.entry(REQUEST_ID).or_insert(self.request_id);
    }
}

/// The client's own id for its request.
pub fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(REQUEST_ID).cloned()
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // There may be several, each a list.
    let listed: SmallVec<[HeaderValue; 1]> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    for name in listed.iter().flat_map(|list| list.as_bytes().split(|b| *b == b',')) {
        if let Ok(name) = HeaderName::from_bytes(name.trim_ascii()) {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}
