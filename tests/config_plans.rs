//! What becomes of a correct config: defaults, presets, and the commands that engines are started with.

use std::{fmt::Write, path::Path, time::Duration};
use swapserve::{
    config::{self, Context, Limits, ModelPlan, Plan, TemplateValues},
    units::{Bytes, MechanismKind as M},
};

fn plan(text: &str) -> Plan {
    plan_in(text, &Context::default())
}

fn plan_in(text: &str, context: &Context) -> Plan {
    match config::parse(Path::new("/usr/models.toml"), text, context) {
        Ok(plan) => plan,
        Err(mistakes) => panic!("{}", mistakes.render(false)),
    }
}

/// The values of one launch.
fn launch(model: &ModelPlan) -> TemplateValues {
    TemplateValues {
        port: (!model.unix_socket).then_some(40_001),
        socket: model.unix_socket.then(|| "/run/s/chat.sock".into()),
        api_key: "KEY".to_owned(),
        gpu_memory_fraction: model.gpu_memory.map(|each| each.0 as f64 / Bytes::gib(80).0 as f64),
        threads: 8,
        rundir: "/run/s/chat".into(),
    }
}

/// Everything a model is started with, for people to look at.
fn started(model: &ModelPlan) -> String {
    let command = model.render(&launch(model)).unwrap();
    let mut text = command.argv.join(" ") + "\n";
    command.env.iter().for_each(|(name, value)| writeln!(text, "{name}={value}").unwrap());
    command.files.iter().for_each(|(path, content)| writeln!(text, "{}: {content}", path.display()).unwrap());
    text
}

/// A model of this engine with a program that is there on any machine.
fn engine(name: &str, more: &str) -> ModelPlan {
    let text =
        format!("[models.chat]\nengine = \"{name}\"\ncommand = [\"sh\"]\nmodel = \"/bin/sh\"\n{more}\n");
    plan(&text).models.remove(0)
}

#[test]
fn what_is_not_given_has_its_default() {
    let plan = plan("[models.chat]\nengine = \"custom\"\ncommand = [\"sh\", \"{{ port }}\"]\n");
    assert_eq!(plan.source, Path::new("/usr/models.toml"));
    assert_eq!((plan.router.host.to_string().as_str(), plan.router.port), ("127.0.0.1", 0));
    assert!(plan.router.require_key && plan.router.unix_socket);
    assert_eq!(plan.router.max_body, Bytes::mib(64));
    assert_eq!(plan.router.header_timeout, Duration::from_secs(10));
    assert_eq!(plan.scheduler.queue_limit, 512);
    assert_eq!(plan.scheduler.max_wait, Duration::from_secs(600));
    assert_eq!(plan.scheduler.min_resident, Duration::from_secs(2));
    assert_eq!(plan.scheduler.patience, Duration::from_secs(5));
    assert_eq!(plan.scheduler.drain_limit, Duration::from_secs(30));
    assert_eq!(plan.scheduler.running_slots, 0, "resolved when the job's cores are known");
    let model = &plan.models[0];
    assert_eq!((model.gpus, model.pin, model.preload, model.idle_ttl), (1, false, false, None));
    assert_eq!(model.swap, [M::Park, M::ParkCheckpoint, M::Checkpoint, M::Restart]);
    assert_eq!(model.start_timeout, Duration::from_secs(900));
    assert_eq!(model.stop_grace, Duration::from_secs(10));
    assert_eq!(model.swap_timeout, Duration::from_secs(120));
    assert!(model.swap_auto && !model.unix_socket && !model.api_key);
}

#[test]
fn engines_are_launched_ahead_where_it_is_known_that_they_can_be_held() {
    let elsewhere = Context { elsewhere: true, ..Context::default() };
    let ahead = |engine: &str, more: &str| {
        let text = format!("[models.m]\nengine = \"{engine}\"\nmodel = \"/weights/m\"\n{more}\n");
        plan_in(&text, &elsewhere).models[0].start_ahead
    };
    for engine in ["vllm", "sglang", "transformers"] {
        assert!(ahead(engine, ""), "{engine}");
        assert!(!ahead(engine, "start_ahead = false"), "{engine}: turned off");
        assert!(!ahead(engine, "apptainer = \"/image.sif\""), "{engine}: another C library");
        assert!(!ahead(engine, "command = [\"wrapper\"]"), "{engine}: who knows what that does");
        assert!(ahead(engine, "command = [\"wrapper\"]\nstart_ahead = true"), "{engine}: the user does");
    }
    assert!(!ahead("llama-cpp", "") && !ahead("tensorrt-llm", ""));
    assert!(!ahead("vllm", "gpus = 0"), "there is nothing that it could wait for");
    let all = "[defaults]\nstart_ahead = false\n[models.m]\nengine = \"vllm\"\nmodel = \"/weights/m\"\n";
    assert!(!plan_in(all, &elsewhere).models[0].start_ahead);
}

#[test]
fn units_are_what_they_say() {
    let plan = plan(
        "[models.chat]\nengine = \"custom\"\ncommand = \"sh {{ port }}\"\ngpu_memory = \"24GB\"\nidle_ttl = \"1h 30m\"\n\
         [memory]\ngpu_headroom = \"1.5GiB\"\nhost_headroom = \"512 MiB\"\n[scheduler]\npatience = \"500ms\"\n",
    );
    assert_eq!(plan.models[0].gpu_memory, Some(Bytes(24_000_000_000)));
    assert_eq!(plan.models[0].idle_ttl, Some(Duration::from_secs(5400)));
    assert_eq!(plan.memory.gpu_headroom, Bytes::mib(1536));
    assert_eq!(plan.memory.host_headroom, Bytes::mib(512));
    assert_eq!(plan.scheduler.patience, Duration::from_millis(500));
}

#[test]
fn defaults_fill_in_and_tables_are_merged() {
    let plan = plan(
        "[defaults]\nengine = \"custom\"\ngpus = 0\nstop_grace = \"3s\"\nenv = { A = \"1\", B = \"1\" }\nargs = [\"--all\"]\n\
         [models.one]\ncommand = \"sh {{ port }}\"\nenv = { B = \"2\" }\n\
         [models.two]\ncommand = \"sh {{ port }}\"\nargs = []\nstop_grace = \"4s\"\n",
    );
    let [one, two] = plan.models.as_slice() else { panic!("two models") };
    assert_eq!((one.env["A"].as_str(), one.env["B"].as_str()), ("1", "2"));
    assert_eq!((one.stop_grace, two.stop_grace), (Duration::from_secs(3), Duration::from_secs(4)));
    assert_eq!((one.args.as_slice(), two.args.as_slice()), (["--all".to_owned()].as_slice(), [].as_slice()));
    assert_eq!(one.swap, [M::Freeze, M::Restart]);
}

#[test]
fn models_stand_in_the_files_order_and_are_found_by_any_name() {
    let one = |name: &str| {
        format!(
            "[models.{name}]\nengine = \"custom\"\ncommand = \"sh {{{{ port }}}}\"\naliases = [\"{name}-alias\"]\n"
        )
    };
    let plan = plan(&(one("zeta") + &one("alpha") + &one("mid")));
    let names: Vec<_> = plan.models.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["zeta", "alpha", "mid"]);
    assert_eq!(plan.find("alpha-alias").map(|id| plan.model(id).name.as_str()), Some("alpha"));
    assert_eq!(plan.find("beta"), None);
}

#[test]
fn an_engine_uses_no_gpu_where_there_is_none_or_it_is_frozen() {
    let text = "[models.chat]\nengine = \"custom\"\ncommand = \"sh {{ port }}\"\n";
    let none = Context { limits: Some(Limits { cores: 2, ..Limits::default() }), ..Context::default() };
    assert_eq!(plan_in(text, &none).models[0].gpus, 0);
    let one = Limits { gpus: vec![Bytes::gib(80)], ..Limits::default() };
    assert_eq!(plan_in(text, &Context { limits: Some(one), ..Context::default() }).models[0].gpus, 1);
    assert_eq!(plan(&format!("{text}swap = \"freeze\"\n")).models[0].gpus, 0);
}

#[test]
fn a_command_in_one_string_is_split_as_a_shell_splits_it() {
    let plan = plan(
        "[models.c]\nengine = \"custom\"\ncommand = \"sh -c 'echo  two  words' --port {{ port }} {{ name | upper }}\"\n",
    );
    let command = plan.models[0].render(&launch(&plan.models[0])).unwrap();
    assert_eq!(command.argv, ["sh", "-c", "echo  two  words", "--port", "40001", "C"]);
}

#[test]
fn paths_begin_at_the_configs_directory() {
    let model = engine("llama-cpp", "").model;
    assert_eq!(model, "/bin/sh");
    let text = "[models.a]\nengine = \"llama-cpp\"\ncommand = [\"./bin/sh\"]\nmodel = \"bin/sh\"\n\
                [models.b]\nengine = \"vllm\"\ncommand = [\"sh\"]\nmodel = \"bin/sh\"\n\
                [models.c]\nengine = \"vllm\"\ncommand = [\"sh\"]\nmodel = \"meta-llama/Llama-3.1-8B-Instruct\"\n";
    let plan = plan(text);
    assert_eq!(
        (plan.models[0].command[0].as_str(), plan.models[0].model.as_str()),
        ("/usr/bin/sh", "/usr/bin/sh")
    );
    assert_eq!(plan.models[1].model, "/usr/bin/sh", "it is there");
    assert_eq!(plan.models[2].model, "meta-llama/Llama-3.1-8B-Instruct", "a hub's name stays a name");
}

#[test]
fn every_preset_on_gpus() {
    let full = |name| {
        started(&engine(name, "gpus = 2\ngpu_memory = \"24GiB\"\nargs = [\"--more\", \"{{ threads }}\"]"))
    };
    insta::assert_snapshot!(full("vllm"), @r"
    sh /bin/sh --served-model-name chat --uds /run/s/chat.sock --gpu-memory-utilization 0.3000 --tensor-parallel-size 2 --enable-sleep-mode --more 8
    VLLM_API_KEY=KEY
    VLLM_NO_USAGE_STATS=1
    VLLM_SERVER_DEV_MODE=1
    ");
    insta::assert_snapshot!(full("sglang"), @r#"
    sh --model-path /bin/sh --served-model-name chat --host 127.0.0.1 --port 40001 --config /run/s/chat/sglang.yaml --mem-fraction-static 0.3000 --tp-size 2 --enable-memory-saver --enable-weights-cpu-backup --more 8
    /run/s/chat/sglang.yaml: api-key: "KEY"
    "#);
    insta::assert_snapshot!(full("llama-cpp"), @r"
    sh --model /bin/sh --alias chat --host /run/s/chat.sock --n-gpu-layers 999 --more 8
    LLAMA_API_KEY=KEY
    ");
    insta::assert_snapshot!(full("ollama"), @r"
    sh --more 8
    OLLAMA_HOST=127.0.0.1:40001
    OLLAMA_KEEP_ALIVE=-1
    OLLAMA_MAX_LOADED_MODELS=1
    ");
    insta::assert_snapshot!(full("tensorrt-llm"), @r"
    sh /bin/sh --host 127.0.0.1 --port 40001 --served_model_name chat --tp_size 2 --more 8
    ");
    insta::assert_snapshot!(full("transformers"), @"sh --host 127.0.0.1 --port 40001 --model-timeout -1 --more 8");
}

#[test]
fn every_preset_without_gpus() {
    let cpu = |name| started(&engine(name, "gpus = 0"));
    insta::assert_snapshot!(cpu("vllm"), @r"
    sh /bin/sh --served-model-name chat --uds /run/s/chat.sock
    VLLM_API_KEY=KEY
    VLLM_NO_USAGE_STATS=1
    ");
    insta::assert_snapshot!(cpu("sglang"), @r#"
    sh --model-path /bin/sh --served-model-name chat --host 127.0.0.1 --port 40001 --config /run/s/chat/sglang.yaml --device cpu
    /run/s/chat/sglang.yaml: api-key: "KEY"
    "#);
    insta::assert_snapshot!(cpu("llama-cpp"), @r"
    sh --model /bin/sh --alias chat --host /run/s/chat.sock --n-gpu-layers 0 --threads 8
    LLAMA_API_KEY=KEY
    ");
    insta::assert_snapshot!(cpu("transformers"), @"sh --host 127.0.0.1 --port 40001 --model-timeout -1 --device cpu");
}

#[test]
fn sleep_mode_is_switched_on_only_where_it_is_used() {
    let awake = engine("vllm", "swap = [\"park\", \"restart\"]");
    assert!(!started(&awake).contains("sleep") && !started(&awake).contains("DEV_MODE"));
    let sleeper = engine("vllm", "swap = \"sleep+checkpoint\"");
    assert!(
        started(&sleeper).contains("--enable-sleep-mode")
            && started(&sleeper).contains("VLLM_SERVER_DEV_MODE=1")
    );
    let signed = started(&engine("tensorrt-llm", "swap = [\"sleep\", \"restart\"]"));
    assert!(signed.contains("--enable_sleep_mode") && signed.contains("TRTLLM_RUNTIME_CONTROL_API_KEY=KEY"));
    let reloads = started(&engine("sglang", "swap = \"sleep\"\nsleep_level = 2"));
    assert!(reloads.contains("--enable-memory-saver") && !reloads.contains("--enable-weights-cpu-backup"));
}

#[test]
fn a_command_keeps_the_presets_options_and_may_place_the_model_itself() {
    let plan = plan(
        "[models.a]\nengine = \"vllm\"\ncommand = \"sh -m vllm {{ model }}\"\nmodel = \"/bin/sh\"\nswap = \"restart\"\n",
    );
    let command = plan.models[0].render(&launch(&plan.models[0])).unwrap();
    assert_eq!(command.argv.join(" "), "sh -m vllm /bin/sh --served-model-name a --uds /run/s/chat.sock");
}

#[test]
fn a_unix_socket_can_be_declined() {
    let model = engine("vllm", "unix_socket = false");
    assert!(!model.unix_socket && started(&model).contains("--host 127.0.0.1 --port 40001"));
}

#[test]
fn no_presets_command_line_holds_the_key() {
    for facts in &config::presets::TABLE {
        if facts.name == "custom" {
            continue;
        }
        let model = engine(facts.name, "");
        let command = model.render(&launch(&model)).unwrap();
        assert!(
            command.argv.iter().all(|word| !word.contains("KEY")),
            "{}: other users see {:?}",
            facts.name,
            command.argv
        );
        assert!(!format!("{command:?}").contains("KEY"), "a log line must not hold it either");
        let hidden = command.env.values().chain(command.files.values()).any(|text| text.contains("KEY"));
        assert_eq!(model.api_key, hidden, "{}", facts.name);
    }
}

#[test]
fn apptainer_wraps_any_command() {
    let model = |gpus: u32| {
        let text = format!(
            "[models.chat]\nengine = \"llama-cpp\"\nmodel = \"/bin/sh\"\ngpus = {gpus}\napptainer = \"/bin/sh\"\n"
        );
        // The program of the image is not looked for outside of it; apptainer itself may not be here.
        config::parse(Path::new("/usr/models.toml"), &text, &Context::default())
    };
    for (gpus, nv) in [(1, "--nv "), (0, "")] {
        match model(gpus) {
            Ok(plan) => {
                let start = format!(
                    "apptainer exec {nv}--bind /run/s/chat --bind /bin/sh:/bin/sh:ro /bin/sh llama-server"
                );
                assert!(started(&plan.models[0]).starts_with(&start), "{}", started(&plan.models[0]));
            }
            Err(mistakes) => {
                assert_eq!(mistakes.list().len(), 1, "{}", mistakes.render(false));
                assert_eq!(mistakes.list()[0].message, "the program \"apptainer\" is not on PATH");
            }
        }
    }
}

#[test]
fn the_engines_own_name_is_known_to_the_router() {
    assert_eq!(engine("vllm", "").served_as, "chat");
    assert_eq!(engine("transformers", "").served_as, "/bin/sh");
}
