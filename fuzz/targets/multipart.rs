//! The field `model` of a form. The first line of the bytes is the `Content-Type`, the rest is the body.

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{HeaderMap, HeaderValue, header};
use std::convert::Infallible;
use swapserve::router::{multipart, rewrite};

pub fn run(data: &[u8]) {
    let (kind, body) = data.split_at(data.iter().position(|b| *b == b'\n').unwrap_or(0));
    let body = body.get(1..).unwrap_or_default();
    let Ok(kind) = HeaderValue::from_bytes(kind) else { return };
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
    let Some(boundary) = multipart::boundary(&headers) else { return };
    let Ok(named) = multipart::find(body, boundary) else { return };
    assert!(named.place.start <= named.place.end && named.place.end <= body.len());
    assert_eq!(named.model.as_bytes(), &body[named.place.clone()]);
    if named.model.is_empty() {
        return; // no model has that name, so nothing is rewritten
    }
    let changed = rewrite::splice(body, named.place.clone(), b"another");
    assert_eq!(multipart::find(&changed, boundary).expect("it is still a form").model, "another");
    // Readers differ in how broken a form they still take for one; they must not differ in what it names.
    if let [model] = &as_multer_reads(body, boundary).unwrap_or_default()[..] {
        assert_eq!(named.model.as_bytes(), &model[..]);
    }
}

/// The fields `model` of a form, as multer reads it; `None` where it finds the form malformed.
fn as_multer_reads(body: &[u8], boundary: &str) -> Option<Vec<Bytes>> {
    let whole = Bytes::copy_from_slice(body);
    let mut form = multer::Multipart::new(stream::iter([Ok::<_, Infallible>(whole)]), boundary);
    let mut models = Vec::new();
    let read = async {
        while let Some(field) = form.next_field().await.ok()? {
            let is_model = field.name() == Some("model");
            let value = field.bytes().await.ok()?;
            if is_model {
                models.push(value);
            }
        }
        Some(())
    };
    read.now_or_never().flatten()?;
    Some(models)
}
