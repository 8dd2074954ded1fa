//! What each engine's own sleep looks like: data.
//!
//! | engine | source |
//! | --- | --- |
//! | vLLM | `vllm/entrypoints/serve/sleep/api_router.py` (`/sleep`, `/wake_up`, `/is_sleeping`, only with `VLLM_SERVER_DEV_MODE`), `.../rpc/api_router.py` (`/collective_rpc`), `.../cache/api_router.py` (`/reset_prefix_cache`); `docs/features/sleep_mode.md` for the order at level 2 |
//! | SGLang | `python/sglang/srt/entrypoints/http_server.py` (`/release_memory_occupation`, `/resume_memory_occupation`, `/flush_cache`, `/update_weights_from_disk`); the scheduler's weight-update mixin asserts that the server is idle, and fails on a tag that was not released |
//! | TensorRT-LLM | `docs/source/features/sleep-wakeup.md`, `tensorrt_llm/serve/runtime_control_auth.py` (`/release_memory`, `/resume_memory`, `/memory_status`, each request signed) |
//! | Ollama | `docs/api.md`: `/api/generate` without a prompt loads (`keep_alive: -1`) or unloads (`keep_alive: 0`); `/api/ps` lists what is loaded |

use crate::config::{ModelPlan, Preset};
use serde_json::{Value, json};

/// One request to the engine.
pub(super) struct Step {
    /// Its name among the phases of a move.
    pub phase: &'static str,
    /// Path with query.
    pub path: &'static str,
    /// JSON to send; `null` is no body.
    pub body: Value,
    /// Whether a refusal (4xx) only means "not yet" and the step is repeated.
    pub until_accepted: bool,
}

/// What a `GET` has to show before a move counts.
pub(super) struct Check {
    /// The path.
    pub path: &'static str,
    /// Where in the answer to look (RFC 6901).
    pub pointer: &'static str,
    /// What stands there while the engine sleeps.
    pub asleep: Value,
    /// What stands there while it is awake; `Null`: anything else than asleep.
    pub awake: Value,
}

/// How one kind of engine sleeps.
pub(super) struct Recipe {
    /// Requests that put it to sleep, in order.
    pub out: Vec<Step>,
    /// Requests that wake it, in order.
    pub back: Vec<Step>,
    /// Where it says in which state it is, if anywhere.
    pub check: Option<Check>,
    /// What has to stand in its command or environment.
    pub needs: &'static [Need],
    /// Whether requests have to be signed with the engine's key.
    pub signed: bool,
}

/// Something without which the engine has no such endpoints.
pub(super) enum Need {
    /// An argument.
    Argument(&'static str),
    /// A variable with this value (`""`: any).
    Variable(&'static str, &'static str),
}

/// TensorRT-LLM's secret for requests that control its memory.
pub(super) const TRTLLM_KEY: &str = "TRTLLM_RUNTIME_CONTROL_API_KEY";

/// The recipe for this model's engine; the reason if it has none.
pub(super) fn recipe(plan: &ModelPlan) -> Result<Recipe, String> {
    match (plan.engine, plan.sleep_level) {
        (Preset::Vllm, 2) => Ok(vllm(
            "/sleep?level=2&mode=wait",
            vec![
                step("wake weights", "/wake_up?tags=weights", Value::Null),
                step("reload weights", "/collective_rpc", json!({"method": "reload_weights"})),
                step("wake kv cache", "/wake_up?tags=kv_cache", Value::Null),
                step("reset prefix cache", "/reset_prefix_cache", Value::Null),
            ],
        )),
        (Preset::Vllm, _) => {
            Ok(vllm("/sleep?level=1&mode=wait", vec![step("wake", "/wake_up", Value::Null)]))
        }
        (Preset::Sglang, 2) => Ok(sglang(
            // The tags are named, so that what is resumed is exactly what was released.
            json!({"tags": ["kv_cache", "weights"]}),
            vec![
                step("wake weights", "/resume_memory_occupation", json!({"tags": ["weights"]})),
                step("reload weights", "/update_weights_from_disk", json!({"model_path": plan.model})),
                step("wake kv cache", "/resume_memory_occupation", json!({"tags": ["kv_cache"]})),
            ],
            &[Need::Argument("--enable-memory-saver")],
        )),
        (Preset::Sglang, _) => Ok(sglang(
            json!({}),
            vec![step("wake", "/resume_memory_occupation", json!({}))],
            // Without the backup the weights come back as whatever the memory holds.
            &[Need::Argument("--enable-memory-saver"), Need::Argument("--enable-weights-cpu-backup")],
        )),
        (Preset::TensorrtLlm, _) => Ok(Recipe {
            out: vec![step("sleep", "/release_memory", json!({}))],
            back: vec![step("wake", "/resume_memory", json!({}))],
            check: Some(Check {
                path: "/memory_status",
                pointer: "/state",
                asleep: json!("parked"),
                awake: json!("running"),
            }),
            needs: &[Need::Argument("--enable_sleep_mode"), Need::Variable(TRTLLM_KEY, "")],
            signed: true,
        }),
        (Preset::Ollama, _) => Ok(Recipe {
            out: vec![step(
                "sleep",
                "/api/generate",
                json!({"model": plan.model, "keep_alive": 0, "stream": false}),
            )],
            back: vec![step(
                "wake",
                "/api/generate",
                json!({"model": plan.model, "keep_alive": -1, "stream": false}),
            )],
            check: Some(Check { path: "/api/ps", pointer: "/models", asleep: json!([]), awake: Value::Null }),
            needs: &[],
            signed: false,
        }),
        (other, _) => Err(format!("{} has no sleep of its own", name(other))),
    }
}

fn vllm(sleep: &'static str, back: Vec<Step>) -> Recipe {
    Recipe {
        out: vec![step("sleep", sleep, Value::Null)],
        back,
        check: Some(Check {
            path: "/is_sleeping",
            pointer: "/is_sleeping",
            asleep: json!(true),
            awake: json!(false),
        }),
        needs: &[Need::Argument("--enable-sleep-mode"), Need::Variable("VLLM_SERVER_DEV_MODE", "1")],
        signed: false,
    }
}

fn sglang(released: Value, back: Vec<Step>, needs: &'static [Need]) -> Recipe {
    // Its scheduler asserts that nothing runs when memory is released, and is gone if that is not so. `/flush_cache`
    // refuses politely (400) until the last request's batch is over.
    let flush = Step { until_accepted: true, ..step("flush", "/flush_cache", Value::Null) };
    let out = vec![flush, step("sleep", "/release_memory_occupation", released)];
    Recipe { out, back, check: None, needs, signed: false }
}

fn step(phase: &'static str, path: &'static str, body: Value) -> Step {
    Step { phase, path, body, until_accepted: false }
}

fn name(preset: Preset) -> &'static str {
    match preset {
        Preset::Vllm => "vLLM",
        Preset::Sglang => "SGLang",
        Preset::LlamaCpp => "llama.cpp",
        Preset::Ollama => "Ollama",
        Preset::TensorrtLlm => "TensorRT-LLM",
        Preset::Transformers => "transformers serve",
        Preset::Custom => "an engine of its own command",
    }
}
