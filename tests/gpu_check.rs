//! `scripts/gpu-check` itself, with engines made up on the software driver: what it configures, asks and writes down.

mod gpu_bench;

use std::path::Path;
use std::process::Command;

use gpu_bench::Bench;
use serde_json::Value;

/// A directory of the programs that the script wants, and an `nvidia-smi` that knows one GPU.
fn programs(directory: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    symlink(env!("CARGO_BIN_EXE_swapserve"), directory.join("swapserve")).unwrap();
    symlink(Bench::engine_program(), directory.join("gpu-engine")).unwrap();
    let script = |name: &str, text: &str| {
        let file = directory.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("nvidia-smi", "case $1 in *name*) echo Software GPU ;; *) echo 999.9 ;; esac");
    // Takes of a real engine's command line what the test engine understands.
    let stand_in = "weights=$1\nwhile [ $# -gt 0 ]; do\n case $1 in --port) port=$2 ;; esac\n shift\ndone\n\
        exec \"$(dirname \"$0\")/gpu-engine\" --port \"$port\" --weights \"$weights\"";
    script("stand-in", stand_in);
}

#[test]
fn two_engines_of_different_kinds_alternate_under_checkpoint() {
    let Some(bench) = Bench::software(1) else { return };
    let directory = tempfile::tempdir().unwrap();
    let (at, rows) = (directory.path(), directory.path().join("rows.jsonl"));
    programs(at);
    let model = at.join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    let engine = |weights: &str| format!("{} {weights}", at.join("stand-in").display());
    let path = format!("{}:{}", at.display(), std::env::var("PATH").unwrap());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check");
    let output = Command::new(script)
        .args(["--skip-tests", "--skip-bare", "--mechanisms", "checkpoint", "--requests", "6"])
        .args(["--engine-memory", "600MiB", "--start-limit", "2m", "--bin"])
        .arg(at)
        .args([
            Path::new("--sglang"),
            &model,
            Path::new("--transformers"),
            &model,
            Path::new("--rows"),
            &rows,
        ])
        .env("SGLANG_COMMAND", engine("500MiB"))
        .env("SGLANG_ENV", "SOMETHING='of its own'")
        .env("TRANSFORMERS_COMMAND", engine("400MiB"))
        .env("PATH", path)
        .env("TMPDIR", at)
        .envs(bench.environment())
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let rows: Vec<Value> = std::fs::read_to_string(&rows)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (work, engine, mib) in
        [("sglang-checkpoint", "sglang", 500), ("transformers-checkpoint", "transformers", 400)]
    {
        let own: Vec<&Value> = rows.iter().filter(|row| row["work"] == work).collect();
        assert!(own.len() >= 2, "{said}");
        for row in own {
            assert_eq!(
                (&row["engine"], &row["mechanism"], &row["left_mib"], &row["same_answer"]),
                (&engine.into(), &"checkpoint".into(), &0.into(), &true.into()),
                "{row}"
            );
            assert!(row["bytes"].as_u64().unwrap() >= mib << 20, "{row}");
            assert_eq!(row["gpu"], "Software GPU");
            assert!(
                row["cold_start_s"].as_f64().unwrap() > 0.0 && row["phases"]["in"]["restore"].is_number()
            );
        }
    }
}
