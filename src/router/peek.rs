//! Reads the top-level `model` out of a JSON body without building anything else of it.
//!
//! The body is walked once by serde_json's own parser, which skips every value but one, so what passes here is what
//! any JSON parser accepts. The name's place in the body is kept, to put another name there.

use super::errors::ApiError;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, ops::Range, str};

/// The model that a body names, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Named<'b> {
    /// The name, unescaped.
    pub model: Cow<'b, str>,
    /// The bytes that [`super::rewrite`] replaces: for JSON the string with its quotes, in a form the bare value.
    pub place: Range<usize>,
}

/// Finds `model` in a JSON object.
///
/// # Errors
/// 400 where the body is no JSON object, has no `model`, more than one, or one that is not a string.
pub fn json(body: &[u8]) -> Result<Named<'_>, ApiError> {
    let malformed =
        |e: &dyn fmt::Display| ApiError::bad_request(format!("the request's body is not a JSON object: {e}"));
    // Checked here at once: the parser does not look into the strings that it skips.
    let text = str::from_utf8(body).map_err(|e| malformed(&e))?;
    let mut parser = serde_json::Deserializer::from_str(text);
    let found = parser
        .deserialize_map(TopLevel)
        .and_then(|found| parser.end().map(|()| found))
        .map_err(|e| malformed(&e))?;
    let raw = match found {
        Found::Once(raw) => raw.get(),
        Found::Never => return Err(ApiError::bad_model("you must provide a model parameter")),
        Found::Twice => return Err(ApiError::bad_model("the request's body names `model` more than once")),
    };
    let model = serde_json::from_str::<Text>(raw)
        .map_err(|_| ApiError::bad_model(format!("`model` must be a string, not {}", shortened(raw))))?
        .0;
    // The raw value is a slice of the body: its distance from the body's beginning is its place.
    let start = raw.as_ptr().addr() - body.as_ptr().addr();
    Ok(Named { model, place: start..start + raw.len() })
}

/// The first few characters of a value, for a message.
fn shortened(raw: &str) -> Cow<'_, str> {
    match raw.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &raw[..end]).into(),
        None => raw.into(),
    }
}

/// How often `model` was seen.
enum Found<'b> {
    Never,
    Once(&'b RawValue),
    Twice,
}

struct TopLevel;

impl<'b> Visitor<'b> for TopLevel {
    type Value = Found<'b>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Found<'b>, A::Error> {
        let mut found = Found::Never;
        while let Some(is_model) = map.next_key_seed(IsModel)? {
            if is_model {
                let raw = map.next_value()?;
                found = if matches!(found, Found::Never) { Found::Once(raw) } else { Found::Twice };
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a key, unescaped, with `model`.
struct IsModel;

impl<'b> DeserializeSeed<'b> for IsModel {
    type Value = bool;

    fn deserialize<D: Deserializer<'b>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for IsModel {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == "model")
    }
}

/// A string, borrowed unless it has escapes.
#[derive(serde::Deserialize)]
struct Text<'b>(#[serde(borrow)] Cow<'b, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn model(body: &str) -> String {
        let named = json(body.as_bytes()).unwrap();
        assert_eq!(serde_json::from_str::<String>(&body[named.place]).unwrap(), named.model);
        named.model.into_owned()
    }

    fn refusal(body: &str) -> String {
        let error = json(body.as_bytes()).unwrap_err();
        assert_eq!(error.status(), 400);
        error.json()
    }

    #[test]
    fn the_top_level_name_is_found_wherever_it_stands() {
        assert_eq!(model(r#"{"model":"a"}"#), "a");
        assert_eq!(model(r#" { "messages" : [{"model":"x"}], "model" : "b" , "n":1} "#), "b");
        assert_eq!(model(r#"{"s":"\"model\":\"x\"","model":"c"}"#), "c");
    }

    #[test]
    fn escapes_are_read_as_every_parser_reads_them() {
        assert_eq!(model(r#"{"mod\u0065l":"d"}"#), "d");
        assert_eq!(model(r#"{"model":"org\/n\u00e4me"}"#), "org/näme");
    }

    #[test]
    fn a_plain_name_is_borrowed() {
        let body = br#"{"model":"a"}"#;
        assert!(matches!(json(body).unwrap().model, Cow::Borrowed("a")));
    }

    #[test]
    fn what_cannot_be_routed_says_why() {
        assert!(refusal("{}").contains("must provide a model"));
        assert!(refusal(r#"{"model":"a","model":"b"}"#).contains("more than once"));
        assert!(refusal(r#"{"model":"a","\u006dodel":"b"}"#).contains("more than once"));
        assert!(refusal(r#"{"model":7}"#).contains("not 7"));
        assert!(refusal(r#"{"model":null}"#).contains("not null"));
        for body in ["", "[]", "\"model\"", "{", r#"{"model":"a"} x"#, r#"{"model":"a",}"#, "model=a"] {
            assert!(refusal(body).contains("not a JSON object"), "{body}");
        }
    }
}
