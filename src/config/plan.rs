//! The checked configuration: every value present, every unit resolved, nothing left to fail on.

use crate::units::{Bytes, MechanismKind, ModelId};
use serde::{Serialize, Serializer};
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

/// Everything a run needs to know from its configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The file it came from.
    pub source: PathBuf,
    /// One entry a model, in the file's order; [`ModelId`] is the index.
    pub models: Vec<ModelPlan>,
    /// `[router]`.
    pub router: RouterPlan,
    /// `[scheduler]`.
    pub scheduler: SchedulerPlan,
    /// `[memory]`.
    pub memory: MemoryPlan,
}

impl Plan {
    /// The model that a request's `model` field names: its own name or one of its aliases.
    pub fn find(&self, name: &str) -> Option<ModelId> {
        let at = self.models.iter().position(|m| m.name == name || m.aliases.iter().any(|a| a == name))?;
        Some(ModelId(at as u32))
    }

    /// One model's entry.
    pub fn model(&self, id: ModelId) -> &ModelPlan {
        &self.models[id.index()]
    }
}

/// One `[models.NAME]` entry.
#[derive(Clone, Debug, Serialize)]
pub struct ModelPlan {
    /// The name requests ask for, and the one engines are told to serve under.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The kind of engine.
    pub engine: Preset,
    /// Program and arguments, as templates: the preset's program (or the config's `command`), then the preset's options.
    pub command: Vec<String>,
    /// Path or identifier of the weights; empty where the engine needs none.
    pub model: String,
    /// Arguments appended to the command, as templates.
    pub args: Vec<String>,
    /// Environment added to the engine's own, as templates: the preset's, then the config's.
    pub env: BTreeMap<String, String>,
    /// Files that the engine reads at its start, as templates, by their name in its run directory; mode 0600.
    pub files: BTreeMap<String, String>,
    /// The name that the engine itself answers to; where it differs from the one requested, the router writes this one
    /// into the request.
    pub served_as: String,
    /// GPUs the engine uses; 0 is a CPU engine.
    pub gpus: u32,
    /// GPU memory the engine may take on each of its GPUs.
    pub gpu_memory: Option<Bytes>,
    /// Host memory a CPU engine takes, where the config says so (else it is measured).
    pub host_memory: Option<Bytes>,
    /// The ladder: mechanisms to try, in order. `auto` is the preset's whole ladder.
    pub swap: Vec<MechanismKind>,
    /// Whether `swap = "auto"` was asked for (the trial's result is a choice, not an error).
    pub swap_auto: bool,
    /// Level of vLLM's and SGLang's sleep, 1 (weights to host memory) or 2 (weights dropped and loaded again).
    pub sleep_level: u8,
    /// Never chosen as a victim.
    pub pin: bool,
    /// Resident when the run begins to serve.
    pub preload: bool,
    /// Swapped out after this long without a request; `None`: only when another needs the room.
    #[serde(serialize_with = "optional_seconds")]
    pub idle_ttl: Option<Duration>,
    /// Launched while other engines start on its GPUs, and held before its first use of a GPU until its turn comes.
    pub start_ahead: bool,
    /// Longest time from launch, or from the end of its hold, to the first answered request.
    #[serde(serialize_with = "seconds")]
    pub start_timeout: Duration,
    /// Time between TERM and KILL.
    #[serde(serialize_with = "seconds")]
    pub stop_grace: Duration,
    /// Longest time a swap out or in may take before it counts as failed.
    #[serde(serialize_with = "seconds")]
    pub swap_timeout: Duration,
    /// How long a resident engine may answer no health request and use no CPU before it is started again; `None`: it is not
    /// looked at.
    #[serde(serialize_with = "optional_seconds")]
    pub hang_timeout: Option<Duration>,
    /// What happens to the engine's request when a client goes away.
    pub on_disconnect: DisconnectPolicy,
    /// Apptainer image the command runs in.
    pub apptainer: Option<PathBuf>,
    /// Commands of the `hook` mechanism.
    pub hooks: Option<Hooks>,
    /// HTTP path that says the engine is up (before the one-token request).
    pub health_path: String,
    /// What kind of one-token request proves readiness.
    pub probe: Probe,
    /// Whether the engine listens on a Unix socket (`{{ socket }}` appears in its command or environment).
    pub unix_socket: bool,
    /// Whether the engine checks a key of its own (`{{ api_key }}` appears in its command, environment or files).
    pub api_key: bool,
}

/// Which other users of the node can have an engine answer them. All of a node share its loopback ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// None: it listens on a Unix socket in a directory of mode 0700.
    Nobody,
    /// Those who know its own random key, which only this user's processes do.
    KeyHolders,
    /// Those who look at command lines: its key is on one.
    Onlookers,
    /// All: it listens on a port and asks for no key.
    Anyone,
}

impl Reach {
    /// What follows from it, and what to do; nothing where nobody else can reach the engine.
    pub fn warning(self) -> Option<&'static str> {
        match self {
            Self::Nobody | Self::KeyHolders => None,
            Self::Onlookers => Some(
                "its key is on its command line, which other users of the node can read (ps); pass it by `env`: \
                 NAME = \"{{ api_key }}\"",
            ),
            Self::Anyone => Some(
                "it listens on a port of this node and asks for no key: other users of the node can use it while it runs; \
                 where that matters, ask for whole nodes (--exclusive), or use an engine with a Unix socket or a key",
            ),
        }
    }
}

impl ModelPlan {
    /// Which other users of the node can have the engine answer them.
    pub fn reach(&self) -> Reach {
        let on_command_line = |word: &String| super::template::uses(word, "api_key");
        if self.unix_socket {
            Reach::Nobody
        } else if self.command.iter().chain(&self.args).any(on_command_line) {
            Reach::Onlookers
        } else if self.api_key {
            Reach::KeyHolders
        } else {
            Reach::Anyone
        }
    }

    /// Whether its engine may be parked: it runs on GPUs, and its ladder names `park`.
    pub fn may_be_parked(&self) -> bool {
        self.gpus > 0 && self.swap.iter().any(|kind| kind.parks())
    }
}

/// The request that proves an engine ready and, repeated, unchanged by a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// `POST /v1/chat/completions`, greedy.
    Chat,
    /// `POST /v1/completions`, greedy.
    Completion,
    /// `POST /v1/embeddings`.
    Embedding,
    /// Only the health path: engines of other kinds (rerank, audio).
    Health,
}

/// The engines known by name. Each one's facts are data in the preset table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Preset {
    Vllm,
    Sglang,
    LlamaCpp,
    Ollama,
    TensorrtLlm,
    Transformers,
    Custom,
}

/// What becomes of the engine's request when the client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisconnectPolicy {
    /// The connection to the engine is closed at once; the engine cancels.
    Cancel,
    /// The answer is read to its end and dropped, for engines that can't bear a cancel.
    Drain,
}

/// The user's own swap commands, run with the engine's pid, address and name in their environment.
#[derive(Clone, Debug, Serialize)]
pub struct Hooks {
    /// Frees the engine's resources; exit 0 when done.
    pub out: Vec<String>,
    /// Brings them back; exit 0 when the engine can answer.
    #[serde(rename = "in")]
    pub back: Vec<String>,
}

/// `[router]`.
#[derive(Clone, Debug, Serialize)]
pub struct RouterPlan {
    /// Address to listen on. Default `127.0.0.1`; the job's node address or `0.0.0.0` where clients are elsewhere.
    pub host: IpAddr,
    /// TCP port; 0 lets the kernel choose.
    pub port: u16,
    /// Whether a Unix socket in the run directory is opened beside it.
    pub unix_socket: bool,
    /// Whether a key is asked for (a random one for each run).
    pub require_key: bool,
    /// Largest request body, bytes.
    pub max_body: Bytes,
    /// Longest time a client may take to send its headers.
    #[serde(serialize_with = "seconds")]
    pub header_timeout: Duration,
    /// How long an engine may take to begin its answer, while resident, before the request fails.
    #[serde(serialize_with = "optional_seconds")]
    pub first_byte_timeout: Option<Duration>,
    /// How long the engines may be silent in mid-stream while resident, before the request fails; `None`: forever.
    #[serde(serialize_with = "optional_seconds")]
    pub idle_stream_timeout: Option<Duration>,
    /// How long a client may take nothing of its answer; `None`: forever.
    #[serde(serialize_with = "optional_seconds")]
    pub client_timeout: Option<Duration>,
}

/// `[scheduler]`: the bounds a user can rely on.
#[derive(Clone, Debug, Serialize)]
pub struct SchedulerPlan {
    /// Requests that may wait for one model; past it 429.
    pub queue_limit: u32,
    /// Longest time a request waits before 504.
    #[serde(serialize_with = "seconds")]
    pub max_wait: Duration,
    /// An engine that was swapped in stays at least this long while it has work (no thrash).
    #[serde(serialize_with = "seconds")]
    pub min_resident: Duration,
    /// How long a waiting model bears that a busy one is preferred before that one is closed to new requests and drained.
    #[serde(serialize_with = "seconds")]
    pub patience: Duration,
    /// How long a drain may take before a busy engine is swapped out in mid-generation, where its mechanism keeps streams.
    #[serde(serialize_with = "seconds")]
    pub drain_limit: Duration,
    /// How long before the job's end requests that would not be done by then are refused.
    #[serde(serialize_with = "seconds")]
    pub end_margin: Duration,
    /// CPU engines that may compute at once; the ledger's running slots. 0: one for every core of the job.
    pub running_slots: u32,
}

/// `[memory]`: what the ledgers may use.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    /// Bytes of each GPU the job may use; `None`: all that is free when the run begins.
    pub gpu_budget: Option<Bytes>,
    /// Bytes kept free on each GPU.
    pub gpu_headroom: Bytes,
    /// Host memory for engines that are out and for CPU engines; `None`: the job's limit less the headroom.
    pub host_budget: Option<Bytes>,
    /// Bytes of the job's memory limit kept for everything else (the user's command).
    pub host_headroom: Bytes,
    /// Bytes of the pinned pool that engines are parked in; `None`: what they need, as far as the host has it.
    pub pool: Option<Bytes>,
}

/// A length of time as seconds, with a fraction.
fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn optional_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}
