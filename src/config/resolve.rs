//! The file as written to a [`Plan`]: defaults, presets, ladders, paths.
//!
//! Nothing here asks whether a path or a program exists or whether the job is large enough; that is `check`'s.

use super::{
    mistake::{Code, Mistake},
    paths,
    plan::{DisconnectPolicy, Hooks, MemoryPlan, ModelPlan, Plan, Preset, RouterPlan, SchedulerPlan},
    presets::{CPU_LADDER, ServedAs, Weights, When},
    raw::{self, File, Model},
    reader::At,
    template,
    values::{Ladder, Words},
};
use crate::units::{Bytes, MechanismKind};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

/// One model on its way: what was written, and what was made of it.
pub(super) struct Draft {
    /// The name and where it stands.
    pub name: At<String>,
    /// The model's own keys.
    pub own: Model,
    /// The same, with the defaults.
    pub raw: Model,
    /// What became of it.
    pub plan: ModelPlan,
}

impl Draft {
    /// The place of a key, or of the model's name where the key is not given.
    pub fn place<T>(&self, key: &Option<At<T>>) -> Range<usize> {
        key.as_ref().map_or_else(|| self.name.span.clone(), |at| at.span.clone())
    }
}

/// Makes the drafts of all models.
pub(super) fn models(file: &File, base: &Path, no_gpu: bool, mistakes: &mut Vec<Mistake>) -> Vec<Draft> {
    let defaults = file.defaults.as_ref().map(|at| at.value.0.clone()).unwrap_or_default();
    let models = file.models.iter().flat_map(|at| &at.value.0);
    models.filter_map(|(name, own)| model(name, own, &defaults, base, no_gpu, mistakes)).collect()
}

/// Puts the plan together.
pub(super) fn plan(source: &Path, file: &File, drafts: Vec<Draft>) -> Plan {
    Plan {
        source: source.to_owned(),
        models: drafts.into_iter().map(|draft| draft.plan).collect(),
        router: router(file),
        scheduler: scheduler(file),
        memory: memory(file),
    }
}

/// `[router]` with its defaults.
pub(super) fn router(file: &File) -> RouterPlan {
    let raw = section(&file.router);
    RouterPlan {
        host: value(&raw.host).map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |a| a.0),
        port: value(&raw.port).unwrap_or(0),
        unix_socket: value(&raw.unix_socket).unwrap_or(true),
        require_key: value(&raw.require_key).unwrap_or(true),
        max_body: value(&raw.max_body).map_or(Bytes::mib(64), |s| s.0),
        header_timeout: value(&raw.header_timeout).map_or(Duration::from_secs(10), |t| t.0),
        first_byte_timeout: Some(value(&raw.first_byte_timeout).map_or(Duration::from_secs(1800), |t| t.0)),
        idle_stream_timeout: value(&raw.idle_stream_timeout).map(|t| t.0).filter(|t| !t.is_zero()),
        client_timeout: Some(value(&raw.client_timeout).map_or(Duration::from_secs(300), |t| t.0))
            .filter(|t| !t.is_zero()),
    }
}

fn scheduler(file: &File) -> SchedulerPlan {
    let raw = section(&file.scheduler);
    SchedulerPlan {
        queue_limit: value(&raw.queue_limit).unwrap_or(512),
        max_wait: value(&raw.max_wait).map_or(Duration::from_secs(600), |t| t.0),
        min_resident: value(&raw.min_resident).map_or(Duration::from_secs(2), |t| t.0),
        patience: value(&raw.patience).map_or(Duration::from_secs(5), |t| t.0),
        drain_limit: value(&raw.drain_limit).map_or(Duration::from_secs(30), |t| t.0),
        end_margin: value(&raw.end_margin).map_or(Duration::from_secs(120), |t| t.0),
        running_slots: value(&raw.running_slots).unwrap_or(0),
    }
}

/// `[memory]` with its defaults.
pub(super) fn memory(file: &File) -> MemoryPlan {
    let raw = section(&file.memory);
    MemoryPlan {
        gpu_budget: value(&raw.gpu_budget).map(|s| s.0),
        gpu_headroom: value(&raw.gpu_headroom).map_or(Bytes::mib(256), |s| s.0),
        host_budget: value(&raw.host_budget).map(|s| s.0),
        host_headroom: value(&raw.host_headroom).map_or(Bytes::gib(1), |s| s.0),
        pool: value(&raw.pool).map(|s| s.0),
    }
}

fn section<T: Clone + Default>(section: &Option<At<T>>) -> T {
    section.as_ref().map(|at| at.value.clone()).unwrap_or_default()
}

fn value<T: Clone>(key: &Option<At<T>>) -> Option<T> {
    key.as_ref().map(|at| at.value.clone())
}

fn model(
    name: &At<String>,
    own: &Model,
    defaults: &Model,
    base: &Path,
    no_gpu: bool,
    mistakes: &mut Vec<Mistake>,
) -> Option<Draft> {
    let mut raw = own.clone().or(defaults);
    raw.env = merged(&own.env, &defaults.env);
    let Some(engine) = value(&raw.engine) else {
        if !raw.broken.contains(&"engine") {
            let message = format!("[models.{}] does not say which engine it is", name.value);
            let help =
                "add engine = \"vllm\", \"llama-cpp\" or another, or engine = \"custom\" with a command";
            mistakes.push(Mistake::at(name.span.clone(), Code::MissingKey, message, help));
        }
        return None;
    };
    let gpus = gpus(&raw, no_gpu);
    let swap = ladder(engine, gpus, &raw);
    let facts = engine.facts();
    let unix_socket = match engine {
        Preset::Custom => mentions(words(&raw.command).chain(words(&raw.args)), &raw, "socket"),
        _ => value(&raw.unix_socket).unwrap_or(facts.unix_socket),
    };
    let sleeps = swap.iter().any(|m| matches!(m, MechanismKind::Sleep | MechanismKind::SleepCheckpoint));
    let sleep_level = value(&raw.sleep_level).unwrap_or(1);
    let given = |when: When| match when {
        When::Always => true,
        When::NoModelYet => !words(&raw.command).any(|word| template::uses(word, "model")),
        When::Socket => unix_socket,
        When::Port => !unix_socket,
        When::Cpu => gpus == 0,
        When::Gpu => gpus > 0,
        When::ManyGpus => gpus > 1,
        When::GpuMemory => gpus > 0 && raw.gpu_memory.is_some(),
        When::Sleeps => sleeps,
        When::SleepsKeepingWeights => sleeps && sleep_level == 1,
    };

    let mut command: Vec<String> = match &raw.command {
        Some(command) => command.value.0.iter().map(|word| word.value.clone()).collect(),
        None => facts.program.iter().map(|word| (*word).to_owned()).collect(),
    };
    resolve_program(&mut command, base);
    let options = facts.options.iter().filter(|(when, _)| given(*when)).flat_map(|(_, words)| *words);
    command.extend(options.map(|word| (*word).to_owned()));
    let preset_env = facts.env.iter().filter(|(when, ..)| given(*when));
    let mut env: BTreeMap<String, String> =
        preset_env.map(|(_, k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    env.extend(raw.env.iter().flat_map(|at| &at.value.0).map(|(k, v)| (k.clone(), v.value.clone())));
    let preset_files = facts.files.iter().filter(|(when, ..)| given(*when));
    let files: BTreeMap<String, String> =
        preset_files.map(|(_, k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let args: Vec<String> = words(&raw.args).map(str::to_owned).collect();
    let all = command.iter().chain(&args).chain(env.values()).chain(files.values());
    let api_key = all.map(String::as_str).any(|text| template::uses(text, "api_key"));

    let model = weights(&raw, facts.weights, base, mistakes);
    let plan = ModelPlan {
        name: name.value.clone(),
        aliases: raw.aliases.iter().flat_map(|at| &at.value.0).map(|a| a.value.clone()).collect(),
        engine,
        command,
        args,
        env,
        files,
        served_as: if facts.served_as == ServedAs::Name { name.value.clone() } else { model.clone() },
        model,
        gpus,
        gpu_memory: value(&raw.gpu_memory).filter(|_| gpus > 0).map(|s| s.0),
        host_memory: value(&raw.host_memory).map(|s| s.0),
        swap,
        swap_auto: matches!(value(&raw.swap), None | Some(Ladder::Auto)),
        sleep_level,
        pin: value(&raw.pin).unwrap_or(false),
        preload: value(&raw.preload).unwrap_or(false),
        idle_ttl: value(&raw.idle_ttl).map(|t| t.0),
        start_ahead: gpus > 0
            && value(&raw.start_ahead).unwrap_or_else(|| {
                // Of another program, or another C library, nothing is known.
                facts.starts_ahead && raw.command.is_none() && raw.apptainer.is_none()
            }),
        start_timeout: value(&raw.start_timeout).map_or(Duration::from_secs(900), |t| t.0),
        stop_grace: value(&raw.stop_grace).map_or(Duration::from_secs(10), |t| t.0),
        swap_timeout: value(&raw.swap_timeout).map_or(Duration::from_secs(120), |t| t.0),
        hang_timeout: Some(value(&raw.hang_timeout).map_or(Duration::from_secs(60), |t| t.0))
            .filter(|limit| !limit.is_zero()),
        on_disconnect: value(&raw.on_disconnect).unwrap_or(DisconnectPolicy::Cancel),
        apptainer: raw.apptainer.as_ref().and_then(|image| path(image, base, mistakes)),
        hooks: raw.hooks.as_ref().map(|at| hooks(&at.value, base)),
        health_path: value(&raw.health_path).unwrap_or_else(|| facts.health_path.to_owned()),
        probe: value(&raw.probe).unwrap_or(facts.probe),
        unix_socket,
        api_key,
    };
    Some(Draft { name: name.clone(), own: own.clone(), raw, plan })
}

/// A model's own variables over the defaults'.
fn merged(
    own: &Option<At<super::values::Variables>>,
    defaults: &Option<At<super::values::Variables>>,
) -> Option<At<super::values::Variables>> {
    let (Some(own), Some(defaults)) = (own, defaults) else {
        return own.clone().or_else(|| defaults.clone());
    };
    let mut all = own.clone();
    let inherited = defaults.value.0.iter().filter(|(name, _)| own.value.0.iter().all(|(n, _)| n != name));
    all.value.0.extend(inherited.cloned());
    Some(all)
}

/// GPUs of the engine. Where the file does not say: none for an engine that is frozen or whose job has no GPU, else one.
fn gpus(raw: &Model, no_gpu: bool) -> u32 {
    let frozen = match raw.swap.as_ref().map(|at| &at.value) {
        Some(Ladder::Only(kinds)) => kinds.iter().any(|kind| kind.value == MechanismKind::Freeze),
        _ => false,
    };
    let wants_gpu = raw.gpu_memory.is_some();
    value(&raw.gpus).unwrap_or(u32::from(wants_gpu || !(frozen || no_gpu)))
}

fn ladder(engine: Preset, gpus: u32, raw: &Model) -> Vec<MechanismKind> {
    match raw.swap.as_ref().map(|at| &at.value) {
        Some(Ladder::Only(kinds)) => kinds.iter().map(|kind| kind.value).collect(),
        None | Some(Ladder::Auto) if gpus == 0 => CPU_LADDER.to_vec(),
        None | Some(Ladder::Auto) => engine.facts().gpu_ladder.to_vec(),
    }
}

fn hooks(raw: &raw::Hooks, base: &Path) -> Hooks {
    let command = |words: &At<Words>| {
        let mut words: Vec<String> = words.value.0.iter().map(|word| word.value.clone()).collect();
        resolve_program(&mut words, base);
        words
    };
    Hooks { out: command(&raw.out), back: command(&raw.back) }
}

/// A program given by a relative path stands beside the config, wherever swapserve is started.
fn resolve_program(command: &mut [String], base: &Path) {
    let Some(program) = command.first_mut() else { return };
    if let Ok(text) = paths::expand(program, paths::variable) {
        let relative = text.contains('/') && !text.starts_with(['/', '{']);
        *program = if relative { paths::tidy(&base.join(text)).display().to_string() } else { text };
    }
}

/// The `model` key: a path made absolute, or a name as it is.
fn weights(raw: &Model, weights: Weights, base: &Path, mistakes: &mut Vec<Mistake>) -> String {
    let Some(given) = &raw.model else { return String::new() };
    if weights == Weights::Name {
        return given.value.clone();
    }
    let Some(path) = path(given, base, mistakes) else { return given.value.clone() };
    let is_path =
        weights == Weights::Path || paths::looks_like_path(&given.value) || given.value.contains('$');
    if is_path || path.exists() { path.display().to_string() } else { given.value.clone() }
}

/// A path with its variables filled, absolute.
fn path(given: &At<String>, base: &Path, mistakes: &mut Vec<Mistake>) -> Option<PathBuf> {
    match paths::expand(&given.value, paths::variable) {
        // An image may be a URI: apptainer fetches it.
        Ok(text) if text.contains("://") => Some(PathBuf::from(text)),
        Ok(text) => Some(paths::tidy(&base.join(text))),
        Err(name) => {
            let message = format!("{:?} uses ${name}, which is not set", given.value);
            let help = format!("export {name} before swapserve starts, or write the path out");
            mistakes.push(Mistake::at(given.span.clone(), Code::MissingPath, message, help));
            None
        }
    }
}

fn words(words: &Option<At<Words>>) -> impl Iterator<Item = &str> {
    words.iter().flat_map(|at| &at.value.0).map(|word| word.value.as_str())
}

/// Whether a command or its environment uses one of the template's names.
fn mentions<'a>(words: impl Iterator<Item = &'a str>, raw: &'a Model, name: &str) -> bool {
    let variables = raw.env.iter().flat_map(|at| &at.value.0).map(|(_, value)| value.value.as_str());
    words.chain(variables).any(|text| template::uses(text, name))
}
