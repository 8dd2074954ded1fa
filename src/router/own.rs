//! What the router answers itself: the list of models, health, metrics, the admin verbs, and the same verbs as two
//! other programs spell them, so that their users' tools work unchanged.

use super::{
    Router,
    body::Body,
    errors::ApiError,
    gate::{ModelView, Verb},
    intake, peek, percent,
    routes::Target,
};
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::rc::Rc;

/// Answers any target but those that are forwarded.
///
/// # Errors
/// What the path documents: 404 for an unknown model, 409 for a refused verb.
pub async fn answer(
    router: &Rc<Router>,
    target: Target<'_>,
    body: Incoming,
) -> Result<Response<Body>, ApiError> {
    let gate = &router.gate;
    Ok(match target {
        Target::Health if gate.accepting() => object(StatusCode::OK, &json!({ "status": "ok" })),
        Target::Health => object(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "ending" })),
        Target::Metrics => metrics(router),
        Target::Models | Target::LlamaModels => {
            let data: Vec<Value> = gate.models().iter().map(model).collect();
            object(StatusCode::OK, &json!({ "object": "list", "data": data }))
        }
        Target::Model(id) => {
            let views = gate.models();
            let name = name(id)?;
            let found = views.iter().find(|m| m.name == name || m.aliases.contains(&name));
            let found = found.ok_or_else(|| unknown(&name, &views))?;
            object(StatusCode::OK, &model(found))
        }
        Target::Status => object(StatusCode::OK, &gate.status()),
        Target::Explain(encoded) => {
            let name = name(encoded)?;
            let reasons = gate.explain(&name).ok_or_else(|| unknown(&name, &gate.models()))?;
            object(StatusCode::OK, &reasons)
        }
        Target::Swap(verb) => {
            let name = carry_out(router, body, verb).await?;
            object(StatusCode::OK, &json!({ "model": name, "done": verb.name() }))
        }
        Target::Stop => {
            gate.stop();
            object(StatusCode::ACCEPTED, &json!({ "status": "ending" }))
        }
        Target::LlamaSwap(verb) => {
            carry_out(router, body, verb).await?;
            object(StatusCode::OK, &json!({ "success": true }))
        }
        Target::SwapServeSwap(verb) => {
            let name = carry_out(router, body, verb).await?;
            object(StatusCode::OK, &json!({ "status": "success", "model": name }))
        }
        Target::Forward(_) | Target::Realtime => unreachable!("forwarded paths are not the router's own"),
    })
}

/// Carries out a verb on the model that the body names, and gives that name.
async fn carry_out(router: &Rc<Router>, mut body: Incoming, verb: Verb) -> Result<String, ApiError> {
    let body = intake::read(&mut body, router.bounds()).await?;
    let name = peek::json(&body)?.model.into_owned();
    router.gate.clone().admin(&name, verb).await.map_err(|e| ApiError::verb(&name, e))?;
    Ok(name)
}

fn name(encoded: &str) -> Result<String, ApiError> {
    percent::decode(encoded).ok_or_else(|| ApiError::bad_model("the model's name in the path is not text"))
}

fn unknown(name: &str, views: &[ModelView]) -> ApiError {
    ApiError::unknown_model(name, &views.iter().map(|m| m.name.clone()).collect::<Vec<_>>())
}

/// A model as OpenAI lists it, with llama-server's `status` beside.
fn model(view: &ModelView) -> Value {
    json!({
        "id": view.name,
        "object": "model",
        "created": view.created,
        "owned_by": "swapserve",
        "aliases": view.aliases,
        "status": {
            "value": llama_status(&view.state),
            "failed": view.state == "failed",
            "state": view.state,
            "detail": view.detail,
        },
    })
}

/// The state in the words of llama-server's router.
fn llama_status(state: &str) -> &'static str {
    match state {
        "resident" => "loaded",
        "starting" | "swapping_in" => "loading",
        _ => "unloaded",
    }
}

fn metrics(router: &Router) -> Response<Body> {
    let text = format!("{}{}# EOF\n", router.metrics.encode(), router.gate.metrics());
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn object(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
