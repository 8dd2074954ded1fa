//! Puts another name in the place of the one a request gave, and touches no other byte.

use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// `body` with the bytes at `place` replaced.
pub fn splice(body: &[u8], place: Range<usize>, with: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(body.len() - place.len() + with.len());
    whole.extend_from_slice(&body[..place.start]);
    whole.extend_from_slice(with);
    whole.extend_from_slice(&body[place.end..]);
    whole.freeze()
}

/// A name as a JSON string.
pub fn json_string(name: &str) -> Vec<u8> {
    serde_json::to_vec(name).expect("a string serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_changes() {
        let body = br#"{"a":1, "model" : "alias" ,"b":"\u00e4"}"#;
        let place = super::super::peek::json(body).unwrap().place;
        let changed = splice(body, place, &json_string("org/\"real\""));
        assert_eq!(&changed[..], br#"{"a":1, "model" : "org/\"real\"" ,"b":"\u00e4"}"#);
    }
}
