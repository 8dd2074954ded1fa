//! Finds the field `model` in a multipart form that is in memory already (RFC 7578).

use super::{errors::ApiError, peek::Named};
use http::{HeaderMap, header};
use memchr::memmem;
use std::{borrow::Cow, ops::Range, str};

/// The boundary of a `multipart/form-data` body; `None` if the headers announce another type.
pub fn boundary(headers: &HeaderMap) -> Option<&str> {
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(parameters, "boundary").filter(|b| !b.is_empty() && b.len() <= 70)
}

/// Finds the field `model`.
///
/// # Errors
/// 400 where the form is malformed, has no such field, more than one, or one that is not text.
pub fn find<'b>(body: &'b [u8], boundary: &str) -> Result<Named<'b>, ApiError> {
    let mut found = None;
    for part in parts(body, boundary)? {
        if is_model(&body[part.head]) && found.replace(part.value).is_some() {
            return Err(ApiError::bad_model("the form has more than one field `model`"));
        }
    }
    let place = found.ok_or_else(|| ApiError::bad_model("you must provide a model parameter"))?;
    let model = str::from_utf8(&body[place.clone()])
        .map_err(|_| ApiError::bad_model("the form's field `model` is not text"))?;
    Ok(Named { model: Cow::Borrowed(model), place })
}

/// Where one part's headers and value stand.
struct Part {
    head: Range<usize>,
    value: Range<usize>,
}

fn parts(body: &[u8], boundary: &str) -> Result<Vec<Part>, ApiError> {
    let malformed = |what| ApiError::bad_request(format!("the request's form is malformed: {what}"));
    let delimiter = format!("\r\n--{boundary}");
    let finder = memmem::Finder::new(delimiter.as_bytes());
    // The first delimiter may stand at the very beginning, without its line break.
    let mut at = if body.starts_with(&delimiter.as_bytes()[2..]) {
        delimiter.len() - 2
    } else {
        finder.find(body).ok_or_else(|| malformed("its boundary does not occur"))? + delimiter.len()
    };
    let mut parts = Vec::new();
    loop {
        if body[at..].starts_with(b"--") {
            return Ok(parts);
        }
        let line_end =
            memmem::find(&body[at..], b"\r\n").ok_or_else(|| malformed("it ends in a boundary"))?;
        if !body[at..at + line_end].trim_ascii().is_empty() {
            return Err(malformed("a boundary is followed by other bytes"));
        }
        let head = at + line_end; // the line break is kept, so that a part without headers ends in a blank line too
        let blank = memmem::find(&body[head..], b"\r\n\r\n").ok_or_else(|| malformed("a part has no end"))?;
        let value = head + blank + 4;
        let end = finder.find(&body[value - 2..]).ok_or_else(|| malformed("the last boundary is missing"))?;
        // An empty value shares its line break with the blank line above it.
        let value_end = (value - 2 + end).max(value);
        parts.push(Part { head: head..head + blank, value: value..value_end });
        at = value - 2 + end + delimiter.len();
    }
}

/// Whether a part's headers name the field `model`.
fn is_model(head: &[u8]) -> bool {
    let Ok(head) = str::from_utf8(head) else { return false };
    head.split("\r\n").filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("content-disposition")
            && value.split_once(';').is_some_and(|(_, p)| parameter(p, "name") == Some("model"))
    })
}

/// A parameter of a header: `a=b; name="value"`.
fn parameter<'h>(mut rest: &'h str, wanted: &str) -> Option<&'h str> {
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, next) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => {
                let (value, next) = quoted.split_once('"')?;
                (value, next.split_once(';').map_or("", |(_, n)| n))
            }
            None => {
                let (value, next) = after.split_once(';').unwrap_or((after, ""));
                (value.trim(), next)
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> String {
        let part = |(name, value): &(&str, &str)| {
            format!("--X\r\nContent-Disposition: form-data; {name}\r\n\r\n{value}\r\n")
        };
        parts.iter().map(part).collect::<String>() + "--X--\r\n"
    }

    #[test]
    fn the_field_is_found_among_files() {
        let body =
            form(&[("name=\"file\"; filename=\"model\"", "\0\u{1}--X"), ("name=\"model\"", "whisper")]);
        let named = find(body.as_bytes(), "X").unwrap();
        assert_eq!(named.model, "whisper");
        assert_eq!(&body[named.place], "whisper");
    }

    #[test]
    fn an_empty_value_is_a_value() {
        let body = form(&[("name=model", ""), ("name=\"b\"", "2")]);
        assert_eq!(find(body.as_bytes(), "X").unwrap().model, "");
    }

    #[test]
    fn a_form_that_cannot_be_routed_says_why() {
        let refusal = |body: &str| find(body.as_bytes(), "X").unwrap_err().json();
        assert!(refusal(&form(&[("name=\"n\"", "1")])).contains("must provide a model"));
        assert!(
            refusal(&form(&[("name=\"model\"", "a"), ("name=\"model\"", "b")])).contains("more than one")
        );
        for body in ["", "--X", "--X\r\n", "--Xy\r\n\r\n", "--X\r\nA: b\r\n\r\nvalue", "nothing"] {
            assert!(refusal(body).contains("malformed"), "{body:?}");
        }
    }

    #[test]
    fn the_boundary_is_read_from_the_type() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(value));
            boundary(&headers).map(str::to_owned)
        };
        assert_eq!(of("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(of("Multipart/Form-Data; charset=utf-8; Boundary=\"a;b\"").as_deref(), Some("a;b"));
        assert_eq!(of("application/json; boundary=abc"), None);
        assert_eq!(of("multipart/form-data"), None);
    }
}
