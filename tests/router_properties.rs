//! What is read from untrusted bytes, against readers that others wrote: serde_json's tree, and multer for forms.

use futures_util::{FutureExt, stream};
use proptest::prelude::*;
use serde_json::{Map, Value};
use std::convert::Infallible;
use swapserve::router::{multipart, peek, percent, rewrite};

/// Any JSON value, a few levels deep.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("(model|[a-z\"\\\\]{0,6})", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A form of some fields, as clients write it.
fn form(boundary: &str, fields: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let head = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

/// The fields `model` of a form, as multer reads it; `None` where it finds the form malformed.
fn as_multer_reads(body: &[u8], boundary: &str) -> Option<Vec<Vec<u8>>> {
    let whole = bytes::Bytes::copy_from_slice(body);
    let mut form = multer::Multipart::new(stream::iter([Ok::<_, Infallible>(whole)]), boundary);
    let mut models = Vec::new();
    let read = async {
        while let Some(field) = form.next_field().await.ok()? {
            let is_model = field.name() == Some("model");
            let value = field.bytes().await.ok()?;
            if is_model {
                models.push(value.to_vec());
            }
        }
        Some(())
    };
    read.now_or_never().flatten()?;
    Some(models)
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(named) = peek::json(&body) {
            let tree: Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(tree["model"].as_str(), Some(&*named.model));
        }
        let _ = multipart::find(&body, "X");
    }

    #[test]
    fn a_broken_body_is_never_read_otherwise_than_as_a_tree(
        value in json_value(), model in ".{0,12}", at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut body = serde_json::to_vec(&serde_json::json!({ "a": value, "model": model })).unwrap();
        let at = at.index(body.len());
        body[at] = byte;
        if let Ok(named) = peek::json(&body) {
            match serde_json::from_slice::<Value>(&body) {
                Ok(tree) => prop_assert_eq!(tree["model"].as_str(), Some(&*named.model)),
                // A number too large for a tree is the engine's to judge.
                Err(e) => prop_assert!(e.to_string().starts_with("number out of range"), "{}", e),
            }
        }
    }

    #[test]
    fn only_the_models_name_is_rewritten(before in json_value(), after in json_value(), to in ".{0,12}") {
        let body = format!(r#"{{ "a": {before},"model" :"from", "b":{after}}}"#);
        let named = peek::json(body.as_bytes()).unwrap();
        prop_assert_eq!(&*named.model, "from");
        let changed = rewrite::splice(body.as_bytes(), named.place, &rewrite::json_string(&to));
        let tree: Value = serde_json::from_slice(&changed).unwrap();
        prop_assert_eq!(tree, serde_json::json!({ "a": before, "model": to, "b": after }));
    }

    #[test]
    fn forms_are_read_as_another_reader_does(
        fields in prop::collection::vec(("(model|file|m)", prop::collection::vec(any::<u8>(), 0..30)), 0..5),
    ) {
        let body = form("bound", &fields);
        let models: Vec<_> = fields.iter().filter(|(name, _)| name == "model").map(|(_, value)| value).collect();
        let theirs = as_multer_reads(&body, "bound").unwrap();
        prop_assert_eq!(theirs.iter().collect::<Vec<_>>(), models.clone());
        match (multipart::find(&body, "bound"), &models[..]) {
            (Ok(named), [only]) => prop_assert_eq!(named.model.as_bytes(), &only[..]),
            (Ok(named), _) => prop_assert!(false, "{:?} of {} fields", named, models.len()),
            (Err(_), [only]) => prop_assert!(std::str::from_utf8(only).is_err()),
            (Err(_), _) => {}
        }
    }

    #[test]
    fn a_broken_form_is_never_read_otherwise_than_by_another_reader(
        model in "[ -~]{0,12}", at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let fields = [("file".to_owned(), b"RIFF\r\n--boun".to_vec()), ("model".to_owned(), model.into_bytes())];
        let mut body = form("bound", &fields);
        let at = at.index(body.len());
        body[at] = byte;
        // Readers differ in how broken a header they still take for one; they must not differ in what it names.
        let theirs = as_multer_reads(&body, "bound").unwrap_or_default();
        if let (Ok(named), [model]) = (multipart::find(&body, "bound"), &theirs[..]) {
            prop_assert_eq!(named.model.as_bytes(), &model[..]);
        }
    }

    #[test]
    fn names_survive_percent_encoding(name in ".{0,20}") {
        let encoded = percent::encode(&name);
        prop_assert!(encoded.is_ascii() && !encoded.contains('/'));
        prop_assert_eq!(percent::decode(&encoded), Some(name));
    }
}
