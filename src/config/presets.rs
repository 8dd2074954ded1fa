//! What is known of each engine, as data. To add an engine: a variant of [`Preset`] and a row of [`TABLE`].
//!
//! The words are templates (see `template`). Every option is one that the engine documents; where a claim rests on a
//! particular version or on the absence of an option, the row says so.

use super::plan::{Preset, Probe};
use crate::units::MechanismKind::{
    self, Checkpoint, Freeze, Park, ParkCheckpoint, Restart, Sleep, SleepCheckpoint,
};

/// One engine's facts.
#[derive(Debug)]
pub struct Facts {
    /// Which one it is.
    pub preset: Preset,
    /// Its name in the config.
    pub name: &'static str,
    /// The program and its first arguments: what `command` replaces.
    pub program: &'static [&'static str],
    /// Options that follow the program, each under its condition.
    pub options: &'static [(When, &'static [&'static str])],
    /// Options that only swapserve may give: where the engine listens, under which name, with which key.
    pub reserved: &'static [&'static str],
    /// Environment, each under its condition. Secrets go here: other users of a node can read command lines.
    pub env: &'static [(When, &'static str, &'static str)],
    /// Files made (0600) in the engine's run directory before it starts, each under its condition.
    pub files: &'static [(When, &'static str, &'static str)],
    /// Whether it can listen on a Unix socket.
    pub unix_socket: bool,
    /// What `model` may be.
    pub weights: Weights,
    /// The name that the engine answers to.
    pub served_as: ServedAs,
    /// HTTP path that answers 200 when it is up.
    pub health_path: &'static str,
    /// The request that proves it ready.
    pub probe: Probe,
    /// Whether it can free its own GPU memory when asked (`sleep`).
    pub sleeps: bool,
    /// Whether it may be launched ahead of its turn: its own program imports for long, and it is known that each of its
    /// processes comes to the GPU by `cuInit` of a `libcuda.so.1` that is loaded at run time, where the preload library
    /// can hold it, and looks at what is free only afterwards.
    pub starts_ahead: bool,
    /// The ladder of `swap = "auto"` on GPUs.
    pub gpu_ladder: &'static [MechanismKind],
}

/// When an option is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// The config's own `command`, if any, does not use `{{ model }}`.
    NoModelYet,
    /// The engine listens on a Unix socket.
    Socket,
    /// The engine listens on a TCP port.
    Port,
    /// The engine uses no GPU.
    Cpu,
    /// The engine uses a GPU.
    Gpu,
    /// The engine uses several GPUs.
    ManyGpus,
    /// `gpu_memory` is given.
    GpuMemory,
    /// `sleep` is in the ladder.
    Sleeps,
    /// The same, at the level that keeps the weights in host memory.
    SleepsKeepingWeights,
}

/// What the `model` key may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// A path that must exist.
    Path,
    /// A path, or a name on a model hub or in its cache.
    PathOrName,
    /// A name in the engine's own store.
    Name,
    /// Anything or nothing.
    Free,
}

/// The name in requests that the engine accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedAs {
    /// The config's name: the engine is told it.
    Name,
    /// The `model` key: the engine knows no other.
    Model,
}

/// GPU engines whose sleep is tried unasked.
const SLEEPERS: &[MechanismKind] = &[Park, ParkCheckpoint, Sleep, SleepCheckpoint, Checkpoint, Restart];
/// GPU engines that cannot sleep, or only when the config says so.
const WAKEFUL: &[MechanismKind] = &[Park, ParkCheckpoint, Checkpoint, Restart];
/// CPU engines, of any kind.
pub const CPU_LADDER: &[MechanismKind] = &[Freeze, Restart];

/// Every engine.
pub static TABLE: [Facts; 7] = [
    Facts {
        preset: Preset::Vllm,
        name: "vllm",
        program: &["vllm", "serve"],
        options: &[
            (When::NoModelYet, &["{{ model }}"]),
            (When::Always, &["--served-model-name", "{{ name }}"]),
            // `--uds`: «Unix domain socket path. If set, host and port arguments are ignored» (vLLM 0.10 and later).
            (When::Socket, &["--uds", "{{ socket }}"]),
            (When::Port, &["--host", "127.0.0.1", "--port", "{{ port }}"]),
            (When::GpuMemory, &["--gpu-memory-utilization", "{{ gpu_memory_fraction }}"]),
            (When::ManyGpus, &["--tensor-parallel-size", "{{ gpus }}"]),
            (When::Sleeps, &["--enable-sleep-mode"]),
        ],
        reserved: &["--host", "--port", "--uds", "--api-key", "--served-model-name"],
        env: &[
            (When::Always, "VLLM_API_KEY", "{{ api_key }}"),
            (When::Always, "VLLM_NO_USAGE_STATS", "1"),
            // Without it the server has no /sleep, /wake_up and /is_sleeping.
            (When::Sleeps, "VLLM_SERVER_DEV_MODE", "1"),
        ],
        files: &[],
        unix_socket: true,
        weights: Weights::PathOrName,
        served_as: ServedAs::Name,
        health_path: "/health",
        probe: Probe::Chat,
        sleeps: true,
        starts_ahead: true,
        gpu_ladder: SLEEPERS,
    },
    Facts {
        preset: Preset::Sglang,
        name: "sglang",
        program: &["python3", "-m", "sglang.launch_server"],
        options: &[
            (When::NoModelYet, &["--model-path", "{{ model }}"]),
            (When::Always, &["--served-model-name", "{{ name }}"]),
            // It has no option for a Unix socket, and takes its key from the command line or a `--config` file only.
            (When::Always, &["--host", "127.0.0.1", "--port", "{{ port }}"]),
            (When::Always, &["--config", "{{ rundir }}/sglang.yaml"]),
            (When::GpuMemory, &["--mem-fraction-static", "{{ gpu_memory_fraction }}"]),
            (When::ManyGpus, &["--tp-size", "{{ gpus }}"]),
            (When::Cpu, &["--device", "cpu"]),
            (When::Sleeps, &["--enable-memory-saver"]),
            // Without it released weights come back as whatever the memory then holds.
            (When::SleepsKeepingWeights, &["--enable-weights-cpu-backup"]),
        ],
        reserved: &["--host", "--port", "--config", "--api-key", "--served-model-name"],
        env: &[],
        files: &[(When::Always, "sglang.yaml", "api-key: \"{{ api_key }}\"")],
        unix_socket: false,
        weights: Weights::PathOrName,
        served_as: ServedAs::Name,
        health_path: "/health",
        probe: Probe::Chat,
        sleeps: true,
        starts_ahead: true,
        gpu_ladder: SLEEPERS,
    },
    Facts {
        preset: Preset::LlamaCpp,
        name: "llama-cpp",
        program: &["llama-server"],
        options: &[
            (When::NoModelYet, &["--model", "{{ model }}"]),
            (When::Always, &["--alias", "{{ name }}"]),
            // `--host`: «ip address to listen, or bind to an UNIX socket if the address ends with .sock».
            (When::Socket, &["--host", "{{ socket }}"]),
            (When::Port, &["--host", "127.0.0.1", "--port", "{{ port }}"]),
            (When::Gpu, &["--n-gpu-layers", "999"]),
            (When::Cpu, &["--n-gpu-layers", "0", "--threads", "{{ threads }}"]),
        ],
        reserved: &["--host", "--port", "--api-key", "--api-key-file", "--alias", "-a", "--model", "-m"],
        env: &[(When::Always, "LLAMA_API_KEY", "{{ api_key }}")],
        files: &[],
        unix_socket: true,
        weights: Weights::Path,
        served_as: ServedAs::Name,
        health_path: "/health",
        probe: Probe::Chat,
        sleeps: false,
        starts_ahead: false,
        gpu_ladder: WAKEFUL,
    },
    Facts {
        preset: Preset::Ollama,
        name: "ollama",
        program: &["ollama", "serve"],
        // It has neither a Unix socket nor a key. The model is loaded by the first request: the readiness probe.
        options: &[],
        reserved: &[],
        env: &[
            (When::Always, "OLLAMA_HOST", "127.0.0.1:{{ port }}"),
            (When::Always, "OLLAMA_KEEP_ALIVE", "-1"),
            (When::Always, "OLLAMA_MAX_LOADED_MODELS", "1"),
        ],
        files: &[],
        unix_socket: false,
        weights: Weights::Name,
        served_as: ServedAs::Model,
        health_path: "/",
        probe: Probe::Chat,
        sleeps: true,
        starts_ahead: false,
        gpu_ladder: WAKEFUL,
    },
    Facts {
        preset: Preset::TensorrtLlm,
        name: "tensorrt-llm",
        program: &["trtllm-serve"],
        options: &[
            (When::NoModelYet, &["{{ model }}"]),
            // It has neither a Unix socket nor a key.
            (When::Always, &["--host", "127.0.0.1", "--port", "{{ port }}"]),
            (When::Always, &["--served_model_name", "{{ name }}"]),
            (When::ManyGpus, &["--tp_size", "{{ gpus }}"]),
            // A prototype (docs/source/features/sleep-wakeup.md) that older releases do not know: only on demand.
            (When::Sleeps, &["--enable_sleep_mode"]),
        ],
        // The secret that /release_memory and /resume_memory are signed with.
        reserved: &["--host", "--port", "--served_model_name"],
        env: &[(When::Sleeps, "TRTLLM_RUNTIME_CONTROL_API_KEY", "{{ api_key }}")],
        files: &[],
        unix_socket: false,
        weights: Weights::PathOrName,
        served_as: ServedAs::Name,
        health_path: "/health",
        probe: Probe::Chat,
        sleeps: true,
        starts_ahead: false,
        gpu_ladder: WAKEFUL,
    },
    Facts {
        preset: Preset::Transformers,
        name: "transformers",
        program: &["transformers", "serve"],
        options: &[
            // It has neither a Unix socket nor a key, and knows a model by its path or hub name only.
            (When::Always, &["--host", "127.0.0.1", "--port", "{{ port }}"]),
            // Otherwise the weights are dropped after five minutes without a request.
            (When::Always, &["--model-timeout", "-1"]),
            (When::Cpu, &["--device", "cpu"]),
        ],
        reserved: &["--host", "--port"],
        env: &[],
        files: &[],
        unix_socket: false,
        weights: Weights::PathOrName,
        served_as: ServedAs::Model,
        health_path: "/health",
        probe: Probe::Chat,
        sleeps: false,
        starts_ahead: true,
        gpu_ladder: WAKEFUL,
    },
    Facts {
        preset: Preset::Custom,
        name: "custom",
        program: &[],
        options: &[],
        reserved: &[],
        env: &[],
        files: &[],
        unix_socket: false,
        weights: Weights::Free,
        served_as: ServedAs::Name,
        health_path: "/health",
        probe: Probe::Chat,
        sleeps: false,
        starts_ahead: false,
        gpu_ladder: WAKEFUL,
    },
];

impl Preset {
    /// What is known of it.
    pub fn facts(self) -> &'static Facts {
        TABLE
            .iter()
            .find(|facts| facts.preset == self)
            .expect("TABLE has a row for every preset, as a test sees to")
    }

    /// Its name in the config.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Whether the engine can free its own GPU memory (`sleep`).
    pub fn sleeps(self) -> bool {
        self.facts().sleeps
    }
}
