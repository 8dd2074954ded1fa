//! The run's key: who may ask.

use super::errors::ApiError;
use http::{HeaderMap, header};
use std::fmt;
use subtle::ConstantTimeEq;

/// The key that requests must bring. Never printed.
#[derive(Clone)]
pub struct Key(Box<[u8]>);

impl Key {
    /// A key of any bytes that fit in a header.
    pub fn new(key: impl AsRef<[u8]>) -> Self {
        Self(key.as_ref().into())
    }

    /// Checks `Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic's clients send it.
    ///
    /// The comparison takes the same time wherever the first wrong byte is; only the key's length can be learnt.
    ///
    /// # Errors
    /// 401, saying whether a key was missing or wrong.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(given) = bearer(headers).or_else(|| headers.get("x-api-key").map(|v| v.as_bytes())) else {
            return Err(ApiError::unauthorized(
                "You didn't provide an API key. Send it as `Authorization: Bearer KEY`; `swapserve env` prints it.",
            ));
        };
        if bool::from(self.0.ct_eq(given)) {
            Ok(())
        } else {
            Err(ApiError::unauthorized(
                "Incorrect API key provided. Keys change with every run; `swapserve env` prints this one's.",
            ))
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The token of a bearer authorization; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(name: &'static str, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        Key::new("k-123").check(&headers).is_ok()
    }

    #[test]
    fn the_key_is_taken_from_either_header() {
        assert!(check("authorization", "Bearer k-123"));
        assert!(check("authorization", "bearer k-123"));
        assert!(check("x-api-key", "k-123"));
    }

    #[test]
    fn anything_else_is_refused() {
        for value in ["Bearer k-12", "Bearer k-1234", "Bearer ", "Bearer", "Basic k-123", "k-123", ""] {
            assert!(!check("authorization", value), "{value}");
        }
        assert!(!check("x-api-key", ""));
        assert!(Key::new("k-123").check(&HeaderMap::new()).is_err());
        assert_eq!(format!("{:?}", Key::new("k-123")), "Key(..)");
    }
}
