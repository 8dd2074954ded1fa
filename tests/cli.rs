//! The verbs that need no running service, as a shell sees them: output, errors, exit codes.

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt, str::contains};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

fn swapserve(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapserve"));
    command.args(arguments).env_remove("SWAPSERVE_CONFIG").env_remove("NO_COLOR");
    command
}

const GOOD: &str = "[models.chat]\nengine = \"custom\"\ncommand = [\"sh\", \"{{ port }}\"]\ngpus = 0\n\
                    env = { KEY = \"{{ api_key }}\" }\n";

fn config(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("models.toml");
    fs::write(&file, text).unwrap();
    (dir, file)
}

#[test]
fn a_good_config_is_shown_as_it_was_understood() {
    let (dir, file) = config(GOOD);
    let shown =
        "ok ".to_owned() + file.to_str().unwrap() + "\n  chat  custom        CPU          freeze, restart\n";
    swapserve(&["validate"]).current_dir(dir.path()).assert().success().stdout(shown.clone());
    swapserve(&["validate"]).env("SWAPSERVE_CONFIG", &file).assert().success().stdout(shown);
    swapserve(&["validate", "--quiet"]).current_dir(dir.path()).assert().success().stdout("");
    let output =
        swapserve(&["validate", "--json"]).current_dir(dir.path()).assert().success().get_output().clone();
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["models"][0]["name"], "chat");
    assert_eq!(plan["models"][0]["stop_grace"], 10.0);
}

#[test]
fn an_engine_that_other_users_can_reach_is_named() {
    for (command, key, warning) in [
        ("sh {{ port }}", "", Some("asks for no key")),
        ("sh {{ port }} {{ api_key }}", "", Some("on its command line")),
        ("sh {{ port }}", "env = { K = \"{{ api_key }}\" }", None),
        ("sh {{ socket }}", "", None),
    ] {
        let text = format!("[models.chat]\nengine = \"custom\"\ncommand = {command:?}\ngpus = 0\n{key}\n");
        let (dir, _) = config(&text);
        let shown =
            swapserve(&["validate"]).current_dir(dir.path()).assert().success().get_output().stdout.clone();
        let shown = String::from_utf8(shown).unwrap();
        match warning {
            Some(warning) => assert!(shown.contains(warning), "{command}: {shown}"),
            None => assert!(!shown.contains("other users"), "{command}: {shown}"),
        }
    }
}

#[test]
fn a_bad_config_ends_with_78_and_every_mistake() {
    let (dir, _) = config("[models.chat]\nengine = \"vlm\"\ngpus = \"all\"\n");
    swapserve(&["validate"]).current_dir(dir.path()).assert().code(78).stdout("").stderr(
        contains("did you mean \"vllm\"?").and(contains("2 mistakes in ")).and(contains("\x1b[").not()),
    );
    swapserve(&["validate", "--color", "always"])
        .current_dir(dir.path())
        .assert()
        .code(78)
        .stderr(contains("\x1b["));
    let output =
        swapserve(&["validate", "--json"]).current_dir(dir.path()).assert().code(78).get_output().clone();
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&error["error"]["code"], &error["error"]["exit"]), (&"config".into(), &78.into()));
    assert_eq!(error["error"]["mistakes"].as_array().unwrap().len(), 2);
    assert_eq!(error["error"]["mistakes"][1]["code"], "wrong-type");
}

#[test]
fn a_config_that_is_not_there_ends_with_66() {
    let dir = tempfile::tempdir().unwrap();
    let run = swapserve(&["validate"]).current_dir(dir.path()).assert();
    run.code(66).stderr(contains("name the config with --config FILE or SWAPSERVE_CONFIG"));
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    swapserve(&["statu"]).assert().code(64).stderr(contains("'status'"));
    swapserve(&["run"]).assert().code(64).stderr(contains("-- <CMD>..."));
    swapserve(&["status", "--json", "--quiet"]).assert().code(64);
    swapserve(&[]).assert().code(64);
}

#[test]
fn help_and_version_are_no_errors() {
    swapserve(&["--help"]).assert().success().stdout(contains("Exit codes:").and(contains("78  config")));
    swapserve(&["--version"]).assert().success().stdout(contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_schema_is_printed() {
    let output = swapserve(&["schema"]).assert().success().get_output().clone();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["title"], "models.toml");
}

#[test]
fn every_verb_has_its_completions_and_its_man_page() {
    let dir = tempfile::tempdir().unwrap();
    swapserve(&["man", dir.path().to_str().unwrap()]).assert().success();
    let page = fs::read_to_string(dir.path().join("swapserve.1")).unwrap();
    let script = swapserve(&["completions", "bash"]).assert().success().get_output().clone();
    let script = String::from_utf8(script.stdout).unwrap();
    for verb in
        ["run", "serve", "wait", "status", "explain", "swap", "logs", "env", "doctor", "validate", "stop"]
    {
        assert!(dir.path().join(format!("swapserve-{verb}.1")).is_file(), "{verb}");
        assert!(page.contains(&format!("swapserve\\-{verb}(1)")), "{verb}");
        assert!(script.contains(&format!("swapserve,{verb})")), "{verb}");
    }
    assert!(page.contains("EXIT") || page.contains("Exit codes"));
    swapserve(&["man"]).assert().success().stdout(contains(".TH swapserve 1"));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    swapserve(&["man", file.to_str().unwrap()]).assert().code(73).stderr(contains("help: name a directory"));
}

#[test]
fn a_config_for_another_machine_is_simulated_but_not_valid_here() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("models.toml");
    let text = "[models.chat]\nengine = \"vllm\"\nmodel = \"/nowhere/weights\"\ncommand = \"no-such-vllm serve\"\ngpu_memory = \"24GiB\"\n\
                [models.judge]\nengine = \"vllm\"\nmodel = \"/nowhere/judge\"\ncommand = \"no-such-vllm serve\"\ngpu_memory = \"60GiB\"\n";
    fs::write(&file, text).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    swapserve(&["validate"]).args(config).assert().code(78).stderr(contains("no-such-vllm"));
    let simulated =
        swapserve(&["simulate", "--json", "--gpus", "1", "--gpu-memory", "80GiB"]).args(config).assert();
    let output = simulated.success().get_output().clone();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        value["start_s"].as_f64().unwrap() < value["start_with_nothing_ahead_s"].as_f64().unwrap(),
        "{value}"
    );
    // What a run on such a machine would refuse is refused here.
    fs::write(&file, text.replace("[models.judge]", "swap = \"checkpoint\"\n[models.judge]")).unwrap();
    let little = ["simulate", "--gpus", "1", "--gpu-memory", "80GiB", "--host-memory", "16GiB"];
    swapserve(&little).args(config).assert().code(75).stderr(contains("chat").and(contains("--host-memory")));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let script = format!("{} schema | head -n 1; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_swapserve"));
    Command::new("bash").args(["-c", &script]).assert().success().stdout("{\n0\n").stderr("");
}

#[test]
fn several_tasks_on_a_node_are_refused_before_anything_starts() {
    let (dir, _) = config(GOOD);
    let step =
        [("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0"), ("SLURM_NODEID", "1"), ("SLURM_STEP_NUM_NODES", "2")];
    for (tasks, code, message) in [
        ("2(x2)", 64, "this step has 2 tasks on this node"),
        ("1,4", 64, "this step has 4 tasks on this node"),
        ("many", 71, "SLURM_STEP_TASKS_PER_NODE=\"many\""),
    ] {
        let mut run = swapserve(&["run", "--", "true"]);
        run.current_dir(dir.path())
            .envs(step)
            .env("SLURM_STEP_TASKS_PER_NODE", tasks)
            .env("HOME", dir.path());
        run.assert().code(code).stderr(contains(message));
        assert!(!dir.path().join(".swapserve").exists());
    }
}
