//! Keys that are missing, contradict each other, or ask for a mechanism that the engine cannot be swapped by.

use crate::{
    config::{
        mistake::{Code, Mistake},
        plan::Preset,
        presets::Weights,
        raw::File,
        reader::At,
        resolve::Draft,
        values::{Ladder, Time},
    },
    units::MechanismKind::{
        self, Checkpoint, Freeze, Hook, Park, ParkCheckpoint, Restart, Sleep, SleepCheckpoint,
    },
};

use std::ops::Range;

/// Values of the other sections.
pub(super) fn sections(file: &File, mistakes: &mut Vec<Mistake>) {
    if let Some(scheduler) = &file.scheduler {
        not_zero(&scheduler.value.max_wait, "max_wait", mistakes);
        if let Some(limit) = scheduler.value.queue_limit.as_ref().filter(|limit| limit.value == 0) {
            let help = "a request has to wait while its model is swapped in; allow at least 1";
            mistakes.push(Mistake::at(limit.span.clone(), Code::BadValue, "`queue_limit` cannot be 0", help));
        }
    }
    if let Some(router) = &file.router {
        not_zero(&router.value.header_timeout, "header_timeout", mistakes);
        not_zero(&router.value.first_byte_timeout, "first_byte_timeout", mistakes);
        if let Some(size) = router.value.max_body.as_ref().filter(|size| size.value.0.0 == 0) {
            let help = "leave it out for 64MiB";
            mistakes.push(Mistake::at(size.span.clone(), Code::BadValue, "`max_body` cannot be 0", help));
        }
    }
}

fn not_zero(time: &Option<At<Time>>, key: &str, mistakes: &mut Vec<Mistake>) {
    if let Some(time) = time.as_ref().filter(|time| time.value.0.is_zero()) {
        let help = "leave it out for the default";
        mistakes.push(Mistake::at(time.span.clone(), Code::BadValue, format!("`{key}` cannot be 0"), help));
    }
}

/// One model's keys.
pub(super) fn model(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    missing(draft, mistakes);
    contradictions(draft, mistakes);
    ladder(draft, mistakes);
    not_zero(&draft.raw.start_timeout, "start_timeout", mistakes);
    not_zero(&draft.raw.swap_timeout, "swap_timeout", mistakes);
    if let Some(path) = draft.raw.health_path.as_ref().filter(|path| !path.value.starts_with('/')) {
        let message = format!("`health_path` cannot be {:?}", path.value);
        mistakes.push(Mistake::at(
            path.span.clone(),
            Code::BadValue,
            message,
            "begin it with a slash: \"/health\"",
        ));
    }
}

fn missing(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let (name, engine) = (&draft.name, draft.plan.engine);
    let mut missing = |key: &'static str, help: &str| {
        if draft.raw.broken.contains(&key) {
            return;
        }
        let message =
            format!("[models.{}] has no `{key}`, and engine {:?} needs one", name.value, engine.name());
        mistakes.push(Mistake::at(draft.place(&draft.raw.engine), Code::MissingKey, message, help));
    };
    if draft.raw.model.is_none() && engine.facts().weights != Weights::Free && draft.raw.command.is_none() {
        missing("model", "add model = \"/path/to/the/weights\"");
    }
    if draft.raw.command.as_ref().is_none_or(|command| command.value.0.is_empty()) && engine == Preset::Custom
    {
        missing("command", "add command = [\"program\", \"--port\", \"{{ port }}\"]");
    }
}

fn contradictions(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let (own, plan) = (&draft.own, &draft.plan);
    let mut note = |code: Code, span: &Range<usize>, message: String, help: &str| {
        mistakes.push(Mistake::at(span.clone(), code, message, help));
    };
    if let Some(size) = own.gpu_memory.as_ref().filter(|_| plan.gpus == 0) {
        let message = format!("`gpu_memory` is given, but {} uses no GPU", plan.name);
        note(Code::Conflict, &size.span, message, "leave it out, or set gpus = 1");
    }
    if let Some(size) = own.host_memory.as_ref().filter(|_| plan.gpus > 0) {
        let message = format!("`host_memory` is given, but {} is no CPU engine", plan.name);
        note(Code::Conflict, &size.span, message, "leave it out, or set gpus = 0");
    }
    if let Some(ahead) = own.start_ahead.as_ref().filter(|ahead| ahead.value && plan.gpus == 0) {
        let message = format!("`start_ahead` is set, but {} uses no GPU that it could wait for", plan.name);
        note(Code::Conflict, &ahead.span, message, "leave it out; engines without a GPU wait for nobody");
    }
    if let Some(level) = &own.sleep_level {
        if !matches!(level.value, 1 | 2) {
            let message = format!("`sleep_level` cannot be {}", level.value);
            let help = "1 keeps the weights in host memory, 2 drops them and loads them again";
            note(Code::BadValue, &level.span, message, help);
        } else if !matches!(plan.engine, Preset::Vllm | Preset::Sglang) {
            let engine = plan.engine.name();
            let message =
                format!("`sleep_level` is for vllm and sglang, and {} is engine {engine:?}", plan.name);
            note(Code::Conflict, &level.span, message, "leave it out");
        }
    }
    if let Some(hooks) = own.hooks.as_ref().filter(|_| !plan.swap.contains(&Hook)) {
        let message = "`hooks` are given, but `swap` does not name `hook`".to_owned();
        note(
            Code::Conflict,
            &hooks.span,
            message,
            "add swap = [\"hook\", \"restart\"], or leave the hooks out",
        );
    }
    if let Some(socket) =
        own.unix_socket.as_ref().filter(|socket| socket.value && !plan.engine.facts().unix_socket)
    {
        let (message, help) = match plan.engine {
            Preset::Custom => (
                "`unix_socket` does not say how the engine is told its socket".to_owned(),
                "use {{ socket }} in its command instead; that is enough",
            ),
            other => (format!("engine {:?} cannot listen on a Unix socket", other.name()), "leave it out"),
        };
        note(Code::Conflict, &socket.span, message, help);
    }
}

fn ladder(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let Some(Ladder::Only(kinds)) = draft.raw.swap.as_ref().map(|at| &at.value) else { return };
    for (at, kind) in kinds.iter().enumerate() {
        if let Some(first) = kinds[..at].iter().find(|other| other.value == kind.value) {
            let message = format!("`swap` names {:?} twice", kind.value.name());
            let mistake = Mistake::at(kind.span.clone(), Code::Conflict, message, "name each mechanism once");
            mistakes.push(mistake.label("again here").and(first.span.clone(), "first here"));
        }
        if let Some((why, help)) = unsuited(draft, kind.value) {
            let message = format!("{} cannot be swapped by {:?}: {why}", draft.plan.name, kind.value.name());
            mistakes.push(Mistake::at(kind.span.clone(), Code::UnsuitedMechanism, message, help));
        }
        if kind.value == Hook && draft.raw.hooks.is_none() && !draft.raw.broken.contains(&"hooks") {
            let message = format!("[models.{}] has swap = \"hook\" but no `hooks`", draft.plan.name);
            let help = "add hooks = { out = [\"command\"], in = [\"command\"] }";
            mistakes.push(Mistake::at(kind.span.clone(), Code::MissingKey, message, help));
        }
    }
}

/// Why a mechanism cannot work for this engine, and what to do.
fn unsuited(draft: &Draft, kind: MechanismKind) -> Option<(String, &'static str)> {
    let plan = &draft.plan;
    let cpu = plan.gpus == 0;
    match kind {
        Sleep | SleepCheckpoint if !plan.engine.sleeps() => Some((
            format!("engine {:?} has no sleep mode", plan.engine.name()),
            "use swap = \"auto\"; sleep is for vllm, sglang, tensorrt-llm and ollama, whose program `command` may replace",
        )),
        Park | ParkCheckpoint | Sleep | SleepCheckpoint | Checkpoint if cpu => {
            Some(("it uses no GPU".to_owned(), "use swap = \"freeze\" or \"restart\", or set gpus = 1"))
        }
        Freeze if !cpu => Some((
            "a frozen engine keeps all its GPU memory".to_owned(),
            "use swap = \"auto\", or set gpus = 0 for a CPU engine",
        )),
        Park | ParkCheckpoint | Sleep | SleepCheckpoint | Checkpoint | Freeze | Restart | Hook => None,
    }
}
