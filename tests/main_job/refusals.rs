//! Each bad input has its message and its exit code, and nothing is started before it is found.

use super::service::{Service, config, fake, run};
use serde_json::{Value, json};

/// Runs `run` with this config; its exit code and what it said.
fn refused(text: &str, options: &[&str]) -> (i32, String) {
    let (dir, file) = config(text);
    let ran = dir.path().join("ran");
    let output = run(&file, options, &["touch", ran.to_str().unwrap()]);
    assert!(!ran.exists(), "the command was run");
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn assert_refused(text: &str, options: &[&str], code: i32, says: &[&str]) {
    let (ended, said) = refused(text, options);
    assert_eq!(ended, code, "{said}");
    for part in says {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

#[test]
fn an_unknown_engine() {
    assert_refused("[models.a]\nengine = \"vlm\"\n", &[], 78, &["vlm", "did you mean \"vllm\"?"]);
}

#[test]
fn weights_that_are_not_there() {
    let text = "[models.a]\nengine = \"llama-cpp\"\ncommand = [\"true\"]\nmodel = \"/nowhere/model.gguf\"\ngpus = 0\n";
    assert_refused(text, &[], 78, &["/nowhere/model.gguf"]);
}

#[test]
fn one_alias_for_two_models() {
    let text = fake("a", "", "aliases = [\"x\"]") + &fake("b", "", "aliases = [\"x\"]");
    assert_refused(&text, &[], 78, &["\"x\""]);
}

#[test]
fn a_gpu_that_the_job_does_not_have() {
    assert_refused(&fake("a", "", "").replace("gpus = 0", "gpus = 2"), &[], 78, &["gpus"]);
}

#[test]
fn memory_that_can_never_fit() {
    assert_refused(&fake("a", "", "host_memory = \"9000GiB\""), &[], 78, &["host_memory"]);
}

#[test]
fn a_config_that_is_not_there_or_not_toml() {
    let output = run(std::path::Path::new("/nowhere/models.toml"), &[], &["true"]);
    assert_eq!(output.status.code(), Some(66));
    assert_refused("[models.a\n", &[], 78, &["models.toml"]);
}

#[test]
fn a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = refused(&fake("a", "", ""), &["--port", &port]);
    assert!(matches!(code, 73 | 78), "{code}: {said}");
    assert!(said.contains(&port), "{said}");
}

#[test]
fn a_command_that_exits_at_once() {
    assert_refused(&fake("a", "--exit 3", ""), &[], 69, &["a cannot be started", "exit code 3"]);
}

#[test]
fn an_engine_that_never_gets_ready() {
    let text = fake("a", "--mute", "").replace("start_timeout = \"30s\"", "start_timeout = \"1s\"");
    assert_refused(&text, &[], 69, &["was not ready after 1 s", "start_timeout"]);
}

#[test]
fn a_program_that_is_not_there() {
    let text = "[models.a]\nengine = \"custom\"\ncommand = [\"no-such-engine\", \"{{ port }}\"]\ngpus = 0\n";
    assert_refused(text, &[], 78, &["no-such-engine"]);
}

#[test]
fn no_hwloc_objects() {
    let (_dir, file) = config(&fake("a", "", ""));
    let mut run = super::service::swapserve();
    run.arg("run").arg("--config").arg(&file).args(["--", "true"]).env("HWLOC_COMPONENTS", "stop");
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("hwloc"), "{said}");
}

#[test]
fn a_command_to_run_that_is_not_there() {
    let (_dir, file) = config(&fake("a", "", ""));
    let output = run(&file, &[], &["no-such-command"]);
    assert_eq!(output.status.code(), Some(66), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-command"));
}

#[test]
fn at_the_endpoint() {
    let service = Service::start(&format!("[router]\nmax_body = \"4KiB\"\n{}", fake("a", "", "")), &[]);
    let refusal = |request: reqwest::blocking::RequestBuilder| {
        let answer = request.send().unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().unwrap();
        assert!(body["error"]["message"].is_string(), "{body}");
        (status, body["error"]["code"].clone())
    };
    let url = format!("{}/chat/completions", service.endpoint()["url"].as_str().unwrap());
    let stranger = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    assert_eq!(refusal(stranger.post(&url)).0, 401);
    assert_eq!(refusal(stranger.post(&url).bearer_auth("sk-wrong")).0, 401);
    assert_eq!(refusal(service.chat("nobody", json!({}))), (404, json!("model_not_found")));
    assert_eq!(refusal(service.chat("a", json!({ "user": "x".repeat(8192) }))).0, 413);
    assert_eq!(refusal(service.chat("a", json!({})).body("{")).0, 400);
}
