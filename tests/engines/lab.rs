//! Engines for tests: plans of real and of misbehaving ones, and what a run would give them.

use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use swapserve::{
    config::{
        ModelPlan,
        plan::{DisconnectPolicy, Preset, Probe},
    },
    engine::{Cookie, Engine, EngineEnv},
    process::{ProcId, Spawner},
    swap::{MemoryProbe, PerGpu},
    units::{Bytes, MechanismKind},
};

/// A directory for one test's engines, and the plan and environment of each.
pub struct Lab {
    pub dir: tempfile::TempDir,
    spawner: Spawner,
}

impl Lab {
    pub fn new() -> Self {
        let spawner = Spawner::start().expect("a thread can be started");
        Lab { dir: tempfile::tempdir().expect("a temporary directory"), spawner }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn engine(&self, plan: ModelPlan) -> Engine {
        let gpus = (0..plan.gpus as usize).collect();
        let env = EngineEnv {
            spawner: self.spawner.clone(),
            run_dir: self.dir.path().to_owned(),
            log_dir: self.dir.path().to_owned(),
            cookie: Cookie { name: "SWAPSERVE_TEST".into(), value: format!("{}", self.dir.path().display()) },
            inherited: std::env::vars_os().collect(),
            gpus,
            visible: (0..plan.gpus).map(|at| at.to_string()).collect(),
            threads: 1,
            gpu_memory_fraction: None,
            binding: None,
            extra: BTreeMap::new(),
            held: None,
        };
        Engine::new(Arc::new(plan), env)
    }

    /// A fake engine with these further arguments.
    pub fn fake(&self, name: &str, args: &[&str]) -> ModelPlan {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines/fake.py");
        let command = ["python3", script, "--port", "{{ port }}"];
        ModelPlan {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..plan(name, &command, &[MechanismKind::Freeze, MechanismKind::Restart])
        }
    }

    /// A fake of an engine that can sleep, on one pretended GPU.
    pub fn sleeper(&self, preset: Preset, flavour: &str, args: &[&str]) -> ModelPlan {
        let (memory, calls) = (self.path("memory"), self.path("calls"));
        let memory = memory.to_str().expect("a plain path");
        let calls = calls.to_str().expect("a plain path");
        let mut all = vec!["--sleeps", flavour, "--memory", memory, "--calls", calls];
        all.extend(args);
        ModelPlan {
            engine: preset,
            model: "/models/m".into(),
            gpus: 1,
            gpu_memory: Some(Bytes::gib(20)),
            swap: vec![MechanismKind::Sleep, MechanismKind::Restart],
            ..self.fake("sleeper", &all)
        }
    }

    /// What the fake's control endpoints were asked, in order.
    pub fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("calls"));
        calls.lines().map(str::to_owned).collect()
    }

    /// Tells what the fake pretends to hold.
    pub fn gpu(&self) -> Arc<dyn MemoryProbe> {
        Arc::new(PretendedGpu(self.path("memory")))
    }
}

struct PretendedGpu(PathBuf);

#[async_trait]
impl MemoryProbe for PretendedGpu {
    async fn held(&self, tree: &[ProcId]) -> Option<PerGpu> {
        let held = std::fs::read_to_string(&self.0).ok()?.trim().parse().ok()?;
        Some(PerGpu::from_slice(&[Bytes(if tree.is_empty() { 0 } else { held })]))
    }
}

/// An engine that has been started.
pub async fn launched(lab: &Lab, plan: ModelPlan) -> Engine {
    let mut engine = lab.engine(plan);
    engine.launch(&|_| {}).await.expect("the engine starts");
    engine
}

/// A plan with everything at a value that suits a test.
pub fn plan(name: &str, command: &[&str], swap: &[MechanismKind]) -> ModelPlan {
    ModelPlan {
        name: name.into(),
        aliases: Vec::new(),
        engine: Preset::Custom,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        model: String::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
        files: BTreeMap::new(),
        served_as: name.into(),
        gpus: 0,
        gpu_memory: None,
        host_memory: None,
        swap: swap.to_vec(),
        swap_auto: true,
        sleep_level: 1,
        pin: false,
        preload: false,
        idle_ttl: None,
        start_ahead: false,
        start_timeout: Duration::from_secs(60),
        stop_grace: Duration::from_secs(5),
        swap_timeout: Duration::from_secs(60),
        hang_timeout: None,
        on_disconnect: DisconnectPolicy::Cancel,
        apptainer: None,
        hooks: None,
        health_path: "/health".into(),
        probe: Probe::Chat,
        unix_socket: false,
        api_key: false,
    }
}

/// Where `scripts/engines` put the real ones; `None`, with a word about it, where it has not been run.
pub fn real_engines() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".engines");
    let at = std::env::var_os("SWAPSERVE_ENGINES").map_or_else(default, PathBuf::from);
    let there = at.join("bin/llama-server").exists();
    if !there {
        eprintln!("skipped: no engines in {}; scripts/engines makes them", at.display());
    }
    there.then_some(at)
}

/// llama.cpp's server with one of the models that count, or SmolLM2.
pub fn llama(engines: &Path, name: &str, model: &str, unix_socket: bool) -> ModelPlan {
    let server = engines.join("bin/llama-server");
    let weights = engines.join("models").join(format!("{model}.gguf"));
    let mut command =
        vec![server.to_str().expect("a plain path"), "-t", "1", "-m", "{{ model }}", "-a", "{{ name }}"];
    command.extend(if unix_socket { vec!["--host", "{{ socket }}"] } else { vec!["--port", "{{ port }}"] });
    ModelPlan {
        engine: Preset::LlamaCpp,
        model: weights.to_str().expect("a plain path").to_owned(),
        env: BTreeMap::from([("LLAMA_API_KEY".to_owned(), "{{ api_key }}".to_owned())]),
        unix_socket,
        api_key: true,
        ..plan(name, &command, &[MechanismKind::Freeze, MechanismKind::Restart])
    }
}

/// A real embedder with weights of its own.
pub fn embedder(engines: &Path) -> ModelPlan {
    let server = engines.join("bin/embed-server");
    let server = server.to_str().expect("a plain path");
    ModelPlan {
        probe: Probe::Embedding,
        health_path: "/v1/models".into(),
        ..plan(
            "multilingual-e5-small",
            &[server, "--host", "127.0.0.1", "--port", "{{ port }}", "--threads", "1"],
            &[MechanismKind::Freeze, MechanismKind::Restart],
        )
    }
}
