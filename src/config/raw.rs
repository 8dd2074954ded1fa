//! The file as written: its sections and keys, nothing resolved. The doc comments are the schema's descriptions.

use super::{
    mistake::{Code, Mistake},
    plan::{DisconnectPolicy, Preset, Probe},
    reader::{At, FromToml, in_order, read_at, section, unknown_key, wrong_type},
    values::{Address, Ladder, Names, Size, Time, Variables, Words},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::{borrow::Cow, collections::BTreeMap};
use toml::{Spanned, de::DeValue};

section! {
    /// Configuration of swapserve: the models of one job, and how they share it.
    struct File in "a TOML document" {
        /// One entry a model; its name is what requests ask for.
        models: Models,
        /// Values for every model that does not say otherwise. Tables are merged key by key, all else is replaced.
        defaults: Defaults,
        /// The endpoint.
        router: Router,
        /// The bounds that requests and engines can rely on.
        scheduler: Scheduler,
        /// What the job's memory is used for.
        memory: Memory,
    }
}

section! {
    /// One model and the engine behind it.
    struct Model in "a table of one model's keys" {
        /// The kind of engine; `custom` needs a `command`.
        engine: Preset,
        /// Program and first arguments, as templates, in place of the preset's own; the preset's options follow it.
        command: Words,
        /// The weights: a path (relative ones begin at the config's directory) or, where the engine takes one, a name.
        model: String,
        /// Arguments after the preset's options, as templates.
        args: Words,
        /// Environment of the engine, as templates.
        env: Variables,
        /// GPUs the engine uses; 0 is a CPU engine. Default 1; 0 where `swap` names freeze, or the job has no GPU.
        gpus: u32,
        /// GPU memory the engine may take on each of its GPUs.
        gpu_memory: Size,
        /// Host memory of a CPU engine. Default: as measured at its start.
        host_memory: Size,
        /// How the engine is swapped: "auto" tries the preset's mechanisms, fastest first. Default "auto".
        swap: Ladder,
        /// Level of vLLM's and SGLang's sleep: 1 keeps the weights in host memory, 2 drops and reloads them. Default 1.
        sleep_level: u8,
        /// Never swapped out to make room. Default false.
        pin: bool,
        /// Resident when serving begins. Default false.
        preload: bool,
        /// Other names that requests may use.
        aliases: Names,
        /// Swapped out after this long without a request. Default: only when another model needs the room.
        idle_ttl: Time,
        /// Launch the engine while others start on its GPUs, and hold it before its first use of a GPU until its turn. Default:
        /// true for the presets vllm, sglang and transformers with their own program outside a container.
        start_ahead: bool,
        /// Longest time from launch (of an engine that was held: from its turn) to the first answered request. Default 15m.
        start_timeout: Time,
        /// Time between asking the engine to stop and killing it. Default 10s.
        stop_grace: Time,
        /// Longest time of one swap out or in. Default 2m.
        swap_timeout: Time,
        /// How long an engine may answer no health request and use no CPU before it is started again; "0s": never looked at.
        /// Default 1m.
        hang_timeout: Time,
        /// What happens to the engine's request when a client goes away. Default "cancel".
        on_disconnect: DisconnectPolicy,
        /// Apptainer image that the command runs in.
        apptainer: String,
        /// Commands of the `hook` mechanism.
        hooks: Hooks,
        /// HTTP path that answers 200 when the engine is up.
        health_path: String,
        /// The small request that proves the engine ready, and unchanged by a swap.
        probe: Probe,
        /// Talk to the engine through a Unix socket. Default: where the engine can.
        unix_socket: bool,
    }
}

section! {
    /// The endpoint.
    struct Router in "a table of the endpoint's keys" {
        /// Address to listen on. Default 127.0.0.1.
        host: Address,
        /// TCP port. Default 0: the kernel chooses one.
        port: u16,
        /// Listen on a Unix socket in the run directory as well. Default true.
        unix_socket: bool,
        /// Ask for a key; a random one is made for each run. Default true.
        require_key: bool,
        /// Largest request body. Default 64MiB.
        max_body: Size,
        /// Longest time a client may take to send its headers. Default 10s.
        header_timeout: Time,
        /// Longest time that a resident engine may take to begin its answer before the request fails. Default 30m.
        first_byte_timeout: Time,
        /// Longest silence of a resident engine in mid-stream before the request fails; 0s: no bound. Default: no bound.
        idle_stream_timeout: Time,
        /// Longest time in which a client may read nothing of its answer before it is cut off; 0s: no bound. Default 5m.
        client_timeout: Time,
    }
}

section! {
    /// The bounds that requests and engines can rely on.
    struct Scheduler in "a table of the scheduler's keys" {
        /// Requests that may wait for one model; more are refused with 429. Default 512.
        queue_limit: u32,
        /// Longest wait of a request before 504. Default 10m.
        max_wait: Time,
        /// Least time a model stays resident after a swap in while it has work. Default 2s.
        min_resident: Time,
        /// How long a model that waits bears that a busy one goes first. Default 5s.
        patience: Time,
        /// How long a drain may take before a busy engine is swapped out in mid-answer, where its streams survive that.
        /// Default 30s.
        drain_limit: Time,
        /// How long before the job's end requests are refused that would not be done by then, as the model's longer requests
        /// go, and answers say how much time is left. Default 2m; 0s: only what is not even begun by then is refused.
        end_margin: Time,
        /// CPU engines that may compute at once. Default 0: one for every core of the job.
        running_slots: u32,
    }
}

section! {
    /// What the job's memory is used for.
    struct Memory in "a table of the memory's keys" {
        /// Memory of each GPU that engines may take. Default: all that is free when the run begins.
        gpu_budget: Size,
        /// Memory kept free on each GPU. Default 256MiB.
        gpu_headroom: Size,
        /// Host memory for CPU engines and for engines that are out. Default: the job's limit less the headroom.
        host_budget: Size,
        /// Host memory kept for your own program. Default 1GiB.
        host_headroom: Size,
        /// Pinned host memory that engines are parked in, set aside when the run begins; "0GiB": none is parked.
        /// Default: what the models with `park` in their `swap` take, at most three quarters of the host memory for engines.
        pool: Size,
    }
}

/// Sections that know a key, for «belongs in …».
pub(super) fn homes(key: &str) -> Vec<&'static str> {
    let sections: [(&str, &[&str]); 4] = [
        ("[models.NAME]", Model::KEYS),
        ("[router]", Router::KEYS),
        ("[scheduler]", Scheduler::KEYS),
        ("[memory]", Memory::KEYS),
    ];
    sections.into_iter().filter(|(_, keys)| keys.contains(&key)).map(|(name, _)| name).collect()
}

/// `[models]`: every entry with its name, in the order of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Models(pub Vec<(At<String>, Model)>);

impl FromToml for Models {
    const EXPECTED: &'static str = "a table for each model: [models.NAME]";

    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            wrong_type::<Self>(value, place, mistakes);
            return None;
        };
        let mut models = Vec::new();
        for (name, value) in in_order(table) {
            let key: &str = name.get_ref();
            // A key of a model directly under [models]: the name was forgotten.
            if Model::KEYS.contains(&key) && !value.get_ref().is_table() {
                unknown_key(name.span(), key, place, &["NAME"], mistakes);
                continue;
            }
            let model = Model::read(value, &format!("{place}.{key}"), mistakes);
            models.push((At { value: key.to_owned(), span: name.span() }, model.unwrap_or_default()));
        }
        Some(Models(models))
    }
}

impl JsonSchema for Models {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Models".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, Model>::json_schema(generator)
    }
}

/// `[defaults]`: a model's keys without those that only one model can have.
#[derive(Clone, Debug, Default)]
pub(super) struct Defaults(pub Model);

/// Keys that make no sense for every model at once.
const PER_MODEL: [&str; 3] = ["aliases", "command", "model"];

impl FromToml for Defaults {
    const EXPECTED: &'static str = "a table of a model's keys";

    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        for (name, _) in value.get_ref().as_table().map(in_order).unwrap_or_default() {
            let key: &str = name.get_ref();
            if PER_MODEL.contains(&key) {
                unknown_key(name.span(), key, place, &["engine", "args", "env", "gpus", "swap"], mistakes);
            }
        }
        Model::read(value, place, mistakes).map(Defaults)
    }
}

impl JsonSchema for Defaults {
    fn schema_name() -> Cow<'static, str> {
        "Defaults".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Model::json_schema(generator);
        if let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) {
            PER_MODEL.iter().for_each(|key| drop(properties.remove(*key)));
        }
        schema
    }
}

/// `hooks = { out = [...], in = [...] }`.
#[derive(Clone, Debug)]
pub(super) struct Hooks {
    /// The command that frees the engine's resources.
    pub out: At<Words>,
    /// The command that brings them back.
    pub back: At<Words>,
}

impl FromToml for Hooks {
    const EXPECTED: &'static str = "two commands { out = [\"…\"], in = [\"…\"] }";

    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let before = mistakes.len();
        let (mut out, mut back) = (None, None);
        for (name, value) in value.get_ref().as_table().map(in_order).unwrap_or_default() {
            let key: &str = name.get_ref();
            match key {
                "out" => out = read_at(value, &format!("{place}.out"), mistakes),
                "in" => back = read_at(value, &format!("{place}.in"), mistakes),
                _ => unknown_key(name.span(), key, place, &["out", "in"], mistakes),
            }
        }
        let missing = match (&out, &back) {
            (Some(_), Some(_)) => None,
            _ if !value.get_ref().is_table() => {
                wrong_type::<Self>(value, place, mistakes);
                None
            }
            (Some(_), None) => Some("in"),
            _ => Some("out"),
        };
        if let Some(missing) = missing.filter(|_| mistakes.len() == before) {
            let message = format!("`{place}` has no `{missing}`");
            let help = format!("expected {}", Self::EXPECTED);
            mistakes.push(Mistake::at(value.span(), Code::MissingKey, message, help));
        }
        Some(Hooks { out: out?, back: back? })
    }
}

impl JsonSchema for Hooks {
    fn schema_name() -> Cow<'static, str> {
        "Hooks".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let words = Words::json_schema(generator);
        json_schema!({
            "type": "object",
            "properties": { "out": words, "in": words },
            "required": ["out", "in"],
            "additionalProperties": false,
        })
    }
}
