//! The model's name in a JSON body: what is found is what any JSON parser finds, and only it is rewritten.

use serde_json::Value;
use swapserve::router::{peek, rewrite};

pub fn run(body: &[u8]) {
    let Ok(named) = peek::json(body) else { return };
    let place = named.place.clone();
    assert!(place.start < place.end && place.end <= body.len());
    let changed = rewrite::splice(body, place, &rewrite::json_string("another \"name\""));
    let again = peek::json(&changed).expect("a body with another name is still read");
    assert_eq!(again.model, "another \"name\"");
    match serde_json::from_slice::<Value>(body) {
        Ok(tree) => assert_eq!(tree["model"].as_str(), Some(&*named.model)),
        // What a walk need not look into, and a tree cannot hold, is the engine's to judge.
        Err(e) => assert!(
            ["number out of range", "recursion limit", "lone leading surrogate", "unexpected end of hex"]
                .iter()
                .any(|allowed| e.to_string().starts_with(allowed)),
            "a tree is refused: {e}"
        ),
    }
}
