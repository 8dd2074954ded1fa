//! Finds the field `model` in a multipart form that is in memory already (RFC 7578).
//!
//! Forms are read strictly. Readers differ in what they make of a header that is doubled, folded or not quoted properly, and
//! an engine that read another name than the router would have been routed to by a trick: such a form is refused.

use super::{errors::ApiError, peek::Named};
use http::{HeaderMap, header};
use memchr::memmem;
use std::{borrow::Cow, ops::Range, str};

/// The boundary of a `multipart/form-data` body; `None` if the headers announce another type, or one that has two readings.
pub fn boundary(headers: &HeaderMap) -> Option<&str> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let content_type = types.next().filter(|_| types.next().is_none())?.to_str().ok()?;
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    only(parameters, "boundary").ok()?.filter(|b| !b.is_empty() && b.len() <= 70 && !b.contains(['"', '\\']))
}

/// Finds the field `model`.
///
/// # Errors
/// 400 where the form is malformed, has no such field, more than one, or one that is not text.
pub fn find<'b>(body: &'b [u8], boundary: &str) -> Result<Named<'b>, ApiError> {
    let mut found = None;
    for part in parts(body, boundary)? {
        let name = name(&body[part.head]).map_err(malformed)?;
        if &*name == "model" && found.replace(part.value).is_some() {
            return Err(ApiError::bad_model("the form has more than one field `model`"));
        }
    }
    let place = found.ok_or_else(|| ApiError::bad_model("you must provide a model parameter"))?;
    let model = str::from_utf8(&body[place.clone()])
        .map_err(|_| ApiError::bad_model("the form's field `model` is not text"))?;
    Ok(Named { model: Cow::Borrowed(model), place })
}

fn malformed(what: &str) -> ApiError {
    ApiError::bad_request(format!("the request's form is malformed: {what}"))
}

/// Where one part's headers and value stand.
struct Part {
    head: Range<usize>,
    value: Range<usize>,
}

fn parts(body: &[u8], boundary: &str) -> Result<Vec<Part>, ApiError> {
    let delimiter = format!("\r\n--{boundary}");
    let finder = memmem::Finder::new(delimiter.as_bytes());
    // The first delimiter stands at the very beginning, without its line break. Text before it, which RFC 2046 allows, may
    // hold what another reader takes for a part.
    if !body.starts_with(&delimiter.as_bytes()[2..]) {
        return Err(malformed("it does not begin with its boundary"));
    }
    let mut at = delimiter.len() - 2;
    let mut parts = Vec::new();
    loop {
        if let Some(rest) = body[at..].strip_prefix(b"--") {
            // What may follow (RFC 2046 calls it an epilogue) another reader could take for more parts.
            return if rest.trim_ascii().is_empty() {
                Ok(parts)
            } else {
                Err(malformed("it goes on after its end"))
            };
        }
        if !body[at..].starts_with(b"\r\n") {
            return Err(malformed("a boundary is followed by other bytes"));
        }
        let head = at; // the line break is kept, so that a part without headers ends in a blank line too
        let blank = memmem::find(&body[head..], b"\r\n\r\n").ok_or_else(|| malformed("a part has no end"))?;
        let value = head + blank + 4;
        let end = finder.find(&body[value - 2..]).ok_or_else(|| malformed("the last boundary is missing"))?;
        // An empty value shares its line break with the blank line above it.
        let value_end = (value - 2 + end).max(value);
        parts.push(Part { head: head..head + blank, value: value..value_end });
        at = value - 2 + end + delimiter.len();
    }
}

/// The name of the field, from a part's headers.
fn name(head: &[u8]) -> Result<String, &'static str> {
    // A file's name may be in any encoding.
    let head = String::from_utf8_lossy(head);
    let mut name = None;
    for line in head.split("\r\n").filter(|line| !line.is_empty()) {
        let (header, value) = line.split_once(':').ok_or("a part has a line that is no header")?;
        if header.is_empty() || !header.bytes().all(is_token) || value.contains(['\r', '\n', '\0']) {
            return Err("a part has a header with two readings");
        }
        if header.eq_ignore_ascii_case("content-disposition") {
            let (kind, parameters) = value.split_once(';').ok_or("a part has no name")?;
            if !kind.trim().eq_ignore_ascii_case("form-data") {
                return Err("a part is no form-data");
            }
            let found = only(parameters, "name")?.ok_or("a part has no name")?;
            if found.contains('\\') || name.replace(found.to_owned()).is_some() {
                return Err("a part has a name with two readings");
            }
        }
    }
    name.ok_or("a part has no Content-Disposition")
}

/// The value of a parameter in `a=b; name="value"`; nothing if it is not there.
fn only<'h>(mut rest: &'h str, wanted: &str) -> Result<Option<&'h str>, &'static str> {
    const UNREADABLE: &str = "a header's parameters cannot be read";
    let mut found = None;
    while !rest.trim().is_empty() {
        let (name, after) = rest.split_once('=').ok_or(UNREADABLE)?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted).ok_or(UNREADABLE)?;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim_end(), &after[end..])
            }
        };
        rest = match next.trim_start().strip_prefix(';') {
            Some(rest) => rest,
            None if next.trim().is_empty() => "",
            None => return Err(UNREADABLE),
        };
        let name = name.trim();
        let bare = !after.starts_with('"');
        if name.is_empty() || !name.bytes().all(is_token) || (bare && value.contains(['"', '=', ' ', '\t'])) {
            return Err(UNREADABLE);
        }
        // `name*` (RFC 8187) is not for forms (RFC 7578, 4.2), and some readers let it win.
        let extended = name.strip_suffix('*').is_some_and(|name| name.eq_ignore_ascii_case(wanted));
        let is_it = name.eq_ignore_ascii_case(wanted);
        // In another case it is the same name to some readers, and another to some.
        if extended || (is_it && name != wanted) {
            return Err("a header has a parameter with two readings");
        }
        if is_it && found.replace(value).is_some() {
            return Err("a header has a parameter twice");
        }
    }
    Ok(found)
}

/// Where a quoted string ends; a backslash keeps a quote in it.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    })
}

/// Characters of a header's or parameter's name (RFC 9110, 5.6.2).
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
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
        let more = form(&[("name=\"model\"", "a")]) + &form(&[("name=\"model\"", "b")]);
        assert!(refusal(&more).contains("after its end"));
        let whole = form(&[("name=\"model\"", "a")]);
        assert!(refusal(&format!("--y\n{whole}")).contains("malformed"));
        assert!(refusal(&whole.replacen("--X\r", "--X \r", 1)).contains("malformed"));
        for body in ["", "--X", "--X\r\n", "--Xy\r\n\r\n", "--X\r\nA: b\r\n\r\nvalue", "nothing"] {
            assert!(refusal(body).contains("malformed"), "{body:?}");
        }
    }

    #[test]
    fn a_name_with_two_readings_is_refused() {
        for parameters in [
            "name=\"file\"; name=\"model\"",
            "name*=utf-8''model; name=\"file\"",
            "Name=\"file\"",
            "name=\"mo\\del\"",
            "name=\"file\" model",
            "name=\"file",
            "name=fi\"le",
            "name",
            "filename=\"x\"",
            "name=\"file\"\r\n x: y",
            "name=\"file\"\r\nContent-Disposition: form-data; name=\"model\"",
            "name=\"file\"\nContent-Disposition: form-data; name=\"model\"",
        ] {
            let body = form(&[(parameters, "a"), ("name=\"model\"", "b")]);
            let refused = find(body.as_bytes(), "X").map(|named| named.model.into_owned());
            assert!(refused.is_err_and(|e| e.json().contains("malformed")), "{parameters}");
        }
    }

    #[test]
    fn what_clients_send_is_read() {
        for parameters in [
            "name=\"file\"; filename=\"a; name=b.wav\"\r\nContent-Type: audio/wav",
            "name=file; filename=\"a\\\"b.wav\"; filename*=utf-8''a%22b.wav",
            "name=\"\u{e4}\"; filename=\"\u{e4}.wav\"",
        ] {
            let body = form(&[(parameters, "RIFF"), ("name=\"model\"", "b")]);
            assert_eq!(find(body.as_bytes(), "X").expect(parameters).model, "b");
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
        assert_eq!(of("Multipart/Form-Data; charset=utf-8; boundary=\"a;b\"").as_deref(), Some("a;b"));
        assert_eq!(of("multipart/form-data; Boundary=a"), None);
        assert_eq!(of("multipart/form-data; boundary=a; boundary=b"), None);
        assert_eq!(of("application/json; boundary=abc"), None);
        assert_eq!(of("multipart/form-data"), None);
    }
}
