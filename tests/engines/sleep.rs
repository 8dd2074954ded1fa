//! The engines' own sleep, on pretended GPU memory: what is asked in which order, and what a lie leads to.

use crate::lab::{Lab, launched};
use std::time::Duration;
use swapserve::{
    config::{ModelPlan, Preset},
    engine::Answer,
    swap::{Deps, Swapper},
    units::{Bytes, MechanismKind},
};

const LIMIT: Duration = Duration::from_secs(30);

/// The plan of a fake sleeper with what vLLM wants in its environment.
fn sleeper(lab: &Lab, preset: Preset, flavour: &str, args: &[&str]) -> ModelPlan {
    let mut plan = lab.sleeper(preset, flavour, args);
    plan.env.insert("VLLM_SERVER_DEV_MODE".into(), "1".into());
    plan
}

#[tokio::test]
async fn every_engines_own_sleep_is_asked_for_in_its_order() {
    let memory_saver = ["--enable-memory-saver", "--enable-weights-cpu-backup"];
    type Case<'a> = (Preset, u8, &'a str, &'a [&'a str], &'a [&'a str]);
    let cases: [Case; 6] = [
        (
            Preset::Vllm,
            1,
            "vllm",
            &["--enable-sleep-mode"],
            &["POST /sleep?level=1&mode=wait", "GET /is_sleeping", "POST /wake_up", "GET /is_sleeping"],
        ),
        (
            Preset::Vllm,
            2,
            "vllm",
            &["--enable-sleep-mode"],
            &[
                "POST /sleep?level=2&mode=wait",
                "GET /is_sleeping",
                "POST /wake_up?tags=weights",
                "POST /collective_rpc {\"method\":\"reload_weights\"}",
                "POST /wake_up?tags=kv_cache",
                "POST /reset_prefix_cache",
                "GET /is_sleeping",
            ],
        ),
        (
            Preset::Sglang,
            1,
            "sglang",
            &memory_saver,
            &[
                "POST /flush_cache",
                "POST /flush_cache",
                "POST /flush_cache",
                "POST /release_memory_occupation {}",
                "POST /resume_memory_occupation {}",
            ],
        ),
        (
            Preset::Sglang,
            2,
            "sglang",
            &memory_saver[..1],
            &[
                "POST /flush_cache",
                "POST /flush_cache",
                "POST /flush_cache",
                "POST /release_memory_occupation {\"tags\":[\"kv_cache\",\"weights\"]}",
                "POST /resume_memory_occupation {\"tags\":[\"weights\"]}",
                "POST /update_weights_from_disk {\"model_path\":\"/models/m\"}",
                "POST /resume_memory_occupation {\"tags\":[\"kv_cache\"]}",
            ],
        ),
        (
            Preset::TensorrtLlm,
            1,
            "trtllm",
            &["--enable_sleep_mode"],
            &[
                "POST /release_memory {}",
                "GET /memory_status",
                "POST /resume_memory {}",
                "GET /memory_status",
            ],
        ),
        (
            Preset::Ollama,
            1,
            "ollama",
            &[],
            &[
                "POST /api/generate {\"keep_alive\":0,\"model\":\"/models/m\",\"stream\":false}",
                "GET /api/ps",
                "POST /api/generate {\"keep_alive\":-1,\"model\":\"/models/m\",\"stream\":false}",
                "GET /api/ps",
            ],
        ),
    ];
    for (preset, level, flavour, args, expected) in cases {
        let lab = Lab::new();
        let mut plan = ModelPlan { sleep_level: level, ..sleeper(&lab, preset, flavour, args) };
        if preset == Preset::TensorrtLlm {
            plan.env.insert("TRTLLM_RUNTIME_CONTROL_API_KEY".into(), "{{ api_key }}".into());
            plan.api_key = true;
        }
        let mut engine = launched(&lab, plan).await;
        lab.calls();
        let mut swapper = Swapper::new(
            &engine.plan,
            &Deps { gpus: lab.gpu(), server: None, parking: Err("no GPU".to_owned()) },
        );
        let trial = swapper.trial(&mut engine).await.expect("sleep or restart passes");
        assert_eq!(trial.chosen, MechanismKind::Sleep, "{flavour} {level}: {:?}", swapper.crossed());
        assert_eq!(lab.calls(), expected, "{flavour} {level}");
        assert_eq!(trial.measure.resident.gpu[0], Bytes(Bytes::gib(16).0 + Bytes::mib(512).0));
        assert_eq!(trial.measure.out.gpu[0], Bytes::mib(512));
        engine.stop().await.expect("it can be stopped");
    }
}

#[tokio::test]
async fn a_sleep_that_lies_is_crossed_out_with_its_reason() {
    for (lie, reason) in [
        ("sleep", "so the engine is not asleep"),
        ("state", "so the engine is not asleep"),
        ("memory", "still holds 16.5 GiB of 16.5 GiB"),
        ("wake", "so the engine is not awake"),
        ("answer", "the greedy answer changed: \"one two three\" before the swap, \"!!!!\" after it"),
        ("die-asleep", "sleep"),
        ("die-waking", "wake"),
    ] {
        let lab = Lab::new();
        let plan = sleeper(&lab, Preset::Vllm, "vllm", &["--enable-sleep-mode", "--lie", lie]);
        let plan = ModelPlan { swap_timeout: Duration::from_secs(2), ..plan };
        let mut engine = launched(&lab, plan).await;
        let mut swapper = Swapper::new(
            &engine.plan,
            &Deps { gpus: lab.gpu(), server: None, parking: Err("no GPU".to_owned()) },
        );
        let trial = swapper.trial(&mut engine).await.expect("restart is left");
        assert_eq!(trial.chosen, MechanismKind::Restart, "{lie}");
        let [(MechanismKind::Sleep, found)] = swapper.crossed() else {
            panic!("{lie}: {:?}", swapper.crossed())
        };
        assert!(found.contains(reason), "{lie}: {found}");
        let answer = engine.probe(1, LIMIT).await.expect("the engine is resident and sound after its trial");
        assert_eq!(answer, Answer::Text("one two three".into()), "{lie}");
        engine.stop().await.expect("it can be stopped");
    }
}

#[tokio::test]
async fn what_an_engine_was_not_started_with_is_said_before_anything_is_tried() {
    let lab = Lab::new();
    let mut engine = launched(&lab, lab.sleeper(Preset::Vllm, "vllm", &[])).await;
    let mut swapper = Swapper::new(
        &engine.plan,
        &Deps { gpus: lab.gpu(), server: None, parking: Err("no GPU".to_owned()) },
    );
    swapper.trial(&mut engine).await.expect("restart is left");
    let (_, reason) = &swapper.crossed()[0];
    assert!(
        reason.contains("--enable-sleep-mode") && reason.contains("VLLM_SERVER_DEV_MODE = \"1\""),
        "{reason}"
    );
    assert!(lab.calls().is_empty());
    engine.stop().await.expect("it can be stopped");
}

#[tokio::test]
async fn in_service_a_mechanism_has_two_strikes() {
    // It lies from the start, but nobody tried it.
    let lab = Lab::new();
    let plan = sleeper(&lab, Preset::Vllm, "vllm", &["--enable-sleep-mode", "--lie", "sleep"]);
    let mut engine = launched(&lab, ModelPlan { swap_timeout: Duration::from_secs(1), ..plan }).await;
    let mut swapper = Swapper::new(
        &engine.plan,
        &Deps { gpus: lab.gpu(), server: None, parking: Err("no GPU".to_owned()) },
    );
    swapper.adopt(&engine).await.expect("sleep suits");
    assert_eq!(swapper.current(), Some(MechanismKind::Sleep));

    let first = swapper.swap_out(&mut engine, 0, None).await.expect_err("it did not sleep");
    assert!(!first.lost, "it is awake as before: {first}");
    assert_eq!(swapper.current(), Some(MechanismKind::Sleep), "one strike");
    let out = swapper.swap_out(&mut engine, 0, None).await.expect("the next rung takes it out at once");
    assert_eq!(out.mechanism, Some(MechanismKind::Restart));
    assert_eq!(swapper.crossed().len(), 1);
    swapper.swap_in(&mut engine).await.expect("it is started again");
    engine.stop().await.expect("it can be stopped");
}

#[tokio::test]
async fn what_a_sleeper_keeps_in_host_memory_counts_in_each_sleep() {
    let lab = Lab::new();
    let plan = sleeper(&lab, Preset::Vllm, "vllm", &["--enable-sleep-mode", "--pins", "64"]);
    let mut engine = launched(&lab, plan).await;
    let mut swapper = Swapper::new(
        &engine.plan,
        &Deps { gpus: lab.gpu(), server: None, parking: Err("no GPU".to_owned()) },
    );
    // The trial is its first sleep.
    let trial = swapper.trial(&mut engine).await.expect("sleep passes");
    assert_eq!(trial.chosen, MechanismKind::Sleep, "{:?}", swapper.crossed());
    assert!(trial.measure.out.host >= Bytes::mib(64), "{}", trial.measure.out.host);
    for _ in 0..2 {
        let out = swapper.swap_out(&mut engine, 0, None).await.expect("it sleeps");
        assert!(out.out.host >= Bytes::mib(64), "{}", out.out.host);
        swapper.swap_in(&mut engine).await.expect("it wakes");
    }
    engine.stop().await.expect("it can be stopped");
}
